"""A voice and a role before the conversation, as NVIDIA's PersonaPlex has them (arXiv 2602.06053; its code, 3428dfd).

The prompt: the voice, half a second of silence, the role as text, half a second of silence. In each of its frames all
streams are given: text is padding or a token of the role, Moshi's side the voice or silence, the user's side a tone.
A frame lies at the position of its number, so that the first one is lost to the initial tokens of position 0, there as
here.

Published voices keep no codes. They hold what the transformer sees of each position but the last (the sum of its
embeddings), and a ring of the streams' last columns, from which a prompt goes on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..models.config import MoshiConfig
from ..models.moshi import Moshi
from . import duplex, streams
from .prompt import Columns, delayed
from .text import PADDING

SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)  # Mimi's codes of silence
TONE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)  # and of a sine of 440 Hz and amplitude 0.5
PAUSE_FRAMES = 6  # half a second
LOUDNESS = -24.0  # LUFS, of a voice from a recording
TAG = "<system>"


class Voice(NamedTuple):
    """Who Moshi is to sound like: codes, or what a published file holds."""

    name: str
    codes: np.ndarray | None = None  # int [num_codebooks, frames]
    embeds: np.ndarray | None = None  # float [frames - 1, hidden], of positions 0 to frames - 2
    ring: np.ndarray | None = None  # int [1 + streams, slots]; column p lies at p mod slots

    @property
    def frames(self) -> int:
        if self.codes is not None:
            return self.codes.shape[1]
        return 0 if self.embeds is None else len(self.embeds) + 1


def tagged(persona: str) -> str:
    """A role as the model was trained to read it."""
    text = persona.strip()
    return text if text.startswith(TAG) and text.endswith(TAG) else f"{TAG} {text} {TAG}"


def persona_tokens(model: Moshi, persona: str) -> list[int]:
    """The text tokens of a role. Raises InputError for text that is none, and for a model without tokenizer."""
    if not isinstance(persona, str):
        raise InputError(f"persona: got {type(persona).__name__}, expected text")
    if not persona.strip():
        return []
    if model.tokenizer is None:
        raise InputError("persona: this model has no tokenizer to read it with; put the checkpoint's own beside it")
    return list(model.tokenizer.encode(tagged(persona)))


def prompt_columns(model: Moshi, voice: Voice | None, persona: str | None) -> Columns:
    """The prompt of a voice and a role, one row. Raises InputError where the model cannot take them."""
    config = model.config
    _check_codebooks(config)
    tokens = persona_tokens(model, persona or "")
    frames = np.concatenate([_voice_frames(config, voice), _quiet_frames(config, tokens)], axis=1)
    frames[:, 0] = streams.initial_tokens(config)
    _check_length(config, frames.shape[1], voice, len(tokens))
    columns = frames[None]
    embeds = None
    if voice is not None and voice.embeds is not None:
        known = mx.array(voice.embeds[None]).astype(model.decoder.model.dtype)
        rest = model.embed(delayed(model, columns))[:, known.shape[1] :]
        embeds = mx.concatenate([known, rest], axis=1)
    return Columns(columns, np.array([columns.shape[2]]), embeds)


def _quiet_frames(config: MoshiConfig, tokens: list[int]) -> np.ndarray:
    """Silence, the role, silence: int [1 + streams, frames]."""
    text = [PADDING] * PAUSE_FRAMES + tokens + [PADDING] * PAUSE_FRAMES
    sides = [*SILENCE[: config.num_codebooks], *TONE[: config.user_codebooks]]
    return np.concatenate([[text], np.repeat(np.array(sides)[:, None], len(text), axis=1)]).astype(np.int32)


def _voice_frames(config: MoshiConfig, voice: Voice | None) -> np.ndarray:
    """What the streams hold while the voice speaks: int [1 + streams, frames]."""
    count = 0 if voice is None else voice.frames
    frames = np.full((1 + len(config.audio_delays), count), PADDING, np.int32)
    frames[1 + config.num_codebooks :] = np.array(TONE[: config.user_codebooks])[:, None]
    if voice is None:
        return frames
    if voice.codes is not None:
        _check_codes(config, voice)
        frames[1 : 1 + config.num_codebooks] = voice.codes
    else:
        _fill_from_ring(config, voice, frames)
    return frames


def _fill_from_ring(config: MoshiConfig, voice: Voice, frames: np.ndarray) -> None:
    """The last frames of a published voice. Those before are not known: their positions have embeddings."""
    assert voice.embeds is not None
    assert voice.ring is not None
    _check_published(config, voice)
    slots = voice.ring.shape[1]
    for stream, delay in enumerate((0, *config.audio_delays)):
        for frame in range(max(1, voice.frames - 1 - delay), voice.frames):
            frames[stream, frame] = voice.ring[stream, (frame + delay) % slots]
    bad = (frames < 0) | (frames >= np.array(config.table_rows)[:, None])
    if bad.any():
        raise InputError(f"{_named(voice)}: holds the token {frames[bad][0]}, which this model does not have")


def _named(voice: Voice) -> str:
    return f"voice {voice.name}"


def _check_codebooks(config: MoshiConfig) -> None:
    most, codes = max(config.num_codebooks, config.user_codebooks), max(*SILENCE, *TONE)
    if most > len(SILENCE) or config.audio_vocab_size <= codes:
        raise InputError(
            f"voice, persona: this model has {most} codebooks of {config.audio_vocab_size} codes a side, but the codes "
            f"of a prompt's silence are known for {len(SILENCE)} of 2048"
        )


def _check_codes(config: MoshiConfig, voice: Voice) -> None:
    codes = voice.codes
    assert codes is not None
    if codes.dtype.kind not in "iu" or codes.ndim != 2 or codes.shape[0] != config.num_codebooks or not codes.shape[1]:
        raise InputError(
            f"{_named(voice)}: got codes {codes.dtype} of shape {list(codes.shape)}, expected whole numbers of shape "
            f"[{config.num_codebooks}, frames]"
        )
    if codes.min() < 0 or codes.max() >= config.audio_vocab_size:
        got = f"values from {codes.min()} to {codes.max()}"
        raise InputError(f"{_named(voice)}: got {got}, expected codes from 0 to {config.audio_vocab_size - 1}")


def _check_published(config: MoshiConfig, voice: Voice) -> None:
    assert voice.embeds is not None
    assert voice.ring is not None
    rows, least = 1 + len(config.audio_delays), max(duplex.delays_of(config)[0] + duplex.delays_of(config)[1]) + 1
    got = (voice.embeds.shape[1], voice.ring.shape[0])
    if got != (config.hidden_size, rows):
        raise InputError(
            f"{_named(voice)}: was made for another model: it has embeddings of {got[0]} and {got[1]} streams, this "
            f"model {config.hidden_size} and {rows}"
        )
    if voice.ring.shape[1] < least:
        raise InputError(f"{_named(voice)}: keeps {voice.ring.shape[1]} columns, this model's delays need {least}")


def _check_length(config: MoshiConfig, length: int, voice: Voice | None, tokens: int) -> None:
    if length > config.sliding_window:
        parts = f"{voice.frames if voice else 0} of the voice, {tokens} of the persona, {2 * PAUSE_FRAMES} of silence"
        raise InputError(
            f"voice, persona: the prompt has {length} frames ({parts}), but the model's context is "
            f"{config.sliding_window}; shorten it"
        )


def about(voice: Voice | None, persona: str | None) -> dict[str, Any]:
    """What a saved prompt says of itself."""
    return {"voice": voice.name if voice else "", "persona": (persona or "").strip()}
