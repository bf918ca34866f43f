"""The layouts of published checkpoints, as tables: (our parameter, their tensors, how they become ours).

Names are derived from the config, so that a table is as long as its model is deep. A row joins its tensors along
axis 0 unless it says otherwise; the same row serves a quantized layer, whose weight, scales and biases all have the
output rows of the layer as axis 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .config import MimiConfig, MoshiConfig
from .conv import CausalConv, StridedConv, TransposedConv
from .linear import resting
from .mimi import ResidualBlock, SEANetStack, seanet_decoder, seanet_encoder

Build = Callable[[list[mx.array]], mx.array]


class Row(NamedTuple):
    """One parameter of ours. `rows`: how many each of several joined tensors has, where not all the same."""

    ours: str
    theirs: tuple[str, ...]
    build: Build
    rows: tuple[int, ...] | None = None


def join(parts: list[mx.array]) -> mx.array:
    """The parts along axis 0: the default build of a row."""
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def linear(parts: list[mx.array]) -> mx.array:
    """Published matrices [out, in], joined, as `Linear` keeps them. (Quantized ones are only joined.)"""
    return resting(join(parts))


def flat(parts: list[mx.array]) -> mx.array:
    """A norm's [1, 1, D] (or [D]) as [D]."""
    return parts[0].reshape(-1)


def kyutai_pytorch(config: MoshiConfig) -> Iterator[Row]:
    """Kyutai's PyTorch names, of the later generation (`split_fused_projections` makes them of the earlier)."""
    streams = range(len(config.audio_delays))
    tables = ("text_emb.weight", *(f"emb.{i}.weight" for i in streams))
    yield Row("decoder.model.embed_tokens.weight", tables, join, config.table_rows)
    yield Row("decoder.lm_head.weight", ("text_linear.weight",), linear)
    yield Row("decoder.model.norm.weight", ("out_norm.alpha",), flat)
    for n in range(config.num_hidden_layers):
        ours, theirs = f"decoder.model.transformer.layers.{n}", f"transformer.layers.{n}"
        yield from _pytorch_layer(ours, theirs, 0, "gating")
    depth = config.depth_decoder_config
    sets = range(max(depth.schedule) + 1)
    yield Row("depth_decoder.linear_in.weight", tuple(f"depformer_in.{s}.weight" for s in sets), linear)
    for step, s in enumerate(depth.schedule):
        ours = f"depth_decoder.slices.{step}"
        table = f"depformer_emb.{step - 1}" if step else "depformer_text_emb"
        yield Row(f"{ours}.emb.weight", (f"{table}.weight",), join)
        if depth.low_rank_embeddings:
            yield Row(f"{ours}.emb.low_rank.weight", (f"{table}.low_rank.weight",), linear)
        yield Row(f"{ours}.linear_out.weight", (f"linears.{step}.weight",), linear)
        for n in range(depth.num_hidden_layers):
            yield from _pytorch_layer(f"{ours}.transformer.layers.{n}", f"depformer.layers.{n}", s, f"gating.{s}")


def _pytorch_layer(ours: str, theirs: str, weight_set: int, gating: str) -> Iterator[Row]:
    for norm in ("norm1", "norm2"):
        yield Row(f"{ours}.{norm}.weight", (f"{theirs}.{norm}.alpha",), flat)
    for proj in ("in_proj", "out_proj"):
        yield Row(f"{ours}.self_attn.{proj}.weight", (f"{theirs}.self_attn.{proj}s.{weight_set}.weight",), linear)
    for layer in ("linear_in", "linear_out"):
        yield Row(f"{ours}.gating.{layer}.weight", (f"{theirs}.{gating}.{layer}.weight",), linear)


def kyutai_mlx(config: MoshiConfig) -> Iterator[Row]:
    """The names of Kyutai's MLX files, which the earlier port and the Swift app read."""
    streams = range(len(config.audio_delays))
    tables = ("text_emb.weight", *(f"audio_embs.{i}.weight" for i in streams))
    yield Row("decoder.model.embed_tokens.weight", tables, join, config.table_rows)
    yield Row("decoder.lm_head.weight", ("text_linear.weight",), linear)
    yield Row("decoder.model.norm.weight", ("out_norm.weight",), join)
    for n in range(config.num_hidden_layers):
        yield from _mlx_layer(f"decoder.model.transformer.layers.{n}", f"transformer.layers.{n}")
    depth = config.depth_decoder_config
    firsts = [depth.schedule.index(s) for s in range(max(depth.schedule) + 1)]
    inputs = tuple(f"depformer.slices.{step}.linear_in.weight" for step in firsts)
    yield Row("depth_decoder.linear_in.weight", inputs, linear)
    for step, s in enumerate(depth.schedule):
        ours, theirs = f"depth_decoder.slices.{step}", f"depformer.slices.{step}"
        yield Row(f"{ours}.emb.weight", (f"{theirs}.emb.weight",), join)
        if depth.low_rank_embeddings:
            yield Row(f"{ours}.emb.low_rank.weight", (f"{theirs}.emb.low_rank.weight",), linear)
        yield Row(f"{ours}.linear_out.weight", (f"{theirs}.linear_out.weight",), linear)
        # That layout repeats shared weights in every slice; the first slice of a set has them all.
        shared = f"depformer.slices.{firsts[s]}"
        for n in range(depth.num_hidden_layers):
            yield from _mlx_layer(f"{ours}.transformer.layers.{n}", f"{shared}.transformer.layers.{n}")


def kyutai_mlx_repeats(config: MoshiConfig) -> list[str]:
    """Prefixes of the tensors that the MLX layout repeats where steps of the depth decoder share weights."""
    schedule = config.depth_decoder_config.schedule
    repeats = [step for step, s in enumerate(schedule) if schedule.index(s) != step]
    return [f"depformer.slices.{step}.{part}." for step in repeats for part in ("linear_in", "transformer")]


def _mlx_layer(ours: str, theirs: str) -> Iterator[Row]:
    for norm in ("norm1", "norm2"):
        yield Row(f"{ours}.{norm}.weight", (f"{theirs}.{norm}.weight",), join)
    for layer in ("self_attn.in_proj", "self_attn.out_proj", "gating.linear_in", "gating.linear_out"):
        yield Row(f"{ours}.{layer}.weight", (f"{theirs}.{layer}.weight",), linear)


def split_fused_projections(tensors: dict[str, mx.array], config: MoshiConfig) -> dict[str, mx.array]:
    """Kyutai's PyTorch tensors with the attention names of the later generation.

    Published files have one tensor for all steps of the depth decoder, the steps concatenated along axis 0.
    """
    sets = max(config.depth_decoder_config.schedule) + 1
    renamed: dict[str, mx.array] = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.partition(".self_attn.")
        stem = {"in_proj_weight": "in_proj", "in_proj.weight": "in_proj", "out_proj.weight": "out_proj"}.get(leaf)
        if stem is None:
            renamed[name] = tensor
            continue
        fused = path.startswith("depformer.") and len(tensor) % sets == 0  # if not, the shape is told when it is placed
        parts = mx.split(tensor, sets) if fused else [tensor]
        renamed |= {f"{path}.self_attn.{stem}s.{i}.weight": part for i, part in enumerate(parts)}
    return renamed


# Mimi: Kyutai's PyTorch names; convolutions are [out, in, k] there, transposed ones [in, out, k].


def _tap(k: int, parts: list[mx.array]) -> mx.array:
    return mx.contiguous(parts[0][:, :, k].T)  # [in, out]


def _block(n: int, parts: list[mx.array]) -> mx.array:
    out, _, kernel = parts[0].shape
    half = mx.split(parts[0], 2, axis=2)[n] if kernel % 2 == 0 else parts[0]
    return mx.contiguous(half.transpose(2, 1, 0)).reshape(-1, out)  # [stride * in, out]


def _transposed(parts: list[mx.array]) -> mx.array:
    return mx.contiguous(parts[0].transpose(0, 2, 1)).reshape(parts[0].shape[0], -1)  # [in, k * out]


def _half(n: int, parts: list[mx.array]) -> mx.array:
    return mx.contiguous(mx.split(parts[0].squeeze(1), 2, axis=1)[n].T)  # [stride, C]


def _side_by_side(parts: list[mx.array]) -> mx.array:
    return resting(mx.concatenate(parts, axis=1).squeeze(-1))  # 1x1 convolutions [out, in, 1]


def _stacked(parts: list[mx.array]) -> mx.array:
    return resting(mx.concatenate(parts).squeeze(-1))


def mimi(config: MimiConfig) -> Iterator[Row]:
    """Mimi's own names, alone or under a prefix that the caller strips."""
    yield from _seanet("encoder", seanet_encoder(config))
    yield from _seanet("decoder", seanet_decoder(config))
    for half in ("encoder_transformer", "decoder_transformer"):
        for n in range(config.num_hidden_layers):
            yield from _mimi_layer(f"{half}.layers.{n}", f"{half}.transformer.layers.{n}")
    for n in range(2):
        yield Row(f"downsample.blocks.{n}", ("downsample.conv.conv.conv.weight",), partial(_block, n))
        yield Row(f"upsample.halves.{n}", ("upsample.convtr.convtr.convtr.weight",), partial(_half, n))
    halves = ("quantizer.rvq_first", "quantizer.rvq_rest")
    yield Row("quantizer.input_proj.weight", tuple(f"{h}.input_proj.weight" for h in halves), _stacked)
    yield Row("quantizer.output_proj.weight", tuple(f"{h}.output_proj.weight" for h in halves), _side_by_side)
    books = tuple(_codebooks(config))
    sources = tuple(f"{b}.{leaf}" for b in books for leaf in ("embedding_sum", "cluster_usage"))
    yield Row("quantizer.embedding", sources, _embedding)
    yield Row("quantizer.half_norms", sources, lambda parts: 0.5 * mx.square(_embedding(parts)).sum(axis=-1))


def _codebooks(config: MimiConfig) -> Iterator[str]:
    semantic = config.num_semantic_quantizers
    yield from (f"quantizer.rvq_first.vq.layers.{i}._codebook" for i in range(semantic))
    yield from (f"quantizer.rvq_rest.vq.layers.{i}._codebook" for i in range(config.num_quantizers - semantic))


def mimi_unused(config: MimiConfig) -> set[str]:
    """Tensors of a Mimi file that say something of its training alone."""
    return {f"{book}._initialized" for book in _codebooks(config)}


def _embedding(parts: list[mx.array]) -> mx.array:
    """Codebooks [K, entries, dim] from the running sums and counts of their training, alternating."""
    books = [total / mx.maximum(usage, 1e-5)[:, None] for total, usage in zip(parts[::2], parts[1::2], strict=True)]
    return mx.stack(books)


def _mimi_layer(ours: str, theirs: str) -> Iterator[Row]:
    for norm in ("norm1", "norm2"):
        for leaf in ("weight", "bias"):
            yield Row(f"{ours}.{norm}.{leaf}", (f"{theirs}.{norm}.{leaf}",), join)
    for proj in ("in_proj", "out_proj"):
        yield Row(f"{ours}.self_attn.{proj}.weight", (f"{theirs}.self_attn.{proj}s.0.weight",), linear)
    for layer in ("linear1", "linear2"):
        yield Row(f"{ours}.mlp.{layer}.weight", (f"{theirs}.{layer}.weight",), linear)
    for scale in ("layer_scale_1", "layer_scale_2"):
        yield Row(f"{ours}.{scale}.scale", (f"{theirs}.{scale}.scale",), join)


def _seanet(half: str, stack: SEANetStack) -> Iterator[Row]:
    """Their sequence counts the activations too: one before every convolution but the first."""
    index = 0
    for n, layer in enumerate(stack.layers):
        ours = f"{half}.layers.{n}"
        if isinstance(layer, ResidualBlock):
            theirs = f"{half}.model.{index}.block"  # 0 and 2 are activations
            yield from _conv_rows(f"{ours}.dilated", f"{theirs}.1.conv.conv", layer.dilated)
            yield from _conv_rows(f"{ours}.pointwise", f"{theirs}.3.conv.conv", layer.pointwise)
        else:
            index += 1 if n else 0
            kind = "convtr" if isinstance(layer, TransposedConv) else "conv"
            yield from _conv_rows(ours, f"{half}.model.{index}.{kind}.{kind}", layer)
        index += 1


def _conv_rows(ours: str, theirs: str, layer: nn.Module) -> Iterator[Row]:
    if isinstance(layer, CausalConv):
        yield from (Row(f"{ours}.taps.{k}", (f"{theirs}.weight",), partial(_tap, k)) for k in range(len(layer.taps)))
    elif isinstance(layer, StridedConv):
        yield from (Row(f"{ours}.blocks.{n}", (f"{theirs}.weight",), partial(_block, n)) for n in range(2))
    else:
        yield Row(f"{ours}.weight", (f"{theirs}.weight",), _transposed)
    yield Row(f"{ours}.bias", (f"{theirs}.bias",), join)
