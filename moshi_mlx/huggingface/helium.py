"""The temporal transformer under the names of Hugging Face's `MoshiModel` and `MoshiForCausalLM`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .. import inputs
from ..errors import InputError
from ..models import config as plain
from ..models.helium import Helium, LanguageModel
from ..models.layers.sequence import Packing, packing, starts_again
from ..models.losses import cross_entropy
from ..models.state import State
from . import pretrained
from .classes import Methods
from .config import MoshiConfig
from .outputs import BaseModelOutput, CausalLMOutput
from .text_generation import generate_text

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MoshiModel(Methods, Helium):
    """`Helium` with Hugging Face's forward pass over whole sequences.

    >>> helium = moshi_mlx.load("miniature", dtype="float32").decoder.model
    >>> helium(mx.array([[5, 6, 7]])).last_hidden_state.shape  # [B, T, hidden]
    (1, 3, 256)
    """

    config: MoshiConfig

    def __init__(self, config: plain.MoshiConfig, seed: int = 0) -> None:
        super().__init__(MoshiConfig.of(config), seed)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: State = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        room: int = 0,
    ) -> BaseModelOutput:
        """input_ids int [B, T] of text (-1: no input) or inputs_embeds [B, T, hidden] -> hidden state and state.

        `attention_mask` [B, T] is 0 where there is padding, before or behind a row, which then equals the row alone
        (what comes out at padding means nothing). `past_key_values` is the state that an earlier call returned, or the
        live path's; `room` is how many positions the returned one can take before it has to be copied to grow. The
        window is the same for every position; transformers 5.23 forgets it in a call of many.

        `position_ids` [B, T] or [T]: where they do not rise, another sequence begins, which sees nothing of the one
        before it (packed sequences); there is no state to return then. Raises InputError.
        """
        x = self._embeds(input_ids, inputs_embeds)
        batch, length, _ = x.shape
        packed = None
        if attention_mask is not None:
            packed = packing(inputs.attention_mask(attention_mask, batch, length))
            x = packed.pack(x)
        rotary = None if position_ids is None else _positions(position_ids, batch, length)
        if rotary is not None and packed is not None:
            rotary = packed.pack(rotary)
        apart = False if rotary is None else _starts_again(rotary, packed)
        keep_state = (self.config.use_cache and not apart) if use_cache is None else use_cache
        if apart and keep_state:
            raise InputError("use_cache: got True with position_ids that start again; a state is of one sequence a row")
        _check_past(past_key_values, batch, len(self.transformer.layers))
        hidden_states: list[mx.array] = [x]
        attentions: list[mx.array] = []
        x, state = self.transformer.over_sequence(
            x,
            past_key_values,
            lengths=None if packed is None else packed.lengths,
            rotary=rotary,
            packed=apart is not False,
            room=inputs.whole("room", room),
            attentions=attentions if output_attentions else None,
            hidden_states=hidden_states if output_hidden_states else None,
        )
        hidden_states[-1] = x = self.norm(x)
        return BaseModelOutput(
            last_hidden_state=_unpacked(x, packed),
            past_key_values=state if keep_state else None,
            hidden_states=tuple(_unpacked(h, packed) for h in hidden_states) if output_hidden_states else None,
            attentions=tuple(_unpacked_weights(w, packed) for w in attentions) if output_attentions else None,
        )

    def _embeds(self, input_ids: Any, inputs_embeds: Any) -> mx.array:
        inputs.one_of(input_ids=input_ids, inputs_embeds=inputs_embeds)
        if inputs_embeds is not None:
            embeds = inputs.floats("inputs_embeds", inputs_embeds, (None, None, self.config.hidden_size))
            return embeds.astype(self.dtype)
        return self.embed_tokens(inputs.tokens("input_ids", input_ids, (None, None), -1, self.config.table_rows[0] - 1))

    @classmethod
    @inputs.spelled_out(pretrained.ModelSettings)
    def from_pretrained(cls, path_or_hub_id: str | Path, **settings: Unpack[pretrained.ModelSettings]) -> MoshiModel:
        """The temporal transformer of a folder or hub id, in any layout, of a whole Moshi or saved alone.

        The settings are those of `MoshiForConditionalGeneration.from_pretrained`.
        """
        return pretrained.causal_lm(MoshiForCausalLM, path_or_hub_id, settings).model


def _positions(position_ids: Any, batch: int, length: int) -> mx.array:
    """Rotary positions int [B, T] of [B, T], [1, T] or [T]."""
    given = position_ids if isinstance(position_ids, mx.array) else inputs.on_host("position_ids", position_ids)
    given = given[None] if given.ndim == 1 else given
    rows = batch if given.ndim != 2 or given.shape[0] != 1 else 1
    return mx.broadcast_to(inputs.tokens("position_ids", given, (rows, length), 0, 2**31 - 1), (batch, length))


def _starts_again(rotary: mx.array, packed: Packing | None) -> bool | None:
    """Whether a row holds several sequences; None where positions have no values yet."""
    if inputs.is_traced(rotary) or (packed is not None and inputs.is_traced(packed.lengths)):
        return None
    again = starts_again(rotary)
    if packed is not None:
        again = again & (mx.arange(rotary.shape[1]) < packed.lengths[:, None])
    return bool(again.any().item())


def _check_past(past: State, batch: int, layers: int) -> None:
    """Raises InputError for what is no state of so many rows."""
    if past is None:
        return
    if not isinstance(past, dict) or len(past.get("layers", ())) != layers or "offset" not in past:
        raise InputError("past_key_values: got no state of this model, expected what an earlier call returned")
    if len(past["offset"]) != batch:
        raise InputError(f"past_key_values: got a state of {len(past['offset'])} rows, expected {batch}")


def _unpacked(x: mx.array, packed: Packing | None) -> mx.array:
    return x if packed is None else packed.unpack(x)


def _unpacked_weights(weights: mx.array, packed: Packing | None) -> mx.array:
    """Attention weights [B, H, T, past + T] with padding back in its place."""
    if packed is None:
        return weights
    length = weights.shape[2]
    past, new = mx.split(packed.unpack(weights, axis=2), [weights.shape[3] - length], axis=3)
    return mx.concatenate([past, packed.unpack(new, axis=3)], axis=3)


class MoshiForCausalLM(Methods, LanguageModel):
    """Helium with its text head; `.tokenizer` where one was loaded. Of text alone: `generate`, and Helium-1.

    >>> decoder = moshi_mlx.load("miniature", dtype="float32").decoder
    >>> decoder(mx.array([[5, 6, 7]])).logits.shape  # [B, T, vocab]
    (1, 3, 288)
    """

    helium_class = MoshiModel
    model: MoshiModel

    config: MoshiConfig

    def __init__(self, config: plain.MoshiConfig, seed: int = 0) -> None:
        super().__init__(MoshiConfig.of(config), seed)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: State = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        labels: Any = None,
        logits_to_keep: Any = 0,
        **flags: Any,
    ) -> CausalLMOutput:
        """As `MoshiModel`, and text logits [B, T, vocab]; the flags are its `output_...` and `room`.

        `labels` int [B, T] are the tokens themselves: the logits of a position are held to the label of the next, and
        labels of -100 (or -1) do not count. `logits_to_keep`: of the last so many positions alone, or of the positions
        in an array (0: of all); loss needs all of them. Raises InputError.
        """
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **flags)
        hidden = _kept(out.last_hidden_state, logits_to_keep)
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            batch, length, _ = out.last_hidden_state.shape
            if hidden.shape[1] != length:
                raise InputError(f"logits_to_keep: got {logits_to_keep!r} together with labels, expected 0")
            labels = inputs.tokens("labels", labels, (batch, length), -100, self.config.vocab_size - 1)
            loss = cross_entropy(logits[:, :-1], labels[:, 1:])
        return CausalLMOutput(loss, logits, hidden, out.past_key_values, out.hidden_states, out.attentions)

    generate = generate_text

    @classmethod
    @inputs.spelled_out(pretrained.ModelSettings)
    def from_pretrained(
        cls, path_or_hub_id: str | Path, **settings: Unpack[pretrained.ModelSettings]
    ) -> MoshiForCausalLM:
        """The temporal transformer and text head of a Moshi in any layout, or saved alone, or Helium-1.

        The settings are those of `MoshiForConditionalGeneration.from_pretrained`.
        """
        return pretrained.causal_lm(cls, path_or_hub_id, settings)

    @property
    def dtype(self) -> mx.Dtype:
        """The type that it is run in."""
        return self.model.dtype


def _kept(hidden: mx.array, logits_to_keep: Any) -> mx.array:
    if isinstance(inputs.scalar(logits_to_keep), (int, float, np.generic)):
        count = inputs.whole("logits_to_keep", logits_to_keep)
        return hidden if count == 0 else hidden[:, -count:]
    length = hidden.shape[1]
    return mx.take(hidden, inputs.tokens("logits_to_keep", logits_to_keep, (None,), -length, length - 1), axis=1)
