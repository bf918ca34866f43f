"""When to let sound go, so that a conversation that fell behind catches up: docs/live.md draws it.

Latency here is the time from when a sample is captured to when the reply to it begins to play. Nothing in this module
knows a clock or a device: it is fed with seconds and sample counts, live by `live.Conversation`, in tests and in the
documentation's picture by a simulation (bench/simulate.py).
"""

from __future__ import annotations

from collections import deque

import numpy as np

from ..conversation.speech import level_db as level_db
from ..inputs import Samples

LIMIT = 0.4  # seconds of latency beyond which sound is dropped in the middle of a word
STEPS = 5  # frames whose median says how long the model takes
QUIET_DB = -50.0  # of full scale: what is softer is silence in any room
NOISE_MARGIN_DB = 6.0  # above the noise of this room, what is softer is silence too
NOISE_RISE_DB = 0.05  # a frame: so slowly is noise that became louder believed
NOISE_DB = (-90.0, -35.0)
PATIENCE = 6  # frames for which a reply may queue in vain before some of it is dropped while it sounds
CALM_SECONDS = 10.0  # without an underrun, before the output buffer shrinks by a step
FADE_SECONDS = 0.005


class Silence:
    """Tells silence from speech by level, above what the room's noise has been so far."""

    def __init__(self) -> None:
        self._noise = QUIET_DB - NOISE_MARGIN_DB

    def learn(self, level: float) -> None:
        """The level of a frame that was heard: noise is the least of late, and is slow to rise."""
        low, high = NOISE_DB
        self._noise = min(max(low, level), self._noise + NOISE_RISE_DB, high)

    def is_silent(self, level: float) -> bool:
        return level < max(QUIET_DB, self._noise + NOISE_MARGIN_DB)


class CatchUp:
    """The input side: how much of the user's sound to drop before the next frame is taken.

    The backlog is cut to one frame when the latency would pass `limit`; below it, only silence is dropped from it.
    All in seconds. `block` is the largest piece in which the device delivers: what arrives at once is not late.
    """

    def __init__(self, frame: float, limit: float = LIMIT) -> None:
        self.frame, self.limit, self.block = frame, limit, 0.0
        self._steps: deque[float] = deque(maxlen=STEPS)

    def stepped(self, seconds: float) -> None:
        """The model took so long for a frame."""
        self._steps.append(seconds)

    @property
    def step(self) -> float:
        """How long the model takes for a frame: the median of the last few, so that one stall says nothing."""
        return float(np.median(self._steps)) if self._steps else self.frame

    def latency(self, backlog: float, queued: float, frames: int) -> float:
        """Of the oldest sample in the backlog: it waited that long, and waits for the queue or for so many frames.

        What a device gives, or takes, at once beyond a frame is not counted.
        """
        return backlog + max(frames * self.step, queued) - 2 * max(0.0, self.block - self.frame)

    def cut(self, backlog: float, queued: float, target: float, frames: int, silent: int) -> float:
        """-> seconds to drop of the oldest sound.

        backlog: sound that waits for the model; queued: replies that wait for the speaker; target: what the speaker
        wants to have queued after a frame; frames: how many more it wants before it plays, the next one included;
        silent: how many whole frames of the backlog, from the oldest, are silence.
        """
        spare = backlog - self.frame - max(0.0, self.block - self.frame)
        if spare <= 0:
            return 0.0
        if self.latency(backlog, queued, frames) > self.limit:
            return spare
        late = spare + queued - target - self.step + self.frame
        count = min(int(spare / self.frame + 1e-9), int(late / self.frame + 1e-9), silent)
        return max(0, count) * self.frame


class Playout:
    """The output side: an adaptive buffer of replies before the speaker. In samples at the speaker's rate.

    It waits until `target` samples are queued, plays until it runs dry (an underrun: it fades), and waits again.
    The target starts at one frame, grows by a quarter of a frame at an underrun and shrinks when there was none for
    a while. `play` belongs to the audio callback, `trim` to the model thread.
    """

    def __init__(self, rate: int, frame: int) -> None:
        self.frame, self.target = frame, frame
        self.underruns = 0
        self.block = 0  # the largest piece that either device takes or gives at once
        self.waiting = True
        self._rate, self._calm, self._excess = rate, 0, 0

    @property
    def most(self) -> int:
        """How far the target may grow: enough for a frame that comes 60 ms late."""
        return self.frame + max(self.frame * 3 // 4, self.block)

    def frames_wanted(self, queued: int, step: int) -> int:
        """How many more frames it wants before it plays on, the next one, `step` samples from now, included."""
        if not self.waiting and queued >= step:
            return 1
        return max(1, -(-(self.target - (queued if self.waiting else 0)) // self.frame))

    def play(self, wanted: int, queued: int) -> int:
        """-> how many of the queued samples to play now; fewer than `wanted` begins a fade."""
        if self.waiting and queued < max(self.target, wanted):
            return 0
        if queued < wanted:
            self._underrun()
            return queued
        self.waiting = False
        self._calm += wanted
        if self._calm >= CALM_SECONDS * self._rate:
            self._calm = 0
            self.target = max(self.frame, self.target - self.frame // 4)
        return wanted

    def _underrun(self) -> None:
        self.underruns += 1
        self.waiting = True
        self._calm = 0
        self.target = min(self.most, self.target + self.frame // 4)

    def trim(self, arriving: int, queued: int, silent: bool) -> int:
        """-> how many of the samples that arrive to leave out: of silence all that are too many; of a reply that
        sounds no more than half, when there have been too many for a while."""
        over = queued + arriving - self.target - self.block
        self._excess = self._excess + 1 if over >= self.frame // 4 else 0
        if not self._excess:
            return 0
        if silent:
            return min(over, arriving)
        return min(over, arriving // 2) if self._excess > PATIENCE else 0


def leave_out(sound: Samples, count: int, fade: int) -> Samples:
    """`sound` without `count` samples near its start, the two sides of the gap faded into each other."""
    kept = len(sound) - count
    fade = min(fade, kept)
    rising = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    joined = sound[count:].copy()
    joined[:fade] = sound[:fade] * (1.0 - rising) + sound[count : count + fade] * rising
    return joined
