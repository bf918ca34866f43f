"""safetensors files: headers read and checked by name, tensors read one by one, new ones written as they come.

A tensor that is only moved keeps its very bits: it is a NumPy array of its stored type, bfloat16 as the uint16 of its
bits. `as_mx` and `as_stored` go to MLX and back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32", "F64")
_NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
_CODES = {
    mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32", mx.uint8: "U8", mx.int32: "I32",
}  # fmt: skip


class TensorInfo(NamedTuple):
    """What the header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * BITS[self.dtype] // 8


class Tensor(NamedTuple):
    """A tensor that is read when it is wanted, so that a checkpoint larger than the memory can be worked on."""

    info: TensorInfo
    read: Callable[[], np.ndarray]


class Block(NamedTuple):
    """Tensors that are made in one go: their names and infos, and what makes their arrays, in that order."""

    infos: dict[str, TensorInfo]
    make: Callable[[], Sequence[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.infos.values())


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Name to type and shape. Raises CheckpointError where the file is missing, cut short or no safetensors file."""
    return {name: info for name, (info, _) in _places(path).items()}


def stored(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, each mapped into memory while it is read. Raises as `read_header`."""
    return {name: Tensor(info, _reader(path, info, start)) for name, (info, start) in _places(path).items()}


def load_lazily(path: Path) -> dict[str, mx.array]:
    """The tensors, read from the file only when they are evaluated."""
    return cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))


def _places(path: Path) -> dict[str, tuple[TensorInfo, int]]:
    """Name to info and first byte in the file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{path}: cut short or not a safetensors file ({size} bytes); download it again")
        try:
            tensors = {k: v for k, v in json.loads(file.read(length)).items() if k != "__metadata__"}
            infos = {name: TensorInfo(t["dtype"], tuple(t["shape"])) for name, t in tensors.items()}
            spans = {name: (int(t["data_offsets"][0]), int(t["data_offsets"][1])) for name, t in tensors.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path}: not a safetensors file: its header does not parse") from error
    for name, info in sorted(infos.items(), key=lambda item: spans[item[0]][1]):
        _check_span(f"{path}: tensor {name!r}", path, info, spans[name], size - 8 - length)
    return {name: (info, 8 + length + spans[name][0]) for name, info in infos.items()}


def _check_span(what: str, path: Path, info: TensorInfo, span: tuple[int, int], data: int) -> None:
    if info.dtype not in BITS:
        raise CheckpointError(f"{what} has the type {info.dtype}, which cannot be read")
    if span[1] > data:
        raise CheckpointError(f"{path}: cut short: {what.partition(': ')[2]} is incomplete; download the file again")
    if span[0] < 0 or span[1] - span[0] != info.nbytes:
        got = f"{span[1] - span[0]} bytes"
        raise CheckpointError(f"{what} has {got}, but its shape {list(info.shape)} takes {info.nbytes}")


def _reader(path: Path, info: TensorInfo, start: int) -> Callable[[], np.ndarray]:
    dtype = np.dtype(_NUMPY[info.dtype])

    def read() -> np.ndarray:
        if not info.nbytes:
            return np.zeros(info.shape, dtype)
        return np.memmap(path, dtype, "r", start, info.shape).view(np.ndarray) if info.shape else _scalar()

    def _scalar() -> np.ndarray:
        return np.fromfile(path, dtype, 1, offset=start).reshape(())

    return read


def as_mx(array: np.ndarray, dtype: str) -> mx.array:
    """A stored array in MLX, of the type that `dtype` says."""
    value = mx.array(np.ascontiguousarray(array).reshape(array.shape))
    return value.view(mx.bfloat16) if dtype == "BF16" else value


def as_stored(value: mx.array) -> np.ndarray:
    """An MLX array as it is stored."""
    return np.asarray(value.view(mx.uint16) if value.dtype == mx.bfloat16 else value)


def info_of(value: mx.array) -> TensorInfo:
    """What a file that holds an MLX array says of it; nothing is evaluated."""
    return TensorInfo(_CODES[value.dtype], tuple(value.shape))


def code_of(dtype: mx.Dtype) -> str:
    """The name that safetensors has for a type."""
    return _CODES[dtype]


def mx_type(code: str) -> mx.Dtype:
    """The type that safetensors calls so."""
    return next(dtype for dtype, name in _CODES.items() if name == code)


def write_file(
    path: Path, blocks: Iterable[Block], metadata: dict[str, str], progress: Callable[[int], object]
) -> None:
    """Write the tensors of `blocks`, one block in memory at a time; `progress` is told of every tensor's bytes.

    Wide types come first in the file, so that every tensor lies aligned. Raises OSError, of a full disk for example.
    """
    blocks = list(blocks)
    infos = {name: info for block in blocks for name, info in block.infos.items()}
    order = sorted(infos, key=lambda name: -BITS[infos[name].dtype])
    header, places, position = {"__metadata__": metadata}, {}, 0
    for name in order:
        dtype, shape = infos[name]
        end = position + infos[name].nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}  # type: ignore[dict-item]
        places[name], position = position, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            for (name, info), array in zip(block.infos.items(), block.make(), strict=True):
                assert (array.shape, array.nbytes) == (info.shape, info.nbytes), name
                file.seek(8 + len(text) + places[name])
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                progress(info.nbytes)
        file.flush()
        os.fsync(file.fileno())
