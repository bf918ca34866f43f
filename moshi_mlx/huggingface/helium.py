"""The temporal transformer under the names of Hugging Face's `MoshiModel` and `MoshiForCausalLM`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import inputs
from ..errors import InputError
from ..models import config as plain
from ..models.helium import Helium, LanguageModel
from ..models.layers.sequence import Packing, packing
from ..models.state import State
from . import pretrained
from .config import MoshiConfig
from .losses import cross_entropy
from .outputs import BaseModelOutput, CausalLMOutput
from .text_generation import generate_text


class MoshiModel(Helium):
    """`Helium` with Hugging Face's forward pass over whole sequences."""

    config: MoshiConfig

    def __init__(self, config: plain.MoshiConfig, seed: int = 0) -> None:
        super().__init__(MoshiConfig.of(config), seed)

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
        return pretrained.causal_lm(MoshiForCausalLM, path_or_hub_id, **settings).model


def _unpacked(x: mx.array, packed: Packing | None) -> mx.array:
    return x if packed is None else packed.unpack(x)


def _unpacked_weights(weights: mx.array, packed: Packing | None) -> mx.array:
    """Attention weights [B, H, T, past + T] with padding back in its place."""
    if packed is None:
        return weights
    length = weights.shape[2]
    past, new = mx.split(packed.unpack(weights, axis=2), [weights.shape[3] - length], axis=3)
    return mx.concatenate([past, packed.unpack(new, axis=3)], axis=3)


class MoshiForCausalLM(LanguageModel):
    """Helium with its text head; `.tokenizer` where one was loaded. Of text alone: `generate`, and Helium-1."""

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

    generate = generate_text

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, **settings: Any) -> MoshiForCausalLM:
        """The temporal transformer and text head of a Moshi in any layout, or Helium-1; `dtype`, `config`."""
        return pretrained.causal_lm(cls, path_or_hub_id, **settings)


def _kept(hidden: mx.array, logits_to_keep: Any) -> mx.array:
    if isinstance(logits_to_keep, int):
        if logits_to_keep < 0:
            raise InputError(f"logits_to_keep: got {logits_to_keep}, expected 0 or more")
        return hidden if logits_to_keep == 0 else hidden[:, -logits_to_keep:]
    return mx.take(hidden, mx.array(logits_to_keep), axis=1)
