"""One person's conversation on a websocket, whatever the protocol: waiting, hearing, speaking, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from aiohttp import WSCloseCode, WSMsgType, web

from ..conversation.frame import Frame
from ..errors import InputError
from ..models.sampling import SamplingSettings
from .doors import Closed, Place
from .engine import Said
from .inbox import Inbox
from .personas import Persona, heard

if TYPE_CHECKING:
    from .house import House

OUTBOX = 25  # frames that may wait for a slow reader
SEND_SECONDS = 10.0
CLOSE_SECONDS = 2.0
IDLE_SECONDS = 60.0  # without a sound
HEARTBEAT = 10.0


class End(Exception):
    """A conversation is over, and why; `label` is what metrics and logs call it."""

    def __init__(self, label: str, reason: str, code: int = WSCloseCode.OK) -> None:
        super().__init__(reason)
        self.label, self.reason, self.code = label, reason, code


class Talk(ABC):
    """Made and used on the event loop; the engine reads `inbox`, `seed`, `settings`, `persona`, `paused` there."""

    protocol = ""
    max_message = 64 * 1024
    limit = 2.0  # seconds of sound ahead of time
    catch_up = True
    subprotocols: tuple[str, ...] = ()
    persona_names = ("voice", "persona")  # in the protocol

    def __init__(self, house: House) -> None:
        self.house = house
        self.inbox = Inbox(house.frame_size, house.sample_rate, self.limit, self.catch_up)
        self.seed = 0
        self.settings: SamplingSettings = {}
        self.persona = Persona()
        self.paused = False
        self.max_frames: int | None = None
        self.frames = 0
        self._outbox: asyncio.Queue[tuple[Frame, float]] = asyncio.Queue(OUTBOX)
        self._primed = asyncio.Event()
        self._ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._heard_at = time.monotonic()
        self.inside = False
        self.ws = web.WebSocketResponse(
            compress=False, heartbeat=HEARTBEAT, max_msg_size=self.max_message, timeout=CLOSE_SECONDS,
            protocols=self.subprotocols,
        )  # fmt: skip

    # What a protocol says

    @abstractmethod
    async def hear(self, message: Any) -> None:
        """A message of the person, bytes or str. Raises End, or InputError for what it cannot be."""

    @abstractmethod
    async def greet(self) -> None:
        """The conversation is ready to begin."""

    @abstractmethod
    async def speak(self, frame: Frame) -> None:
        """A frame of Moshi's."""

    @abstractmethod
    async def say_why(self, end: End) -> None:
        """Before the socket is closed."""

    # The conversation

    async def run(self, request: web.Request, place: Place) -> End:
        """From the upgrade to the end: -> why it ended."""
        await self.ws.prepare(request)
        tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(each) for each in (self._read(), self._write(place))]
        waited_for: list[asyncio.Future[Any]] = [*tasks, self._ended]
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            end = await self._why(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.inside:
                self.house.engine.leave(self)
        await self._close(request, end)
        return end

    async def _why(self, tasks: list[asyncio.Future[Any]]) -> End:
        if self._ended.done():
            return self._ended.result()
        for task in tasks:
            error = task.exception() if task.done() else None
            if isinstance(error, End):
                return error
            if isinstance(error, Closed):
                return End("drained", str(error), WSCloseCode.GOING_AWAY)
            if isinstance(error, (ConnectionError, asyncio.TimeoutError, TimeoutError)):
                return End("gone", "the connection is gone")
            if error is not None:
                self.house.log.error("a conversation failed", exc_info=error)
                return End("failed", "the server failed", WSCloseCode.INTERNAL_ERROR)
        return End("left", "the person left")

    async def _close(self, request: web.Request, end: End) -> None:
        """Says why and closes, but waits for nobody who does not answer."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._say_and_close(end), CLOSE_SECONDS)
        # Who is in the middle of a message too large for us, or does not read, would go on with it to nobody.
        if request.transport is not None:
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, request.transport.abort)

    async def _say_and_close(self, end: End) -> None:
        if not self.ws.closed:
            await self.say_why(end)
        await self.ws.close(code=end.code, message=end.reason.encode()[:120])

    async def _read(self) -> None:
        async for message in self._messages():
            began = time.perf_counter()
            try:
                await self.hear(message)
            except InputError as error:
                raise End("protocol", str(error), WSCloseCode.POLICY_VIOLATION) from None
            self.house.figures.hearing.observe(time.perf_counter() - began)

    async def _messages(self) -> AsyncIterator[bytes | str]:
        async for message in self.ws:
            if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
                yield message.data
            elif message.type == WSMsgType.ERROR:
                raise End("protocol", str(self.ws.exception() or "broken message"), WSCloseCode.PROTOCOL_ERROR)

    def heard_persona(self, persona: Persona) -> Persona:
        """What the model makes of it. Raises InputError for what cannot be had, before anybody waits for it."""
        return heard(persona, self.house.engine.voices, self.persona_names)

    async def _write(self, place: Place) -> None:
        try:
            self.persona = self.heard_persona(self.persona)
        except InputError as error:
            raise End("persona", str(error), WSCloseCode.POLICY_VIOLATION) from None
        await place.turn()
        await self.begin()
        await self.greet()
        loop = asyncio.get_running_loop()
        while self.max_frames is None or self.frames < self.max_frames:
            frame, made = await self._outbox.get()
            self.frames += 1
            late = loop.call_later(SEND_SECONDS, self.end, End("gone", "the connection is gone"))
            try:
                await self.speak(frame)
            finally:
                late.cancel()
            self.house.figures.speaking.observe(time.monotonic() - made)
        raise End("over", f"the {self.max_frames} frames that were asked for are over")

    async def begin(self) -> None:
        """A new conversation: comes back when it is primed."""
        self._primed.clear()
        self.inside = True
        self._heard_at = time.monotonic()
        self.house.engine.join(self)
        await self._primed.wait()

    def heard(self, sound: Any) -> None:
        """Sound at the model's rate, for the inbox. Raises InputError where it comes too fast."""
        self._heard_at = time.monotonic()
        self.inbox.push(sound)
        self.house.engine.wake()

    # From the house, on the event loop

    def deliver(self, said: Said, made: float) -> None:
        """What a tick gave."""
        if said.refused:
            self.end(End("persona", said.refused, WSCloseCode.POLICY_VIOLATION))
            return
        if said.frame is None:
            self._primed.set()
            return
        try:
            self._outbox.put_nowait((said.frame, made))
        except asyncio.QueueFull:
            self.end(End("slow", f"{OUTBOX * 0.08:.0f} s of sound wait to be read", WSCloseCode.POLICY_VIOLATION))

    def end(self, end: End) -> None:
        """From anywhere on the event loop; the first reason counts."""
        if not self._ended.done():
            self._ended.set_result(end)

    def check_idle(self) -> None:
        if self.inside and time.monotonic() - self._heard_at > IDLE_SECONDS:
            self.end(End("idle", f"no sound for {IDLE_SECONDS:.0f} s", WSCloseCode.POLICY_VIOLATION))
