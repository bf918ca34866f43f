"""The depth decoder under the names of Hugging Face's `MoshiDepthDecoder`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from .. import inputs as checks
from ..errors import InputError
from ..models import config as plain
from ..models.depth import Caches, DepthDecoder, layer_step
from ..models.losses import cross_entropy
from ..models.sampling import Sampling, StreamSettings, noise, sample
from ..models.state import State
from . import pretrained
from .classes import Methods
from .config import MoshiDepthConfig
from .outputs import CausalLMOutput
from .text_generation import TRANSFORMERS

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass
class Kept:
    """What a call was asked to keep of its steps."""

    hidden_states: list[list[mx.array]]  # of each step, its input and the output of each layer
    attentions: list[mx.array] | None  # [N, H, 1, steps so far], layer by layer, step after step

    def layer_states(self) -> tuple[mx.array, ...]:
        """[N, S, hidden] of the embeddings, then of each layer."""
        return tuple(mx.stack(list(steps), axis=1) for steps in zip(*self.hidden_states, strict=True))

    def layer_weights(self) -> tuple[mx.array, ...]:
        """The attention weights [N, H, S, steps] of each layer, zero where a step does not see."""
        weights = self.attentions or []
        layers = len(self.hidden_states[0]) - 1
        most = weights[-1].shape[-1]
        padded = [mx.pad(w, [(0, 0), (0, 0), (0, 0), (0, most - w.shape[-1])]) for w in weights]
        return tuple(mx.concatenate(padded[layer::layers], axis=2) for layer in range(layers))


class MoshiDepthDecoder(Methods, DepthDecoder):
    """`DepthDecoder` with Hugging Face's forward pass over given tokens, and `generate` of whole frames.

    >>> depth = moshi_mlx.load("miniature", dtype="float32").depth_decoder
    >>> tokens = mx.array([[5, 1, 2]])  # a frame's text token, then its first codes
    >>> depth(tokens, last_hidden_state=mx.zeros((1, 1, 256))).logits.shape  # [N, steps, codes]
    (1, 3, 256)
    """

    config: MoshiDepthConfig

    def __init__(self, config: plain.MoshiDepthConfig, seed: int = 0) -> None:
        super().__init__(MoshiDepthConfig.of(config), seed)

    def __call__(
        self,
        input_ids: Any = None,
        last_hidden_state: Any = None,
        attention_mask: Any = None,
        past_key_values: State = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        *,
        labels: Any = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> CausalLMOutput:
        """Steps of frames, given their tokens -> logits [N, S, audio_vocab] of S steps.

        input_ids int [N, S]: the text token, then codes of the codebooks in order (-1: no input), S up to
        num_codebooks; after `past_key_values` (what an earlier call returned) the steps count on. In their stead
        inputs_embeds [N, S, hidden]. last_hidden_state [N, input_size], [N, 1, input_size] or one for each step
        [N, S, input_size]. `labels` int [N, S] are the codes that each step should give, negative or audio_vocab_size
        where they do not count. An `attention_mask` [N, S] must be all 1, for a frame's steps are never padded. Raises
        InputError.
        """
        first = 0 if past_key_values is None else self._steps_of(past_key_values)
        embeds = self._embeds(input_ids, inputs_embeds, first)
        if attention_mask is not None:
            mask = checks.attention_mask(attention_mask, len(embeds[0]), len(embeds))
            if not checks.is_traced(mask) and not mask.all().item():
                raise InputError("attention_mask: got 0 (padding), expected 1 alone; a frame's steps are never padded")
        hidden = self._frames(last_hidden_state, len(embeds[0]), len(embeds))
        caches: Caches = [list(cache) for cache in past_key_values or [[]] * self.config.num_hidden_layers]
        kept = Kept([], [] if output_attentions else None)
        logits = self.over_steps(embeds, hidden, caches, kept)
        loss = None
        if labels is not None:
            labels = checks.tokens("labels", labels, logits.shape[:2], -100, self.config.audio_vocab_size)
            loss = cross_entropy(logits, mx.where(labels == self.config.audio_vocab_size, -1, labels))
        return CausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=caches if (self.config.use_cache if use_cache is None else use_cache) else None,
            hidden_states=kept.layer_states() if output_hidden_states else None,
            attentions=kept.layer_weights() if output_attentions else None,
        )

    def over_steps(self, embeds: list[mx.array], hidden: mx.array, caches: Caches, kept: Kept) -> mx.array:
        """The tokens' embeddings [N, hidden] of each step and hidden [N, 1 or S, input_size] -> logits [N, S, V]."""
        first = caches[0][0].shape[2] if caches[0] else 0
        sets = self.config.schedule[first : first + len(embeds)]
        parts = [list(mx.split(part, hidden.shape[1], axis=1)) for part in self.inputs(hidden)]
        logits = []
        for step, (embed, s) in enumerate(zip(embeds, sets, strict=True)):
            x = parts[s][step if hidden.shape[1] > 1 else 0].squeeze(1) + embed
            states = [x]
            for layer, cache in zip(self.slices[first + step].transformer.layers, caches, strict=True):
                x = layer_step(layer, x, cache, kept.attentions)
                states.append(x)
            kept.hidden_states.append(states)
            logits.append(self.slices[first + step].logits(x))
        return mx.stack(logits, axis=1)

    def embed(self, tokens: mx.array, first: int = 0) -> list[mx.array]:
        """tokens int [N, S] that the steps from `first` on see -> their rows [N, hidden], one for each step."""
        columns = [column.squeeze(1) for column in mx.split(tokens, tokens.shape[1], axis=1)]
        parts = self.slices[first : first + len(columns)]
        return [part.emb(column) for part, column in zip(parts, columns, strict=True)]

    def _steps_of(self, past: Any) -> int:
        """How many steps a state has taken."""
        layers = self.config.num_hidden_layers
        if not isinstance(past, (list, tuple)) or len(past) != layers or not all(len(layer) == 2 for layer in past):
            raise InputError(
                "past_key_values: got no state of the depth decoder, expected what an earlier call returned"
            )
        return int(past[0][0].shape[2])

    def _embeds(self, input_ids: Any, inputs_embeds: Any, first: int) -> list[mx.array]:
        config = self.config
        checks.one_of(input_ids=input_ids, inputs_embeds=inputs_embeds)
        if inputs_embeds is not None:
            given = checks.floats("inputs_embeds", inputs_embeds, (None, None, config.hidden_size))
        else:
            given = checks.tokens(
                "input_ids", input_ids, (None, None), -1, max(config.vocab_size, config.audio_vocab_size)
            )
            if first or given.shape[1] > 1:
                checks.tokens("input_ids after the text token", given[:, 0 if first else 1 :], (None, None), -1,
                              config.audio_vocab_size)  # fmt: skip
        steps = given.shape[1]
        if steps > config.num_codebooks - first:
            raise InputError(f"input_ids: got {steps} steps after {first}, expected {config.num_codebooks} in all")
        if inputs_embeds is None:
            return self.embed(given, first)
        return [column.squeeze(1) for column in mx.split(given, steps, axis=1)]

    def _frames(self, given: Any, rows: int, steps: int) -> mx.array:
        """last_hidden_state as [N, 1 or S, input_size]."""
        size = self.config.input_size
        if given is None:
            raise InputError(f"last_hidden_state: got None, expected [{rows}, 1 or {steps}, {size}]")
        hidden = checks.floats("last_hidden_state", given)
        hidden = hidden[:, None] if hidden.ndim == 2 else hidden
        if hidden.shape not in ((rows, 1, size), (rows, steps, size)):
            raise InputError(
                f"last_hidden_state: got shape {list(hidden.shape)}, expected [{rows}, 1 or {steps}, {size}]"
            )
        return hidden

    @checks.spelled_out(StreamSettings, TRANSFORMERS)
    def generate(
        self,
        input_ids: Any = None,
        last_hidden_state: Any = None,
        do_sample: bool = False,
        *,
        seed: int = 0,
        **settings: Unpack[StreamSettings],
    ) -> mx.array:
        """The codes of whole frames: input_ids int [N, 1] of text, last_hidden_state [N, 1, input_size]
        -> int32 [N, 1 + num_codebooks], the text token first.

        With do_sample they are drawn: temperature 1.0 (0: greedy), top_k 50 (0: no cut), top_p 1.0 (over 0 to 1), min_p
        0.0 (0 to 1) unless given; row n with the seed + n. Raises InputError.
        """
        text = checks.tokens("input_ids", input_ids, (None, 1), 0, self.config.vocab_size)
        hidden = self._frames(last_hidden_state, len(text), 1).squeeze(1)
        drawn = Sampling.of(settings) if do_sample else Sampling(temperature=0)
        row_seed = checks.seed(seed)
        keys = mx.stack([mx.random.key(checks.seed(row_seed + row)) for row in range(len(text))])
        draws, _ = noise(keys, [drawn.candidates(self.config.audio_vocab_size)] * self.config.num_codebooks)
        codes = self.sample(hidden, text.squeeze(1), lambda step, logits: sample(logits, draws[step], drawn))
        return mx.concatenate([text, codes], axis=1)

    @classmethod
    @checks.spelled_out(pretrained.LoadSettings)
    def from_pretrained(
        cls, path_or_hub_id: str | Path, **settings: Unpack[pretrained.LoadSettings]
    ) -> MoshiDepthDecoder:
        """The depth decoder of a Moshi in any layout, or saved alone.

        `dtype` and `revision` are those of `MoshiForConditionalGeneration.from_pretrained`.
        """
        return pretrained.depth_decoder(cls, path_or_hub_id, settings)

    @property
    def dtype(self) -> mx.Dtype:
        """The type that it is run in."""
        return self.slices[0].transformer.layers[0].norm1.weight.dtype
