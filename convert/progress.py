"""Progress on standard error: bytes done, speed and time left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A function to be told of every so many bytes done; a bar, where someone looks."""
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr, disable=not watched) as bar:
        yield bar.update
