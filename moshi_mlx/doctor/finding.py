"""What a check finds, and how a check that fails becomes a finding too."""

from __future__ import annotations

import getpass
import platform
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
PRIVATE = (r"'[^']*'", r'"[^"]*"', r"(?:[A-Za-z]:)?[~\w.-]*[/\\][^\s,;:)]*")  # what is quoted, and paths


class Finding(NamedTuple):
    """`said` is for the person at the machine and may name devices and places; `values` is for the report and may not.

    `todo`: what to do about it, "" where nothing is to be done.
    """

    what: str
    verdict: str
    said: str
    todo: str = ""
    values: Mapping[str, Any] = MappingProxyType({})


Check = Callable[[], Iterator[Finding]]


def guarded(what: str, check: Check) -> Iterator[Finding]:
    """The findings of a check; what it raises is a problem like any other, and the checks after it go on."""
    try:
        yield from check()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        values = {
            "error": type(error).__name__, "message": without_names(str(error)),
            "at": f"{Path(frame.filename).name}:{frame.lineno}",
        }  # fmt: skip
        todo = "send the report: python -m moshi_mlx.doctor --report doctor.json"
        yield Finding(what, PROBLEM, f"{type(error).__name__}: {error}", todo, values)


def without_names(text: str) -> str:
    """Without what says who somebody is: quoted words, paths, the names of the user and of the machine."""
    for pattern in PRIVATE:
        text = re.sub(pattern, "...", text)
    for name in (_user(), platform.node()):
        if len(name) > 1:
            text = re.sub(re.escape(name), "...", text, flags=re.IGNORECASE)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
