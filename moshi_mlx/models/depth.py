"""The depth decoder (Moshi paper, section 3.4.1): the codebooks of one frame, one after the other.

It has no positions, and every step has weights of its own. Its keys and values live inside one frame only.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .config import MoshiDepthConfig
from .layers.demuxed import DemuxedEmbedding
from .layers.initial import initialize
from .layers.linear import Embedding, Linear
from .layers.sequence import appended, attention_weights, stacked
from .layers.transformer import LayerConfig, TransformerLayer

Sampler = Callable[[int, mx.array], mx.array]
"""(step, logits [B, audio_vocab]) -> codes int [B]."""
Caches = list[list[mx.array]]
"""Of each layer: keys and values [B, Hkv, steps so far, D], or nothing before the first step."""


class DepthLayers(nn.Module):
    """The transformer of one set of weights."""

    def __init__(self, config: MoshiDepthConfig) -> None:
        super().__init__()
        layer = LayerConfig.gated_of(config)
        self.layers = [TransformerLayer(layer) for _ in range(config.num_hidden_layers)]


class DepthSlice(nn.Module):
    """One step: the table of the token before it, its layers (shared by the steps of one weight set), its head."""

    def __init__(self, step: int, transformer: DepthLayers, config: MoshiDepthConfig) -> None:
        super().__init__()
        rows = (config.audio_vocab_size if step else config.vocab_size) + 1
        table = DemuxedEmbedding if config.demuxed_text and step == 0 else Embedding
        self.emb = table(rows, config.hidden_size, config.low_rank_embeddings)
        self.transformer = transformer
        if config.output_norm:
            self.norm = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.linear_out = Linear(config.hidden_size, config.audio_vocab_size)

    def logits(self, x: mx.array) -> mx.array:
        """x [..., hidden] after the layers -> [..., audio_vocab]."""
        return self.linear_out(self.norm(x) if "norm" in self else x)


class DepthDecoder(nn.Module):
    """`linear_in` projects the hidden state for every set of weights at once: [input_size, sets * hidden_size]."""

    def __init__(self, config: MoshiDepthConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        sets = [DepthLayers(config) for _ in range(config.weight_sets)]
        for layers in zip(*(one.layers for one in sets), strict=True):
            for layer in layers[1:]:  # the norms of a layer are the same in every step
                layer.norm1, layer.norm2 = layers[0].norm1, layers[0].norm2
        if sets:  # a model that does not speak has no steps
            self.linear_in = Linear(config.input_size, len(sets) * config.hidden_size)
        self.slices = [DepthSlice(step, sets[s], config) for step, s in enumerate(config.schedule)]
        initialize(self, config.initializer_range, seed)

    def sample(self, hidden: mx.array, text_token: mx.array, sample: Sampler, steps: int | None = None) -> mx.array:
        """hidden [R, input_size], text_token int [B] -> the codes that `sample` chose, int32 [B, num_codebooks].

        With guidance there are two rows of `hidden` for a token, [2 B, input_size], which both take it. After `steps`
        the codebooks that are left are -1.
        """
        inputs = self.inputs(hidden)
        pairs: list[mx.array | None] = [None] * self.config.num_hidden_layers
        token, codes, rows = text_token, [], len(hidden) // len(text_token)
        for step, part in enumerate(self.slices[:steps]):
            emb = part.emb.lookup(token)
            x = inputs[self.config.schedule[step]] + (emb if rows == 1 else mx.tile(emb, (rows, 1)))
            for n, layer in enumerate(part.transformer.layers):
                x, pairs[n] = _paired_step(layer, x, pairs[n], step, len(self.slices))
            token = sample(step, part.logits(x))
            codes.append(token)
        codes += [mx.full(token.shape, -1, mx.int32)] * (len(self.slices) - len(codes))
        return stacked(codes, axis=1).astype(mx.int32)

    def inputs(self, hidden: mx.array) -> list[mx.array]:
        """The hidden state projected for every set of weights."""
        return list(mx.split(self.linear_in(hidden), self.config.weight_sets, axis=-1))


def layer_step(
    layer: TransformerLayer, x: mx.array, cache: list[mx.array], weights: list[mx.array] | None = None
) -> mx.array:
    """x [B, dim] through one layer; `cache` holds keys and values [B, Hkv, steps so far, D]."""
    attention = layer.self_attn
    queries, keys, _ = attention.heads
    projected = attention.project(layer.norm1(x), len(x), attention.head_dim)
    q, *new = mx.split(projected, [queries, queries + keys], axis=1)
    cache[:] = [mx.concatenate(list(pair), axis=2) for pair in zip(cache, new, strict=True)] if cache else new
    if weights is not None:
        weights.append(attention_weights(q, cache[0], None, attention.scale))
    return layer.finish(x, _attended(q, cache[0], cache[1], attention.scale))


def _paired_step(
    layer: TransformerLayer, x: mx.array, pairs: mx.array | None, step: int, steps: int
) -> tuple[mx.array, mx.array]:
    """`layer_step` with keys and values in one array [B, 2 Hkv, steps so far or more, D], which one call takes on.

    (To write them into an array made before is no less: a GPU has read that one in the same frame, and MLX copies it.)
    """
    attention = layer.self_attn
    q, new = mx.split(attention.project(layer.norm1(x), len(x), attention.head_dim), [attention.heads[0]], axis=1)
    pairs = appended(pairs, new, step, steps)
    keys, values = mx.split(pairs, 2, axis=1)
    room = keys.shape[2]
    seen = None if room == step + 1 else mx.array(np.arange(room) <= step)
    return layer.finish(x, _attended(q, keys, values, attention.scale, seen)), pairs


def _attended(q: mx.array, keys: mx.array, values: mx.array, scale: float, seen: mx.array | None = None) -> mx.array:
    """q [B, H, 1, D] over keys and values [B, Hkv, S, D], all of them or those `seen` bool [S] -> [B, H D]."""
    if keys.shape[2] > 1:
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=seen).reshape(len(q), -1)
    repeats = q.shape[1] // values.shape[1]  # of a single key the softmax is 1
    return (values if repeats == 1 else mx.repeat(values, repeats, axis=1)).reshape(len(q), -1)
