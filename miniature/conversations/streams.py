"""Conversations of the encoded questions, as the trainer reads them: `moshi_mlx.train prepare` made of codes.

What a conversation's sound would be encoded to is put together from what its parts were encoded to: so every question
is heard at many moments and between many others, for the price of one encoding.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx import MoshiForConditionalGeneration
from moshi_mlx.conversation import text
from moshi_mlx.errors import MoshiError
from moshi_mlx.train import prepare, recordings

from ..files import save_whole
from ..sizes import ENTRIES
from ..talk.speech import SAMPLE_RATE
from . import dialogues, questions
from .dialogues import FRAME, SECONDS, Placed
from .questions import Question

CONVERSATIONS, SHARD = 12_000, 1000
LENGTH = int(SECONDS * SAMPLE_RATE)
NOISE = 0.1  # share of the user's acoustic codes that are any others, so that no question is known by a few of them


class Material:
    """What conversations are made of: the questions, silence from a conversation's first frame on, and the answers."""

    def __init__(self, model: MoshiForConditionalGeneration, asked: list[Question]) -> None:
        self.model, self.asked = model, asked
        silence = model.audio_encoder.encode(mx.zeros((1, LENGTH))).audio_codes
        self.silence = np.array(silence)[0].astype(np.uint16)
        lengths = {answer: len(said.sound) for answer, said in dialogues.replies().items()}
        # Whole, and cut off after any number of frames.
        keys = [(answer, n) for answer, length in lengths.items() for n in range(1, -(-length // FRAME) + 1)]
        sounds = [dialogues.cut(dialogues.replies()[answer], n * FRAME) for answer, n in keys]
        self.answers = dict(zip(keys, questions.encode(model.audio_encoder, sounds), strict=True))

    def conversation(self, rng: random.Random) -> np.ndarray:
        """uint16 [1 + 2 * CODEBOOKS, frames]: text, Moshi's codes, the user's."""
        placed = dialogues.plan(rng, lambda: rng.choice(self.asked).asked(), LENGTH)
        moshi, user, noise = self.silence.copy(), self.silence.copy(), np.random.default_rng(rng.randrange(2**32))
        for turn in placed:
            _put(user, turn.start // FRAME, _disturbed(turn.asked.what, noise))
            _put(moshi, turn.reply // FRAME, self.answers[turn.asked.exchange.answer, _frames(turn)])
        return np.concatenate([self._text(placed)[None], moshi, user])

    def _text(self, placed: list[Placed]) -> np.ndarray:
        words = [
            (word.text, word.start)
            for turn in placed
            for word in dialogues.timed(dialogues.replies()[turn.asked.exchange.answer], turn.reply, turn.until)
        ]
        end, padding = self.model.config.silent_text_tokens
        rate = self.model.config.audio_encoder_config.frame_rate
        stream = text.align(words, self.model.tokenizer, LENGTH // FRAME, rate, padding, end, shift=True)
        return stream.astype(np.uint16)


def _frames(turn: Placed) -> int:
    return -(-(turn.until - turn.reply) // FRAME)


def _put(stream: np.ndarray, at: int, codes: np.ndarray) -> None:
    part = stream[:, at : at + codes.shape[1]]
    part[:] = codes[:, : part.shape[1]]


def _disturbed(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    disturbed = rng.random(codes.shape) < NOISE
    disturbed[0] = False
    return np.where(disturbed, rng.integers(0, ENTRIES, codes.shape), codes).astype(np.uint16)


def write(
    model: MoshiForConditionalGeneration,
    folder: Path,
    target: Path,
    conversations: int = CONVERSATIONS,
    say: Callable[[str], None] = print,
) -> None:
    """A prepared folder, if it is not there yet."""
    if (target / prepare.INDEX).exists():
        return
    asked = questions.read(folder)
    if not asked:
        raise MoshiError(f"{folder / 'questions'}: no shards; run the questions command first")
    material, names = Material(model, asked), [f"streams {n}" for n in range(conversations)]
    shards = [names[first : first + SHARD] for first in range(0, conversations, SHARD)]
    for number, part in enumerate(shards):
        streams = {f"{n:05}": mx.array(material.conversation(random.Random(name))) for n, name in enumerate(part)}
        save_whole(target / f"shard-{number:05}.safetensors", streams, {"names": json.dumps(part)})
        say(f"{target}: {min(conversations, (number + 1) * SHARD)} of {conversations} conversations")
    counts = {"shards": len(shards), "conversations": conversations, "frames": conversations * LENGTH // FRAME}
    index = prepare.settings_of(model) | {"speaker": recordings.SPEAKER} | counts
    (target / prepare.INDEX).write_text(json.dumps(index, indent=1) + "\n")
