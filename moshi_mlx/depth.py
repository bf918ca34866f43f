"""The depth decoder (Moshi paper, section 3.4.1): the codebooks of one frame, one after the other.

It has no positions, and every step has weights of its own. Its keys and values live inside one frame only.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .config import MoshiDepthConfig
from .transformer import Embedding, LayerConfig, TransformerLayer

Sampler = Callable[[int, mx.array], mx.array]
"""(step, logits [B, audio_vocab]) -> codes int32 [B]."""


class DepthLayers(nn.Module):
    """The transformer of one set of weights."""

    def __init__(self, config: MoshiDepthConfig) -> None:
        super().__init__()
        layer = LayerConfig(
            dim=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.key_value_heads,
            hidden=config.ffn_dim // 2,
            norm_eps=config.rms_norm_eps,
            gated=True,
        )
        self.layers = [TransformerLayer(layer) for _ in range(config.num_hidden_layers)]


class DepthSlice(nn.Module):
    """One step: the table of the token before it, its layers (shared by the steps of one weight set), its head."""

    def __init__(self, rows: int, transformer: DepthLayers, config: MoshiDepthConfig) -> None:
        super().__init__()
        self.emb = Embedding(rows, config.hidden_size, config.low_rank_embeddings)
        self.transformer = transformer
        self.linear_out = nn.Linear(config.hidden_size, config.audio_vocab_size, bias=False)


class MoshiDepthDecoder(nn.Module):
    """`linear_in` projects the hidden state for every set of weights at once: [sets * hidden_size, input_size]."""

    def __init__(self, config: MoshiDepthConfig) -> None:
        super().__init__()
        self.config = config
        sets = [DepthLayers(config) for _ in range(max(config.schedule) + 1)]
        self.linear_in = nn.Linear(config.input_size, len(sets) * config.hidden_size, bias=False)
        rows = [config.vocab_size + 1] + [config.audio_vocab_size + 1] * (config.num_codebooks - 1)
        self.slices = [DepthSlice(n, sets[s], config) for n, s in zip(rows, config.schedule, strict=True)]

    def __call__(self, hidden: mx.array, text_token: mx.array, sample: Sampler) -> mx.array:
        """hidden [B, input_size], text_token int [B] -> the codes that `sample` chose, int32 [B, num_codebooks]."""
        sets = max(self.config.schedule) + 1
        inputs = mx.split(self.linear_in(hidden)[:, None], sets, axis=-1)
        caches: list[list[mx.array]] = [[] for _ in range(self.config.num_hidden_layers)]
        token, codes = text_token, []
        for step, part in enumerate(self.slices):
            x = inputs[self.config.schedule[step]] + part.emb(token)[:, None]
            for layer, cache in zip(part.transformer.layers, caches, strict=True):
                x = _layer_step(layer, x, cache)
            token = sample(step, part.linear_out(x)[:, 0])
            codes.append(token)
        return mx.stack(codes, axis=1)


def _layer_step(layer: TransformerLayer, x: mx.array, cache: list[mx.array]) -> mx.array:
    """x [B, 1, dim] through one layer; `cache` holds keys and values [B, Hkv, steps so far, D]."""
    attention = layer.self_attn
    q, k, v = attention.project(layer.norm1(x))
    cache[:] = [k, v] if not cache else [mx.concatenate([old, new], axis=2) for old, new in zip(cache, (k, v))]  # noqa: B905
    return layer.add_mlp(x + attention.attend(q, *cache))
