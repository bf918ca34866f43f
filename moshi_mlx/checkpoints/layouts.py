"""Our parameters and the tensors of Kyutai's MLX and codec files, as tables: (ours, theirs, how one becomes the other).

Names are derived from the config, so that a table is as long as its model is deep. A row joins its tensors along
axis 0 unless it says otherwise; the same row serves a quantized layer, whose weight, scales and biases all have the
output rows of the layer as axis 0. All other layouts are `translation`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..models.config import MimiConfig, MoshiConfig
from ..models.layers.conv import StridedConv, TransposedConv
from ..models.layers.linear import resting
from ..models.mimi import ResidualBlock, SEANetStack, seanet_decoder, seanet_encoder

Build = Callable[[list[mx.array]], mx.array]
Unbuild = Callable[[list[mx.array]], list[mx.array]]


class Row(NamedTuple):
    """One parameter of ours. `rows`: how many each of several joined tensors has, where not all the same.

    `unbuild` makes the tensors of all the parameters that were built from them; joined ones are only split.
    """

    ours: str
    theirs: tuple[str, ...]
    build: Build
    rows: tuple[int, ...] | None = None
    unbuild: Unbuild | None = None

    def split(self, joined: mx.array) -> list[mx.array]:
        """The tensors of a parameter that `join` built."""
        if len(self.theirs) == 1:
            return [joined]
        ends = list(accumulate(self.rows)) if self.rows else None
        return list(mx.split(joined, ends[:-1] if ends else len(self.theirs)))


def join(parts: list[mx.array]) -> mx.array:
    """The parts along axis 0: the default build of a row."""
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def linear(parts: list[mx.array]) -> mx.array:
    """Published matrices [out, in], joined, as `Linear` keeps them. (Quantized ones are only joined.)"""
    return resting(join(parts))


def kyutai_mlx(config: MoshiConfig) -> Iterator[Row]:
    """The names of Kyutai's MLX files, which the earlier port and the Swift app read."""
    streams = range(len(config.audio_delays))
    tables = ("text_emb.weight", *(f"audio_embs.{i}.weight" for i in streams))
    if config.demuxed_text:
        yield from _demuxed("decoder.model.embed_text", "text_emb", None)
    first = int(config.demuxed_text)
    yield Row("decoder.model.embed_tokens.weight", tables[first:], join, config.table_rows[first:])
    yield Row("decoder.lm_head.weight", ("text_linear.weight",), linear)
    yield Row("decoder.model.norm.weight", ("out_norm.weight",), join)
    for n in range(config.num_hidden_layers):
        yield from _mlx_layer(
            f"decoder.model.transformer.layers.{n}", f"transformer.layers.{n}", config.cross_attention
        )
    for n in range(config.extra_heads):
        yield Row(f"decoder.extra_heads.{n}.weight", (f"extra_heads.{n}.weight",), linear)
    yield from conditions(config)
    if not config.audio_delays:  # a model of text alone
        return
    depth = config.depth_decoder_config
    firsts = [depth.schedule.index(s) for s in range(depth.weight_sets)]
    inputs = tuple(f"depformer.slices.{step}.linear_in.weight" for step in firsts)
    if inputs:
        yield Row("depth_decoder.linear_in.weight", inputs, linear)
    for step, s in enumerate(depth.schedule):
        ours, theirs = f"depth_decoder.slices.{step}", f"depformer.slices.{step}"
        if depth.demuxed_text and step == 0:
            yield from _demuxed(f"{ours}.emb", f"{theirs}.emb", depth.low_rank_embeddings)
        else:
            yield Row(f"{ours}.emb.weight", (f"{theirs}.emb.weight",), join)
            if depth.low_rank_embeddings:
                yield Row(f"{ours}.emb.low_rank.weight", (f"{theirs}.emb.low_rank.weight",), linear)
        if depth.output_norm:
            for leaf in ("weight", "bias"):
                yield Row(f"{ours}.norm.{leaf}", (f"{theirs}.norm.{leaf}",), join)
        yield Row(f"{ours}.linear_out.weight", (f"{theirs}.linear_out.weight",), linear)
        # That layout repeats shared weights in every slice; the first slice of a set has them all.
        shared = f"depformer.slices.{firsts[s]}"
        for n in range(depth.num_hidden_layers):
            yield from _mlx_layer(f"{ours}.transformer.layers.{n}", f"{shared}.transformer.layers.{n}")


CONDITIONS = "condition_provider.conditioners."


def conditions(config: MoshiConfig) -> Iterator[Row]:
    """What the conditions are made of; all layouts of Kyutai's name it alike. Kept in float32, never quantized."""
    for one in config.conditions:
        ours, theirs = f"conditions.conditioners.{one.name}", f"{CONDITIONS}{one.name}"
        if not one.is_sequence:
            yield Row(f"{ours}.embed.weight", (f"{theirs}.embed.weight",), join)
        yield Row(f"{ours}.output_proj.weight", (f"{theirs}.output_proj.weight",), linear)
        yield Row(f"{ours}.learnt_padding", (f"{theirs}.learnt_padding",), join)


def _demuxed(ours: str, theirs: str, low_rank: int | None) -> Iterator[Row]:
    yield Row(f"{ours}.weight", (f"{theirs}.weight",), join)
    for part in ("out1", "out2", *(("low_rank",) if low_rank else ())):
        yield Row(f"{ours}.{part}.weight", (f"{theirs}.{part}.weight",), linear)


def kept_whole(config: MoshiConfig) -> set[str]:
    """Paths of matrices that are not quantized: conditions, and tables that are multiplied out when they are read."""
    rows = list(conditions(config))
    if config.demuxed_text:
        low_rank = config.depth_decoder_config.low_rank_embeddings
        rows += [*_demuxed("", "text_emb", None), *_demuxed("", "depformer.slices.0.emb", low_rank)]
    return {name.removesuffix(".weight") for row in rows for name in row.theirs}


def kyutai_mlx_text(config: MoshiConfig) -> list[Row]:
    """Of those the rows of a model of text alone, which is a MoshiForCausalLM."""
    return [row._replace(ours=row.ours.removeprefix("decoder.")) for row in kyutai_mlx(config)]


def kyutai_mlx_repeats(config: MoshiConfig) -> dict[str, str]:
    """Prefixes of the tensors that the MLX layout repeats where steps of the depth decoder share weights: of what."""
    schedule = config.depth_decoder_config.schedule
    repeats = [(step, schedule.index(s)) for step, s in enumerate(schedule) if schedule.index(s) != step]
    slices = "depformer.slices"
    parts = ("linear_in", "transformer")
    return {f"{slices}.{step}.{part}.": f"{slices}.{of}.{part}." for step, of in repeats for part in parts}


def _mlx_layer(ours: str, theirs: str, crosses: bool = False) -> Iterator[Row]:
    norms = ["norm1.weight", "norm2.weight", *(["norm_cross.weight", "norm_cross.bias"] if crosses else [])]
    for norm in norms:
        yield Row(f"{ours}.{norm}", (f"{theirs}.{norm}",), join)
    layers = ["self_attn.in_proj", "self_attn.out_proj", "gating.linear_in", "gating.linear_out"]
    for layer in layers + (["cross_attention.in_proj", "cross_attention.out_proj"] if crosses else []):
        yield Row(f"{ours}.{layer}.weight", (f"{theirs}.{layer}.weight",), linear)


# Mimi: the names of Kyutai's codec files; convolutions are [out, in, k] there, transposed ones [in, out, k].


def _window(parts: list[mx.array]) -> mx.array:
    """[out, in, k] -> [k * in, out]; also where k is a kernel of two strides, whose positions are blocks."""
    return mx.contiguous(parts[0].transpose(2, 1, 0)).reshape(-1, parts[0].shape[0])


def _unwindow(kernel: int, values: list[mx.array]) -> list[mx.array]:
    return [values[0].reshape(kernel, -1, values[0].shape[1]).transpose(2, 1, 0)]


def _transposed(parts: list[mx.array]) -> mx.array:
    """[in, out, 2 * stride] -> [2 * in, stride * out]: what an input gives later, before what it gives at once."""
    inputs = parts[0].shape[0]
    now, later = mx.split(parts[0].transpose(0, 2, 1), 2, axis=1)  # [in, stride, out] each
    return mx.concatenate([later.reshape(inputs, -1), now.reshape(inputs, -1)])


def _untransposed(stride: int, values: list[mx.array]) -> list[mx.array]:
    later, now = (half.reshape(len(half), stride, -1) for half in mx.split(values[0], 2))
    return [mx.concatenate([now, later], axis=1).transpose(0, 2, 1)]


def _half(n: int, parts: list[mx.array]) -> mx.array:
    return mx.contiguous(mx.split(parts[0].squeeze(1), 2, axis=1)[n].T)  # [stride, C]


def _unhalve(halves: list[mx.array]) -> list[mx.array]:
    return [mx.concatenate([half.T for half in halves], axis=1)[:, None]]


def _side_by_side(parts: list[mx.array]) -> mx.array:
    return resting(mx.concatenate(parts, axis=1).squeeze(-1))  # 1x1 convolutions [out, in, 1]


def _stacked(parts: list[mx.array]) -> mx.array:
    return resting(mx.concatenate(parts).squeeze(-1))


def _apart(axis: int, values: list[mx.array]) -> list[mx.array]:
    return [part[..., None] for part in mx.split(values[0].T, 2, axis=axis)]


def mimi(config: MimiConfig) -> Iterator[Row]:
    """Mimi's own names, alone or under a prefix that the caller strips."""
    yield from _seanet("encoder", seanet_encoder(config))
    yield from _seanet("decoder", seanet_decoder(config))
    for half in ("encoder_transformer", "decoder_transformer"):
        for n in range(config.num_hidden_layers):
            yield from _mimi_layer(f"{half}.layers.{n}", f"{half}.transformer.layers.{n}")
    unwindow = partial(_unwindow, 2 * config.positions_per_frame)
    yield Row("downsample.weight", ("downsample.conv.conv.conv.weight",), _window, None, unwindow)
    for n in range(2):
        yield Row(f"upsample.halves.{n}", ("upsample.convtr.convtr.convtr.weight",), partial(_half, n), None, _unhalve)
    halves = ("quantizer.rvq_first", "quantizer.rvq_rest")
    for proj, build, axis in (("input_proj", _stacked, 0), ("output_proj", _side_by_side, 1)):
        theirs = tuple(f"{half}.{proj}.weight" for half in halves)
        yield Row(f"quantizer.{proj}.weight", theirs, build, None, partial(_apart, axis))
    books = tuple(_codebooks(config))
    sources = tuple(f"{b}.{leaf}" for b in books for leaf in ("embedding_sum", "cluster_usage"))
    yield Row("quantizer.embedding", sources, _embedding, None, _unembedding)
    yield Row("quantizer.half_norms", sources, _half_norms, None, _unembedding)


def _codebooks(config: MimiConfig) -> Iterator[str]:
    semantic = config.num_semantic_quantizers
    yield from (f"quantizer.rvq_first.vq.layers.{i}._codebook" for i in range(semantic))
    yield from (f"quantizer.rvq_rest.vq.layers.{i}._codebook" for i in range(config.num_quantizers - semantic))


def mimi_unused(config: MimiConfig) -> set[str]:
    """Tensors of a Mimi file that say something of its training alone."""
    return {f"{book}._initialized" for book in _codebooks(config)}


def mimi_names(config: MimiConfig) -> list[str]:
    """All tensors of a Mimi file, in the order in which they are written."""
    return [*dict.fromkeys(name for row in mimi(config) for name in row.theirs), *sorted(mimi_unused(config))]


def _embedding(parts: list[mx.array]) -> mx.array:
    """Codebooks [K, entries, dim] from the running sums and counts of their training, alternating."""
    books = [total / mx.maximum(usage, 1e-5)[:, None] for total, usage in zip(parts[::2], parts[1::2], strict=True)]
    return mx.stack(books)


def _half_norms(parts: list[mx.array]) -> mx.array:
    return 0.5 * mx.square(_embedding(parts)).sum(axis=-1)


def _unembedding(values: list[mx.array]) -> list[mx.array]:
    """Sums and counts that give the codebooks again: each entry counted once."""
    books = mx.split(values[0], len(values[0]))
    return [part for book in books for part in (book.squeeze(0), mx.ones(book.shape[1:2], book.dtype))]


def _mimi_layer(ours: str, theirs: str) -> Iterator[Row]:
    for norm in ("norm1", "norm2"):
        for leaf in ("weight", "bias"):
            yield Row(f"{ours}.{norm}.{leaf}", (f"{theirs}.{norm}.{leaf}",), join)
    for proj, name in (("in_proj", "in_proj_weight"), ("out_proj", "out_proj.weight")):
        yield Row(f"{ours}.self_attn.{proj}.weight", (f"{theirs}.self_attn.{name}",), linear)
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
    weight = (f"{theirs}.weight",)
    if isinstance(layer, TransposedConv):
        stride = layer.stride
        yield Row(f"{ours}.weight", weight, _transposed, None, partial(_untransposed, stride))
    else:
        kernel = 2 * layer.stride if isinstance(layer, StridedConv) else layer.kernel_size
        yield Row(f"{ours}.weight", weight, _window, None, partial(_unwindow, kernel))
    yield Row(f"{ours}.bias", (f"{theirs}.bias",), join)
