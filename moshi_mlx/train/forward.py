"""Whole segments through the language model: logits of every position, with the layers computed twice if asked.

The alignment is that of `streams`. What is computed twice costs no memory in between: of each layer only its input is
kept for the backward pass (mx.checkpoint), where it runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..conversation import streams
from ..models.depth import layer_step
from ..models.layers import sequence
from ..models.layers.transformer import TransformerLayer
from ..models.moshi import Moshi
from .weights import Weights, placed

Arrays = list[mx.array]
Layer = Callable[[Any, Arrays], Arrays]


def logits(model: Moshi, tokens: mx.array, again: Weights | None = None) -> tuple[mx.array, mx.array]:
    """tokens int [B, 1 + streams, T] -> text logits [B, T, vocab], audio logits [B, num_codebooks, T, audio_vocab].

    They are those of positions: of a delayed codebook, position p gives an earlier index. `again`: the weights whose
    gradients are wanted, where the layers are to be computed twice.
    """
    hidden = _temporal(model, streams.position_inputs(model.config, tokens), again)
    return model.decoder.lm_head(hidden), _depth(model, hidden, streams.depth_inputs(model.config, tokens), again)


def _temporal(model: Moshi, seen: mx.array, again: Weights | None) -> mx.array:
    """[B, 1 + streams, T] -> normalised hidden states [B, T, hidden]."""
    helium, config = model.decoder.model, model.config
    span = sequence.span(seen.shape[2], mx.zeros((len(seen),), mx.int32), None, 0, config.sliding_window)

    def layer(module: TransformerLayer, arrays: Arrays) -> Arrays:
        (x,) = arrays
        attended, *_ = module.self_attn.over_sequence(module.norm1(x), None, span, config.rope_theta, None)
        return [module.finish(x, attended)]

    x = model.embed(seen)
    for n, module in enumerate(helium.transformer.layers):
        (x,) = _run(layer, module, [x], again, f"decoder.model.transformer.layers.{n}.")
    return helium.norm(x)


def _depth(model: Moshi, hidden: mx.array, given: mx.array, again: Weights | None) -> mx.array:
    """hidden [B, T, hidden], tokens [B, num_codebooks, T] before each step -> [B, num_codebooks, T, audio_vocab]."""
    depth, schedule = model.depth_decoder, model.config.depth_decoder_config.schedule
    embeds = depth.embed(given.swapaxes(1, 2).reshape(-1, given.shape[1]))  # of each step [B * T, depth hidden]
    inputs = [part.reshape(embeds[0].shape) for part in depth.inputs(hidden)]
    caches: list[Arrays] = [[] for _ in range(depth.config.num_hidden_layers)]

    def layer(module: TransformerLayer, arrays: Arrays) -> Arrays:
        x, *cache = arrays
        return [layer_step(module, x, cache), *cache]

    steps = []
    for part, embed, s in zip(depth.slices, embeds, schedule, strict=True):
        x = inputs[s] + embed
        for n, module in enumerate(part.transformer.layers):
            # Steps that share weights, and norms, which all steps share, are trained under the name of the first.
            own, first = (f"depth_decoder.slices.{step}.transformer.layers.{n}." for step in (schedule.index(s), 0))
            x, *caches[n] = _run(layer, module, [x, *caches[n]], again, own, first + "norm")
        steps.append(part.logits(x).reshape(*hidden.shape[:2], -1))
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
