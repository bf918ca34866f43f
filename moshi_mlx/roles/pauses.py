"""When the person who speaks pauses, and what is done at a pause: the model's memory is refreshed there.

A transcriber may have four heads beside its text, each a softmax over six classes of which the first says "no word
within the next half, one, two or three seconds". Kyutai's scripts look at the third; Unmute smooths it, takes 0.6 for
a pause and 0.4 for its end, and leaves the first 12 frames out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .. import inputs
from ..conversation.text import FRAME_RATE
from ..errors import InputError

HEAD = 2  # the one whose horizon is two seconds
BEGINS, ENDS = 0.6, 0.4
IGNORED = 12  # frames at the start, whose heads say anything
HALF_LIFE = 0.01  # seconds in which a change of the probability is half taken over
SILENT_SECONDS = 1.0  # without a piece of text, after which a model without heads counts as pausing
SHARE = 0.6  # of the context, after which a pause is used


class Pause(NamedTuple):
    """A pause began, at this second of sound."""

    start: float


class EndPause(NamedTuple):
    """The pause has ended, at this second of sound."""

    stop: float


class PauseDetector:
    """Frame by frame -> whether the person pauses; `score` is the smoothed probability, 1 at first.

    A model without heads is taken to hear a pause when it has written nothing for SILENT_SECONDS; that comes late by
    the delay of its text.

    >>> from moshi_mlx.roles.pauses import PauseDetector
    >>> pause = PauseDetector(ignored=0)
    >>> [pause([0, 0, probability, 0], spoke=False) for probability in (0.1, 0.5, 0.7, 0.5, 0.2)]
    [False, False, True, True, False]
    """

    def __init__(
        self, frame_seconds: float = 1 / FRAME_RATE, head: int = HEAD, begins: float = BEGINS, ends: float = ENDS,
        ignored: int = IGNORED, half_life: float = HALF_LIFE,
    ) -> None:  # fmt: skip
        """Raises InputError where `ends` is above `begins`, or either is no probability."""
        self._begins, self._ends = inputs.number("begins", begins, 0, 1), inputs.number("ends", ends, 0, 1)
        if self._ends > self._begins:
            raise InputError(f"ends: got {ends}, expected at most begins, which is {begins}")
        self._head, self._ignored = inputs.whole("head", head), inputs.whole("ignored", ignored)
        half_life = inputs.number("half_life", half_life)
        self._keeps = 0.5 ** (frame_seconds / half_life) if half_life else 0.0
        self._patience = max(1, round(SILENT_SECONDS / frame_seconds))
        self.reset()

    def reset(self) -> None:
        """Nobody has spoken yet: a pause."""
        self.score, self.paused, self._frames, self._quiet = 1.0, True, 0, self._patience

    def __call__(self, heads: Sequence[float], spoke: bool) -> bool:
        """The next frame: what the heads say of their first class (none: no heads), and whether text came."""
        self._frames += 1
        self._quiet = 0 if spoke else self._quiet + 1
        if len(heads) > 0:
            if self._frames > self._ignored:
                now = float(heads[min(self._head, len(heads) - 1)])
                self.score = self._keeps * self.score + (1 - self._keeps) * now
        else:
            self.score = float(self._quiet >= self._patience)
        if self.score > self._begins:
            self.paused = True
        elif self.score < self._ends:
            self.paused = False
        return self.paused


def refresh_due(positions: int, context: int, paused: bool, share: float = SHARE) -> bool:
    """Whether a memory of so many positions is to be refreshed: at a pause once it is `share` full, else when full.

    Users of the 1B model found that it stops writing for long stretches once its context is full, and that it goes on
    where the attention cache is emptied, best at a pause; codec and clock go on untouched.

    >>> from moshi_mlx.roles.pauses import refresh_due
    >>> refresh_due(449, 750, paused=True), refresh_due(450, 750, paused=True)
    (False, True)
    >>> refresh_due(749, 750, paused=False), refresh_due(750, 750, paused=False)
    (False, True)
    """
    return positions >= context or (paused and positions >= share * context)
