"""OpenAI's Realtime protocol, as far as a model without turns can speak it: events to values and frames to events.

Moshi hears and speaks all the time. What it says is put into responses, one an utterance: a response opens with the
first frame that has a word or sound, carries frame after frame, and closes after SILENT_FRAMES without either; between
two of them nothing is sent, so that what a client has buffered is played out. There is no turn detection, no transcript
of the person and no tool: the session says so, and events that ask for them are answered by name. Voice and
instructions are those of a model with personas, before the first sound.

Nothing here knows a socket. Source: the types of openai-python 3.57; what Pipecat and LiveKit need beside them.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...conversation.frame import Frame
from ...errors import InputError
from ...models.sampling import MOSHI, Sampling, SamplingSettings
from ..personas import Persona

RATE = 24_000  # Hz, the only one of the protocol
SILENT_FRAMES = 8
SILENT_PEAK = 0.02
Event = dict[str, Any]

# What clients may ask for and a model without turns cannot do. Answered by one error each, never by the end.
UNSUPPORTED = {
    "input_audio_buffer.commit": "Moshi hears all the time, there is nothing to commit",
    "input_audio_buffer.clear": "Moshi has heard it already",
    "output_audio_buffer.clear": "what was sent is the client's",
    "conversation.item.create": "Moshi hears sound alone, and as it comes",
    "conversation.item.delete": "what was said cannot be unsaid",
    "conversation.item.retrieve": "nothing that was said is kept",
    "conversation.item.truncate": "what was said cannot be unsaid",
    "response.create": "Moshi speaks when it wants to",
}
# OpenAI's own code for a response asked for while there is one, as there always is here. Pipecat ends after any other.
CODES = {"response.create": "conversation_already_has_active_response"}
# Settings of session.update that mean something here; the first two are an extension.
SETTINGS = ("temperature", "seed")


class Append(NamedTuple):
    sound: np.ndarray  # float32 [T] at RATE


class Update(NamedTuple):
    session: dict[str, Any]
    event_id: str | None


class Cancel(NamedTuple):
    pass


class Unsupported(NamedTuple):
    name: str
    reason: str
    event_id: str | None


Asked = Append | Update | Cancel | Unsupported


def parse(message: str) -> Asked:
    """A client's event. Raises InputError for what is no event at all."""
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):  # the second: lists in lists without end
        raise InputError("event: got text that is no JSON, expected an object with a type") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise InputError("event: got JSON without a type, expected an object with one")
    name, event_id = event["type"], event.get("event_id")
    event_id = event_id if isinstance(event_id, str) else None
    if name == "input_audio_buffer.append":
        return Append(_sound(event.get("audio")))
    if name == "session.update":
        session = event.get("session")
        return Update(session if isinstance(session, dict) else {}, event_id)
    if name == "response.cancel":
        return Cancel()
    return Unsupported(name[:80], UNSUPPORTED.get(name, "no event that is known here"), event_id)


def _sound(text: Any) -> np.ndarray:
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InputError("audio: got no base64, expected 16-bit samples at 24 kHz in base64") from None
    if len(data) % 2:
        raise InputError(f"audio: got {len(data)} bytes, expected whole 16-bit samples")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def settings_of(session: Mapping[str, Any]) -> tuple[SamplingSettings, int | None]:
    """Of session.update: sampling settings and a seed, where it has them. Raises InputError."""
    settings: SamplingSettings = {}
    if session.get("temperature") is not None:
        settings["temperature"] = session["temperature"]
        Sampling.of({**MOSHI, **settings})
    seed = session.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64):
        raise InputError(f"seed: got {seed!r}, expected a whole number from 0 to 2**64 - 1")
    return settings, seed


def persona_of(session: Mapping[str, Any], model: str) -> tuple[str | None, str | None]:
    """Of session.update: voice and instructions, None where it has none. Raises InputError.

    A voice that is the model's name, as session.created has it, is no wish.
    """
    audio = session.get("audio")
    output = audio.get("output") if isinstance(audio, Mapping) else None
    voice = output.get("voice") if isinstance(output, Mapping) else None
    voice = session.get("voice") if voice is None else voice
    instructions = session.get("instructions")
    for name, value in (("voice", voice), ("instructions", instructions)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{name}: got {type(value).__name__}, expected text")
    return "" if voice == model else voice, instructions


class Projection:
    """The events of one conversation, in order. `ids` are counted: they mean something in this conversation alone."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._count = itertools.count(1)
        self._conversation = "conv_1"
        self._settings: SamplingSettings = {}
        self._persona = Persona()
        self._response: str | None = None
        self._item = ""
        self._said: list[str] = []
        self._frames = self._silent = 0
        self._last_item: str | None = None

    # The session

    def created(self) -> Event:
        return self._event("session.created", session=self._session())

    def updated(self, settings: SamplingSettings, persona: Persona | None = None) -> Event:
        self._settings |= settings
        self._persona = self._persona if persona is None else persona
        return self._event("session.updated", session=self._session())

    def error(self, code: str, message: str, event_id: str | None = None) -> Event:
        kind = "server_error" if code == "failed" else "invalid_request_error"
        details = {"type": kind, "code": code, "message": message, "param": None, "event_id": event_id}
        return self._event("error", error=details)

    def unsupported(self, asked: Unsupported) -> Event:
        code = CODES.get(asked.name, "unsupported")
        return self.error(code, f"{asked.name}: {asked.reason}", asked.event_id)

    # What Moshi says

    def said(self, frame: Frame, pcm16: bytes) -> Iterator[Event]:
        """A frame of 80 ms, and its sound as 16-bit samples."""
        silent = not frame.text and (frame.pcm is None or float(np.abs(frame.pcm).max()) < SILENT_PEAK)
        self._silent = self._silent + 1 if silent else 0
        if self._response is None:
            if silent:
                return
            yield from self._open()
        self._frames += 1
        if frame.text:
            self._said.append(frame.text)
            yield self._part("response.output_audio_transcript.delta", delta=frame.text)
        yield self._part("response.output_audio.delta", delta=base64.b64encode(pcm16).decode())
        if self._silent >= SILENT_FRAMES:
            yield from self.close("completed")

    def close(self, status: str = "cancelled") -> Iterator[Event]:
        """The response at hand is over, where there is one: by silence, by response.cancel, or at the end."""
        if self._response is None:
            return
        words = "".join(self._said).strip()
        done = "completed" if status == "completed" else "incomplete"
        yield self._part("response.output_audio.done")
        yield self._part("response.output_audio_transcript.done", transcript=words)
        yield self._part("response.content_part.done", part={"type": "audio", "transcript": words})
        item = self._assistant(done, words)
        yield self._event("response.output_item.done", response_id=self._response, output_index=0, item=item)
        yield self._event("conversation.item.done", previous_item_id=self._last_item, item=item)
        yield self._event("response.done", response=self._as_response(status, [item]))
        self._last_item, self._response = self._item, None

    def _open(self) -> Iterator[Event]:
        number = next(self._count)
        self._response, self._item = f"resp_{number}", f"item_{number}"
        self._said, self._frames = [], 0
        item = self._assistant("in_progress", None)
        yield self._event("response.created", response=self._as_response("in_progress", []))
        yield self._event("response.output_item.added", response_id=self._response, output_index=0, item=item)
        yield self._event("conversation.item.added", previous_item_id=self._last_item, item=item)
        yield self._part("response.content_part.added", part={"type": "audio", "transcript": ""})

    # Shapes

    def _event(self, name: str, **fields: Any) -> Event:
        return {"type": name, "event_id": f"event_{next(self._count)}", **fields}

    def _part(self, name: str, **fields: Any) -> Event:
        """An event of the one content that a response has."""
        place = {"response_id": self._response, "item_id": self._item, "output_index": 0, "content_index": 0}
        return self._event(name, **place, **fields)

    def _assistant(self, status: str, words: str | None) -> Event:
        content = [] if words is None else [{"type": "output_audio", "transcript": words}]
        return {"id": self._item, "object": "realtime.item", "type": "message", "role": "assistant", "status": status,
                "content": content}  # fmt: skip

    def _as_response(self, status: str, output: list[Event]) -> Event:
        return {
            "id": self._response, "object": "realtime.response", "conversation_id": self._conversation,
            "status": status, "status_details": None, "output": output, "output_modalities": ["audio"],
            "audio": {"output": {"format": {"type": "audio/pcm", "rate": RATE}, "voice": self._voice}},
            "metadata": None, "max_output_tokens": "inf", "usage": self._usage(status),
        }  # fmt: skip

    def _usage(self, status: str) -> Event | None:
        """Frames are the only tokens that could be counted: one heard for each one said."""
        if status == "in_progress":
            return None
        text = len(self._said)
        return {
            "total_tokens": 2 * self._frames + text, "input_tokens": self._frames, "output_tokens": self._frames + text,
            "input_token_details": {"text_tokens": 0, "audio_tokens": self._frames, "cached_tokens": 0,
                                    "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0}},
            "output_token_details": {"text_tokens": text, "audio_tokens": self._frames},
        }  # fmt: skip

    @property
    def _voice(self) -> str:
        return self._persona.voice or self._model

    def _session(self) -> Event:
        """What holds, whatever was asked for."""
        sound = {"type": "audio/pcm", "rate": RATE}
        return {
            "type": "realtime", "object": "realtime.session", "id": "sess_1", "model": self._model,
            "output_modalities": ["audio"], "instructions": self._persona.text, "tools": [], "tool_choice": "none",
            "max_output_tokens": "inf", "tracing": None, "prompt": None, "include": None,
            "audio": {
                "input": {"format": sound, "transcription": None, "noise_reduction": None, "turn_detection": None},
                "output": {"format": sound, "voice": self._voice, "speed": 1.0},
            },
            **self._settings,
        }  # fmt: skip
