"""How a user asks: in a voice, with an opening and pauses to think."""

from __future__ import annotations

import random
import re

import numpy as np

from ..codec.data import user_voice
from ..talk.script import Exchange, exchanges, spoken
from ..talk.speech import SAMPLE_RATE, Utterance, Voice, delayed, speak

USERS = ("en-us", "en-us+m3", "gmw/en+f2")
SPEEDS, PITCHES = range(156, 185), range(40, 61)
NEW_SENTENCE = 0.5  # share of openings that espeak-ng takes for a sentence of their own, with a pause of 0.35 s
HESITATING, PAUSE = 0.25, (0.2, 1.0)  # share of questions, and seconds
FADE = 240  # samples


def asking_voice(rng: random.Random, held_out: bool) -> Voice:
    return user_voice(rng, held_out, USERS, SPEEDS, PITCHES)


def ask(exchange: Exchange, rng: random.Random, voice: Voice) -> Utterance:
    """The question spoken, with an opening, an ending and a pause by chance."""
    text = spoken(exchange, rng)
    if rng.random() < NEW_SENTENCE:
        text = re.sub(r"(?<=\. )\w", lambda letter: letter[0].upper(), text)
    said, places = speak(text, voice), thoughtful(exchange, text)
    if rng.random() < HESITATING and places:
        said = hesitate(said, rng.choice(places), rng.uniform(*PAUSE))
    return said


def thoughtful(exchange: Exchange, text: str) -> list[int]:
    """The words of a spoken question before which somebody may stop to think: never where it could be over."""
    asked, complete = exchange.question.split(), {other.question for other in exchanges()}
    before = len(text[: text.lower().rindex(exchange.question.lower())].split())
    inside = [n for n in range(1, len(asked)) if " ".join(asked[:n]) not in complete]
    return [before + n for n in ([0] if before else []) + inside]


def hesitate(said: Utterance, word: int, seconds: float) -> Utterance:
    """So many seconds of silence before that word."""
    at, pause = int(said.words[word].start * SAMPLE_RATE), np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    first, rest = faded(said.sound[:at]), faded(said.sound[at:][::-1])[::-1]
    words = [*said.words[:word], *delayed(said.words[word:], len(pause) / SAMPLE_RATE)]
    return Utterance(np.concatenate([first, pause, rest]), words)


def faded(sound: np.ndarray) -> np.ndarray:
    """Faded out at its end."""
    out = sound.copy()
    out[-FADE:] *= np.linspace(1, 0, FADE, dtype=np.float32)[-len(out) :]
    return out
