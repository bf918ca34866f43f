"""Reading the headers of safetensors files, so that a broken file is told by name before any tensor is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx

from .errors import CheckpointError

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32", "F64")


class TensorInfo(NamedTuple):
    """What the header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Name to type and shape. Raises CheckpointError where the file is missing, cut short or no safetensors file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{path}: cut short or not a safetensors file ({size} bytes); download it again")
        try:
            header = json.loads(file.read(length))
            tensors = {k: v for k, v in header.items() if k != "__metadata__"}
            found = {name: TensorInfo(t["dtype"], tuple(t["shape"])) for name, t in tensors.items()}
            ends = {name: int(t["data_offsets"][1]) for name, t in tensors.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a safetensors file: its header does not parse") from error
    for name, info in sorted(found.items(), key=lambda item: ends[item[0]]):
        if info.dtype not in BITS:
            raise CheckpointError(f"{path}: tensor {name!r} has the type {info.dtype}, which cannot be read")
        if 8 + length + ends[name] > size:
            raise CheckpointError(f"{path}: cut short: tensor {name!r} is incomplete; download the file again")
    return found


def load_lazily(path: Path) -> dict[str, mx.array]:
    """The tensors, read from the file only when they are evaluated."""
    return cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
