"""Talk with Moshi in this machine's browser: python -m moshi_mlx.local_web, the command of the earlier port.

The server with one slot, and the page opened when it is ready.
"""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence

from .serve import options
from .serve.__main__ import run
from .terminal import streams

PROGRAM = "moshi_mlx.local_web"


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = options.parser(PROGRAM)
    parser.description = "Talk with Moshi in the browser: the server with one slot, and its page opened."
    parser.set_defaults(slots=1, queue=0, drain=0.0)
    parser.add_argument("--no-browser", action="store_true", help="leave the page to you")
    arguments = options.parse(argv, parser)
    return run(arguments, PROGRAM, (lambda address: None) if arguments.no_browser else _show)


def _show(address: str) -> None:
    webbrowser.open(address)


if __name__ == "__main__":
    sys.exit(main())
