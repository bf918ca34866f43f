"""Conversations to learn from: who says what and when, and their sound in Kyutai's fine-tuning format.

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

from ..codec.data import MOSHI, to_int16
from ..talk.script import Exchange, answers, exchanges
from ..talk.speech import SAMPLE_RATE, Utterance, Voice, Word, delayed, speak
from .asking import ask, asking_voice, faded

FRAME = 1920  # samples
SECONDS = 16.0  # length of a conversation: 200 frames
REPLY_AFTER, STOP_AFTER = 0.4, 0.32
INTERRUPTED = 0.15  # share of answers
BEFORE, PAUSE = (0.1, 3.0), (0.4, 2.5)  # seconds before the first question, and between an answer and the next
BEGINNINGS, GAP = ("It is", "Nice to meet you,"), 480  # of answers, and the samples of silence behind them
SPEAKERS = ("SPEAKER_MAIN", "SPEAKER_USER")
VALID = 40


class Conversation(NamedTuple):
    """sound float32 [2, T], Moshi then the user; words as (word, start, end, speaker)."""

    sound: np.ndarray
    words: list[tuple[str, float, float, str]]
    turns: list[Placed]


@functools.cache
def replies() -> dict[str, Utterance]:
    """Every answer as Moshi says it, each spoken once: espeak-ng never says a thing twice quite alike.

    What several answers begin with is one recording: else its sound would tell which answer it is before the word that
    does, and a model would learn to hear that from itself rather than from the question.
    """
    begun = {beginning: speak(beginning, MOSHI) for beginning in BEGINNINGS}
    return {answer: _reply(answer, begun) for answer in answers()}


def _reply(answer: str, begun: dict[str, Utterance]) -> Utterance:
    for beginning, first in begun.items():
        if answer.startswith(beginning):
            gap = np.zeros(GAP, np.float32)
            rest = speak(answer.removeprefix(beginning).strip(), MOSHI)
            words = [*first.words, *delayed(rest.words, (len(first.sound) + GAP) / SAMPLE_RATE)]
            return Utterance(np.concatenate([first.sound, gap, rest.sound]), words)
    return speak(answer, MOSHI)


def _frame_from(sample: float) -> int:
    """The first sample of the first frame that begins at or after one."""
    return math.ceil(sample / FRAME) * FRAME


class Asked(NamedTuple):
    """A question of `length` samples and its one answer. `place`: the sample of a frame it begins on, -1 for any."""

    exchange: Exchange
    length: int
    what: Any  # the question itself
    place: int = -1

    def from_sample(self, sample: float) -> int:
        """The first sample from this one on at which it may begin."""
        return int(sample) if self.place < 0 else _frame_from(sample - self.place) + self.place


class Placed(NamedTuple):
    """The samples at which a question begins and ends, its answer begins and is over: said or cut off."""

    asked: Asked
    start: int
    end: int
    reply: int
    until: int

    @property
    def whole(self) -> bool:
        return self.until == self.reply + len(replies()[self.asked.exchange.answer].sound)


def plan(rng: random.Random, another: Callable[[], Asked], length: int) -> list[Placed]:
    """Questions and answers until `length` samples are over."""
    placed: list[Placed] = []
    asked = another()
    start = asked.from_sample(rng.uniform(*BEFORE) * SAMPLE_RATE)
    while _fits(start, asked, length):
        end, reply, over = _moments(start, asked)
        following, next_asked = over + rng.uniform(*PAUSE) * SAMPLE_RATE, another()
        if rng.random() < INTERRUPTED and over - reply > 0.7 * SAMPLE_RATE:
            sooner = rng.uniform(reply + 0.25 * SAMPLE_RATE, over)
            following = sooner if _fits(next_asked.from_sample(sooner), next_asked, length) else following
        next_start = next_asked.from_sample(following)
        placed.append(Placed(asked, start, end, reply, min(over, _frame_from(next_start + STOP_AFTER * SAMPLE_RATE))))
        start, asked = next_start, next_asked
    return placed


def _moments(start: int, asked: Asked) -> tuple[int, int, int]:
    """The samples at which a question ends, its answer begins and that ends."""
    end = start + asked.length
    reply = _frame_from(end + REPLY_AFTER * SAMPLE_RATE)
    return end, reply, reply + len(replies()[asked.exchange.answer].sound)


def _fits(start: int, asked: Asked, length: int) -> bool:
    """Whether a question at this sample and its answer are over half a second before the end."""
    return _moments(start, asked)[2] + SAMPLE_RATE // 2 <= length


def cut(said: Utterance, length: int) -> np.ndarray:
    """Its first so many samples, faded out where that is not all."""
    return faded(said.sound[:length]) if length < len(said.sound) else said.sound


def timed(said: Utterance, at: int, until: int) -> list[Word]:
    """The words of an utterance from sample `at`, as far as `until`."""
    last = min(until, at + len(said.sound)) / SAMPLE_RATE
    # A millisecond, so that rounding cannot put a word that begins with a frame into the one before.
    words = [Word(w.text, at / SAMPLE_RATE + max(w.start, 0.001), at / SAMPLE_RATE + w.end) for w in said.words]
    return [word._replace(end=min(word.end, last)) for word in words if word.start < last]


def conversation(rng: random.Random, held_out: bool, seconds: float = SECONDS) -> Conversation:
    """Questions and answers with one user until the time is over."""
    voice, gain, length = asking_voice(rng, held_out), rng.uniform(0.7, 1.0), int(seconds * SAMPLE_RATE)
    sound, words = np.zeros((2, length), np.float32), []

    def another() -> Asked:
        exchange = rng.choice(exchanges())
        question = ask(exchange, rng, voice)
        return Asked(exchange, len(question.sound), question)

    turns = plan(rng, another, length)
    for turn in turns:
        question, reply = turn.asked.what, replies()[turn.asked.exchange.answer]
        sound[1, turn.start : turn.end] = gain * question.sound
        sound[0, turn.reply : turn.until] = cut(reply, turn.until - turn.reply)
        words += [(*word, SPEAKERS[1]) for word in timed(question, turn.start, turn.end)]
        words += [(*word, SPEAKERS[0]) for word in timed(reply, turn.reply, turn.until)]
    return Conversation(sound, words, turns)


def timings(words: list[tuple[str, float, float, str]]) -> list[Any]:
    """Kyutai's form: [[word, [start, end], speaker], ...]."""
    return [
        [word, [round(start, 4), round(end, 4)], who] for word, start, end, who in sorted(words, key=lambda w: w[1])
    ]


def write(folder: Path, count: int = VALID, say: Callable[[str], None] = print) -> None:
    """folder/dialogues: what is not there yet, in voices that nothing is trained on. Sound last: it says both are."""
    replies()  # first, in a fresh engine: the same every time
    target = folder / "dialogues"
    target.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = target / f"{index:05}.flac"
        if not path.exists():
            made = conversation(random.Random(f"valid {index}"), held_out=True)
            path.with_suffix(".json").write_text(json.dumps(timings(made.words)))
            unfinished = path.with_suffix(".unfinished")
            soundfile.write(unfinished, to_int16(made.sound.T), SAMPLE_RATE, format="FLAC")
            unfinished.rename(path)
    say(f"{target}: {count} conversations")


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
    voice = asking_voice(rng, held_out=True)
    question = ask(exchange, rng, voice).sound * np.float32(rng.uniform(0.7, 1.0))
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
    voice, before = asking_voice(rng, held_out=True), int(rng.uniform(0.1, 2.0) * SAMPLE_RATE)
    questions = [ask(exchange, rng, voice).sound for exchange in (first, second)]
    at = _frame_from(before + len(questions[0]) + REPLY_AFTER * SAMPLE_RATE) + int(0.4 * SAMPLE_RATE)
    end = at + len(questions[1])
    sound = np.zeros(_frame_from(end + after * SAMPLE_RATE), np.float32)
    sound[before : before + len(questions[0])] = questions[0]
    sound[at:end] = questions[1]
    return Rendering(second, sound, at / SAMPLE_RATE, end / SAMPLE_RATE)


def demonstration() -> tuple[str, np.ndarray]:
    """The question that ships for --demo, in a voice that was not trained on: its text, and its sound float32 [T]."""
    said, before = "Hello, Moshi. What is two plus three?", np.zeros(SAMPLE_RATE // 2, np.float32)
    return said, np.concatenate([before, speak(said, Voice("en-us", 165, 45)).sound])
