"""Kyutai's protocol at /api/chat: binary websocket messages, the first byte says what kind the rest is.

Source: rust/protocol.md of kyutai-labs/moshi, and what its published clients do beside it. Bytes and queries to values
and back; nothing here knows a socket.
"""

from __future__ import annotations

import enum
import json
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...errors import InputError
from ...models.sampling import MOSHI, Sampling, SamplingSettings
from ..personas import Persona


class Kind(enum.IntEnum):
    HANDSHAKE = 0
    AUDIO = 1  # of one Ogg/Opus stream, cut anywhere
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


class Control(enum.IntEnum):
    START = 0
    END_TURN = 1
    PAUSE = 2
    RESTART = 3


class Message(NamedTuple):
    kind: Kind
    payload: bytes


# Nothing at all, which Kyutai's Python servers send; their Rust servers add eight zeros. Clients take either.
HANDSHAKE = bytes([Kind.HANDSHAKE])

# The names of Kyutai's published page -> ours.
SETTINGS = {
    "text_temperature": "text_temperature",
    "text_topk": "text_top_k",
    "audio_temperature": "temperature",
    "audio_topk": "top_k",
}
# The draw of a batch is among at most so many tokens (`models.sampling.MOST`): a larger cut would be another step.
TOP_K = 512
RATES = range(8_000, 192_001)


class Ask(NamedTuple):
    """What a person asks for with the address."""

    seed: int
    settings: SamplingSettings
    max_frames: int | None  # that the conversation lasts
    pcm_rate: int | None  # sound is 16-bit samples of this rate instead of Opus
    persona: Persona  # NVIDIA's clients send both of it always, empty where nothing is meant


def parse(message: bytes) -> Message | None:
    """None for kinds that nobody here knows: they are to be discarded. Raises InputError for an empty message."""
    if not message:
        raise InputError("message: got no byte, expected a kind and what belongs to it")
    try:
        return Message(Kind(message[0]), message[1:])
    except ValueError:
        return None


def control_of(payload: bytes) -> Control | None:
    """Of a message of kind CONTROL; None where it is none that is known."""
    try:
        return Control(payload[0]) if len(payload) == 1 else None
    except ValueError:
        return None


def audio(payload: bytes) -> bytes:
    return bytes([Kind.AUDIO]) + payload


def text(words: str) -> bytes:
    return bytes([Kind.TEXT]) + words.encode()


def error(reason: str) -> bytes:
    return bytes([Kind.ERROR]) + reason.encode()


def metadata(ask: Ask, model: str, version: str) -> bytes:
    """What Kyutai's page shows beside a conversation; it shows it only where all of these are there."""
    words, sound = sides_of(ask.settings)
    build = ("build_timestamp", "build_date", "git_branch", "git_timestamp", "git_date", "git_hash", "git_describe",
             "rustc_host_triple", "rustc_version", "cargo_target_triple")  # fmt: skip
    values = {
        "text_temperature": words.temperature,
        "text_topk": words.top_k,
        "audio_temperature": sound.temperature,
        "audio_topk": sound.top_k,
        "pad_mult": 0.0,
        "repetition_penalty": 1.0,
        "repetition_penalty_context": 64,
        "seed": str(ask.seed),  # more than a number of JavaScript holds
        "lm_model_file": model,
        "voice_prompt": ask.persona.voice,
        "instance_name": "moshi_mlx",
        "build_info": {**dict.fromkeys(build, ""), "git_describe": version},
    }
    return bytes([Kind.METADATA]) + json.dumps(values).encode()


def ask(query: Mapping[str, str]) -> Ask:
    """The query of the address. Names that are not ours are no matter; InputError for a value that cannot be.

    Kyutai's page has two seeds: together they are one number, the text's above the sound's.
    """
    settings: Any = {ours: _number(query, name, "_k" in ours) for name, ours in SETTINGS.items() if query.get(name)}
    for name, ours in SETTINGS.items():
        if "_k" in ours and ours in settings and not 1 <= settings[ours] <= TOP_K:
            raise InputError(f"{name}: got {settings[ours]}, expected 1 to {TOP_K}")
    sides_of(settings)
    frames = int(_number(query, "max_steps", True)) if query.get("max_steps") else None
    persona = Persona.of(query.get("voice_prompt"), query.get("text_prompt"))
    return Ask(_seed(query), settings, frames, _pcm_rate(query), persona)


def sides_of(settings: SamplingSettings) -> tuple[Sampling, Sampling]:
    """How text and sound are drawn. Raises InputError for a setting out of range."""
    values = {**MOSHI, **settings}
    return Sampling.of(values, "text_"), Sampling.of(values)


def _pcm_rate(query: Mapping[str, str]) -> int | None:
    if not query.get("pcm"):
        return None
    rate = int(_number(query, "pcm", True))
    if rate not in RATES:
        raise InputError(f"pcm: got {rate}, expected a rate from {RATES[0]} to {RATES[-1]} Hz")
    return rate


def _seed(query: Mapping[str, str]) -> int:
    if query.get("seed"):
        return int(_number(query, "seed", True)) % 2**64
    if query.get("text_seed") or query.get("audio_seed"):
        high, low = (int(_number(query, name, True)) if query.get(name) else 0 for name in ("text_seed", "audio_seed"))
        return (high % 2**32) * 2**32 + low % 2**32
    return secrets.randbits(53)


def _number(query: Mapping[str, str], name: str, whole: bool) -> Any:
    value = query[name]
    try:
        return int(value) if whole else float(value)
    except ValueError:
        raise InputError(f"{name}: got {value[:40]!r}, expected a{' whole' if whole else ''} number") from None
