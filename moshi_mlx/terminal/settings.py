"""Defaults of a person's own for the commands' flags: one TOML file, then the environment; flags win over both.

A table is a command, a key a flag without its dashes:

    [local]
    model = "kyutai/moshika-mlx-q8"
    echo-cancel = true

The file is $MOSHI_MLX_CONFIG, else ~/.config/moshi_mlx.toml (in $XDG_CONFIG_HOME, where that is set). The environment's
MOSHI_MLX_LOCAL_MODEL says the same of one flag.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "MOSHI_MLX_"
LARGEST = 1_000_000  # bytes
TRUE, FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def file() -> Path:
    """Where the file is looked for; it need not exist unless $MOSHI_MLX_CONFIG names it."""
    named = os.environ.get(f"{PREFIX}CONFIG")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "moshi_mlx.toml"


def defaults(command: str, actions: list[argparse.Action]) -> list[tuple[argparse.Action, list[str]]]:
    """What file and environment say of a command's flags, as arguments. Raises ConfigError, naming file and key."""
    flags = {flag.lstrip("-"): action for action in actions for flag in action.option_strings if flag.startswith("--")}
    given: list[tuple[argparse.Action, list[str]]] = []
    for where, key, value in (*_of_file(command), *_of_environment(command, flags)):
        name = key.replace("_", "-")
        if name not in flags or not _is_setting(flags[name]):
            known = ", ".join(sorted(name for name, action in flags.items() if _is_setting(action)))
            raise ConfigError(f"{where}: unknown key {key!r} of {command}; expected one of {known}")
        given.append((flags[name], _as_arguments(f"--{name}", flags[name], value, f"{where}: key {key!r}")))
    return given


def _is_setting(action: argparse.Action) -> bool:
    """Whether a flag stores something, rather than printing something and ending."""
    prints = action.nargs == 0 and action.const is None
    return not prints and action.help != argparse.SUPPRESS


def _of_file(command: str) -> Iterator[tuple[str, str, Any]]:
    path = file()
    if not path.is_file():
        if os.environ.get(f"{PREFIX}CONFIG"):
            raise ConfigError(f"{path}: no such file, which the environment's {PREFIX}CONFIG names")
        return
    table = _read(path).get(command, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: key {command!r} is {table!r}, expected a table [{command}] of flags")
    for key, value in table.items():
        yield f"{path}: [{command}]", key, value


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as opened:
            text = opened.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ConfigError(f"{path}: is larger than {LARGEST} bytes, expected a few lines of settings")
        return tomllib.loads(text.decode())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a TOML file ({' '.join(str(error).split())[:200]})") from error


def _of_environment(command: str, flags: Mapping[str, argparse.Action]) -> Iterator[tuple[str, str, Any]]:
    prefix = f"{PREFIX}{command.upper()}_"
    for name, value in sorted(os.environ.items()):
        if name.startswith(prefix):
            yield f"the environment's {name}", name.removeprefix(prefix).lower(), value


def _as_arguments(flag: str, action: argparse.Action, value: Any, what: str) -> list[str]:
    if action.nargs == 0:
        said = {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}.get(str(value).lower())
        if said is None:
            raise ConfigError(f"{what} is {value!r}, expected true or false")
        return [flag] if said else []
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{what} is {value!r}, expected one value, as the flag takes it")
    return [f"{flag}={value}"]
