"""Helium, Moshi's temporal transformer (Moshi paper, section 3.2), and its text head.

`step` is the live path: new positions through the ring caches of a state. Calling a model runs whole sequences, with
Hugging Face's arguments and meanings, through the same layers; where nothing of the state that it returns is used,
nothing of it is computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import inputs
from ..errors import InputError
from ..huggingface.losses import cross_entropy
from ..huggingface.outputs import BaseModelOutput, CausalLMOutput
from .config import MoshiConfig
from .layers.initial import initialize
from .layers.linear import Embedding, Linear
from .layers.sequence import Packing, packing
from .layers.transformer import LayerConfig, Transformer
from .state import State


class MoshiModel(nn.Module):
    """Token rows in, normalised hidden states out. Weights are random (`initializer_range`, `seed`) until loaded.

    `embed_tokens` holds the rows of all streams in one table, so that a frame is one gather and one sum: first
    vocab_size + 1 of text, then audio_vocab_size + 1 of every audio stream; the last row of each is its initial token.
    A model of text alone has the vocab_size rows of text, and no initial token.
    """

    def __init__(self, config: MoshiConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(sum(config.table_rows), config.hidden_size)
        layer = LayerConfig.gated_of(config)
        self.transformer = Transformer(layer, config.num_hidden_layers, config.sliding_window, config.rope_theta)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        initialize(self, config.initializer_range, seed)

    @property
    def dtype(self) -> mx.Dtype:
        """The type that hidden states and caches have: that of the weights, or of their scales."""
        return self.norm.weight.dtype

    def init_state(
        self, batch: int, positions: int = 1, capacity: int | None = None, kv_bits: int | None = None
    ) -> State:
        """State for calls of up to `positions` positions, with `capacity` cache slots to begin with."""
        return self.transformer.init_state(batch, self.dtype, positions, capacity, kv_bits)

    def embed(self, tokens: mx.array) -> mx.array:
        """tokens int [B, 1 + streams, T], text first, -1 for no input -> the sum of their rows [B, T, hidden]."""
        config = self.config
        audio = [[config.vocab_size + 1 + i * (config.audio_vocab_size + 1)] for i in range(len(config.audio_delays))]
        return self.embed_tokens(mx.where(tokens < 0, -1, tokens + mx.array([[0], *audio]))).sum(axis=1)

    def step(self, inputs_embeds: mx.array, state: State) -> tuple[mx.array, State]:
        """inputs_embeds [B, T, hidden], state -> last hidden state [B, T, hidden], state."""
        x, state = self.transformer(inputs_embeds, state)
        return self.norm(x), state

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: State = None,
        inputs_embeds: mx.array | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        room: int = 0,
    ) -> BaseModelOutput:
        """input_ids int [B, T] of text (-1: no input) or inputs_embeds [B, T, hidden] -> hidden state and state.

        `attention_mask` [B, T] is 0 where there is padding, before or behind a row, which then equals the row alone
        (what comes out at padding means nothing). `past_key_values` is the state that an earlier call returned, or the
        live path's; `room` is how many positions the returned one can take before it has to be copied to grow. The
        window is the same for every position; transformers 5.23 forgets it in a call of many. Raises InputError.
        """
        x = self._embeds(input_ids, inputs_embeds)
        batch, length, _ = x.shape
        packed = None
        if attention_mask is not None:
            packed = packing(inputs.attention_mask(attention_mask, batch, length))
            x = packed.pack(x)
        rotary = None
        if position_ids is not None:
            rotary = mx.broadcast_to(mx.array(position_ids).astype(mx.int32), (batch, length))
            rotary = rotary if packed is None else packed.pack(rotary)
        hidden_states: list[mx.array] = [x]
        attentions: list[mx.array] = []
        x, state = self.transformer.over_sequence(
            x,
            past_key_values,
            lengths=None if packed is None else packed.lengths,
            rotary=rotary,
            room=room,
            attentions=attentions if output_attentions else None,
            hidden_states=hidden_states if output_hidden_states else None,
        )
        hidden_states[-1] = x = self.norm(x)
        keep_state = self.config.use_cache if use_cache is None else use_cache
        return BaseModelOutput(
            last_hidden_state=_unpacked(x, packed),
            past_key_values=state if keep_state else None,
            hidden_states=tuple(_unpacked(h, packed) for h in hidden_states) if output_hidden_states else None,
            attentions=tuple(_unpacked_weights(w, packed) for w in attentions) if output_attentions else None,
        )

    def _embeds(self, input_ids: Any, inputs_embeds: mx.array | None) -> mx.array:
        inputs.one_of(input_ids=input_ids, inputs_embeds=inputs_embeds)
        if inputs_embeds is not None:
            inputs.check_shape("inputs_embeds", inputs_embeds, (None, None, self.config.hidden_size))
            return inputs_embeds.astype(self.dtype)
        return self.embed_tokens(inputs.tokens("input_ids", input_ids, (None, None), -1, self.config.table_rows[0] - 1))

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, **settings: Any) -> MoshiModel:
        """The temporal transformer of a folder or hub id, in any layout; `dtype`, `config`."""
        from ..huggingface.pretrained import model_of

        return model_of(path_or_hub_id, **settings)


def _unpacked(x: mx.array, packed: Packing | None) -> mx.array:
    return x if packed is None else packed.unpack(x)


def _unpacked_weights(weights: mx.array, packed: Packing | None) -> mx.array:
    """Attention weights [B, H, T, past + T] with padding back in its place."""
    if packed is None:
        return weights
    length = weights.shape[2]
    past, new = mx.split(packed.unpack(weights, axis=2), [weights.shape[3] - length], axis=3)
    return mx.concatenate([past, packed.unpack(new, axis=3)], axis=3)


class MoshiForCausalLM(nn.Module):
    """Helium with its text head; `.tokenizer` where one was loaded. Of text alone: `generate`, and Helium-1."""

    def __init__(self, config: MoshiConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.model = MoshiModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.tokenizer: Any = None
        initialize(self, config.initializer_range, seed)

    def step(self, tokens: mx.array, state: State) -> tuple[mx.array, mx.array, State]:
        """tokens int [B, 1 + streams, T] -> last hidden state [B, T, hidden], text logits [B, T, vocab], state."""
        hidden, state = self.model.step(self.model.embed(tokens), state)
        return hidden, self.lm_head(hidden), state

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: State = None,
        inputs_embeds: mx.array | None = None,
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

    def generate(self, input_ids: Any, **settings: Any) -> mx.array:
        """Text alone: see `text_generation.generate_text`."""
        from ..huggingface.text_generation import generate_text

        return generate_text(self, input_ids, **settings)

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, **settings: Any) -> MoshiForCausalLM:
        """The temporal transformer and text head of a Moshi in any layout, or Helium-1; `dtype`, `config`."""
        from ..huggingface.pretrained import causal_lm

        return causal_lm(path_or_hub_id, **settings)


def _kept(hidden: mx.array, logits_to_keep: Any) -> mx.array:
    if isinstance(logits_to_keep, int):
        if logits_to_keep < 0:
            raise InputError(f"logits_to_keep: got {logits_to_keep}, expected 0 or more")
        return hidden if logits_to_keep == 0 else hidden[:, -logits_to_keep:]
    return mx.take(hidden, mx.array(logits_to_keep), axis=1)
