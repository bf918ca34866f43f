"""The line protocol of a worker, for any Python: it imports nothing but the standard library and NumPy.

The first line on standard input is a JSON object that says what to prepare: case ("mimi", "lm-step", "duplex"), codec,
folder (the checkpoint of random weights), config (Kyutai's config.json of it), bits, frames, steps (frames in all),
sound_frames. Each line after it is one word, answered by one line of JSON:
"run": the milliseconds of each of the next `frames` frames; "codes": the codes of all frames so far, where the case
encodes sound.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FRAME_SIZE = 1920
WARMUP = 5  # frames


class Work(NamedTuple):
    """`frame` runs frame n and returns its codes or None; `bytes` are those of the weights that it runs on."""

    frame: Callable[[int], Any]
    bytes: int
    versions: dict[str, str]


def sound(frames: int) -> np.ndarray:
    """What every worker hears: float32 [frames, 1, 1, 1920], a wavering tone with some noise."""
    t = np.arange(frames * FRAME_SIZE) / 24000
    wave = 0.3 * np.sin(2 * np.pi * 220 * t) * np.sin(2 * np.pi * 1.5 * t)
    noise = 0.05 * np.random.default_rng(0).normal(size=t.shape)
    return (wave + noise).astype(np.float32).reshape(frames, 1, 1, FRAME_SIZE)


def serve(prepare: Callable[[dict[str, Any]], Work]) -> None:
    """Prepare, warm up, then answer line by line until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    spec = json.loads(sys.stdin.readline())
    work = prepare(spec)
    codes: list[Any] = []
    times: list[float] = []

    def run(frames: int) -> list[float]:
        for _ in range(frames):
            start = time.perf_counter()
            codes.append(work.frame(len(codes)))
            times.append(1e3 * (time.perf_counter() - start))
        return times[-frames:]

    run(WARMUP)
    print(json.dumps({"weight_bytes": work.bytes, "versions": work.versions}), file=answers, flush=True)
    for line in sys.stdin:
        heard = [np.asarray(frame).reshape(-1).tolist() for frame in codes if frame is not None]
        answer = run(spec["frames"]) if line.strip() == "run" else heard
        print(json.dumps(answer), file=answers, flush=True)
