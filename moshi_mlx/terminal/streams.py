"""Standard output and standard error, which may be closed, full or read by nobody: the work goes on all the same."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

from ..errors import MoshiError

FAILED = 2  # the exit status of what is wrong, which one line says

Main = TypeVar("Main", bound=Callable[..., int])


def open_missing() -> None:
    """Where the program was started with a standard stream closed (`>&-`), nothing takes its place instead.

    Otherwise the next file that is opened would get its number, and be written to by whoever prints. Python's own
    `sys.stdout` and the like, which are None then, lead to nowhere, since libraries expect them to be files.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def write_out(text: str) -> None:
    """To standard output at once, in its encoding."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    failure = _print(sys.stdout, text.encode(encoding, "replace").decode(encoding))
    if failure and not isinstance(failure, BrokenPipeError):  # who closes a pipe has seen enough
        say(f"standard output: cannot be written: {getattr(failure, 'strerror', None) or failure}; going on without it")


def write_err(text: str) -> None:
    """To standard error at once, in its encoding."""
    _print(sys.stderr, printable(text, getattr(sys.stderr, "encoding", None) or "utf-8"))


def printable(text: str, encoding: str = "utf-8") -> str:
    """What cannot be said in that encoding, as a byte of a file's name may be, as Python would spell it."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(line: str) -> None:
    """A line to standard error."""
    write_err(line + "\n")


def tell(line: str) -> None:
    """A line to standard output."""
    write_out(line + "\n")


def listed(things: Iterable[object]) -> int:
    """Each on a line of standard output. -> the exit status of a command that was asked for them."""
    for thing in things:
        tell(str(thing))
    return 0


def failed(program: str, error: Exception) -> int:
    """Says in one line why a command failed. -> its exit status."""
    why = str(error)
    if isinstance(error, OSError) and not isinstance(error, MoshiError):
        why = f"{error.filename or 'system'}: {error.strerror or error}"
    say(f"{program}: error: {' '.join(why.splitlines())}")
    return FAILED


def command(main: Main) -> Main:
    """Makes the `main` of a command one whose standard streams may be in any state, from its first line to its end."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        open_missing()
        try:
            return main(argv)
        finally:
            settle()

    return cast(Main, run)


def settle() -> None:
    """At the end of a program: what Python would still write, and complain about, is let go."""
    for stream in (sys.stdout, sys.stderr):
        _print(stream, "")


def _print(stream: Any, text: str) -> Exception | None:
    """Writes and flushes. -> why it could not, after which nothing more is written to that stream."""
    if stream is None:
        return None
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError) as failure:  # ValueError: it is closed
        with contextlib.suppress(OSError, ValueError):
            number = stream.fileno()
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, number)
            os.close(nothing)
            stream.flush()
        return failure
    return None


class ForeignLines:
    """A context: what anybody writes to file descriptor 2 (ALSA, PortAudio, a warning) goes to `say`, line by line.

    So a view on the same terminal stays whole. `close` may be called twice, and from any thread.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._before = say, -1

    def __enter__(self) -> ForeignLines:
        with contextlib.suppress(OSError, ValueError):
            if sys.stderr is not None:
                sys.stderr.flush()
            self._before = os.dup(2)
            read, write = os.pipe()
            os.dup2(write, 2)
            os.close(write)
            self._thread = threading.Thread(target=self._read, args=(read,), name="standard error", daemon=True)
            self._thread.start()
        return self

    def _read(self, pipe: int) -> None:
        before = ""
        with os.fdopen(pipe, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip() and line != before:  # ALSA says most things several times
                    self._say(line.rstrip())
                before = line

    def close(self) -> None:
        if self._before < 0:
            return
        before, self._before = self._before, -1
        with contextlib.suppress(OSError, ValueError):
            if sys.stderr is not None:
                sys.stderr.flush()
        os.dup2(before, 2)  # closes the pipe's end, and so ends the thread
        os.close(before)
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def __exit__(self, *_: object) -> None:
        self.close()
