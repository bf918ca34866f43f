"""The report: what was found as JSON, without anything that says whose machine it is."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import InputError
from .finding import Finding

VERSION = 1


def check_place(path: Path) -> None:
    """Raises InputError where no file can be written, before two minutes are spent."""
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InputError(f"--report {path}: {what}; give the name of a file to write")


def content(found: list[Finding], seconds: dict[str, float]) -> dict:
    """The report as a tree: of each finding its name, verdict and values, never what was said to the person."""
    rows = [{"what": f.what, "verdict": f.verdict, **f.values} for f in found]
    return {"doctor": VERSION, "findings": rows, "seconds": seconds}


def write(path: Path, found: list[Finding], seconds: dict[str, float]) -> None:
    """There whole or not at all. Raises InputError where it cannot be written."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(json.dumps(content(found, seconds), indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"--report {path}: cannot be written ({error.strerror})") from error
