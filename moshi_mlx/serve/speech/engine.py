"""The thread that owns a model which only hears, or only speaks: it works whenever somebody has something to do.

There is no clock: sound may be pushed faster than it is spoken (a flush), and speech is made as fast as it goes. Nobody
is worked for who has not read what there is already, so that a slow reader costs nothing and delays nobody.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, MoshiError
from ...roles.listener import Listener, flush_frames
from ...roles.speaking.row import SpeakerRow
from ...roles.speaking.speakers import Speakers
from ...roles.transcribers import Transcribers
from ..engine import ModelThread, Said
from . import messages

if TYPE_CHECKING:
    from .visit import Hearing, Speaking, Visit

AHEAD = 20  # batches of messages that may be on their way to a person


class SpeechEngine(ModelThread):
    """A `Said` has a list of messages in the place of a frame; None says that the visit has begun."""

    def __init__(
        self,
        make: Callable[[], Any],
        deliver: Callable[[list[Said]], None],
        failed: Callable[[BaseException], None] = lambda error: None,
        clock: Any = None,
        timed: Callable[[float, float], None] = lambda seconds, late: None,
    ) -> None:
        super().__init__(make, deliver, failed, timed)
        self._woken = False

    def _notify(self) -> None:
        self._woken = True
        super()._notify()

    def _work_on(self) -> None:
        while not self._stop:
            self._take_in()
            began = time.monotonic()
            said = self._work()
            if said:
                self._timed(time.monotonic() - began, 0.0)
                self._say(said)
            else:
                self._wait()

    def _wait(self) -> None:
        with self._changed:
            while not (self._woken or self._stop):
                self._changed.wait()
            self._woken = False

    def _take_in(self) -> None:
        with self._changed:
            coming, going, self._coming, self._going = self._coming, self._going, [], []
        for person in going:
            row = self._rows.pop(person, None)
            if row is not None:
                self.batch.leave(row)
        said = []
        for person in coming:
            try:
                self._rows[person] = self._joined(person)
                said.append(Said(person, None))
            except MoshiError as error:
                said.append(Said(person, None, str(error)))
        if said:
            self._deliver(said)

    def _say(self, said: list[Said]) -> None:
        for each in said:
            each.person.on_their_way += 1
        self._deliver(said)

    def _can_read(self, person: Visit) -> bool:
        return person.on_their_way - person.taken < AHEAD

    @abstractmethod
    def _joined(self, person: Any) -> Any:
        """The row of a newcomer. Raises MoshiError."""

    @abstractmethod
    def _work(self) -> list[Said]:
        """A step of whoever has something to do, and what comes of it; nothing where nobody has."""


class Line:
    """What a person has sent and the model has not heard: whole frames and markers, in order. Thread-safe enough: one
    thread appends, another takes."""

    def __init__(self, frame_size: int) -> None:
        self._size = frame_size
        self._partial = np.zeros(0, np.float32)
        self._items: deque[np.ndarray | int] = deque()

    def push(self, sound: np.ndarray) -> None:
        samples = np.concatenate([self._partial, sound])
        whole = len(samples) - len(samples) % self._size
        self._items.extend(samples[:whole].reshape(-1, self._size))
        self._partial = samples[whole:]

    def mark(self, number: int) -> None:
        self._items.append(number)

    @property
    def frames(self) -> int:
        """Whole frames, and markers, that wait."""
        return len(self._items)

    def markers(self) -> list[int]:
        """Those before the next frame."""
        found: list[int] = []
        while self._items and isinstance(self._items[0], int):
            found.append(self._items.popleft())  # type: ignore[arg-type]
        return found

    def frame(self) -> np.ndarray | None:
        """The next frame, where markers are out of its way."""
        return self._items.popleft() if self._items else None  # type: ignore[return-value]


class HearingEngine(SpeechEngine):
    """People who are transcribed. A marker comes back once what was heard before it has been written."""

    batch: Transcribers
    _rows: dict[Hearing, Listener]

    def _joined(self, person: Hearing) -> Listener:
        person.markers = deque()
        return self.batch.join(seed=person.seed, **person.settings)

    def _work(self) -> list[Said]:
        delay = flush_frames(self.batch.model.config) - 1
        sounds, heard = {}, {}
        for person, row in self._rows.items():
            if not self._can_read(person):
                continue
            for number in person.line.markers():
                person.markers.append((person.heard_frames + delay, number))
            frame = person.line.frame()
            if frame is not None:
                sounds[row], heard[row] = frame, person
        said = []
        for row, events in self.batch.step(sounds).items() if sounds else ():
            person = heard[row]
            person.heard_frames += 1
            waiting = person.line.frames * self.batch.frame_size
            parts = [message for event in events if (message := messages.of_event(event, waiting))]
            while person.markers and person.markers[0][0] <= person.heard_frames:
                parts.append(messages.marker(person.markers.popleft()[1]))
            said.append(Said(person, parts))  # type: ignore[arg-type]
        return said


class SpeakingEngine(SpeechEngine):
    """People who are spoken to."""

    batch: Speakers
    _rows: dict[Speaking, SpeakerRow]

    def _joined(self, person: Speaking) -> SpeakerRow:
        return self.batch.join(person.voice, person.seed, guidance=person.guidance, **person.settings)

    def _work(self) -> list[Said]:
        said = []
        for person, row in self._rows.items():
            try:
                self._feed(person, row)
            except InputError as error:
                said.append(Said(person, None, str(error)))
        if said:
            self._deliver(said)
            for each in said:
                self.batch.leave(self._rows.pop(each.person))
        turns = {row: person for person, row in self._rows.items() if self._can_read(person)}
        spoken = self.batch.step(turns) if any(row.ready for row in turns) else {}
        given = [Said(turns[row], messages.of_spoken(each)) for row, each in spoken.items()]  # type: ignore[arg-type]
        for row, person in turns.items():
            if row.done and not person.finished:
                person.finished = True
                given.append(Said(person, messages.END))  # type: ignore[arg-type]
        return given

    def _feed(self, person: Speaking, row: SpeakerRow) -> None:
        while person.texts:
            text = person.texts.popleft()
            if text is None:
                row.end()
            else:
                row.add(text)
                person.waiting_text -= len(text)
