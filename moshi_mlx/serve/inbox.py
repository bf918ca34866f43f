"""What a person said and the model has not heard yet: filled on the event loop, emptied a frame a tick by the model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from ..errors import InputError

SILENT = 0.01  # peak of a frame that may be left out to catch up
WATCHED = 25  # ticks: what waited in all of them is late for good, and no mere jitter
SPEECH_LIMIT = 0.4  # seconds that may wait before speech is left out too


class Inbox:
    """Sound at the model's rate, in frames. Thread-safe.

    The first frame ends with the newest sample: what is older than that and fills no frame is left out, so that the
    person's frames are complete when the tick comes, and none waits for the rest of another. Later on, where whole
    frames wait tick after tick (a network that held them back), silent ones are left out, and of more than
    SPEECH_LIMIT the oldest whatever it is. Without `catch_up` everything is heard, however late.
    """

    def __init__(
        self,
        frame_size: int,
        rate: int,
        limit: float,
        catch_up: bool = True,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size, self._rate, self._limit, self._catch_up, self._now = frame_size, rate, limit, catch_up, now
        self._ahead, self._pushed = 0.0, now()  # seconds of sound that came sooner than it can be spoken
        self._lock = threading.Lock()
        self._parts: deque[np.ndarray] = deque()
        self._samples = 0
        self._waited: deque[int] = deque(maxlen=WATCHED)
        self._aligned = False
        self.lost_samples = 0
        """Left out so far to catch up."""

    def push(self, sound: np.ndarray) -> None:
        """float32 [T]. Raises InputError where it comes more than `limit` seconds sooner than anybody can speak it.

        Where the model is late itself, no more than that is kept either.
        """
        with self._lock:
            self._check_pace(len(sound) / self._rate)
            if len(sound):
                self._parts.append(sound)
                self._samples += len(sound)
            over = self._samples - int(self._limit * self._rate)
            if over > 0:
                self.lost_samples += over
                self._take(over)

    def _check_pace(self, seconds: float) -> None:
        now = self._now()
        ahead = max(0.0, self._ahead - (now - self._pushed)) + seconds
        if ahead > self._limit:
            raise InputError(f"audio: got it {ahead:.1f} s ahead of time, expected it as it is spoken")
        self._ahead, self._pushed = ahead, now

    def clear(self) -> None:
        """Forget everything: a new conversation begins."""
        with self._lock:
            self._parts.clear()
            self._waited.clear()
            self._samples, self._aligned = 0, False

    @property
    def ready(self) -> bool:
        """Whether a frame is complete."""
        return self._samples >= self._size

    @property
    def waiting(self) -> float:
        """Seconds of sound."""
        return self._samples / self._rate

    def frame(self) -> np.ndarray | None:
        """The next frame float32 [frame_size], or None where it is not complete."""
        with self._lock:
            if self._samples < self._size:
                self._waited.append(0)
                return None
            if not self._aligned:
                self._take(self._samples % self._size)
                self._aligned = True
            frame = self._take(self._size)
            self._waited.append(self._samples // self._size)
            return self._caught_up(frame) if self._catch_up else frame

    def _caught_up(self, frame: np.ndarray) -> np.ndarray:
        late = len(self._waited) == WATCHED and min(self._waited) > 0
        if late and np.abs(frame).max() < SILENT:
            return self._instead()
        while self._samples > SPEECH_LIMIT * self._rate:
            frame = self._instead()
        return frame

    def _instead(self) -> np.ndarray:
        """The frame after the one that is left out."""
        self.lost_samples += self._size
        self._waited.clear()
        return self._take(self._size)

    def _take(self, count: int) -> np.ndarray:
        taken = []
        self._samples -= count
        while count:
            part = self._parts.popleft()
            if len(part) > count:
                self._parts.appendleft(part[count:])
            taken.append(part[:count])
            count -= len(taken[-1])
        return np.concatenate(taken) if taken else np.zeros(0, np.float32)
