"""What a conversation did when, as a Chrome trace: open it in chrome://tracing or https://ui.perfetto.dev."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

from ..conversation.loop import Moment
from ..terminal.outputs import Output

EVENTS = 40_000  # the latest that are kept: some five minutes of a live conversation, and 10 MB
THREADS = ("model", "Input", "Output")
NAMES = {"model": "model thread", "Input": "microphone callback", "Output": "speaker callback"}


class Trace:
    """An observer of a conversation, and of the callbacks of its devices (`callback`, from any thread)."""

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        self._output = Output(path, overwrite)
        self._events: deque[tuple[Any, ...]] = deque(maxlen=EVENTS)
        self._lost, self._ended = (0.0, 0.0), 0.0

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        return self._output.path

    def __call__(self, moment: Moment) -> None:
        """The step of a frame, what waited, and what was dropped before it."""
        if self._ended:
            self._add("model", "wait", "X", self._ended, "dur", _micro(moment.started - self._ended))
        self._add("model", "step", "X", moment.started, "dur", _micro(moment.seconds))
        self._ended = moment.started + moment.seconds
        self._add("model", "backlog", "C", self._ended, "ms", round(1e3 * moment.backlog, 1))
        for side, before, now in zip(("user", "Moshi"), self._lost, moment.lost, strict=True):
            if now > before:
                self._add("model", f"dropped of {side}", "i", self._ended, "seconds", round(now - before, 3))
        self._lost = moment.lost

    def callback(self, direction: str, samples: int) -> None:
        """A device's callback moved so many samples."""
        self._add(direction, "block", "i", time.perf_counter(), "samples", samples)

    def _add(self, *event: Any) -> None:
        self._events.append(event)

    def close(self) -> None:
        """Writes the file, where there was a frame."""
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": n, "args": {"name": NAMES[thread]}}
            for n, thread in enumerate(THREADS)
        ]
        try:
            if self._ended:
                events = [_event(*event) for event in list(self._events)]
                self._ended = 0.0
                self._output.rewrite(json.dumps({"traceEvents": names + events}))
        finally:
            self._output.abort()


def _event(thread: str, name: str, kind: str, at: float, key: str, value: float) -> dict[str, Any]:
    """As the format wants it: X has a duration, C is a counter, i is a moment."""
    more: dict[str, Any] = {"dur": value} if kind == "X" else {"args": {key: value}}
    return {"name": name, "ph": kind, "ts": _micro(at), "pid": 1, "tid": THREADS.index(thread), **more}


def _micro(seconds: float) -> float:
    return round(1e6 * seconds, 1)
