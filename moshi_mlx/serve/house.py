"""The server's inside: the engine, the doors, everybody who talks; and what a request finds there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import WSCloseCode, web

from ..conversation.batch import Batch
from .doors import Closed, Doors
from .engine import Clock, Engine, Said
from .figures import Figures
from .guard import Guard
from .speech.engine import HearingEngine, SpeakingEngine
from .talk import End, Talk

ENGINES: dict[str, Any] = {"transcriber": HearingEngine, "speaker": SpeakingEngine}
RETRY_SECONDS = 5
WATCH_SECONDS = 1.0
TurnAway = Callable[[web.Request, str], Awaitable[web.StreamResponse]]
"""(request, reason): what somebody hears for whom there is no room."""


class Rules(NamedTuple):
    """What the command line says of people."""

    queue: int = 8
    max_minutes: float | None = None
    drain_seconds: float = 60.0


class House:
    """Made on the event loop. `make_batch` is called on the model's thread."""

    frame_size, sample_rate = 1920, 24_000

    def __init__(
        self,
        make_batch: Callable[[], Batch],
        guard: Guard,
        rules: Rules | None = None,
        model_name: str = "moshi",
        version: str = "",
        log: logging.Logger | None = None,
        clock: Clock | None = None,
        role: str = "dialogue",
    ) -> None:
        self.role = role
        """What the model does; people of another kind of socket are told so."""
        self.guard, self.rules, self.model_name, self.version = guard, rules or Rules(), model_name, version
        self.log = log or logging.getLogger("moshi_mlx.serve")
        self.figures = Figures()
        self.doors = Doors(0, self.rules.queue)
        self.talks: set[Talk] = set()
        self.failure: BaseException | None = None
        self.over = asyncio.Event()
        """Set when the server is to end."""
        self._loop = asyncio.get_running_loop()
        self.engine: Any = ENGINES.get(role, Engine)(
            make_batch, self._from_engine, self._engine_failed, clock, self._timed
        )
        self._watcher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Loads the model; comes back when people can come in. Raises what loading raised."""
        self.engine.start()
        await self._loop.run_in_executor(None, self.engine.ready.wait)
        if self.failure is not None:
            raise self.failure
        assert self.engine.batch is not None
        self.doors.slots = self.engine.batch.slots
        self.figures.slots.set(self.doors.slots)
        self._watcher = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Ends everything at once."""
        self.doors.drain()
        self._end_all(End("closed", "the server ends", WSCloseCode.GOING_AWAY))
        while self.talks:
            await asyncio.sleep(0.01)
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._loop.run_in_executor(None, self.engine.stop)

    async def drain(self) -> None:
        """Lets nobody in any more, and waits until all have left or the time for it is over."""
        self.doors.drain()
        self.figures.draining.set(1)
        self.log.info("draining", extra={"people": len(self.talks), "seconds": self.rules.drain_seconds})
        until = time.monotonic() + self.rules.drain_seconds
        while self.talks and time.monotonic() < until:
            await asyncio.sleep(0.05)
        self.over.set()

    # People

    async def talk(
        self, request: web.Request, make: Callable[[House], Talk], turn_away: TurnAway | None = None
    ) -> web.StreamResponse:
        """A person's whole visit. Who is not let in gets an HTTP status before anything else, or `turn_away`."""
        try:
            place = self.doors.enter()
        except Closed as error:
            reason = "draining" if error.draining else "full"
            self.figures.refused.labels(reason).inc()
            self.log.info("refused", extra={"reason": str(error)})
            if turn_away is not None:
                return await turn_away(request, str(error))
            headers = {"Retry-After": str(RETRY_SECONDS)}
            return web.json_response({"error": str(error)}, status=503, headers=headers)
        talk = None
        try:
            talk = make(self)
            self.talks.add(talk)
            began = time.monotonic()
            self.figures.started.labels(talk.protocol).inc()
            self.log.info("came", extra={"protocol": talk.protocol})
            timer = self._limit(talk)
            end = await talk.run(request, place)
            timer()
            self.figures.ended.labels(end.label).inc()
            self.figures.lost.inc(talk.inbox.lost_samples / self.sample_rate)
            seconds = round(time.monotonic() - began, 1)
            self.log.info("left", extra={"reason": end.reason, "frames": talk.frames, "seconds": seconds})
            return talk.ws
        finally:
            if talk is not None:
                self.talks.discard(talk)
            place.release()

    def _limit(self, talk: Talk) -> Callable[[], None]:
        """Ends a conversation when its minutes are over: -> what calls that off."""
        minutes = self.rules.max_minutes
        if minutes is None:
            return lambda: None
        handle = self._loop.call_later(60 * minutes, talk.end, End("over", f"the {minutes:g} minutes are over"))
        return handle.cancel

    def _end_all(self, end: End) -> None:
        for talk in list(self.talks):
            talk.end(end)

    async def _watch(self) -> None:
        while True:
            for talk in list(self.talks):
                talk.check_idle()
            await asyncio.sleep(WATCH_SECONDS)

    # From the model's thread

    def _from_engine(self, said: list[Said]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
            self._loop.call_soon_threadsafe(self._deliver, said, time.monotonic())

    def _deliver(self, said: list[Said], made: float) -> None:
        for each in said:
            each.person.deliver(each, made)
            if each.frame is not None:
                self.figures.frames.inc()

    def _timed(self, seconds: float, late: float) -> None:
        self.figures.step.observe(seconds)
        self.figures.late.observe(max(0.0, late))

    def _engine_failed(self, error: BaseException) -> None:
        self.failure = error

        def told() -> None:
            self.log.error("the model failed", exc_info=error)
            self._end_all(End("failed", "the model failed", WSCloseCode.INTERNAL_ERROR))
            self.over.set()

        if self.engine.batch is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(told)

    # What is asked from outside

    def health(self) -> dict[str, Any]:
        doors = self.doors
        status = "draining" if doors.draining else "failed" if self.failure else "ok"
        free = max(0, doors.slots - doors.inside)
        voices = self.engine.voices
        return {
            "status": status,
            "model": self.model_name,
            "role": self.role,
            "slots": doors.slots,
            "free": free,
            "waiting": doors.waiting,
            **({} if voices is None else {"voices": voices}),
        }

    def metrics(self) -> bytes:
        self.figures.people.set(self.doors.inside)
        self.figures.waiting.set(self.doors.waiting)
        return self.figures.text()
