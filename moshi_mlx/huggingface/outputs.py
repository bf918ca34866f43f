"""What forward passes and `generate` return, under the names that Hugging Face users know.

A field is an array, a tuple of arrays (one for each layer), a state (`past_key_values`), or None: not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any


class ModelOutput:
    """Fields by name, by key or by number; those that are None do not count. `model(**output)` hands them on.

    It reads as a dict does, in the order of transformers' fields; `output["logits"] = x` is `output.logits = x`, and
    takes the names of fields alone.
    """

    def keys(self) -> list[str]:
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def values(self) -> list[Any]:
        return list(self.to_tuple())

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self.keys() else default

    def __len__(self) -> int:
        return len(self.keys())

    def __bool__(self) -> bool:
        return True

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, key: Any) -> Any:
        """By name, by number, or a slice of the tuple."""
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in (f.name for f in fields(self)):  # type: ignore[arg-type]
            raise KeyError(key)
        setattr(self, key, value)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())


@dataclass
class BaseModelOutput(ModelOutput):
    """Of `MoshiModel`. Hidden states [B, T, hidden] are the embeddings, then what each layer gave (the last one
    normalised); attentions are the weights [B, heads, T, positions seen] of each layer."""

    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class CausalLMOutput(ModelOutput):
    """Of `MoshiForCausalLM` and `MoshiDepthDecoder`: loss is a scalar, logits [B, T, vocabulary]."""

    loss: Any = None
    logits: Any = None
    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class ConditionalGenerationOutput(ModelOutput):
    """Of `MoshiForConditionalGeneration`. loss is text_loss + depth_loss, each a mean over its valid targets; logits
    [B, T, vocab], audio_logits [B, num_codebooks, T, audio_vocab]; `depth_` marks what is of the depth decoder."""

    loss: Any = None
    logits: Any = None
    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    depth_loss: Any = None
    audio_logits: Any = None
    depth_hidden_states: Any = None
    depth_attentions: Any = None
    text_loss: Any = None  # the last, for transformers has none


@dataclass
class GenerateOutput(ModelOutput):
    """Of `MoshiForConditionalGeneration.generate`: audio_sequences float [B, 1, samples], sequences int [B, T] (the
    prompt's text, then the new), audio_codes int [B, num_codebooks, frames] (likewise, of Moshi's own stream). scores
    and logits: of each new text token float [B, vocab], as it was drawn from and as the model gave it."""

    audio_sequences: Any = None
    sequences: Any = None
    scores: Any = None
    logits: Any = None
    audio_codes: Any = None


@dataclass
class TextOutput(ModelOutput):
    """Of `MoshiForCausalLM.generate` with return_dict_in_generate: sequences int [B, T]; scores and logits as above."""

    sequences: Any = None
    scores: Any = None
    logits: Any = None


@dataclass
class UnconditionalInput(ModelOutput):
    """Of `get_unconditional_inputs`: one position of initial tokens, ready for `generate(**inputs)`."""

    input_ids: Any = None
    user_audio_codes: Any = None
    moshi_audio_codes: Any = None
    attention_mask: Any = None


@dataclass
class MimiOutput(ModelOutput):
    """Of `MimiModel`: audio_codes int32 [B, codebooks, frames], -1 in frames that are padding; audio_values float
    [B, 1, samples]."""

    audio_codes: Any = None
    audio_values: Any = None
