"""Recordings to training data: every sound through Mimi once, the words at their frames; safetensors shards.

A prepared folder has shard-NNNNN.safetensors, a tensor uint16 [1 + streams, frames] for each conversation (text,
Moshi's codebooks, the user's), and, once it is complete, prepared.json.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..checkpoints.safetensors import read_header, read_metadata
from ..conversation import text
from ..errors import AudioError, CheckpointError, ConfigError
from ..models.mimi import FRAMES_PER_CALL
from ..models.moshi import Moshi
from ..models.roles import BOTH_SIDES, check_role
from . import recordings
from .files import say, write_json, write_tensors
from .recordings import Conversation
from .timings import Script, Word

INDEX = "prepared.json"
SHARD_SECONDS = 600  # of sound: about what an interruption costs
MOST_TOKENS = 1 << 16  # that the type of a shard can tell apart
SILENCE = 1e-3  # the loudest sample of a frame in which nobody speaks: -60 dB

Encode = Callable[[mx.array, Any], tuple[mx.array, Any]]


def settings_of(model: Moshi) -> dict[str, Any]:
    """What a model must have in common with prepared data: codec, tokenizer, streams, vocabularies and padding."""
    books = np.array(model.audio_encoder.quantizer.embedding)
    return {
        "codec": hashlib.sha256(books.tobytes()).hexdigest()[:16],
        "tokenizer": hashlib.sha256(model.tokenizer.serialized_model_proto()).hexdigest()[:16],
        "streams": [model.config.num_codebooks, model.config.user_codebooks],
        "vocabularies": [model.config.vocab_size, model.config.audio_vocab_size],
        "padding": list(model.config.silent_text_tokens),
    }


def prepare(model: Moshi, source: list[Conversation], folder: Path, speaker: str, shift: bool = False) -> list[str]:
    """Write the conversations' codes and text to `folder`; whole shards of an interrupted run are kept.

    `shift`: as in `text.align`. Returns the names of the recordings that are left out because their sound cannot be
    read; each is told of by the name of its file. Raises InputError, AudioError or ConfigError, before anything is
    encoded, for what else cannot be used, and AudioError where no recording is left.
    """
    check_fits(model)
    checked = recordings.check(source, speaker)
    settings = settings_of(model) | {"speaker": speaker, "alignment": "shifted" if shift else "cut"}
    folder.mkdir(parents=True, exist_ok=True)
    remove_index(folder)
    work = _Work(model, _encoder(model), checked.scripts, shift)
    left_out = {name: str(error) for name, error in checked.damaged.items()}
    for reason in left_out.values():
        say(f"{reason}; left out")
    progress = _Progress(folder, len(checked.scripts), model.config.audio_encoder_config.frame_rate)
    made_with = settings | {"delays": list(model.config.audio_delays)}  # they say where a recording's words belong
    groups = _groups([conversation for conversation in source if conversation.name in checked.scripts])
    paths = [folder / f"shard-{number:05d}.safetensors" for number in range(len(groups))]
    for path, group in zip(paths, groups, strict=True):
        left_out |= _shard(work, group, path, made_with, progress)
    for path in set(folder.glob("shard-*.safetensors")) - set(paths):  # of an earlier, longer source
        path.unlink()
    if len(left_out) == len(source):
        raise AudioError(
            f"none of the {len(source)} recordings can be read; the first: {next(iter(left_out.values()))}"
        )
    counts = {"shards": len(paths), "conversations": len(source) - len(left_out), "frames": progress.frames}
    write_json(folder / INDEX, settings | counts)
    return sorted(left_out)


def remove_index(folder: Path) -> None:
    """From now on the folder counts as not prepared."""
    (folder / INDEX).unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what an earlier run prepared in a folder, and the folder if it had nothing else."""
    remove_index(folder)
    for path in folder.glob("shard-*.safetensors"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def check_fits(model: Moshi) -> None:
    """Raises InputError for a model that has not both sides of a conversation, ConfigError where codec, tokenizer or
    padding give tokens that the language model has no row for."""
    check_role(model, *BOTH_SIDES)
    config, codec = model.config, model.config.audio_encoder_config
    for what, most, rows in (
        ("the padding tokens", max(config.silent_text_tokens), config.vocab_size),
        ("the tokenizer's tokens", model.tokenizer.vocab_size() - 1, config.vocab_size),
        ("the codec's codes", codec.codebook_size - 1, config.audio_vocab_size),
    ):
        if most >= rows:
            raise ConfigError(f"{what} go up to {most}, but the model knows only 0 to {rows - 1}; it cannot be trained")
    if max(config.vocab_size, config.audio_vocab_size) > MOST_TOKENS:
        raise ConfigError(f"vocab_size is {config.vocab_size}, but prepared data holds {MOST_TOKENS} at most")


class _Work(NamedTuple):
    """What turns a conversation into streams."""

    model: Moshi
    encode: Encode
    scripts: dict[str, Script]
    shift: bool


def _shard(
    work: _Work, group: list[Conversation], path: Path, settings: dict[str, Any], progress: _Progress
) -> dict[str, str]:
    """One shard, made or kept. Returns what is left out of it: name -> reason."""
    key = _key(group, settings)
    kept = _kept(path, key)
    if kept is None:
        streams: dict[str, mx.array] = {}
        left_out: dict[str, str] = {}
        for n, conversation in enumerate(group):
            try:
                pieces = _streams(work, conversation)
                streams |= {f"{n:05d}" + (f".{k}" if k else ""): piece for k, piece in enumerate(pieces)}
            except AudioError as error:
                left_out[conversation.name] = str(error)
        about = {"key": key, "names": json.dumps([c.name for c in group if c.name not in left_out])}
        write_tensors(path, streams, about | {"left_out": json.dumps(left_out)})
        frames = sum(stream.shape[1] for stream in streams.values())
    else:
        frames, left_out = kept
    for reason in left_out.values():
        say(f"{reason}; left out")
    progress.add(len(group), frames, kept is not None)
    return left_out


def _kept(path: Path, key: str) -> tuple[int, dict[str, str]] | None:
    """The frames of a shard of an earlier run and what was left out of it; None where it is to be made anew."""
    if not path.is_file():
        return None
    try:
        about = read_metadata(path)
        left_out = json.loads(about.get("left_out", "{}"))
        if about.get("key") != key or not isinstance(left_out, dict):
            return None
        return sum(info.shape[1] for info in read_header(path).values()), left_out
    except (CheckpointError, ValueError, RecursionError, IndexError):
        return None


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


def _encoder(model: Moshi) -> Encode:
    mimi, count = model.audio_encoder, max(model.config.num_codebooks, model.config.user_codebooks)
    return mx.compile(lambda sound, state: mimi.encode_step(sound, state, count))


def _streams(work: _Work, conversation: Conversation) -> list[mx.array]:
    """uint16 [1 + streams, frames] of a conversation, or of each that it is since one began anew.

    Raises AudioError where its sound is damaged.
    """
    model, script = work.model, work.scripts[conversation.name]
    codec, config = model.config.audio_encoder_config, model.config
    samples, parts, levels, state = 0, [], [], model.audio_encoder.init_encoder_state(2, FRAMES_PER_CALL)
    blocks = recordings.sound(conversation, codec.sampling_rate, script.moshi)
    for length, sound in _calls(blocks, codec.frame_size):
        codes, state = work.encode(mx.array(sound), state)
        mx.eval(codes, state)
        parts.append(np.array(codes))
        levels.append(np.abs(sound).reshape(2, FRAMES_PER_CALL, codec.frame_size).max(axis=2))
        samples += length
    frames = -(-samples // codec.frame_size)
    if not frames:
        raise AudioError(f"{conversation.moshi}: is empty, it holds no samples")
    moshi, user = np.concatenate(parts, axis=2)[:, :, :frames]  # [codebooks, frames] each
    words = _late(script, config.audio_delays[: config.num_codebooks], codec.frame_rate)
    _tell_of_silence(words, np.concatenate(levels, axis=1), codec.frame_rate, conversation)
    sound = np.concatenate([moshi[: config.num_codebooks], user[: config.user_codebooks]])
    cuts = {round(reset * codec.frame_rate) for reset in script.resets}
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < frames), frames]
    return [
        _with_text(work, sound[:, first:last], _words_within(words, first, last, frames, codec.frame_rate))
        for first, last in itertools.pairwise(edges)
    ]


def _words_within(words: list[Word], first: int, last: int, frames: int, frame_rate: float) -> list[Word]:
    """The words that begin in a range of frames, by the seconds since its first; at either end with those beyond."""
    low, high = first if first else -math.inf, last if last < frames else math.inf
    since = first / frame_rate
    return [(word, start - since, end - since) for word, start, end in words if low <= start * frame_rate < high]


def _with_text(work: _Work, codes: np.ndarray, words: list[Word]) -> mx.array:
    """codes [streams, frames] -> uint16 [1 + streams, frames]."""
    model, frame_rate = work.model, work.model.config.audio_encoder_config.frame_rate
    end, padding = model.config.silent_text_tokens
    tokens = text.align(words, model.tokenizer, codes.shape[1], frame_rate, padding, end, work.shift)
    return mx.array(np.concatenate([tokens[None], codes]).astype(np.uint16))


def _late(script: Script, delays: tuple[int, ...], frame_rate: float) -> list[Word]:
    """The words at the frames of the sound that they belong to.

    A recording has a text token beside the sound that comes out in the same step, which is as old as the longest delay.
    Its times are rounded, so each is put into the middle of its frame.
    """
    late = (max(delays) + 0.5) / frame_rate if script.recorded else 0.0
    return [(word, start + late, end + late) for word, start, end in script.words]


def _tell_of_silence(words: list[Word], levels: np.ndarray, frame_rate: float, conversation: Conversation) -> None:
    """`levels`: the loudest sample of each frame [2, frames], Moshi's first."""
    spoken = [levels[:, int(max(0, start) * frame_rate) : int(end * frame_rate) + 1] for _, start, end in words]
    spoken = [part for part in spoken if part.shape[1]]
    silent = [part for part in spoken if part[0].max() < SILENCE]
    if spoken and 2 * len(silent) >= len(spoken):
        swapped = any(part[1].max() >= SILENCE for part in silent)
        hint = (
            "; the other channel is not: Moshi belongs on the left" if swapped and len(conversation.sounds) == 1 else ""
        )
        say(f"{conversation.moshi}: Moshi's side is silent at {len(silent)} of its {len(spoken)} words{hint}")


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

    def add(self, conversations: int, frames: int, kept: bool) -> None:
        self._done += conversations
        self.frames += frames
        minutes, seconds = self.frames / self._frame_rate / 60, time.monotonic() - self._began
        how = "already there" if kept else f"{seconds:.0f} s"
        say(f"{self._folder}: {self._done} of {self._total} conversations, {minutes:.1f} min of sound ({how})")
