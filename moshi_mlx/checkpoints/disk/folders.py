"""A folder that is there whole or not at all, whatever ends the program that writes it, and whoever else writes there.

It is filled beside its place under a hidden name, and takes the place in one step. What a killed run has left under
the hidden names is put right by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ...errors import CheckpointError, InputError
from ..names import CONFIG_NAME

NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
LONGEST_NAME = 200  # bytes, of what a hidden name repeats; file systems take 255


class Kind(NamedTuple):
    """Of folders that may replace each other: what one is called, and whether a folder is one."""

    name: str
    found: Callable[[Path], bool]


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool = False, kind: Kind | None = None) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when all is well, and is removed when not.

    A link is followed: what it points to is replaced. Raises InputError where `path` exists and is not to be
    overwritten or is being written by another process, CheckpointError where it cannot be written; then nothing is
    left of the new folder, and what was there is as it was.
    """
    refuse_existing(path, overwrite, kind)
    path = Path(os.path.realpath(path))
    partial, ours = hidden(path, "partial"), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(hidden(path, "lock"), path), _cleared(path):
            partial.mkdir()
            ours = partial.stat()
            yield partial
            refuse_existing(path, overwrite, kind)
            _take_place(path)
    except KeyboardInterrupt as stop:
        if ours and path.is_dir() and os.path.samestat(path.stat(), ours):
            raise KeyboardInterrupt(f"{path} is written and whole") from stop
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}; nothing is left of it") from error


def refuse_existing(path: Path, overwrite: bool, kind: Kind | None = None) -> None:
    """Raises InputError where there is something at `path` that no checkpoint, or folder of `kind`, is to replace."""
    kind = kind or Kind("the folder of a checkpoint", _is_checkpoint)
    there = _can_be_written(path)
    if there and not overwrite:
        raise InputError(f"{path}: exists already; choose another path, or replace it with --overwrite")
    if there and not (os.path.isdir(path) and kind.found(path)):
        raise InputError(f"{path}: is not {kind.name}, so it is not overwritten; choose another path")


def _can_be_written(path: Path) -> bool:
    """Whether something is there already. Raises InputError where nothing could be written there, whatever it is."""
    try:
        os.lstat(path)
        there = True
    except FileNotFoundError:
        there = False
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written: {reason}; choose another path") from error
    parent = next(folder for folder in Path(os.path.abspath(path)).parents if os.path.lexists(folder))
    if not os.path.isdir(parent):
        raise InputError(f"{path}: cannot be written: {parent} is no folder; choose another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written: {parent} takes no new files; choose another path")
    return there


def refuse_inside(path: Path, *files: Path) -> None:
    """Raises InputError where one of the files that are read lies in the folder that is to be replaced."""
    place = Path(os.path.realpath(path))
    for file in files:
        if Path(os.path.realpath(file)).is_relative_to(place):
            raise InputError(f"{path}: holds {file}, which is read, so it is not overwritten; choose another path")


def hidden(path: Path, kind: str) -> Path:
    """The name beside `path` under which a folder is filled ("partial"), kept ("old") or locked ("lock")."""
    name = os.fsencode(path.name)
    if len(name) > LONGEST_NAME:
        import hashlib

        name = name[: LONGEST_NAME - 8] + hashlib.sha256(name).hexdigest()[:8].encode()
    return path.parent / f".{os.fsdecode(name)}.{kind}"


def write_small(path: Path, content: bytes) -> None:
    """A new file of these bytes, on the disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _is_checkpoint(path: Path) -> bool:
    try:
        return (path / CONFIG_NAME).is_file() or any(path.glob("*.safetensors")) or not any(path.iterdir())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _lock(lock: Path, path: Path) -> Iterator[None]:
    """This process alone writes `path` meanwhile. On a file system that has no locks nobody is kept out."""
    while True:
        if lock.is_symlink():  # somebody else's: never followed
            lock.unlink()
        number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise InputError(f"{lock}: is no regular file; remove it")
            _take(number, path)
            if _is_still(lock, number):
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
        finally:
            os.close(number)


def _take(number: int, path: Path) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path}: another process is writing it; wait for its end") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:  # of network shares, for example
            raise


def _is_still(lock: Path, number: int) -> bool:
    """Whether the file that was locked is the one of that name: whoever had it before removes it at his end."""
    try:
        return os.path.samestat(os.stat(lock, follow_symlinks=False), os.fstat(number))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _cleared(path: Path) -> Iterator[None]:
    """No hidden folder beside `path`, before and after; one Ctrl-C does not keep it from being removed."""
    _clear(path)
    try:
        yield
    finally:
        try:
            _clear(path)
        except KeyboardInterrupt:
            _clear(path)
            raise


def _clear(path: Path) -> None:
    """No hidden folder beside `path`. Where a replaced one stands under its hidden name alone, it comes back."""
    import shutil

    partial, old = hidden(path, "partial"), hidden(path, "old")
    if old.is_dir() and not old.is_symlink() and not os.path.lexists(path):
        old.rename(path)
    for leftover in (partial, old):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _take_place(path: Path) -> None:
    """The partial folder becomes `path`; what was there has the old one's hidden name, or none any more."""
    partial, old = hidden(path, "partial"), hidden(path, "old")
    _sync(partial)
    if os.path.lexists(path) and not _exchange(partial, path):
        path.rename(old)
    if not os.path.lexists(path):
        partial.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """The names in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # shares that know no such thing
            raise
    finally:
        os.close(number)


def _exchange(a: Path, b: Path) -> bool:
    """Two folders change places in one step. False where the system or the file system cannot do that."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(a), os.fsencode(b)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return library.renamex_np(*names, 2) == 0  # RENAME_SWAP
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return library.renameat2(-100, names[0], -100, names[1], 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
    return False
