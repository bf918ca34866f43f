"""Tensors from a file that `torch.save` wrote, without PyTorch and without executing anything of the file.

Such a file is a zip archive of a pickle and of the raw bytes of every tensor's storage. A pickle is a program, so two
doors stand before it: only the operations that `torch.save` writes for a dict of tensors may occur in it at all, and
the only names that it may call are those that put a tensor together, which are ours here. What else a file asks for
is refused by name before any of it is run.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ...errors import CheckpointError

MAX_BYTES = 256 * 2**20  # of all tensors; a published voice has less than a megabyte
MAX_PICKLE_BYTES = 2**20
MAX_ENTRIES = 4096
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
    "BoolStorage": "?",
}  # fmt: skip
_OPERATIONS = """
PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID REDUCE
EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS
NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE
"""
OPERATIONS = frozenset(_OPERATIONS.split())


class _Type(NamedTuple):
    """A storage class of PyTorch's, which a pickle names and cannot call."""

    name: str


class _Storage(NamedTuple):
    type: _Type
    key: str
    length: int


def read(file: str | Path | BinaryIO, name: str = "") -> dict[str, np.ndarray]:
    """The tensors of a dict by their keys; bfloat16 becomes float32. `name` is what an error calls the file.

    Raises CheckpointError for another kind of file, and for one that asks for anything but tensors.
    """
    name = name or str(file)
    try:
        with zipfile.ZipFile(file) as archive:
            return _tensors(archive, name)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{name}: no such file") from error
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{name}: not a file of tensors that PyTorch saved (a zip archive): {error}") from error
    except Exception as error:  # whatever the parsers raise for bytes that make no sense; nothing of them was run
        raise CheckpointError(f"{name}: a broken file of tensors: {type(error).__name__}: {error}") from error


def _tensors(archive: zipfile.ZipFile, name: str) -> dict[str, np.ndarray]:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [path for path in entries if path == "data.pkl" or path.endswith("/data.pkl")]
    if len(entries) > MAX_ENTRIES or len(pickles) != 1:
        raise CheckpointError(f"{name}: holds {len(pickles)} files data.pkl, expected one, as PyTorch saves tensors")
    if sum(info.file_size for info in entries.values()) > MAX_BYTES:
        raise CheckpointError(f"{name}: unpacks to more than {MAX_BYTES >> 20} MB, which no voice needs")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder").strip() != b"little":
        raise CheckpointError(f"{name}: was saved on a big-endian machine, which is not supported")
    program = archive.read(pickles[0]) if entries[pickles[0]].file_size <= MAX_PICKLE_BYTES else b""
    _check_operations(program, name)
    read = _Reader(program, archive, f"{root}data/", name)
    values = read.load()
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise CheckpointError(f"{name}: holds a {type(values).__name__}, expected a dict of tensors")
    return {key: value for key, value in values.items() if isinstance(value, np.ndarray)}


def _check_operations(program: bytes, name: str) -> None:
    """Raises CheckpointError where a pickle does what a dict of tensors does not need. Reads it, runs nothing."""
    if not program:
        raise CheckpointError(f"{name}: its pickle is empty or larger than {MAX_PICKLE_BYTES >> 20} MB")
    for operation, argument, _ in pickletools.genops(program):
        if operation.name not in OPERATIONS:
            raise CheckpointError(f"{name}: its pickle has the operation {operation.name}, which tensors do not need")
        if operation.name == "GLOBAL":
            module, _, what = str(argument).partition(" ")
            _allowed(module, what, name)
        if operation.name in ("LONG_BINPUT", "LONG_BINGET") and int(argument or 0) > len(program):
            raise CheckpointError(f"{name}: its pickle is broken (memo {argument})")


def _allowed(module: str, what: str, name: str) -> Any:
    """What a pickle may name: the class of a storage, and what puts a tensor together."""
    if module == "torch" and what in STORAGES:
        return _Type(what)
    if (module, what) == ("collections", "OrderedDict"):
        return _hooks
    if (module, what) == ("torch._utils", "_rebuild_tensor_v2"):
        return _rebuilt
    raise CheckpointError(f"{name}: asks for {module}.{what}, which is refused: a voice holds tensors and nothing else")


def _hooks(*arguments: Any) -> OrderedDict[Any, Any]:
    """A tensor's backward hooks, of which there are none."""
    if arguments:
        raise ValueError("backward hooks")
    return OrderedDict()


class _View(NamedTuple):
    """A tensor before its storage is read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _View:
    whole = [offset, *shape, *strides]
    fits = (
        isinstance(storage, _Storage) and len(shape) == len(strides) and all(type(n) is int and n >= 0 for n in whole)
    )
    if not fits or prod(shape) > storage.length:
        raise ValueError("a tensor that its storage does not hold")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if prod(shape) and last >= storage.length:
        raise ValueError("a tensor that reaches beyond its storage")
    return _View(storage, offset, tuple(shape), tuple(strides))


class _Reader(pickle.Unpickler):
    def __init__(self, program: bytes, archive: zipfile.ZipFile, folder: str, name: str) -> None:
        super().__init__(io.BytesIO(program))
        self._archive, self._folder, self._name = archive, folder, name

    def find_class(self, module: str, name: str) -> Any:
        return _allowed(module, name, self._name)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count = pid
        good = isinstance(storage_type, _Type) and isinstance(key, str) and type(count) is int and count >= 0
        if kind != "storage" or not good:
            raise ValueError("a storage that is none")
        return _Storage(storage_type, key, count)

    def load(self) -> Any:
        values = super().load()
        if not isinstance(values, dict):
            return values
        return {key: self._array(value) if isinstance(value, _View) else value for key, value in values.items()}

    def _array(self, view: _View) -> np.ndarray:
        """The tensor's own copy of its values."""
        dtype = np.dtype(STORAGES[view.storage.type.name])
        raw = self._archive.read(self._folder + view.storage.key)
        if len(raw) < view.storage.length * dtype.itemsize:
            raise ValueError(f"storage {view.storage.key!r} is cut off")
        flat = np.frombuffer(raw, dtype, view.storage.length)[view.offset :]
        steps = [step * dtype.itemsize for step in view.strides]
        values = np.lib.stride_tricks.as_strided(flat, view.shape, steps, writeable=False).copy()
        if view.storage.type.name == "BFloat16Storage":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values
