"""The depth decoder (Moshi paper, section 3.4.1): the codebooks of one frame, one after the other.

It has no positions, and every step has weights of its own. Its keys and values live inside one frame only.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .config import MoshiDepthConfig
from .layers.initial import initialize
from .layers.linear import Embedding, Linear
from .layers.sequence import attention_weights
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

    def __init__(self, rows: int, transformer: DepthLayers, config: MoshiDepthConfig) -> None:
        super().__init__()
        self.emb = Embedding(rows, config.hidden_size, config.low_rank_embeddings)
        self.transformer = transformer
        self.linear_out = Linear(config.hidden_size, config.audio_vocab_size)


class DepthDecoder(nn.Module):
    """`linear_in` projects the hidden state for every set of weights at once: [input_size, sets * hidden_size]."""

    def __init__(self, config: MoshiDepthConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        sets = [DepthLayers(config) for _ in range(max(config.schedule) + 1)]
        for layers in zip(*(one.layers for one in sets), strict=True):
            for layer in layers[1:]:  # the norms of a layer are the same in every step
                layer.norm1, layer.norm2 = layers[0].norm1, layers[0].norm2
        self.linear_in = Linear(config.input_size, len(sets) * config.hidden_size)
        rows = [config.vocab_size + 1] + [config.audio_vocab_size + 1] * (config.num_codebooks - 1)
        self.slices = [DepthSlice(n, sets[s], config) for n, s in zip(rows, config.schedule, strict=True)]
        initialize(self, config.initializer_range, seed)

    def sample(self, hidden: mx.array, text_token: mx.array, sample: Sampler) -> mx.array:
        """hidden [B, input_size], text_token int [B] -> the codes that `sample` chose, int32 [B, num_codebooks]."""
        inputs = self.inputs(hidden)
        caches: Caches = [[] for _ in range(self.config.num_hidden_layers)]
        token, codes = text_token, []
        for step, part in enumerate(self.slices):
            x = inputs[self.config.schedule[step]] + part.emb.lookup(token)
            for layer, cache in zip(part.transformer.layers, caches, strict=True):
                x = layer_step(layer, x, cache)
            token = sample(step, part.linear_out(x))
            codes.append(token)
        return mx.stack(codes, axis=1).astype(mx.int32)

    def inputs(self, hidden: mx.array) -> list[mx.array]:
        """The hidden state projected for every set of weights."""
        return list(mx.split(self.linear_in(hidden), max(self.config.schedule) + 1, axis=-1))


def layer_step(
    layer: TransformerLayer, x: mx.array, cache: list[mx.array], weights: list[mx.array] | None = None
) -> mx.array:
    """x [B, dim] through one layer; `cache` holds keys and values [B, Hkv, steps so far, D]."""
    attention = layer.self_attn
    queries, keys, _ = attention.heads
    q, *new = mx.split(attention.project(layer.norm1(x)), [queries, queries + keys], axis=1)
    first = not cache
    cache[:] = new if first else [mx.concatenate(list(pair), axis=2) for pair in zip(cache, new, strict=True)]
    if weights is not None:
        weights.append(attention_weights(q, cache[0], None, attention.scale))
    if first:  # of a single key the softmax is 1
        repeats = q.shape[1] // new[1].shape[1]
        attended = new[1] if repeats == 1 else mx.repeat(new[1], repeats, axis=1)
    else:
        attended = mx.fast.scaled_dot_product_attention(q, *cache, scale=attention.scale)
    return layer.finish(x, attended.reshape(len(x), -1))
