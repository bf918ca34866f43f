"""Where models come from: the disk that keeps them, and the Hugging Face hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ..machine import preflight
from ..terminal.sizes import size
from .finding import NOTE, OK, PROBLEM, Finding

MODEL = "kyutai/moshiko-mlx-q4"
NEEDED = 5_600_000_000  # bytes of its files, with some room


def disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    todo = "" if free >= NEEDED else f"{MODEL} takes {size(NEEDED)}: make room, or set HF_HOME to another disk"
    yield Finding("disk", OK if free >= NEEDED else NOTE, f"{size(free)} free for models", todo, {"free_bytes": free})


def reachable() -> Iterator[Finding]:
    """Whether the model that a first conversation wants can be had."""
    plan = preflight.plan(MODEL)
    if plan is None:
        todo = "look at the network (and HF_ENDPOINT, HF_HUB_OFFLINE), or bring a folder and use --model FOLDER"
        yield Finding("hub", PROBLEM, "cannot be reached", todo, {"reachable": False})
    elif plan.to_fetch:
        yield Finding(
            "hub", OK, f"{MODEL}: {size(plan.to_fetch)} to download", "", {"reachable": True, "cached": False}
        )
    else:
        yield Finding("hub", OK, f"{MODEL} is on this machine", "", {"cached": True})
