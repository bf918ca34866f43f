"""Messages of Kyutai's Rust server (moshi-server 0.6): msgpack maps with a `type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from ...errors import InputError, brief
from ...roles.hearing import EndWord, Word
from ...roles.listener import Event, Step
from ...roles.speaking.utterance import Spoken

READY = {"type": "Ready"}
MOST_TEXT = 64 * 1024  # characters of a message


def pack(message: Mapping[str, Any]) -> bytes:
    """Numbers of sound are float32, as the server's own."""
    packed: bytes = msgpack.packb(message, use_single_float=True)
    return packed


def unpack(data: bytes, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The message. Raises InputError for what is none of these kinds."""
    try:
        message = msgpack.unpackb(data, strict_map_key=True)
    except Exception as error:  # msgpack raises its own, ValueError, and what decoding raises
        raise InputError(f"message: got bytes that are no msgpack ({type(error).__name__})") from error
    kind = message.get("type") if isinstance(message, dict) else None
    if kind not in kinds:
        raise InputError(f"message: got type {brief(kind)}, expected one of {', '.join(kinds)}")
    return message


def floats(message: Mapping[str, Any], name: str) -> np.ndarray:
    """A field that is a list of numbers, float32 [T]. Raises InputError."""
    value = message.get(name)
    if not isinstance(value, list) or not all(type(each) in (int, float) for each in value):
        raise InputError(f"{message['type']}: {name} is {brief(value)}, expected a list of numbers")
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float64).astype(np.float32)


def text(message: Mapping[str, Any]) -> str:
    """The field `text`. Raises InputError."""
    value = message.get("text")
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise InputError(f"Text: text is {brief(value)}, expected at most {MOST_TEXT} characters")
    return value


def number(message: Mapping[str, Any], name: str) -> int:
    """A field that is a whole number. Raises InputError."""
    value = message.get(name)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise InputError(f"{message['type']}: {name} is {brief(value)}, expected a whole number")
    return value


def vectors(message: Mapping[str, Any]) -> np.ndarray:
    """A voice of its own: `embeddings` in the order of `shape`, float32. Raises InputError."""
    values, shape = floats(message, "embeddings"), message.get("shape")
    sizes = shape if isinstance(shape, list) and all(type(each) is int and each > 0 for each in shape) else []
    if len(sizes) != 3 or np.prod(sizes, dtype=object) != len(values):
        raise InputError(f"Voice: shape is {brief(shape)} for {len(values)} embeddings, expected [1, dim, T] of them")
    return values.reshape(sizes)


def of_event(event: Event, waiting: int) -> dict[str, Any] | None:
    """What a transcriber's event is to a client; None for what that protocol has no word for."""
    if isinstance(event, Step):
        return {"type": "Step", "step_idx": event.number, "prs": list(event.pauses), "buffered_pcm": waiting}
    if isinstance(event, Word):
        return {"type": "Word", "text": event.text, "start_time": event.start}
    if isinstance(event, EndWord):
        return {"type": "EndWord", "stop_time": event.stop}
    return None


def of_spoken(spoken: Spoken) -> list[dict[str, Any]]:
    """What a frame of a speaker's is to a client: its words, and its sound."""
    said: list[dict[str, Any]] = [
        {"type": "Text", "text": word, "start_s": start, "stop_s": stop} for word, start, stop in spoken.words
    ]
    if spoken.pcm is not None:
        said.append({"type": "Audio", "pcm": spoken.pcm.tolist()})
    return said


def error(reason: str) -> dict[str, Any]:
    return {"type": "Error", "message": reason}


def marker(number: int) -> dict[str, Any]:
    return {"type": "Marker", "id": number}


END: list[dict[str, Any]] = []
"""In the place of messages: all is said."""
