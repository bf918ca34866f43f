"""Whole segments through the language model: logits of every position, with the layers computed twice if asked.

A position sees the index before its own of every stream, less the stream's delay; the depth decoder sees what the
position is to predict (see `duplex` for the alignment). What is computed twice costs no memory in between: of each
layer only its input is kept for the backward pass (mx.checkpoint), where it runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import MoshiConfig
from ..depth import layer_step
from ..moshi import MoshiForConditionalGeneration
from ..transformer import TransformerLayer
from .weights import Weights, placed

Arrays = list[mx.array]
Layer = Callable[[Any, Arrays], Arrays]


def logits(
    model: MoshiForConditionalGeneration, tokens: mx.array, again: Weights | None = None
) -> tuple[mx.array, mx.array]:
    """tokens int [B, 1 + streams, T] -> text logits [B, T, vocab], audio logits [B, num_codebooks, T, audio_vocab].

    `again`: the weights whose gradients are wanted, where the layers are to be computed twice.
    """
    initial = _initial_tokens(model.config, len(tokens))
    delayed = _delayed(tokens, initial, model.config)
    seen = mx.concatenate([initial, delayed[:, :, :-1]], axis=2)
    hidden = _temporal(model, seen, again)
    return model.decoder.lm_head(hidden), _depth(model, hidden, delayed, again)


def _initial_tokens(config: MoshiConfig, batch: int) -> mx.array:
    """[B, 1 + streams, 1]."""
    column = mx.array([config.vocab_size] + [config.audio_vocab_size] * len(config.audio_delays))
    return mx.broadcast_to(column[None, :, None], (batch, len(column), 1))


def _delayed(tokens: mx.array, initial: mx.array, config: MoshiConfig) -> mx.array:
    """Every stream later by its delay, initial tokens before it."""
    length, delays = tokens.shape[2], mx.array((0, *config.audio_delays))[:, None]
    index = mx.arange(length) - delays  # [1 + streams, T]
    moved = mx.take_along_axis(tokens, mx.broadcast_to(mx.maximum(index, 0), tokens.shape), axis=2)
    return mx.where(index >= 0, moved, initial)


def _temporal(model: MoshiForConditionalGeneration, seen: mx.array, again: Weights | None) -> mx.array:
    """[B, 1 + streams, T] -> normalised hidden states [B, T, hidden]."""
    helium, config = model.decoder.model, model.config
    at = mx.arange(seen.shape[2])
    distance = at[:, None] - at
    mask = (distance >= 0) & (distance < config.sliding_window)

    def layer(module: TransformerLayer, arrays: Arrays) -> Arrays:
        return [_attention_layer(module, arrays[0], arrays[1], config.rope_theta)]

    x = helium.embed(seen)
    for n, module in enumerate(helium.transformer.layers):
        (x,) = _run(layer, module, [x, mask], again, f"decoder.model.transformer.layers.{n}.")
    return helium.norm(x)


def _attention_layer(layer: TransformerLayer, x: mx.array, mask: mx.array, rope_theta: float) -> mx.array:
    attention = layer.self_attn
    queries, keys, _ = attention.heads
    turning, v = mx.split(attention.project(layer.norm1(x)), [queries + keys], axis=1)
    turned = mx.fast.rope(turning, v.shape[-1], traditional=True, base=rope_theta, scale=1.0, offset=0)
    q, k = mx.split(turned, [queries], axis=1)
    y = mx.fast.scaled_dot_product_attention(q, k, v, scale=attention.scale, mask=mask)
    return layer.finish(x, y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))


def _depth(
    model: MoshiForConditionalGeneration, hidden: mx.array, delayed: mx.array, again: Weights | None
) -> mx.array:
    """hidden [B, T, hidden] and what each position is to predict -> audio logits [B, num_codebooks, T, audio_vocab]."""
    depth, shape = model.depth_decoder, hidden.shape[:2]
    inputs = mx.split(depth.linear_in(hidden), max(depth.config.schedule) + 1, axis=-1)
    before = mx.split(delayed, delayed.shape[1], axis=1)  # text first: each step is given the token before its own
    caches: list[Arrays] = [[] for _ in range(depth.config.num_hidden_layers)]

    def layer(module: TransformerLayer, arrays: Arrays) -> Arrays:
        cache = arrays[1:]
        return [layer_step(module, arrays[0], cache), *cache]

    steps = []
    for step, part in enumerate(depth.slices):
        x = (inputs[depth.config.schedule[step]] + part.emb(before[step].squeeze(1))).reshape(-1, inputs[0].shape[-1])
        owner = depth.config.schedule.index(depth.config.schedule[step])  # of weights that several steps share
        for n, module in enumerate(part.transformer.layers):
            prefixes = [f"depth_decoder.slices.{slice}.transformer.layers.{n}." for slice in (owner, 0)]
            x, *caches[n] = _run(layer, module, [x, *caches[n]], again, prefixes[0], prefixes[1] + "norm")
        steps.append(part.linear_out(x).reshape(*shape, -1))
    return mx.stack(steps, axis=1)


def _run(
    layer: Layer, module: nn.Module, arrays: Arrays, again: Weights | None, prefix: str, shared: str = ""
) -> Arrays:
    """layer(module, arrays), twice if asked: then what is trained in it goes in as an argument, to get its gradient.

    Those are the weights whose names begin with `prefix`, and those that begin with `shared`, in another layer's place.
    """
    if again is None:
        return layer(module, arrays)
    depth = prefix.count(".")
    mine = {
        name.split(".", depth)[-1]: value
        for name, value in again.items()
        if name.startswith(prefix) or (shared and name.startswith(shared))
    }

    def run(weights: Weights, *arrays: mx.array) -> Arrays:
        with placed(module, weights):
            return layer(module, list(arrays))

    return mx.checkpoint(run)(mine, *arrays)
