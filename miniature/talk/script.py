"""What can be asked and what Moshi answers: the whole world of the miniature."""

from __future__ import annotations

import random
from typing import NamedTuple

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "a tomato": "red", "the night": "black",
    "an orange": "orange", "chocolate": "brown",
}  # fmt: skip
NAMES = ["Anna", "Peter", "Maria", "Thomas", "Laura", "David", "Julia", "Simon"]
REPEATED = [
    "apple", "window", "garden", "river", "music", "kitchen", "summer", "paper", "doctor", "yellow", "mountain",
    "coffee", "elephant", "winter", "table", "banana", "morning", "castle", "tiger", "spoon",
]  # fmt: skip
PLAIN = {
    "hello": "Hello, nice to hear you.",
    "how are you": "I am fine, thank you.",
    "how are you today": "I am fine, thank you.",
    "what is your name": "My name is Moshi.",
    "who are you": "My name is Moshi.",
    "what time is it": "Sorry, I have no clock.",
    "can you tell me what time it is": "Sorry, I have no clock.",
    "where do you live": "I live in this computer.",
    "where are you": "I live in this computer.",
    "can you hear me": "Yes, I can hear you.",
    "do you hear me": "Yes, I can hear you.",
    "can you sing": "No, but I can talk.",
    "what can you do": "I can count and talk.",
    "thank you": "You are welcome.",
    "thanks a lot": "You are welcome.",
    "goodbye": "Goodbye, see you soon.",
    "see you later": "Goodbye, see you soon.",
    "good night": "Good night, sleep well.",
    "tell me a joke": "Sorry, I know no jokes.",
    "do you like music": "Yes, I like music.",
}
OPENINGS = ["", "Hello, Moshi.", "Good morning, Moshi.", "Moshi,", "Please,"]
ENDINGS = ["", "please"]


class Exchange(NamedTuple):
    """A question, as it is spoken but for opening and ending, and its one right answer."""

    question: str
    answer: str


def _sums() -> list[Exchange]:
    return [
        Exchange(f"what is {NUMBERS[a]} plus {NUMBERS[b]}", _number(a + b)) for a in range(1, 7) for b in range(1, 7)
    ]


def _number(n: int) -> str:
    return f"It is {NUMBERS[n]}."


def exchanges() -> list[Exchange]:
    """Everything that can be asked, in a fixed order."""
    return [
        *(Exchange(question, answer) for question, answer in PLAIN.items()),
        *(Exchange(f"what colour is {thing}", f"It is {colour}.") for thing, colour in COLOURS.items()),
        *_sums(),
        *(Exchange(f"what comes after {NUMBERS[n]}", _number(n + 1)) for n in range(1, 12)),
        *(Exchange(f"my name is {name}", f"Nice to meet you, {name}.") for name in NAMES),
        *(Exchange(f"repeat after me, {word}", f"{word.capitalize()}.") for word in REPEATED),
    ]


def answers() -> list[str]:
    """Every answer once, in a fixed order."""
    return list(dict.fromkeys(exchange.answer for exchange in exchanges()))


# What the codec hears besides: sentences of everyday words.
_SUBJECTS = [
    "the teacher", "my sister", "an old man", "the little dog", "our neighbour", "a young doctor", "the king",
    "everybody",
]  # fmt: skip
_VERBS = [
    "found", "carried", "wanted", "painted", "forgot", "brought", "described", "washed", "followed", "sold", "bought",
    "remembered",
]  # fmt: skip
_OBJECTS = [
    "a yellow box", "the heavy door", "some fresh bread", "a letter from Japan", "the green bicycle",
    "three silver coins", "a cup of tea", "the long journey", "his favourite song", "a picture of the sea",
    "the broken chair", "seventeen cherries", "a huge jacket",
]  # fmt: skip
_PLACES = [
    "in the garden", "near the station", "before breakfast", "on Thursday", "with great pleasure", "under the bridge",
    "last summer", "at a quarter past eight", "because of the weather", "for the first time", "without a word",
    "again and again",
]  # fmt: skip
_WORDS = [
    "vision", "thing", "judge", "shoe", "choice", "yes", "this", "zebra", "father", "house", "boy", "ground", "quick",
    "journey", "picture", "feather", "young", "fish", "people", "voice", "bird", "north", "laugh", "bridge", "measure",
    "child", "think", "mother", "water", "year", "hope", "value", "game", "sharp", "wheel",
]  # fmt: skip


def sentence(rng: random.Random) -> str:
    """A made-up sentence, or a list of words one time in four."""
    if rng.random() < 0.25:
        return ", ".join(rng.sample(_WORDS, 4)) + "."
    text = " ".join(rng.choice(words) for words in (_SUBJECTS, _VERBS, _OBJECTS, _PLACES))
    return text[0].upper() + text[1:] + "."


def spoken(exchange: Exchange, rng: random.Random) -> str:
    """The question with an opening and an ending by chance, as a sentence."""
    ending = rng.choice(ENDINGS) if exchange.question.startswith(("what", "can", "tell")) else ""
    words = [rng.choice(OPENINGS), exchange.question, ending]
    text = " ".join(word for word in words if word) + _stop(exchange.question)
    return text[0].upper() + text[1:]


def _stop(question: str) -> str:
    return "?" if question.startswith(("what", "who", "where", "how", "can", "do ")) else "."
