"""How many conversations this machine keeps in real time: found out by timing batches, not by counting memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..conversation.batch import Batch
from ..errors import InputError

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
FRAMES = 12
# Of the 80 ms that a tick lasts, what a step may take: the rest is for sockets, and for a bad moment.
BUDGET = 0.068


def largest(
    make: Callable[[int], Batch],
    say: Callable[[str], None] = lambda line: None,
    now: Callable[[], float] = time.perf_counter,
) -> Batch:
    """The batch of the largest size whose steps keep real time with every context full.

    `make(slots)` makes a batch. Raises InputError where one conversation is too many.
    """
    best, slowest = None, 0.0
    for slots in SIZES:
        batch = make(slots)
        seconds = step_seconds(batch, now)
        say(f"{slots} at once: {1000 * seconds:.0f} ms a step of 80")
        if seconds > BUDGET:
            slowest = seconds
            break
        best = slots
        del batch  # before the next, larger one is made
    if best is None:
        raise InputError(
            f"--slots auto: one conversation takes {1000 * slowest:.0f} ms a frame, it must take less than "
            f"{1000 * BUDGET:.0f}; use fewer bits (-q 4), or --slots 1 to serve all the same"
        )
    return make(best)


def step_seconds(batch: Any, now: Callable[[], float] = time.perf_counter) -> float:
    """What a step takes that all slots take part in, each with its context full: the slowest but one of FRAMES."""
    role = batch.model.config.role if batch.model is not None else "dialogue"
    if role == "speaker":
        return _speaking_seconds(batch, now)
    rows = [batch.join(seed=i) for i in range(batch.slots)]
    if role != "transcriber":
        batch.fill_context()
    silence = np.zeros(batch.frame_size, np.float32)
    sounds: dict[Any, Any] = dict.fromkeys(rows, silence)
    batch.step({} if role != "transcriber" else sounds)  # primes
    seconds = []
    for _ in range(FRAMES):
        began = now()
        batch.step(sounds)
        seconds.append(now() - began)
    for row in rows:
        batch.leave(row)
    return sorted(seconds)[-2]


def _speaking_seconds(speakers: Any, now: Callable[[], float]) -> float:
    """The same of speakers, past the silence that begins every utterance."""
    rows = [speakers.join((), i) for i in range(speakers.slots)]
    for row in rows:
        row.add("one two three four five six seven eight nine ten " * 20)
    seconds: list[float] = []
    while len(seconds) < FRAMES and any(row.ready for row in rows):
        began = now()
        spoken = speakers.step()
        if all(each.pcm is not None for each in spoken.values()):
            seconds.append(now() - began)
    for row in rows:
        speakers.leave(row)
    return sorted(seconds)[-2] if len(seconds) > 1 else 0.0
