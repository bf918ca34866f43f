"""A conversation in OpenAI's Realtime protocol (see `realtime`): openai-python, Pipecat, LiveKit."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..conversation.frame import Frame
from ..errors import InputError
from .chat import to_pcm16
from .personas import Persona
from .protocols import realtime
from .talk import End, Talk

if TYPE_CHECKING:
    from .house import House


class RealtimeTalk(Talk):
    protocol = "realtime"
    max_message = 4 * 1024 * 1024
    limit = 60.0  # people append whole files
    catch_up = False
    subprotocols = ("realtime",)
    persona_names = ("voice", "instructions")

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self.seed = secrets.randbits(53)
        self._events = realtime.Projection(house.model_name)
        self._early: list[np.ndarray] = []  # sound that came before the slot
        self._first_sound = asyncio.Event()
        self._greeted = False

    async def hear(self, message: Any) -> None:
        if isinstance(message, bytes):
            raise End("protocol", "got a binary message, expected events as text", 1003)
        try:
            asked = realtime.parse(message)
        except InputError as error:
            await self._send([self._events.error("invalid_value", str(error))])
            return
        if isinstance(asked, realtime.Append):
            self._append(asked.sound)
        elif isinstance(asked, realtime.Update):
            await self._update(asked)
        elif isinstance(asked, realtime.Cancel):
            await self._send(self._events.close("cancelled"))
        else:
            await self._send([self._events.unsupported(asked)])

    def _append(self, sound: np.ndarray) -> None:
        if self._greeted and self._primed.is_set():
            self.heard(sound)
            return
        self._early.append(sound)
        if sum(map(len, self._early)) > self.limit * realtime.RATE:
            raise InputError(f"audio: got more than {self.limit:g} s ahead of time, before the conversation began")
        self._first_sound.set()

    async def _update(self, asked: realtime.Update) -> None:
        try:
            settings, seed = realtime.settings_of(asked.session)
            voice, text = realtime.persona_of(asked.session, self.house.model_name)
            persona = Persona.of(
                self.persona.voice if voice is None else voice, self.persona.text if text is None else text
            )
            persona = self.heard_persona(persona)
        except InputError as error:
            await self._send([self._events.error("invalid_value", str(error), asked.event_id)])
            return
        if self._first_sound.is_set() and (settings or seed is not None or persona != self.persona):
            words = "session.update: voice, instructions, temperature, seed hold from the first sound; connect anew"
            await self._send([self._events.error("unsupported", words, asked.event_id)])
            return
        self.settings |= settings
        self.seed, self.persona = self.seed if seed is None else seed, persona
        await self._send([self._events.updated(settings, persona)])

    async def begin(self) -> None:
        """The slot is there: the session is announced, and with the first sound the conversation begins."""
        self.inside = True
        await self._send([self._events.created()])
        self._greeted = True
        await self._first_sound.wait()
        await super().begin()

    async def greet(self) -> None:
        for sound in self._early:
            self.heard(sound)
        self._early.clear()

    async def speak(self, frame: Frame) -> None:
        pcm = np.zeros(self.house.frame_size, np.float32) if frame.pcm is None else frame.pcm
        await self._send(self._events.said(frame, to_pcm16(pcm)))

    async def say_why(self, end: End) -> None:
        await self._send(self._events.close("incomplete"))
        if end.label not in ("left", "gone"):
            await self._send([self._events.error(end.label, end.reason)])

    async def _send(self, events: Iterable[realtime.Event]) -> None:
        for event in events:
            await self.ws.send_str(json.dumps(event))
