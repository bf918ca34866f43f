"""A bounded store of samples between an audio callback and the model thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from ..inputs import Samples


class Ring:
    """A bounded first-in first-out store of samples between one thread that pushes and one that pulls.

    Its memory is taken once. The lock is held for one copy only, so neither side waits for the other's work.
    """

    def __init__(self, capacity: int) -> None:
        self._data = np.zeros(capacity, np.float32)
        self._start = 0
        self._filled = 0
        self._ended = False
        self._changed = threading.Condition()

    def push(self, pcm: Samples) -> int:
        """Copies `pcm` in and returns how many samples, the oldest ones, were lost for lack of room."""
        capacity = len(self._data)
        kept = pcm[-capacity:]
        with self._changed:
            lost = max(0, self._filled + len(kept) - capacity)
            self._start = (self._start + lost) % capacity
            end = (self._start + self._filled - lost) % capacity
            first = min(len(kept), capacity - end)
            self._data[end : end + first] = kept[:first]
            self._data[: len(kept) - first] = kept[first:]
            self._filled += len(kept) - lost
            self._changed.notify_all()
        return lost + len(pcm) - len(kept)

    def pull(self, out: Samples) -> int:
        """Fills the start of `out` with the oldest samples and returns how many there were."""
        capacity = len(self._data)
        with self._changed:
            count = min(len(out), self._filled)
            first = min(count, capacity - self._start)
            out[:first] = self._data[self._start : self._start + first]
            out[first:count] = self._data[: count - first]
            self._start = (self._start + count) % capacity
            self._filled -= count
            self._changed.notify_all()
        return count

    def peek(self, count: int) -> Samples:
        """A copy of the oldest `count` samples, or of what there is; they stay."""
        with self._changed:
            places = (self._start + np.arange(min(count, self._filled))) % len(self._data)
            return self._data[places]

    def drop(self, count: int) -> None:
        """Forgets the oldest `count` samples, or what there is."""
        with self._changed:
            count = min(count, self._filled)
            self._start = (self._start + count) % len(self._data)
            self._filled -= count
            self._changed.notify_all()

    @property
    def filled(self) -> int:
        """How many samples it holds."""
        return self._filled

    def clear(self) -> None:
        """Empties it, and lets others wait again after `end`."""
        with self._changed:
            self._filled = 0
            self._ended = False
            self._changed.notify_all()

    def end(self) -> None:
        """Wakes whoever waits, and nobody waits any more. From any thread, and from a signal handler."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_filled(self, count: int, timeout: float) -> bool:
        """Waits for `count` samples; False if they do not come."""
        return self._wait(lambda: self._filled >= count, timeout)

    def wait_room(self, count: int, timeout: float) -> bool:
        """Waits for room for `count` samples; False if it does not come."""
        return self._wait(lambda: len(self._data) - self._filled >= count, timeout)

    def _wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: ready() or self._ended, timeout)
            return ready()
