"""Helium, Moshi's temporal transformer (Moshi paper, section 3.2), and its text head."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .config import MoshiConfig
from .layers.demuxed import DemuxedEmbedding
from .layers.initial import initialize, left_at_zero
from .layers.linear import Embedding, Linear
from .layers.transformer import LayerConfig, Transformer
from .state import State

END = 2  # the text token that ends a sequence


class Helium(nn.Module):
    """Token rows in, normalised hidden states out. Weights are random (`initializer_range`, `seed`) until loaded.

    `embed_tokens` holds the rows of all streams in one table, so that a frame is one gather and one sum: first
    vocab_size + 1 of text, then audio_vocab_size + 1 of every audio stream; the last row of each is its initial token.
    A model of text alone has the vocab_size rows of text, and no initial token. A text token that stands for two has
    a table of its own, `embed_text`.
    """

    def __init__(self, config: MoshiConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        rows = config.table_rows[config.demuxed_text :]
        self.embed_tokens = Embedding(sum(rows), config.hidden_size)
        if config.demuxed_text:
            self.embed_text = DemuxedEmbedding(config.table_rows[0], config.hidden_size)
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
        config, apart = self.config, self.config.demuxed_text
        first = 0 if apart else config.vocab_size + 1
        starts = [[first + i * (config.audio_vocab_size + 1)] for i in range(len(config.audio_delays))]
        if config.end_reads_as_padding:
            end = (tokens == END) & (mx.arange(tokens.shape[1]) == 0)[:, None]
            tokens = mx.where(end, config.silent_text_tokens[1], tokens)
        if not apart:
            return self._rows(tokens, [[0], *starts])
        text, audio = mx.split(tokens, [1], axis=1)
        return self.embed_text(text.squeeze(1)) + self._rows(audio, starts)

    def _rows(self, tokens: mx.array, starts: list[list[int]]) -> mx.array:
        """The sum of the rows of tokens [B, streams, T], whose tables begin at `starts`."""
        return self.embed_tokens(mx.where(tokens < 0, -1, tokens + mx.array(starts))).sum(axis=1)

    def step(self, inputs_embeds: mx.array, state: State) -> tuple[mx.array, State]:
        """inputs_embeds [B, T, hidden], state -> last hidden state [B, T, hidden], state.

        A state's `condition` [B, hidden] is added to every position.
        """
        if "condition" in state:
            inputs_embeds = inputs_embeds + state["condition"][:, None]
        x, state = self.transformer(inputs_embeds, state)
        return self.norm(x), state


class LanguageModel(nn.Module):
    """Helium with its text head; `.tokenizer` where one was loaded."""

    helium_class: type[Helium] = Helium

    def __init__(self, config: MoshiConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with left_at_zero():
            self.model = self.helium_class(config)
        self.lm_head = Linear(config.hidden_size, config.text_classes)
        self.extra_heads = [Linear(config.hidden_size, config.extra_head_classes) for _ in range(config.extra_heads)]
        self.tokenizer: Any = None
        initialize(self, config.initializer_range, seed)

    def step(self, tokens: mx.array, state: State) -> tuple[mx.array, mx.array, State]:
        """tokens int [B, 1 + streams, T] -> last hidden state [B, T, hidden], text logits [B, T, vocab], state."""
        hidden, state = self.model.step(self.model.embed(tokens), state)
        return hidden, self.lm_head(hidden), state
