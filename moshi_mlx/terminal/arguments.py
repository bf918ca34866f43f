"""The parser of every command line here: what is wrong with a flag is said in one line, with exit status 2."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..errors import ConfigError
from .settings import defaults
from .streams import tell
from .version import VERSION, install

SHELLS = ("bash", "zsh", "tcsh")


class Parser(argparse.ArgumentParser):
    """`prog` is "python -m MODULE", perhaps with a command behind it; MODULE stands before an error.

    Every command has --version, and --print-completion for the console script of the same name. With `table` a
    person's own settings (see `settings`) stand in for flags that are not given; `parse_args` tells of them in
    `from_settings`, the names of those that do.
    """

    def __init__(self, *args: Any, table: str | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._table = table
        self.add_argument("--version", action="version", version=f"moshi_mlx {VERSION}")
        self.add_argument("--print-completion", choices=SHELLS, action=_Completion, help=argparse.SUPPRESS)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse has it, a person's own settings before what is given."""
        if self._table is None:
            return super().parse_args(args, namespace)
        given = list(sys.argv[1:] if args is None else args)
        try:
            own = defaults(self._table, self._actions)
        except ConfigError as error:
            self.exit(2, f"{self.module}: error: {error}\n")
        taken = self._given(given)
        rivals = {action.dest for group in self._mutually_exclusive_groups for action in group._group_actions
                  if taken & {one.dest for one in group._group_actions}}  # fmt: skip
        used = [(action, words) for action, words in own if action.dest not in taken | rivals]
        parsed = super().parse_args([word for _, words in used for word in words] + given, namespace)
        parsed.from_settings = {action.dest for action, words in used if words}
        return parsed

    def _given(self, arguments: list[str]) -> set[str]:
        """The names of the flags that are among the arguments."""
        usual = [(action, action.default, action.required) for action in self._actions]
        try:
            for action in self._actions:
                action.default = argparse.SUPPRESS
                action.required = action.required and not action.option_strings  # settings may have it
            return set(vars(super().parse_known_args(arguments)[0]))
        finally:
            for action, default, required in usual:
                action.default, action.required = default, required

    @property
    def module(self) -> str:
        """The module of the command: moshi_mlx.local, say."""
        return self.prog.removeprefix("python -m ").split()[0]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.module}: error: {message} (--help shows the options)\n")


def number(kind: type, least: float, below: float = math.inf) -> Callable[[str], Any]:
    """A type for argparse: a finite number of `kind` from `least` up."""

    def parse(text: str) -> Any:
        expected = f"{'a whole number' if kind is int else 'a number'} of at least {least}"
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return parse


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
        tell(shtab.complete(parser, str(shell)))
        parser.exit()
