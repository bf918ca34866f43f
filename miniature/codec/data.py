"""The codec's speech: `python -m miniature data FOLDER`. One long sound a shard, written once, resumable."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx.errors import MoshiError

from ..files import load_whole, save_whole
from ..talk.script import answers, exchanges, sentence, spoken
from ..talk.speech import SAMPLE_RATE, Voice, speak

MOSHI = Voice("en-us+f3", 165, 50)
USERS = ("en-us", "gmw/en", "en-us+m3", "gmw/en+f2")
SPEEDS, PITCHES = range(140, 201), range(30, 71)
SHARDS, SHARD_SECONDS = 20, 120
HELD_OUT = "heldout"


def user_voice(
    rng: random.Random,
    held_out: bool,
    names: tuple[str, ...] = USERS,
    speeds: range = SPEEDS,
    pitches: range = PITCHES,
) -> Voice:
    """A voice that may ask. Speeds and pitches that end in 5 are held out: never trained on, within the range."""
    name = rng.choice(names)
    speed, pitch = (rng.choice([n for n in among if (n % 10 == 5) == held_out]) for among in (speeds, pitches))
    return Voice(name, speed, pitch)


def _utterance(rng: random.Random, held_out: bool) -> tuple[str, Voice]:
    """What is said by whom: two fifths by Moshi's own voice, half of it from the dialogues."""
    own = rng.random() < 0.4
    if rng.random() < 0.5:
        text = sentence(rng)
    else:
        text = rng.choice(answers()) if own else spoken(rng.choice(exchanges()), rng)
    return text, MOSHI if own else user_voice(rng, held_out)


def shard(index: int, seconds: float = SHARD_SECONDS) -> np.ndarray:
    """A training shard: int16 [T], speech with pauses of digital silence, at least so many seconds."""
    rng, parts, length = random.Random(f"codec {index}"), [], 0
    while length < seconds * SAMPLE_RATE:
        text, voice = _utterance(rng, held_out=False)
        pause = np.zeros(int(rng.uniform(0.1, 0.8) * SAMPLE_RATE), np.float32)
        parts += [speak(text, voice).sound, pause]
        length += sum(map(len, parts[-2:]))
    return to_int16(np.concatenate(parts))


def to_int16(sound: np.ndarray) -> np.ndarray:
    return np.round(sound * 32767).astype(np.int16)


def held_out_utterances(count: int = 60) -> list[np.ndarray]:
    """int16 [T] each: sentences, speeds and pitches that no shard has; the same every time."""
    rng, sounds = random.Random("held out"), []
    for _ in range(count):
        text, voice = _utterance(rng, held_out=True)
        if voice == MOSHI:
            voice = Voice(MOSHI.name, rng.choice([155, 175]), rng.choice([45, 55]))
        sounds.append(to_int16(speak(text, voice).sound))
    return sounds


def prepare(folder: Path, shards: int = SHARDS, say: Callable[[str], None] = print) -> None:
    """Write what is missing of folder/codec-data."""
    target = folder / "codec-data"
    for index in range(shards):
        path = target / f"{index:03}.safetensors"
        if not path.exists():
            save_whole(path, {"sound": mx.array(shard(index))})
            say(f"data: {index + 1} of {shards} shards")
    path = target / f"{HELD_OUT}.safetensors"
    if not path.exists():
        save_whole(path, {f"{i:03}": mx.array(sound) for i, sound in enumerate(held_out_utterances())})


def training_sound(folder: Path) -> np.ndarray:
    """All shards in a row: int16 [T]."""
    files = sorted((folder / "codec-data").glob("[0-9]*.safetensors"))
    if not files:
        raise MoshiError(f"{folder / 'codec-data'}: no shards; run the data command first")
    return np.concatenate([np.array(load_whole(file)[0]["sound"]) for file in files])


def held_out_sound(folder: Path) -> list[np.ndarray]:
    """float32 [T] each."""
    tensors, _ = load_whole(folder / "codec-data" / f"{HELD_OUT}.safetensors")
    return [np.array(tensors[name]).astype(np.float32) / 32767 for name in sorted(tensors)]
