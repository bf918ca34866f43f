"""How far long work is, on standard error, where someone looks."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

import mlx.core as mx

from .sizes import size

SECONDS = 0.25  # between two looks
BAR_AFTER = 1.0  # seconds of steps before there is a bar


def loaded_of(loaded: int, total: int) -> str:
    """ "4.2 GB of 4.94 GB loaded"; without a total where it is not known or was too small."""
    return f"{size(loaded)} of {size(total)} loaded" if loaded <= total else f"{size(loaded)} loaded"


class Loading:
    """A context: shows on standard error how much of `total` bytes is in memory, where that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, threading.Event()
        self._thread = threading.Thread(target=self._show, name="loading", daemon=True)

    def _show(self) -> None:
        before, shown = mx.get_active_memory(), False
        while not self._done.wait(SECONDS):
            loaded = mx.get_active_memory() - before
            if loaded > 0:  # while files are fetched, the hub's client shows how far it is
                print(f"\r{loaded_of(loaded, self._total):50}", end="", file=sys.stderr, flush=True)
                shown = True
        if shown:
            print(f"\r{'':50}\r", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A function to be told of every so many bytes done; a bar, where someone looks."""
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr, disable=not watched) as bar:
        yield bar.update


@contextlib.contextmanager
def steps(what: str, total: int, shown: bool = True) -> Iterator[Callable[[int], object]]:
    """A function to be told of every so many steps done; a bar where someone looks and it takes over a second."""
    if not shown or not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, file=sys.stderr, delay=BAR_AFTER, leave=False) as bar:
        yield bar.update
