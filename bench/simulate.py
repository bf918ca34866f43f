"""A conversation in simulated time: the live code itself, with stand-in devices and a model of given durations.

Nothing sleeps: what waits for a device makes the clock of the simulation run, and the clock makes the devices call
back. Ten minutes take some seconds. Tests hold the catching-up policy to it, and bench/pictures.py draws it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np

from moshi_mlx.audio.devices import Microphone, Speaker
from moshi_mlx.audio.pacing import LIMIT
from moshi_mlx.audio.portaudio import Device
from moshi_mlx.local.live import Conversation

RATE, FRAME = 24_000, 1920
QUIET = SimpleNamespace(input_overflow=False, output_underflow=False)


class Stream:
    """A stand-in for PortAudio's."""

    latency, active, closed = 0.0, True, False

    def abort(self) -> None:
        self.active = False

    def close(self) -> None:
        self.closed = True


class Row(NamedTuple):
    """One frame: when it was done (seconds), what it took, and where sound waited or was lost until then."""

    time: float
    step: float
    latency: float  # of the reply that began to play last: since the first sample of its frame was captured
    backlog: float  # seconds of sound that waited when the step was done
    queued: float  # seconds of reply that waited when it was queued
    lost: float  # seconds of the user's sound dropped so far
    left_out: float  # seconds of replies left out so far
    underruns: int


class Simulation:
    """Devices that move `block` samples at a time, `phase` seconds apart from each other, and a clock for both."""

    def __init__(
        self, user: Callable[[float], float], block: int = 480, phase: float = 0.007, limit: float = LIMIT
    ) -> None:
        self.now = 0.0
        self.block, self.user, self.notices = block, user, list[str]()
        self._next_in, self._next_out = block / RATE, phase
        self.latency, self._taken = 0.0, 0
        self._marks: deque[tuple[int, float]] = deque()
        device = Device(0, "simulated", "none", 1, 1, RATE, ("Input", "Output"))
        with (
            mock.patch("moshi_mlx.audio.portaudio.find", return_value=device),
            mock.patch("moshi_mlx.audio.portaudio.open_stream", return_value=(Stream(), RATE)),
        ):
            self.microphone, self.speaker = Microphone(RATE, FRAME), Speaker(RATE, FRAME)
        self.talk = Conversation(self.microphone, self.speaker, limit, self.notices.append, lambda: self.now)
        self.speaker.note = self._count
        self.microphone._arrived.wait_filled = self._wait  # type: ignore[method-assign]

    def _wait(self, count: int, timeout: float) -> bool:
        while self.microphone._arrived.filled < count:
            self.advance(min(self._next_in, self._next_out))
        return True

    def advance(self, until: float) -> None:
        """Lets the clock run, and the devices with it."""
        while min(self._next_in, self._next_out) <= until:
            self.now = min(self._next_in, self._next_out)
            if self._next_in <= self._next_out:
                times = self.now + (np.arange(self.block) - self.block) / RATE
                sound = (self.user(self.now) * np.sin(2 * np.pi * 300 * times)).astype(np.float32)
                self.microphone._on_block(sound[:, None], self.block, None, QUIET)
                self._next_in += self.block / RATE
            else:
                out = np.zeros((self.block, 1), np.float32)
                self.speaker._on_block(out, self.block, None, QUIET)
                self._next_out += self.block / RATE
        self.now = max(self.now, until)

    def run(self, durations: Callable[[float], float], seconds: float, reply: float = 0.3) -> list[Row]:
        """A model that takes `durations(now)` for a frame and replies with a tone of amplitude `reply`."""
        rows: list[Row] = []
        tone = (reply * np.sin(2 * np.pi * 200 * np.arange(FRAME) / RATE)).astype(np.float32)
        while self.now < seconds:
            frame = self.talk.read()
            assert frame is not None
            captured = self._newest() - self.talk.backlog - FRAME / RATE
            step = durations(self.now)
            self.advance(self.now + step)
            self._marks.append((self._taken + self.speaker._ring.filled, captured))
            self.talk.write(tone)
            rows.append(Row(self.now, step, self.latency, self.talk.backlog + self._arrived(), self.speaker.queued,
                            self.talk.lost_seconds, self.speaker.left_out, self.speaker.playout.underruns))  # fmt: skip
        return rows

    def _arrived(self) -> float:
        return self.microphone._arrived.filled / RATE

    def _newest(self) -> float:
        """When the newest sample that the model thread has taken over was captured."""
        return self._next_in - self.block / RATE - self._arrived()

    def _count(self, direction: str, samples: int) -> None:
        """Follows the replies through the speaker: the latency is that of the reply whose first sample was played."""
        if direction == "Output":
            while self._marks and self._marks[0][0] < self._taken + samples:
                first, captured = self._marks.popleft()
                self.latency = self.now + (first - self._taken) / RATE - captured
            self._taken += samples
