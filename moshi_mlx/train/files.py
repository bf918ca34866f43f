"""What training reads and writes: text of a bounded size; whole files under their names, never half of one.

What is written is on the disk before its name is: a power cut leaves the file of before or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import re
import secrets
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints.disk.files import read_bytes, regular
from ..checkpoints.safetensors import Block, TensorInfo, as_stored, info_of, write_file
from ..errors import CheckpointError, InputError, MoshiError, brief, clipped

LEFTOVER = re.compile(r"\.[0-9a-f]{8}\.(.*\.safetensors|\w*(config|prepared)\.json|losses\.(csv|png)|probe)")


def is_file(path: Path) -> bool:
    """Whether there is a regular file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_text(path: Path, most: int, error: type[MoshiError] = InputError) -> str:
    """A text file in UTF-8 of at most `most` bytes, also once a name in .gz is unpacked. Raises `error`."""
    packed = path.suffix.lower() == ".gz"
    try:
        return (_unpacked(path, most) if packed else read_bytes(path, most, error)).decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(f"{path}: not a text file in UTF-8") from cause


def _unpacked(path: Path, most: int) -> bytes:
    regular(path, InputError)
    try:
        with gzip.open(path) as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {_reason(error)}") from error
    if len(content) > most:
        raise InputError(f"{path}: unpacks to more than {most} bytes, which no such file needs")
    return content


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """A full disk and its like as one line that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or clipped(str(error)) or type(error).__name__


def write(path: Path, writer: Callable[[Path], None]) -> None:
    """`writer` writes under another name beside `path`; then it is renamed, over an older one where there is one.

    Raises CheckpointError where that cannot be done; what was at `path` is then unchanged.
    """
    part = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    with named_errors(path):
        try:
            writer(part)
            with part.open("rb") as file:
                sync(file.fileno())
            os.replace(part, path)
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def sync(number: int) -> None:
    """On the disk itself: macOS needs more than fsync for that, where the disk can do it."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    try:
        if full is not None:
            fcntl.fcntl(number, full)
            return
    except OSError:  # a file system that has no such thing
        pass
    os.fsync(number)


def _sync_folder(folder: Path) -> None:
    """The names in a folder; there are file systems that cannot."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            sync(number)
        finally:
            os.close(number)


def write_tensors(path: Path, tensors: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """A safetensors file. Raises as `write`."""
    mx.eval(tensors)
    infos = {name: _info_of(tensor) for name, tensor in tensors.items()}
    blocks = [Block({name: infos[name]}, partial(_stored, tensor)) for name, tensor in tensors.items()]
    write(path, lambda part: write_file(part, blocks, metadata, _told_nothing))


def _info_of(tensor: mx.array) -> TensorInfo:
    """Of what only training writes, too: tokens, and the count of an optimizer's steps."""
    code = {mx.uint16: "U16", mx.uint64: "U64"}.get(tensor.dtype)
    return TensorInfo(code, tuple(tensor.shape)) if code else info_of(tensor)


def _stored(tensor: mx.array) -> list[Any]:
    return [as_stored(tensor)]


def _told_nothing(count: int) -> None:
    return None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A JSON file. Raises as `write`."""
    write(path, lambda part: _discard(part.write_text(json.dumps(values, indent=1) + "\n")))


def whole_number(values: dict[str, Any], key: str, where: str, least: int = 0) -> int:
    """A count in somebody's file. Raises CheckpointError."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CheckpointError(f"{where}: key {key!r} is {brief(value)}, expected a whole number from {least}")
    return value


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A folder to write to, made where there is none, for this process alone; what a killed one left half is removed.

    Raises InputError where it cannot be written, or another process is writing it. If nothing was written to a new
    folder, it is removed again.
    """
    with _refused(folder):
        is_new = not folder.exists()
        if not is_new and not folder.is_dir():
            raise NotADirectoryError("it is no folder")
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(4)}.probe"
        probe.touch()
        probe.unlink()
    lock = os.open(folder, os.O_RDONLY)
    try:
        _lock(lock, folder)
        for place in (folder, folder / "train", folder / "valid"):
            for path in place.glob(".*"):
                if LEFTOVER.fullmatch(path.name) and is_file(path):
                    path.unlink(missing_ok=True)
        yield
    finally:
        os.close(lock)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _refused(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be written: {_reason(error)}") from error


def _lock(number: int, folder: Path) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{folder}: another process is writing there; wait for its end") from error
    except OSError:  # a network share without locks
        return


def say(line: str) -> None:
    """A line of progress on standard error; where nobody can read it, the work goes on."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def _discard(_: object) -> None:
    return None
