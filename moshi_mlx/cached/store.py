"""What lies in the hub's cache, and the miniature of the package."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints import quantization
from ..checkpoints.names import MINIATURE, MINIATURE_FOLDER
from ..checkpoints.reading import LAYOUTS, open_checkpoint
from ..errors import InputError, MoshiError


class Model(NamedTuple):
    """A checkpoint on this disk."""

    name: str
    size: int  # bytes
    kind: str  # layout and bits, or why it cannot be loaded
    used: float | None  # seconds since the epoch; None: comes with the package
    loads: bool


def models() -> list[Model]:
    """The miniature, then every repository of the cache that looks like a Moshi, by name."""
    sizes = sum(path.stat().st_size for path in MINIATURE_FOLDER.iterdir())
    found = [Model(MINIATURE, sizes, *_kind(MINIATURE_FOLDER)[:1], None, True)]
    cache = _scan()
    for repo in sorted(cache.repos if cache else (), key=lambda repo: repo.repo_id):
        if repo.repo_type != "model":
            continue
        snapshot = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
        if snapshot is None:
            continue
        kind, loads = _kind(snapshot.snapshot_path)
        if loads or _is_moshis(repo.repo_id):
            found.append(Model(repo.repo_id, repo.size_on_disk, kind, repo.last_accessed, loads))
    return found


def remove(name: str) -> int:
    """Remove a repository from the cache; the bytes that this gave back. Raises InputError where it is not there."""
    if name == MINIATURE:
        raise InputError(f"{MINIATURE}: comes with the package and stays")
    cache = _scan()
    named = frozenset(
        repo for repo in (cache.repos if cache else ()) if (repo.repo_type, repo.repo_id) == ("model", name)
    )
    commits = [revision.commit_hash for repo in named for revision in repo.revisions]
    if not commits:
        raise InputError(f"{name}: is not in the cache; python -m moshi_mlx.models lists what is")
    # Of that repository alone: a copy of it under another name has the same commits.
    strategy = dataclasses.replace(cache, repos=named).delete_revisions(*commits)
    strategy.execute()
    return int(strategy.expected_freed_size)


def age(seconds: float | None) -> str:
    """When a model was last used, in days."""
    if seconds is None:
        return "in the package"
    days = int((time.time() - seconds) // 86400)
    return "used today" if days < 1 else f"used {days} day{'s' if days > 1 else ''} ago"


def _scan() -> Any:
    """The hub's cache; None where there is none yet."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None
    except ValueError as error:
        raise InputError(f"{constants.HF_HUB_CACHE}: is a file, expected the hub's cache; set HF_HUB_CACHE") from error


def _kind(folder: Path) -> tuple[str, bool]:
    try:
        checkpoint = open_checkpoint(folder)
    except MoshiError as error:
        return f"cannot be loaded: {str(error).removeprefix(str(folder)).lstrip('/: ')}", False
    block = quantization.block_of(checkpoint.quantized)
    bits = f"{block['bits']} bits" if block else "not quantized"
    return f"{LAYOUTS[checkpoint.layout]}, {bits}", True


def _is_moshis(name: str) -> bool:
    return any(word in name.lower() for word in ("moshi", "mimi", "personaplex", "hibiki", "helium"))
