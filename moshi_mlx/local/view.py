"""What a person or a program sees of a conversation as it goes: plain words, or one JSON object a frame.

Each is an observer of `loop.run`; `screen.Terminal` is the third.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..audio.pacing import level_db
from ..conversation.loop import Controls, Moment
from ..terminal.streams import say, write_out
from .transcript import Turns

FRAME_SECONDS = 0.08


class View(Protocol):
    """An observer that can also say a line, such as that a device is gone."""

    def __call__(self, moment: Moment) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


class Plain:
    """The words as they come, a line for each answer; all else as lines on standard error, unless `quiet`."""

    def __init__(
        self, quiet: bool = False, frame_seconds: float = FRAME_SECONDS, write: Callable[[str], None] = write_out
    ) -> None:
        self._quiet, self._write = quiet, write
        self._turns = Turns(frame_seconds)
        self._spoke = False

    def __call__(self, moment: Moment) -> None:
        text = self._turns(moment)
        if text:
            self._write(text)
            self._spoke = True

    def say(self, line: str) -> None:
        if not self._quiet:
            say(line)

    def close(self) -> None:
        """Ends the line of words."""
        if self._spoke or not self._quiet:
            self._write("\n")


class Json:
    """One object a frame on standard output, for programs; all else as lines on standard error, unless `quiet`.

    What is said on standard error also stands in `notices` of the next object.
    """

    def __init__(self, controls: Controls, frame_seconds: float, quiet: bool = False) -> None:
        self._controls, self._frame_seconds, self._quiet = controls, frame_seconds, quiet
        self._notices, self._lock = list[str](), threading.Lock()

    def __call__(self, moment: Moment) -> None:
        write_out(json.dumps(self._row(moment)) + "\n")

    def _row(self, moment: Moment) -> dict[str, Any]:
        codes = moment.frame.audio_codes
        with self._lock:
            notices, self._notices = self._notices, []
        return {
            "frame": moment.number,
            "time": round(moment.number * self._frame_seconds, 3),
            "text": moment.frame.text,
            "text_token": moment.frame.text_token,
            "speaking": moment.frame.speaking,
            "audio_codes": None if codes is None else np.asarray(codes).tolist(),
            "step_ms": round(1e3 * moment.seconds, 2),
            "latency_ms": None if moment.latency is None else round(1e3 * moment.latency, 1),
            "heard_db": round(level_db(moment.heard), 1),
            "said_db": round(level_db(moment.said), 1),
            "backlog_ms": round(1e3 * moment.backlog, 1),
            "drops": list(moment.drops),
            "lost_ms": [round(1e3 * lost, 1) for lost in moment.lost],
            "muted": self._controls.muted,
            "reset": moment.reset,
            "notices": notices,
        }

    def say(self, line: str) -> None:
        with self._lock:
            self._notices.append(line)
        if not self._quiet:
            say(line)

    def close(self) -> None:
        """Every object has ended its line."""


class Progress:
    """How far a long file is and how long it will take, on standard error where that is a terminal.

    `expected` gives the samples that there will be, 0 where that is not known.
    """

    def __init__(self, expected: Callable[[], int], sample_rate: int) -> None:
        from tqdm import tqdm

        self._expected, self._rate = expected, sample_rate
        self._bar = tqdm(
            total=round(expected() / sample_rate) or None, unit="s", file=sys.stderr, disable=None, leave=False,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s of sound, {remaining} left"
            if expected() else "{desc}{n:.0f} s of sound, {elapsed}",
        )  # fmt: skip

    def __call__(self, moment: Moment) -> None:
        with contextlib.suppress(OSError):  # a terminal may be closed
            self._bar.update(len(moment.heard) / self._rate)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._bar.close()
