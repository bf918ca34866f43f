"""Thousands of questions as codes: `python -m miniature questions FOLDER`. Each is spoken and encoded once."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from moshi_mlx import MimiModel

from ..codec import train as codec
from ..files import load_whole, save_whole
from ..sizes import CODEBOOKS
from ..talk.script import exchanges
from .asking import ask, asking_voice
from .dialogues import FRAME, Asked

SHARDS, SHARD = 25, 500  # questions
PROCESSES = 2  # MLX's CPU backend computes on one core
TAIL = 8  # frames after the last of a sound: by then the encoder has forgotten it
AT_ONCE, FRAMES = 16, 8  # sounds encoded together, and frames in a call


class Question(NamedTuple):
    """codes uint16 [CODEBOOKS, frames] from the frame on in which it begins, at sample `place` of that frame."""

    exchange: int
    place: int
    length: int
    codes: np.ndarray

    def asked(self) -> Asked:
        return Asked(exchanges()[self.exchange], self.length, self.codes, self.place)


def encode(model: MimiModel, sounds: list[np.ndarray]) -> list[np.ndarray]:
    """uint16 [CODEBOOKS, frames + TAIL] of each sound, as if it began after a long silence."""
    step = mx.compile(lambda sound, state: model.encode_step(sound, state, CODEBOOKS))
    silence = mx.zeros((AT_ONCE, FRAMES * FRAME))
    rested = model.init_encoder_state(AT_ONCE, FRAMES)
    for _ in range(4):  # twice the window
        _, rested = step(silence, rested)
    found: list[np.ndarray] = [np.zeros(0)] * len(sounds)
    by_length = sorted(range(len(sounds)), key=lambda n: len(sounds[n]))
    for first in range(0, len(sounds), AT_ONCE):
        together, state, parts = by_length[first : first + AT_ONCE], rested, []
        frames = max(_frames(sounds[n]) for n in together)
        padded = np.zeros((AT_ONCE, -(-frames // FRAMES) * FRAMES * FRAME), np.float32)
        for row, n in zip(padded, together, strict=False):
            row[: len(sounds[n])] = sounds[n]
        for block in np.split(padded, padded.shape[1] // (FRAMES * FRAME), axis=1):
            codes, state = step(mx.array(block), state)
            mx.eval(codes, state)
            parts.append(np.array(codes))
        for row, n in zip(np.concatenate(parts, axis=2), together, strict=False):
            found[n] = row[:, : _frames(sounds[n])].astype(np.uint16)
    return found


def _frames(sound: np.ndarray) -> int:
    return -(-len(sound) // FRAME) + TAIL


def shard(model: MimiModel, index: int, count: int = SHARD) -> list[Question]:
    """Questions in turn over all that can be asked, in any voice that is trained on, beginning anywhere in a frame."""
    rng = random.Random(f"questions {index}")
    asked = [n % len(exchanges()) for n in range(index * count, (index + 1) * count)]
    sounds, places = [], []
    for n in asked:
        place, gain = rng.randrange(FRAME), np.float32(rng.uniform(0.7, 1.0))
        said = gain * ask(exchanges()[n], rng, asking_voice(rng, held_out=False)).sound
        sounds.append(np.pad(said, (place, 0)))
        places.append(place)
    rows = zip(asked, places, sounds, encode(model, sounds), strict=True)
    return [Question(n, place, len(sound) - place, codes) for n, place, sound, codes in rows]


def _write(job: tuple[Path, Path, int, int]) -> Path:
    folder, path, index, count = job
    made = shard(codec.load(folder), index, count)
    tensors = {f"{n:05}": mx.array(question.codes) for n, question in enumerate(made)}
    facts = mx.array([[question.exchange, question.place, question.length] for question in made])
    save_whole(path, {"facts": facts, **tensors})
    return path


def write(folder: Path, shards: int = SHARDS, count: int = SHARD, say: Callable[[str], None] = print) -> None:
    """folder/questions: the shards that are not there yet."""
    paths = [folder / "questions" / f"{index:03}.safetensors" for index in range(shards)]
    jobs = [(folder, path, index, count) for index, path in enumerate(paths) if not path.exists()]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        for path in pool.imap_unordered(_write, jobs):
            say(f"{path}: {count} questions")


def read(folder: Path) -> list[Question]:
    found = []
    for path in sorted((folder / "questions").glob("*.safetensors")):
        tensors, _ = load_whole(path)
        facts = np.array(tensors.pop("facts"))
        for (exchange, place, length), name in zip(facts.tolist(), sorted(tensors), strict=True):
            found.append(Question(exchange, place, length, np.array(tensors[name])))
    return found
