"""The parser of every command line here: what is wrong with a flag is said in one line, with exit status 2."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from .version import VERSION, install

SHELLS = ("bash", "zsh", "tcsh")


class Parser(argparse.ArgumentParser):
    """`prog` is "python -m MODULE", perhaps with a command behind it; MODULE stands before an error.

    Every command has --version, and --print-completion for the console script of the same name.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.add_argument("--version", action="version", version=f"moshi_mlx {VERSION}")
        self.add_argument("--print-completion", choices=SHELLS, action=_Completion, help=argparse.SUPPRESS)

    @property
    def module(self) -> str:
        """The module of the command: moshi_mlx.local, say."""
        return self.prog.removeprefix("python -m ").split()[0]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.module}: error: {message} (--help shows the options)\n")


def script_of(module: str) -> str:
    """The console script of a command's module: `moshi-mlx` talks, the others have their name behind it."""
    name = module.removeprefix("moshi_mlx").lstrip(".").replace("_", "-")
    return "moshi-mlx" if name in ("", "local") else f"moshi-mlx-{name}"


class _Completion(argparse.Action):
    """Print what a shell completes the command with, by shtab."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, shell: str | Sequence[Any] | None, option: Any = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.error(f"--print-completion needs shtab: {install('completion')}")
        assert isinstance(parser, Parser)
        parser.prog = script_of(parser.module)
        print(shtab.complete(parser, str(shell)))
        parser.exit()
