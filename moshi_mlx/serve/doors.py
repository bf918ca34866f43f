"""How many may come in: `slots` at once, `queue` more who wait in line, in order."""

from __future__ import annotations

import asyncio
from collections import deque

from ..errors import MoshiError


class Closed(MoshiError):
    """Nobody else can come in now; `draining` where it is for good."""

    def __init__(self, reason: str, draining: bool = False) -> None:
        super().__init__(reason)
        self.draining = draining


class Place:
    """Somebody's place, inside or in line. Give it back with `release`, whatever happens."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def turn(self) -> None:
        """Until it is inside. Raises Closed where the doors close for good meanwhile."""
        await asyncio.shield(self._turn)

    def release(self) -> None:
        """May be called twice."""
        self._doors._release(self)


class Doors:
    """Used on the event loop alone."""

    def __init__(self, slots: int, queue: int) -> None:
        self.slots, self.queue = slots, queue
        self._inside: set[Place] = set()
        self._line: deque[Place] = deque()
        self.draining = False

    @property
    def inside(self) -> int:
        return len(self._inside)

    @property
    def waiting(self) -> int:
        return len(self._line)

    def enter(self) -> Place:
        """A place inside or at the end of the line. Raises Closed where both are full."""
        if self.draining:
            raise Closed("the server is about to end", draining=True)
        if self.inside >= self.slots and self.waiting >= self.queue:
            raise Closed(f"all {self.slots} slots are taken" + (f" and {self.queue} people wait" if self.queue else ""))
        place = Place(self)
        self._line.append(place)
        self._let_in()
        return place

    def drain(self) -> None:
        """Nobody else comes in; who waits is told."""
        self.draining = True
        for place in self._line:
            place._turn.set_exception(Closed("the server is about to end", draining=True))
            place._turn.exception()  # it may be that nobody looks
        self._line.clear()

    def _let_in(self) -> None:
        while self._line and self.inside < self.slots:
            place = self._line.popleft()
            self._inside.add(place)
            place._turn.set_result(None)

    def _release(self, place: Place) -> None:
        self._inside.discard(place)
        if place in self._line:
            self._line.remove(place)
        self._let_in()
