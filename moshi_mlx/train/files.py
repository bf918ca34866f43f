"""What the trainer writes: whole files under their names, never half of one."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx


def write(path: Path, writer: Callable[[Path], None]) -> None:
    """`writer` writes under another name beside `path`; then it is renamed, over an older one where there is one."""
    part = path.with_name(f".{secrets.token_hex(4)}.{path.name}")  # MLX wants the suffix kept
    try:
        writer(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """A safetensors file."""
    write(path, lambda part: mx.save_safetensors(str(part), tensors, metadata))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A JSON file."""
    write(path, lambda part: _discard(part.write_text(json.dumps(values, indent=1) + "\n")))


def metadata_of(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; empty where there is none."""
    if not path.is_file():
        return {}
    loaded: Any = mx.load(str(path), return_metadata=True)
    return dict(loaded[1])


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def _discard(_: object) -> None:
    return None
