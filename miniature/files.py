"""Files of arrays that are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx


def save_whole(path: Path, tensors: dict[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Written under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name("unfinished-" + path.name)
    mx.save_safetensors(str(unfinished), tensors, metadata or {})
    unfinished.rename(path)


def load_whole(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays and the metadata."""
    loaded: Any = mx.load(str(path), return_metadata=True)
    return loaded
