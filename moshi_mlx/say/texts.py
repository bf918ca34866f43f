"""What is to be said, as texts in pieces: an argument, a file, or standard input as it comes."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from . import options

BLOCK_BYTES = 65_536


def texts_of(given: str) -> Iterator[Iterable[str]]:
    """Texts, each as pieces that may still be on their way. Raises InputError for a file that is no text."""
    if given == str(options.STREAM):
        if sys.stdin is None:
            raise InputError("standard input: expected text, but it is closed")
        return _lines() if sys.stdin.isatty() else iter([_pieces(sys.stdin.fileno(), "standard input")])
    return iter([[_read(Path(given).expanduser()) if options.is_file(given) else given]])


def _lines() -> Iterator[Iterable[str]]:
    """What somebody types, a text each line."""
    assert sys.stdin is not None
    return ([line] for line in sys.stdin if line.strip())


def _pieces(file: int, name: str) -> Iterator[str]:
    """What a pipe brings, as soon as it is there; a letter's bytes may come apart."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        while data := os.read(file, BLOCK_BYTES):
            yield decoder.decode(data)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not text in UTF-8") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
