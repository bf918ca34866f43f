"""Between a model's parameters and the tensors of Kyutai's MLX and codec files: putting them in, taking them out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..models.config import MimiConfig, MoshiConfig
from ..models.helium import LanguageModel
from ..models.layers.initial import left_at_zero
from ..models.layers.linear import Embedding, QuantizedEmbedding
from ..models.mimi import Mimi
from ..models.moshi import Moshi
from . import layouts, quantization
from .layouts import Row, join, linear
from .quantization import PARTS, Quantization
from .safetensors import info_of

ASKED_AGAIN = 8  # sizes whose shapes are kept: a checkpoint's are asked for at each of its checks


def fill(model: nn.Module, rows: list[Row], tensors: dict[str, mx.array], dtype: Any = None) -> None:
    """Give the parameters that `rows` name their tensors, cast to `dtype` if given.

    Layers whose tensors are quantized become quantized layers. Names and shapes have been checked by then.
    """
    for row in rows:
        stems = [name.removesuffix(".weight") for name in row.theirs]
        suffixes = [s for s in PARTS if f"{stems[0]}.{s}" in tensors] if f"{stems[0]}.scales" in tensors else []
        module, leaf = module_at(model, row.ours)
        if suffixes:
            module = _quantized(model, row, module, tensors, stems[0])
        for place in suffixes or [leaf]:
            names = [f"{stem}.{place}" for stem in stems] if suffixes else row.theirs
            parts = [tensors[name] for name in names]
            value = join(parts) if suffixes else row.build(parts)
            assert value.shape == module[place].shape, (row.ours, value.shape)
            floating = mx.issubdtype(value.dtype, mx.floating)
            module[place] = value.astype(dtype) if dtype is not None and floating else value


def tensors_of(model: nn.Module, rows: list[Row]) -> dict[str, mx.array]:
    """The tensors that `fill` would make these parameters of: its inverse, lazy. Quantized layers stay quantized."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.theirs, []).append(row)
    tensors: dict[str, mx.array] = {}
    for theirs, group in groups.items():
        row = group[0]
        module, _ = module_at(model, row.ours)
        if isinstance(module, (nn.QuantizedLinear, QuantizedEmbedding)):
            for part in (part for part in PARTS if part in module):
                names = [name.removesuffix("weight") + part for name in theirs]
                tensors |= dict(zip(names, row.split(module[part]), strict=True))
            continue
        values = [place[name] for place, name in (module_at(model, one.ours) for one in group)]
        joined = values[0].T if row.build is linear else values[0]
        parts = row.unbuild(values) if row.unbuild else row.split(joined)
        tensors |= dict(zip(theirs, parts, strict=True))
    return tensors


def language_tensors_of(model: Moshi) -> dict[str, mx.array]:
    """The tensors of the language model under the names of Kyutai's MLX files, shared weights repeated as there."""
    tensors = tensors_of(model, list(layouts.kyutai_mlx(model.config)))
    for prefix, of in layouts.kyutai_mlx_repeats(model.config).items():
        tensors |= {prefix + name[len(of) :]: value for name, value in tensors.items() if name.startswith(of)}
    return tensors


def mimi_tensors_of(model: Mimi) -> dict[str, mx.array]:
    """The tensors of the codec under the names of Kyutai's codec files."""
    tensors = tensors_of(model, list(layouts.mimi(model.config)))
    return tensors | {name: mx.ones((1,)) for name in sorted(layouts.mimi_unused(model.config))}


@lru_cache(ASKED_AGAIN)
def language_shapes(config: MoshiConfig) -> Mapping[str, tuple[int, ...]]:
    """The shapes of `language_tensors_of` for these sizes; nothing is computed."""
    with left_at_zero():
        if not config.audio_delays:
            return _shapes(tensors_of(LanguageModel(config), layouts.kyutai_mlx_text(config)))
        return _shapes(language_tensors_of(Moshi(config)))


@lru_cache(ASKED_AGAIN)
def mimi_shapes(config: MimiConfig) -> Mapping[str, tuple[int, ...]]:
    """The shapes of `mimi_tensors_of` for these sizes; nothing is computed."""
    with left_at_zero():
        return _shapes(mimi_tensors_of(Mimi(config)))


def _shapes(tensors: dict[str, mx.array]) -> Mapping[str, tuple[int, ...]]:
    return MappingProxyType({name: tuple(value.shape) for name, value in tensors.items()})


def module_at(model: nn.Module, path: str) -> tuple[Any, Any]:
    """What a dotted parameter path lies in (a module, or a list of arrays), and the parameter's own name in it."""
    *stem, leaf = path.split(".")
    module: Any = model
    for part in stem:
        module = module[int(part)] if isinstance(module, list) else module[part]
    return module, int(leaf) if isinstance(module, list) else leaf


def _quantized(model: nn.Module, row: Row, module: Any, tensors: dict[str, mx.array], stem: str) -> nn.Module:
    """The quantized layer in the place of `module`; bits and group size are read off the tensors."""
    if "scales" in module:
        return module  # a step that shares it came first
    table = isinstance(module, Embedding)
    rows, width = module.weight.shape if table else module.weight.shape[::-1]
    infos = {f"{stem}.{part}": info_of(tensors[f"{stem}.{part}"]) for part in PARTS if f"{stem}.{part}" in tensors}
    kind = quantization.of_tensors(infos, stem, (infos[f"{stem}.weight"].shape[0], width), row.ours)
    assert isinstance(kind, Quantization)
    bits, group_size, mode = kind
    packed = mx.zeros((rows, width * bits // 32), mx.uint32)
    groups = mx.zeros((rows, width // group_size), tensors[f"{stem}.scales"].dtype)
    affine = mode == "affine"
    new: nn.Module
    if table:
        new = QuantizedEmbedding(packed, groups, groups if affine else None, bits, group_size, mode)
        if "low_rank" in module:
            new.low_rank = module.low_rank
    else:
        new = nn.QuantizedLinear(width, rows, bias=False, group_size=group_size, bits=bits, mode=mode)
        new.weight, new.scales = packed, groups
        if affine:
            new.biases = groups
    parent, name = module_at(model, row.ours.rsplit(".", 1)[0])
    parent[name] = new
    return new
