"""Conversations to learn from, in Kyutai's fine-tuning format: stereo sound, Moshi left, the user right, and words.

The user asks at any moment. Moshi is silent while spoken to, answers in its one voice from the frame on that begins
`REPLY_AFTER` seconds after the question (so that the codes of an answer are nearly the same every time), and stops
`STOP_AFTER` seconds after the user begins to speak again.
"""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from .codec_data import MOSHI, to_int16, user_voice
from .script import Exchange, answers, exchanges, spoken
from .speech import SAMPLE_RATE, Utterance, Voice, Word, speak

FRAME = 1920  # samples
SECONDS = 16.0  # length of a conversation: 200 frames
REPLY_AFTER, STOP_AFTER = 0.4, 0.32
INTERRUPTED = 0.15  # share of answers
FADE = 240  # samples
SPEAKERS = ("SPEAKER_MAIN", "SPEAKER_USER")
SETS = {"train": 1500, "valid": 40}


class Turn(NamedTuple):
    """A question and when it was asked, in seconds; whether its answer is heard to the end."""

    exchange: Exchange
    start: float
    end: float
    whole: bool


class Conversation(NamedTuple):
    """sound float32 [2, T], Moshi then the user; words as (word, start, end, speaker)."""

    sound: np.ndarray
    words: list[tuple[str, float, float, str]]
    turns: list[Turn]


@functools.cache
def replies() -> dict[str, Utterance]:
    """Every answer as Moshi says it, each spoken once: espeak-ng never says a thing twice quite alike."""
    return {answer: speak(answer, MOSHI) for answer in answers()}


def _frame_from(sample: float) -> int:
    """The first sample of the first frame that begins at or after one."""
    return math.ceil(sample / FRAME) * FRAME


class _Tape:
    """The two channels while they are filled."""

    def __init__(self, length: int) -> None:
        self.sound = np.zeros((2, length), np.float32)
        self.words: list[tuple[str, float, float, str]] = []

    def fits(self, at: int, asked: _Asked) -> bool:
        """Whether a question at this sample and its answer are over half a second before the end."""
        return _moments(at, asked)[2] + SAMPLE_RATE // 2 <= self.sound.shape[1]

    def put(self, channel: int, at: int, said: Utterance, gain: float, until: int) -> None:
        """An utterance from sample `at`, with what reaches beyond `until` left out."""
        part = gain * said.sound[: until - at]
        if len(part) < len(said.sound):
            part[-FADE:] *= np.linspace(1, 0, FADE, dtype=np.float32)
        self.sound[channel, at : at + len(part)] += part
        for text, start, end in said.words:
            # A millisecond, so that rounding cannot put a word that begins with a frame into the one before.
            first, last = at / SAMPLE_RATE + max(start, 0.001), (at + len(part)) / SAMPLE_RATE
            if first < last:
                self.words.append((text, first, min(at / SAMPLE_RATE + end, last), SPEAKERS[channel]))


class _Asked(NamedTuple):
    exchange: Exchange
    question: np.ndarray
    words: list[Word]
    reply: Utterance


def _ask(rng: random.Random, voice: Voice) -> _Asked:
    exchange = rng.choice(exchanges())
    question = speak(spoken(exchange, rng), voice)
    return _Asked(exchange, *question, replies()[exchange.answer])


def conversation(rng: random.Random, held_out: bool, seconds: float = SECONDS) -> Conversation:
    """Questions and answers with one user until the time is over."""
    tape, turns = _Tape(int(seconds * SAMPLE_RATE)), []
    voice, gain = user_voice(rng, held_out), rng.uniform(0.7, 1.0)
    at, asked = int(rng.uniform(0.1, 3.0) * SAMPLE_RATE), _ask(rng, voice)
    while tape.fits(at, asked):
        end, begin, over = _moments(at, asked)
        tape.put(1, at, Utterance(asked.question, asked.words), gain, end)
        following, next_asked = int(over + rng.uniform(0.4, 2.5) * SAMPLE_RATE), _ask(rng, voice)
        if rng.random() < INTERRUPTED and over - begin > 0.7 * SAMPLE_RATE:
            sooner = int(rng.uniform(begin + 0.25 * SAMPLE_RATE, over))
            following = sooner if tape.fits(sooner, next_asked) else following
        until = min(over, _frame_from(following + STOP_AFTER * SAMPLE_RATE))
        tape.put(0, begin, asked.reply, 1.0, until)
        turns.append(Turn(asked.exchange, at / SAMPLE_RATE, end / SAMPLE_RATE, until == over))
        at, asked = following, next_asked
    return Conversation(tape.sound, tape.words, turns)


def _moments(at: int, asked: _Asked) -> tuple[int, int, int]:
    """The samples at which a question ends, its answer begins and that ends."""
    end = at + len(asked.question)
    begin = _frame_from(end + REPLY_AFTER * SAMPLE_RATE)
    return end, begin, begin + len(asked.reply.sound)


def timings(words: list[tuple[str, float, float, str]]) -> list[Any]:
    """Kyutai's form: [[word, [start, end], speaker], ...]."""
    return [
        [word, [round(start, 4), round(end, 4)], who] for word, start, end, who in sorted(words, key=lambda w: w[1])
    ]


def write(folder: Path, sets: dict[str, int] | None = None, say: Callable[[str], None] = print) -> None:
    """folder/dialogues/train and valid: what is not there yet. The sound is written last: it says that both are."""
    replies()  # first, in a fresh engine: the same every time
    for name, count in (sets or SETS).items():
        target = folder / "dialogues" / name
        target.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = target / f"{index:05}.flac"
            if not path.exists():
                made = conversation(random.Random(f"{name} {index}"), held_out=name != "train")
                path.with_suffix(".json").write_text(json.dumps(timings(made.words)))
                unfinished = path.with_suffix(".unfinished")
                soundfile.write(unfinished, to_int16(made.sound.T), SAMPLE_RATE, format="FLAC")
                unfinished.rename(path)
            if (index + 1) % 100 == 0:
                say(f"{target}: {index + 1} of {count} conversations")


class Rendering(NamedTuple):
    """A question to ask a model: sound float32 [T], whole frames, with time for the answer after it."""

    exchange: Exchange
    sound: np.ndarray
    start: float
    end: float


def held_out(count: int = 100, seed: int = 0) -> list[Rendering]:
    """Questions in turn over all that can be asked, at speeds and pitches never trained on, beginning at any sample."""
    rng = random.Random(f"renderings {seed}")
    every = exchanges()
    asked = [*rng.sample(every, len(every)) * (1 + count // len(every))][:count]
    return [_rendering(exchange, rng) for exchange in asked]


def _rendering(exchange: Exchange, rng: random.Random, after: float = 4.0) -> Rendering:
    voice: Voice = user_voice(rng, held_out=True)
    question = speak(spoken(exchange, rng), voice).sound * np.float32(rng.uniform(0.7, 1.0))
    before = int(rng.uniform(0.1, 3.0) * SAMPLE_RATE)
    length = _frame_from(before + len(question) + after * SAMPLE_RATE)
    sound = np.zeros(length, np.float32)
    sound[before : before + len(question)] = question
    return Rendering(exchange, sound, before / SAMPLE_RATE, (before + len(question)) / SAMPLE_RATE)


def interruptions(count: int = 20, seed: int = 0) -> list[Rendering]:
    """Two questions each, the second begun 0.4 s into the answer to the first; start and end are the second's."""
    rng = random.Random(f"interruptions {seed}")
    long = [exchange for exchange in exchanges() if len(replies()[exchange.answer].sound) > SAMPLE_RATE]
    sums = [exchange for exchange in exchanges() if "plus" in exchange.question]
    return [_interruption(rng.choice(long), rng.choice(sums), rng) for _ in range(count)]


def _interruption(first: Exchange, second: Exchange, rng: random.Random, after: float = 4.0) -> Rendering:
    voice, before = user_voice(rng, held_out=True), int(rng.uniform(0.1, 2.0) * SAMPLE_RATE)
    questions = [speak(spoken(exchange, rng), voice).sound for exchange in (first, second)]
    at = _frame_from(before + len(questions[0]) + REPLY_AFTER * SAMPLE_RATE) + int(0.4 * SAMPLE_RATE)
    end = at + len(questions[1])
    sound = np.zeros(_frame_from(end + after * SAMPLE_RATE), np.float32)
    sound[before : before + len(questions[0])] = questions[0]
    sound[at:end] = questions[1]
    return Rendering(second, sound, at / SAMPLE_RATE, end / SAMPLE_RATE)


def demonstration() -> tuple[str, np.ndarray]:
    """The question that ships for --demo, in a voice that was not trained on: its text, and its sound float32 [T]."""
    text, before = "Hello, Moshi. What is two plus three?", np.zeros(SAMPLE_RATE // 2, np.float32)
    return text, np.concatenate([before, speak(text, Voice("en-us", 165, 45)).sound])
