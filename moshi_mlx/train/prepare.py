"""Recordings to training data: every sound through Mimi once, the words at their frames; safetensors shards.

A prepared folder has shard-NNNNN.safetensors, a tensor uint16 [1 + streams, frames] for each conversation (text,
Moshi's codebooks, the user's), and, once it is complete, prepared.json.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints.safetensors import load_lazily
from ..conversation import text
from ..errors import InputError
from ..models.mimi import FRAMES_PER_CALL
from ..models.moshi import Moshi
from . import recordings
from .files import metadata_of, say, write_json, write_tensors
from .recordings import Conversation, Word

INDEX = "prepared.json"
SHARD_SECONDS = 600  # of sound: about what an interruption costs


def settings_of(model: Moshi) -> dict[str, Any]:
    """What a model must have in common with prepared data: codec, tokenizer and streams."""
    books = np.array(model.audio_encoder.quantizer.embedding)
    return {
        "codec": hashlib.sha256(books.tobytes()).hexdigest()[:16],
        "tokenizer": hashlib.sha256(model.tokenizer.serialized_model_proto()).hexdigest()[:16],
        "streams": [model.config.num_codebooks, model.config.user_codebooks],
    }


def prepare(model: Moshi, source: list[Conversation], folder: Path, speaker: str) -> None:
    """Write the conversations' codes and text to `folder`; whole shards of an interrupted run are kept.

    Raises InputError or AudioError, naming the file, before anything is encoded.
    """
    timings = recordings.check(source, speaker)
    settings = settings_of(model) | {"speaker": speaker}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    encode = _encoder(model)
    progress = _Progress(folder, len(source), model.config.audio_encoder_config.frame_rate)
    groups = _groups(source)
    shards = [folder / f"shard-{number:05d}.safetensors" for number in range(len(groups))]
    for path, group in zip(shards, groups, strict=True):
        key = _key(group, settings)
        kept = metadata_of(path).get("key") == key
        if not kept:
            streams = {f"{n:05d}": _streams(model, encode, c, timings[c.name]) for n, c in enumerate(group)}
            write_tensors(path, streams, {"key": key, "names": json.dumps([c.name for c in group])})
        progress.add(group, path, kept)
    for path in set(folder.glob("shard-*.safetensors")) - set(shards):  # of an earlier, longer source
        path.unlink()
    counts = {"shards": len(shards), "conversations": len(source), "frames": progress.frames}
    write_json(folder / INDEX, settings | counts)


def _groups(source: list[Conversation]) -> list[list[Conversation]]:
    """The conversations of each shard."""
    groups: list[list[Conversation]] = [[]]
    seconds = 0.0
    for conversation in source:
        if seconds >= SHARD_SECONDS:
            groups.append([])
            seconds = 0.0
        groups[-1].append(conversation)
        seconds += recordings.seconds(conversation)
    return groups


def _key(group: list[Conversation], settings: dict[str, Any]) -> str:
    """What a shard was made of: it changes with every file of its conversations."""
    files = [
        (c.name, [(path.stat().st_size, path.stat().st_mtime_ns) for path in (c.moshi, c.user, c.timings)])
        for c in group
    ]
    return hashlib.sha256(json.dumps([settings, files]).encode()).hexdigest()


Encode = Callable[[mx.array, Any], tuple[mx.array, Any]]


def _encoder(model: Moshi) -> Encode:
    mimi, count = model.audio_encoder, max(model.config.num_codebooks, model.config.user_codebooks)
    return mx.compile(lambda sound, state: mimi.encode_step(sound, state, count))


def _streams(model: Moshi, encode: Encode, conversation: Conversation, words: list[Word]) -> mx.array:
    """uint16 [1 + streams, frames] of a conversation."""
    codec, config = model.config.audio_encoder_config, model.config
    samples, parts, state = 0, [], model.audio_encoder.init_encoder_state(2, FRAMES_PER_CALL)
    for length, sound in _calls(recordings.sound(conversation, codec.sampling_rate), codec.frame_size):
        codes, state = encode(mx.array(sound), state)
        mx.eval(codes, state)
        parts.append(np.array(codes))
        samples += length
    frames = -(-samples // codec.frame_size)
    if not frames:
        raise InputError(f"{conversation.moshi}: holds no sound")
    moshi, user = np.concatenate(parts, axis=2)[:, :, :frames]  # [codebooks, frames] each
    end, padding = config.silent_text_tokens
    starts = [(word, start) for word, start, _ in words]
    tokens = text.align(starts, model.tokenizer, frames, codec.frame_rate, padding, end)
    streams = np.concatenate([tokens[None], moshi[: config.num_codebooks], user[: config.user_codebooks]])
    return mx.array(streams.astype(np.uint16))


def _calls(blocks: Iterator[np.ndarray], frame_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks [2, T] of any length as (samples, sound) of the one length that is compiled; the end is padded."""
    size = FRAMES_PER_CALL * frame_size
    held = np.zeros((2, 0), np.float32)
    for block in blocks:
        held = np.concatenate([held, block], axis=1)
        while held.shape[1] >= size:
            yield size, held[:, :size]
            held = held[:, size:]
    if left := held.shape[1]:
        yield left, np.pad(held, [(0, 0), (0, size - left)])


class _Progress:
    """Says how far it is after every shard."""

    def __init__(self, folder: Path, total: int, frame_rate: float) -> None:
        self.frames = 0
        self._folder, self._total, self._frame_rate = folder, total, frame_rate
        self._done, self._began = 0, time.monotonic()

    def add(self, group: list[Conversation], path: Path, kept: bool) -> None:
        self._done += len(group)
        self.frames += sum(streams.shape[1] for streams in load_lazily(path).values())
        minutes, seconds = self.frames / self._frame_rate / 60, time.monotonic() - self._began
        how = "already there" if kept else f"{seconds:.0f} s"
        say(f"{self._folder}: {self._done} of {self._total} conversations, {minutes:.1f} min of sound ({how})")
