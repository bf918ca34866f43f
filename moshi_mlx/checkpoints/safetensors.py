"""safetensors files: the one door through which every file of tensors is read, and the way new ones are written.

A header is held to the format's own rules (https://github.com/huggingface/safetensors) before a byte of a tensor is
touched: a name comes once, numbers are whole, spans follow each other from the header to the end of the file. Tensors
are then read one by one. One that is only moved keeps its very bits: it is a NumPy array of its stored type, bfloat16
as the uint16 of its bits; `as_mx` and `as_stored` go to MLX and back. Only float64, which MLX does not load, comes as
float32.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, brief, clipped
from .disk.files import regular

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32")  # that a reader gets: F64 comes as F32
METADATA = "__metadata__"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
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
    return {name: _given(info) for name, (info, _) in _places(path).items()}


def read_metadata(path: Path) -> dict[str, str]:
    """What a file says of itself besides its tensors. Raises as `read_header`."""
    _places(path)
    return cast(dict[str, str], _header(path)[0].get(METADATA) or {})


def stored(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, each mapped into memory while it is read. Raises as `read_header`."""
    return {name: Tensor(_given(info), _reader(path, info, start)) for name, (info, start) in _places(path).items()}


def load_lazily(path: Path) -> dict[str, mx.array]:
    """The tensors, read from the file only when they are evaluated. Raises as `read_header`."""
    places = _places(path)
    if any(info.dtype == "F64" for info, _ in places.values()):  # MLX takes no such file at all
        return {name: as_mx(tensor.read(), tensor.info.dtype) for name, tensor in stored(path).items()}
    try:
        return cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: MLX does not read it ({clipped(str(error))})") from error


def _given(info: TensorInfo) -> TensorInfo:
    """What a reader gets of a stored type."""
    return info._replace(dtype="F32") if info.dtype == "F64" else info


def _places(path: Path) -> dict[str, tuple[TensorInfo, int]]:
    """Name to info and first byte in the file, of a file that is safetensors through and through."""
    header, start, size = _header(path)
    tensors = {name: _entry(path, name, value) for name, value in header.items() if name != METADATA}
    position = 0
    for name, (info, first, last) in sorted(tensors.items(), key=lambda item: item[1][1:]):
        what = f"tensor {brief(name)}"
        if last > size - start:
            raise CheckpointError(f"{path}: cut short: {what} is incomplete; download the file again")
        if last - first != info.nbytes:
            takes = f"its shape {clipped(str(list(info.shape)))} takes {info.nbytes}"
            raise CheckpointError(f"{path}: {what} has {last - first} bytes, but {takes}")
        if first != position:
            gap = "overlaps the one before it" if first < position else "leaves bytes before it that are nobody's"
            raise CheckpointError(f"{path}: damaged: {what} {gap}; download the file again")
        position = last
    if position != size - start:
        left = size - start - position
        raise CheckpointError(f"{path}: damaged: {left} bytes behind the last tensor; download the file again")
    return {name: (info, start + first) for name, (info, first, _) in tensors.items()}


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header's object, the first byte behind it, and the size of the file."""
    regular(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(f"{path}: cut short or not a safetensors file ({size} bytes); download it again")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: not a safetensors file: a header of {length} bytes")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(text.decode(), object_pairs_hook=_once) if text.startswith(b"{") else None
    except (ValueError, RecursionError) as error:
        twice = f" ({error})" if isinstance(error, _Twice) else ""
        raise CheckpointError(f"{path}: not a safetensors file: its header does not parse{twice}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not a safetensors file: its header does not parse")
    said = header.get(METADATA)
    if said is not None and not (isinstance(said, dict) and all(isinstance(value, str) for value in said.values())):
        raise CheckpointError(f"{path}: not a safetensors file: {METADATA} holds {brief(said)}, expected texts by name")
    return header, 8 + length, size


class _Twice(ValueError):
    """A name that a header has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise _Twice(f"{brief(name)} is there twice")
        values[name] = value
    return values


def _entry(path: Path, name: str, value: Any) -> tuple[TensorInfo, int, int]:
    """A tensor's info and span by its entry in the header."""
    what = f"{path}: tensor {brief(name)}"
    entry: dict[str, Any] = value if isinstance(value, dict) else {}
    dtype, shape, span = (cast(Any, entry.get(key)) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _whole(shape) and _whole(span) and len(span) == 2):
        raise CheckpointError(f"{what}: its entry in the header is {brief(value)}, which says no type, shape and span")
    if dtype not in BITS:
        raise CheckpointError(f"{what} has the type {clipped(dtype)}, which cannot be read")
    return TensorInfo(dtype, tuple(shape)), span[0], span[1]


def _whole(value: Any) -> bool:
    """Whether it is a list of whole numbers that can be sizes."""
    numbers = value if isinstance(value, list) else [None]
    return all(type(number) is int and 0 <= number < 2**63 for number in numbers)


def _reader(path: Path, info: TensorInfo, start: int) -> Callable[[], np.ndarray]:
    dtype = np.dtype(_NUMPY[info.dtype])

    def read() -> np.ndarray:
        if not info.nbytes:
            return np.zeros(info.shape, dtype)
        return np.memmap(path, dtype, "r", start, info.shape).view(np.ndarray) if info.shape else _scalar()

    def _scalar() -> np.ndarray:
        return np.fromfile(path, dtype, 1, offset=start).reshape(())

    def read_narrowed() -> np.ndarray:
        wide = read()
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float32)
        if not np.array_equal(np.isfinite(wide), np.isfinite(narrow)):
            raise CheckpointError(f"{path}: has float64 values that float32, in which MLX works, cannot hold")
        return narrow

    return read_narrowed if info.dtype == "F64" else read


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
    header, places, position = {METADATA: metadata}, {}, 0
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
