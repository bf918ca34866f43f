"""Putting a file's tensors into a model's parameters, strictly: each has a place, and each place its tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .errors import CheckpointError
from .layouts import Row, join, linear
from .linear import Embedding, QuantizedEmbedding

QUANTIZED = ("weight", "scales", "biases")


def fill(
    model: nn.Module, rows: list[Row], tensors: dict[str, mx.array], unused: set[str], path: Path, dtype: Any = None
) -> None:
    """Give the parameters that `rows` name their tensors, cast to `dtype` if given, and account for every tensor.

    Layers that are quantized in the file become quantized layers. `unused` are names without a place by right.
    Raises CheckpointError, naming the tensor, where one is missing, left over or of a shape that does not fit.
    """
    used = set(unused)
    for row in rows:
        stems = [name.removesuffix(".weight") for name in row.theirs]
        suffixes = [s for s in QUANTIZED if f"{stems[0]}.{s}" in tensors] if f"{stems[0]}.scales" in tensors else []
        names = [[f"{stem}.{s}" for stem in stems] for s in suffixes] or [list(row.theirs)]
        missing = sorted({name for group in names for name in group} - set(tensors))
        if missing:
            raise CheckpointError(f"{path}: tensor {missing[0]!r} is missing")
        used.update(name for group in names for name in group)
        groups = [[tensors[name] for name in group] for group in names]
        module, leaf = module_at(model, row.ours)
        if suffixes:
            module = _quantized(model, row, module, dict(zip(suffixes, groups, strict=True)), path)
        for place, parts in zip(suffixes or [leaf], groups, strict=True):
            value = _built(row, parts, bool(suffixes), path)
            _check_shape(value, module[place], row, bool(suffixes), path)
            floating = mx.issubdtype(value.dtype, mx.floating)
            module[place] = value.astype(dtype) if dtype is not None and floating else value
    left = sorted(set(tensors) - used)
    if left:
        raise CheckpointError(f"{path}: tensor {left[0]!r} has no place in a model of these sizes")


def module_at(model: nn.Module, path: str) -> tuple[Any, Any]:
    """What a dotted parameter path lies in (a module, or a list of arrays), and the parameter's own name in it."""
    *stem, leaf = path.split(".")
    module: Any = model
    for part in stem:
        module = module[int(part)] if isinstance(module, list) else module[part]
    return module, int(leaf) if isinstance(module, list) else leaf


def _built(row: Row, parts: list[mx.array], quantized: bool, path: Path) -> mx.array:
    """The parameter of a row, whose parts must fit together."""
    if row.build in (join, linear):
        whole = sum(len(part) for part in parts)
        for n, (name, part) in enumerate(zip(row.theirs, parts, strict=True)):
            expected = (row.rows[n] if row.rows else whole // len(parts), *parts[0].shape[1:])
            if len(parts) > 1 and part.shape != expected:
                got = f"has the shape {list(part.shape)}, expected {list(expected)}"
                raise CheckpointError(f"{path}: tensor {name!r} {got}")
    try:
        return join(parts) if quantized else row.build(parts)
    except ValueError as error:
        shapes = ", ".join(str(list(part.shape)) for part in parts[:4])
        raise CheckpointError(f"{path}: tensor {row.theirs[0]!r} has a shape that does not fit: {shapes}") from error


def _check_shape(value: mx.array, place: mx.array, row: Row, quantized: bool, path: Path) -> None:
    if value.shape == place.shape:
        return
    turned = -1 if row.build is linear and not quantized else 1  # told in the file's own order of axes
    got, wanted = list(value.shape)[::turned], list(place.shape)[::turned]
    names = repr(row.theirs[0]) if len(row.theirs) == 1 else f"{row.theirs[0]!r} to {row.theirs[-1]!r}"
    kind = "quantized shape" if quantized else "shape"
    raise CheckpointError(f"{path}: tensor {names} gives the {kind} {got}, but the config wants {wanted}")


def _quantized(model: nn.Module, row: Row, module: Any, parts: dict[str, list[mx.array]], path: Path) -> nn.Module:
    """The quantized layer in the place of `module`; bits and group size are read off the tensors."""
    if "scales" in module:
        return module  # a step that shares it came first
    table = isinstance(module, Embedding)
    rows, width = module.weight.shape if table else module.weight.shape[::-1]
    scales, affine = parts["scales"][0], "biases" in parts
    bits, group_size, mode = _quantization(
        parts["weight"][0], scales, width, affine, f"{path}: tensor {row.theirs[0]!r}"
    )
    packed = mx.zeros((rows, width * bits // 32), mx.uint32)
    groups = mx.zeros((rows, width // group_size), scales.dtype)
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


def _quantization(weight: mx.array, scales: mx.array, width: int, affine: bool, name: str) -> tuple[int, int, str]:
    """(bits, group size, mode) of a layer of `width` inputs."""
    bits, group_size = weight.shape[-1] * 32 / width, width / scales.shape[-1]
    modes = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}
    if affine and bits in (2, 3, 4, 5, 6, 8) and group_size in (32, 64, 128):
        return int(bits), int(group_size), "affine"
    if not affine and (bits, group_size) in modes:
        return int(bits), int(group_size), modes[int(bits), int(group_size)]
    raise CheckpointError(
        f"{name}: quantized shapes {list(weight.shape)} and {list(scales.shape)} give {bits:g} bits in groups of "
        f"{group_size:g} for {width} inputs, which no quantization has; config and tensors contradict"
    )
