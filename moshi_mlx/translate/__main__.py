"""Translate speech into speech while it is said: python -m moshi_mlx.translate FILE | - | --live."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..local.__main__ import run
from ..terminal import streams
from . import options
from .run import Translation


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    return run(options.PROGRAM, Translation, options.parse, argv)


if __name__ == "__main__":
    sys.exit(main())
