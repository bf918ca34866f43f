"""The thread that owns the model: one tick of 80 ms for all, one step of the batch a tick.

People come and go from any thread; what becomes of it happens in the next tick. A tick takes whoever has a frame of
sound ready; the others pause in it, so that nobody waits for a slow one. While nobody speaks there are no ticks: the
next one comes when somebody's first frame is complete, so that a lone newcomer does not wait for a clock either.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ..conversation.batch import Batch, Row
from ..conversation.frame import Frame
from ..errors import InputError
from ..models.sampling import SamplingSettings
from ..terminal.threads import join
from .inbox import Inbox
from .personas import Persona, Prompts

TICK = 0.08  # seconds
# After a newcomer's frame is complete and before the tick that the clock starts with: what a network may be late.
MARGIN = 0.01
IDLE_TICKS = 12  # without anybody's sound, after which the clock stops
MOST_DEBT = 0.4  # seconds that ticks may be late before the clock begins anew


class Person(Protocol):
    """What the engine needs of somebody."""

    @property
    def inbox(self) -> Inbox: ...
    @property
    def seed(self) -> int: ...
    @property
    def settings(self) -> SamplingSettings: ...
    @property
    def persona(self) -> Persona: ...
    @property
    def paused(self) -> bool: ...


class Said(NamedTuple):
    """What a tick gave a person: a frame, or none where the conversation is now ready to begin, or is `refused`."""

    person: Any
    frame: Frame | None
    refused: str = ""  # why


class Clock(Protocol):
    """The time, and waiting for it; a test has its own."""

    def now(self) -> float: ...
    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """With `condition` held, until it is notified or so many seconds have gone."""


class RealClock:
    def now(self) -> float:
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        condition.wait(seconds)


class ModelThread(ABC):
    """`start` runs it on a thread of its own, where `make` is called too: all MLX work is on that thread.

    `deliver(list of Said)` is called on that thread; `failed(error)` where the model cannot go on;
    `timed(seconds, late)` after a step that took so long.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        deliver: Callable[[list[Said]], None],
        failed: Callable[[BaseException], None] = lambda error: None,
        timed: Callable[[float, float], None] = lambda seconds, late: None,
    ) -> None:
        self._make, self._deliver, self._failed, self._timed = make, deliver, failed, timed
        self._changed = threading.Condition()
        self._coming: list[Any] = []
        self._going: list[Any] = []
        self._rows: dict[Any, Any] = {}
        self._stop = False
        self.ready = threading.Event()
        """Set when the batch is there, or failed to be."""
        self.batch: Any = None
        self.voices: list[str] | None = None
        """The names of voices that people may ask for; None where the model takes no personas."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    # From any thread

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step at hand."""
        self._stop = True
        self.wake()
        if self._thread.is_alive():
            join(self._thread)

    def join(self, person: Any) -> None:
        """Lets somebody in with the next step; what the person has already is ended by it."""
        with self._changed:
            self._coming.append(person)
            self._notify()

    def leave(self, person: Any) -> None:
        """Ends what somebody has, also where it has not begun. May be called twice."""
        with self._changed:
            self._coming = [other for other in self._coming if other is not person]
            self._going.append(person)
            self._notify()

    def wake(self) -> None:
        """There is something to do, perhaps."""
        with self._changed:
            self._notify()

    def _notify(self) -> None:
        """With `_changed` held."""
        self._changed.notify()

    @property
    def people(self) -> int:
        return len(self._rows)

    # On the thread

    def _run(self) -> None:
        try:
            self.batch = self._make()
            self.ready.set()
            self._work_on()
        except BaseException as error:
            self._failed(error)
        finally:
            self._rows.clear()
            self.batch = None
            self.ready.set()

    @abstractmethod
    def _work_on(self) -> None:
        """Until `_stop`."""


class Engine(ModelThread):
    """A tick of 80 ms for all: see above."""

    batch: Batch | None
    _coming: list[Person]
    _going: list[Person]
    _rows: dict[Person, Row]

    def __init__(
        self,
        make_batch: Callable[[], Batch],
        deliver: Callable[[list[Said]], None],
        failed: Callable[[BaseException], None] = lambda error: None,
        clock: Clock | None = None,
        timed: Callable[[float, float], None] = lambda seconds, late: None,
    ) -> None:
        super().__init__(lambda: self._with_prompts(make_batch()), deliver, failed, timed)
        self._clock: Clock = clock or RealClock()
        self._next: float | None = None  # when the next tick is due; None while the clock stands
        self._quiet = 0  # ticks without anybody's sound

    def wake(self) -> None:
        """There is sound, perhaps. Where ticks come anyway, nobody need be woken."""
        if self._next is None or self._stop:
            super().wake()

    def _with_prompts(self, batch: Batch) -> Batch:
        self._prompts = Prompts(batch.model)
        self.voices = self._prompts.voices
        return batch

    def _work_on(self) -> None:
        while self._wait():
            self.tick()

    def _wait(self) -> bool:
        """Until a tick is due; false at the end."""
        with self._changed:
            while not self._stop:
                if self._coming or self._going:
                    if self._next is None:
                        return True
                elif self._next is None and any(self._can_speak(person) for person in self._rows):
                    self._next, self._quiet = self._clock.now() + MARGIN, 0
                left = None if self._next is None else self._next - self._clock.now()
                if left is not None and left <= 0:
                    return True
                self._clock.wait(self._changed, left)
            return False

    def tick(self) -> None:
        """Who left is let go, who came is primed, who has a frame is heard; all in one step."""
        batch = self.batch
        assert batch is not None
        began = self._clock.now()
        late = 0.0 if self._next is None else began - self._next
        newcomers, refused = self._take_in(batch)
        sounds, speakers = {}, {}
        for person, row in self._rows.items():
            frame = None if person in newcomers or person.paused else person.inbox.frame()
            if frame is not None:
                sounds[row], speakers[row] = frame, person
        frames = batch.step(sounds)
        said = [Said(speakers[row], frame) for row, frame in frames.items()]
        said += [Said(person, None) for person in newcomers] + refused
        if said:
            self._timed(self._clock.now() - began, late)
            self._deliver(said)
        self._schedule(bool(sounds))

    def _take_in(self, batch: Batch) -> tuple[list[Person], list[Said]]:
        """Lets those who left go and those who came in: -> the newcomers, primed by the next step, and who cannot come.

        A prompt that is new takes a while, and the others wait for it: one in a tick, the next one's turn comes then.
        """
        with self._changed:
            coming, going = self._turns(self._coming), self._going
            self._coming, self._going = [person for person in self._coming if person not in coming], []
        for person in (*going, *coming):
            row = self._rows.pop(person, None)
            if row is not None:
                batch.leave(row)
        refused = []
        for person in coming:
            try:
                prompt = self._prompts.of(person.persona)
                self._rows[person] = batch.join(seed=person.seed, prompt=prompt, **person.settings)
            except InputError as error:
                refused.append(Said(person, None, str(error)))
            person.inbox.clear()
        return [person for person in coming if person in self._rows], refused

    def _turns(self, coming: list[Person]) -> list[Person]:
        """Who comes in now: all whose prompt is there already, and the first of those who need a new one."""
        once = list(dict.fromkeys(coming))  # who asks for two restarts within a tick gets one
        new = [person for person in once if not self._prompts.has(person.persona)]
        return [person for person in once if person not in new[1:]]

    def _schedule(self, spoke: bool) -> None:
        """When the next tick is due."""
        if self._next is None:
            return
        self._quiet = 0 if spoke else self._quiet + 1
        if self._quiet >= IDLE_TICKS:
            self._next = None
            return
        self._next += TICK
        if self._clock.now() - self._next > MOST_DEBT:
            self._next = self._clock.now()

    def _can_speak(self, person: Person) -> bool:
        return person.inbox.ready and not person.paused
