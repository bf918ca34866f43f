"""What can be run: `python -m moshi_mlx` lists the commands, `python -m moshi_mlx COMMAND ...` runs one."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from .terminal import streams
from .terminal.arguments import Parser
from .terminal.commands import COMMANDS


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given and given[0] in COMMANDS:
        sys.argv = [f"moshi_mlx.{given[0]}", *given[1:]]
        runpy.run_module(f"moshi_mlx.{given[0]}", run_name="__main__", alter_sys=True)
        return 0
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  python -m moshi_mlx.{name:{width}}  {line}" for name, line in COMMANDS.items())
    if not given or given == ["--help"] or given == ["-h"]:
        streams.tell(f"commands:\n{listed}\n\nEach has --help. https://arxiv.org/abs/2410.00037 describes Moshi.")
        return 0
    parser = Parser("python -m moshi_mlx", description="List the commands.")
    parser.add_argument("command", choices=list(COMMANDS))
    parser.parse_args(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
