"""Files that are there whole or not at all, under names that nobody else has.

What is written grows as `.NAME.part` beside its place and is renamed when it is whole. The part is locked, so that two
programs on one path notice each other, and a part that a killed program left is used again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import AudioError

NEW = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Taken(AudioError):
    """Another program is writing that file."""


class Output:
    """The file `path`, to be written through `file` (a descriptor) or as text with `rewrite`.

    Where something lies at `path` already, or another program is writing there, the next free number is taken
    (`talk-2.wav`); `path` then says so. With `overwrite` it is replaced, once the new file is whole. `also` are
    suffixes of files that belong to it and get the same number. Nothing but the part is touched before `settle`,
    `rewrite` or `keep`. Raises AudioError where it cannot be written, as far as can be known beforehand.
    """

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False, also: Sequence[str] = ()) -> None:
        self.asked, self._overwrite = Path(path), overwrite
        self._settled = False
        self.path, self.file = self.asked, -1
        for path in [self.asked] if overwrite else _numbered(self.asked):
            self.path = path
            try:
                with named_errors(path):
                    if self._is_free(also):
                        self.file = self._claim()
                        return
            except Taken:
                if overwrite:
                    raise

    def _is_free(self, also: Sequence[str]) -> bool:
        paths = [self.path, *(self.path.with_suffix(suffix) for suffix in also)]
        for path in paths:
            check_regular(path, self._overwrite)
        return self._overwrite or not any(os.path.exists(path) for path in paths)

    @property
    def _target(self) -> Path:
        return Path(os.path.realpath(self.path))  # a link stays a link

    @property
    def _part(self) -> Path:
        return self._target.with_name(f".{self._target.name}.part")

    def _claim(self) -> int:
        """The part, open and locked, with nothing in it."""
        if self._overwrite and self._target.exists():
            with open(self._target, "rb") as there:
                self._lock(there.fileno())
        while True:
            file = os.open(self._part, NEW, 0o666)
            try:
                self._lock(file)
                if os.path.exists(self._part) and os.path.samestat(os.stat(self._part), os.fstat(file)):
                    os.ftruncate(file, 0)
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # its owner renamed it meanwhile

    def _lock(self, file: int) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Taken(f"{self.path}: cannot be written: another program is writing it") from error
        except OSError:  # a file system without locks
            return

    def settle(self) -> None:
        """Puts the part, as it is by now, in its place; what is written to `file` from here on goes there."""
        if not self._settled:
            self._move(self._part)
            self._settled = True

    def _move(self, part: Path) -> None:
        with named_errors(self.path):
            if self._overwrite or self._settled:
                os.replace(part, self._target)
                return
            ours = self.path
            for path in itertools.dropwhile(lambda path: path != ours, _numbered(self.asked)):
                self.path = path
                with contextlib.suppress(FileExistsError):  # made by somebody since
                    os.close(os.open(self._target, NEW | os.O_EXCL, 0o666))
                    os.replace(part, self._target)
                    return

    def rewrite(self, text: str) -> None:
        """Puts `text` in the place of whatever was there: at any moment it is one version or the other."""
        new = self._target.with_name(f".{self._target.name}.new")
        with named_errors(self.path):
            file = os.open(new, NEW | os.O_TRUNC, 0o666)
            try:
                write_all(file, text.encode("utf-8", "replace"))
                self._lock(file)
                part = self._part
                self._move(new)
            except BaseException:
                os.close(file)
                new.unlink(missing_ok=True)
                raise
            os.close(self.file)
            self.file = file
            if not self._settled:
                part.unlink(missing_ok=True)
            self._settled = True

    def keep(self) -> None:
        """The file is whole. Does nothing after `keep` or `abort`."""
        if self.file < 0:
            return
        try:
            with named_errors(self.path):
                _sync(self.file)
            self.settle()
        finally:
            self.abort()

    def abort(self) -> None:
        """Leaves nothing of what was not put in its place."""
        if self.file < 0:
            return
        file, self.file = self.file, -1
        with contextlib.suppress(OSError):
            if not self._settled:
                self._part.unlink()
        with contextlib.suppress(OSError):
            os.close(file)


def _sync(file: int) -> None:
    """What a full disk has only promised to take, it refuses here."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system that cannot
            raise


def _numbered(path: Path) -> Iterator[Path]:
    """talk.wav, talk-2.wav, talk-3.wav, ..."""
    yield path
    for n in itertools.count(2):
        yield path.with_name(f"{path.stem}-{n}{path.suffix}")


@contextlib.contextmanager
def named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever the system says, as one line that begins with the path."""
    try:
        yield
    except AudioError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero in a name
        said = getattr(error, "strerror", None) or str(error)
        parent = Path(path).parent
        if isinstance(error, FileNotFoundError) and not parent.is_dir():
            said += f"; there is no folder {parent}"
        raise AudioError(f"{os.fspath(path)}: cannot be written: {said}") from error


def check_regular(path: Path, overwrite: bool) -> None:
    """Raises AudioError where something is there that is no file, or a file to be replaced that may not be."""
    if path.is_dir():
        raise AudioError(f"{path}: cannot be written: it is not a regular file, it is a folder")
    if path.exists() and not path.is_file():
        raise AudioError(f"{path}: cannot be written: it is not a regular file")
    if overwrite and path.exists() and not os.access(path, os.W_OK):  # renaming would replace it all the same
        raise AudioError(f"{path}: cannot be written: Permission denied")


def write_all(file: int, data: bytes) -> None:
    """All of `data`: a disk that fills up takes a part first, and then says so."""
    while data:
        data = data[os.write(file, data) :]


def replace(path: Path, text: str) -> None:
    """Writes a file that belongs to a claimed one: under `path` there is never half of it."""
    part = path.with_name(f".{path.name}.new")
    try:
        part.write_text(text, encoding="utf-8", errors="replace")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
