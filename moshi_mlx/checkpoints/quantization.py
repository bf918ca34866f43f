"""What a quantized matrix is: bits, group size and mode, read off tensors and held against config.json's block.

The block is the one that MLX's tools write: {"bits", "group_size", "mode"} for all layers, and under a layer's path its
own values, or false where it is not quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import CheckpointError, ConfigError, brief
from .safetensors import TensorInfo

PARTS = ("weight", "scales", "biases")
# Mode to (bits, group sizes) that MLX's kernels have; the first of each is what a mode's name alone asks for.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}


class Quantization(NamedTuple):
    """How a matrix is quantized."""

    bits: int
    group_size: int
    mode: str = "affine"

    def __str__(self) -> str:
        return f"{self.mode} {self.bits} bits in groups of {self.group_size}"

    def fits(self, width: int) -> bool:
        """Whether rows of `width` inputs are whole groups."""
        return width % self.group_size == 0

    def infos(self, shape: tuple[int, ...], dtype: str) -> dict[str, TensorInfo]:
        """The tensors of a matrix [out, in] of type `dtype`, by their last names."""
        rows, width = shape
        groups = (rows, width // self.group_size)
        packed = {"weight": TensorInfo("U32", (rows, width * self.bits // 32))}
        if self.mode == "affine":
            return {**packed, "scales": TensorInfo(dtype, groups), "biases": TensorInfo(dtype, groups)}
        return {**packed, "scales": TensorInfo("U8", groups)}


def checked(bits: Any, group_size: Any, mode: Any, where: str) -> Quantization:
    """The quantization of these values. Raises ConfigError for what no kernel has."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ConfigError(f"{where}: mode is {brief(mode)}, expected one of {', '.join(MODES)}")
    for name, value, known in zip(("bits", "group size"), (bits, group_size), MODES[mode], strict=True):
        if type(value) is not int or value not in known:
            options = " or ".join(str(option) for option in sorted(known))
            raise ConfigError(f"{where}: {mode} quantization has no {name} {brief(value)}, expected {options}")
    return Quantization(bits, group_size, mode)


def of_tensors(infos: Mapping[str, TensorInfo], stem: str, shape: tuple[int, ...], where: str) -> Quantization | None:
    """How the matrix `stem` of `shape` [out, in] is quantized in a file; None where it is not.

    Raises CheckpointError where its tensors do not fit together or give bits that no quantization has.
    """
    if f"{stem}.scales" not in infos:
        return None
    weight, scales = (infos[f"{stem}.{part}"] for part in ("weight", "scales"))
    affine, (rows, width) = f"{stem}.biases" in infos, shape
    packed, groups = (next(reversed(info.shape), 0) for info in (weight, scales))  # none of a scalar
    bits, group_size = packed * 32 / width, width / max(1, groups)
    for mode, (all_bits, sizes) in MODES.items():
        if (mode == "affine") == affine and bits in all_bits and group_size in sizes:
            found = Quantization(int(bits), int(group_size), mode)
            wanted = found.infos((rows, width), scales.dtype)
            if all(infos[f"{stem}.{part}"].shape == info.shape for part, info in wanted.items()):
                return found
    raise CheckpointError(
        f"{where}: tensor {stem + '.weight'!r}: quantized shapes {brief(weight.shape)} and {brief(scales.shape)} give "
        f"{bits:g} bits in groups of {group_size:g} for {rows} rows of {width} inputs, which no quantization has; "
        "config and tensors contradict"
    )


def of_all(
    infos: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, Quantization | None]:
    """How each matrix of `shapes` that is there is quantized, by its path."""
    matrices = {
        name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2 and name in infos
    }
    return {stem: of_tensors(infos, stem, shape, where) for stem, shape in matrices.items()}


def check_block(block: Any, found: Mapping[str, Quantization | None], where: str) -> None:
    """Hold config.json's `quantization` against what the tensors are. Raises ConfigError where they contradict."""
    if not isinstance(block, dict):
        raise ConfigError(f"{where}: key 'quantization' is {brief(block)}, expected an object")
    if not any(found.values()):
        raise ConfigError(f"{where}: key 'quantization' is {brief(block)}, but no tensor is quantized")
    general = {name: block[name] for name in ("bits", "group_size", "mode") if name in block}
    for path, value in block.items():
        if path not in general and path not in found:
            raise ConfigError(f"{where}: key 'quantization' names {brief(path)}, which is no matrix of this model")
        if path not in general and not isinstance(value, (dict, bool)):
            raise ConfigError(
                f"{where}: key 'quantization' has {brief(value)} for {brief(path)}, expected an object or false"
            )
    for path, actual in found.items():
        value = block.get(path, True)
        if actual is None and not isinstance(value, dict):
            continue  # as MLX's tools have it: what has no scales is not quantized
        own = {**general, **value} if isinstance(value, dict) else general
        said = None if value is False else _said(own, f"{where}: quantization of {path!r}")
        if said != actual:
            raise ConfigError(
                f"{where}: key 'quantization' gives {path!r} {said or 'none'}, its tensors {actual or 'none'}"
            )


def _said(values: Mapping[str, Any], where: str) -> Quantization:
    return checked(values.get("bits"), values.get("group_size"), values.get("mode", "affine"), where)


def block_of(found: Mapping[str, Quantization | None]) -> dict[str, Any] | None:
    """The block that says what `found` is: the commonest quantization for all, and what differs; None without any."""
    kinds = [kind for kind in found.values() if kind]
    if not kinds:
        return None
    common = max(dict.fromkeys(kinds), key=kinds.count)
    block: dict[str, Any] = {"group_size": common.group_size, "bits": common.bits, "mode": common.mode}
    for path, kind in found.items():
        if kind != common:
            block[path] = (kind and {"group_size": kind.group_size, "bits": kind.bits, "mode": kind.mode}) or False
    return block
