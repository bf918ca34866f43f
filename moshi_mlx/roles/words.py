"""The word machine of Kyutai's TTS: which text the model is given, frame by frame, as it asks for words.

Such a model speaks words that it is given, but says itself when it is ready for the next one: its text head asks, with
0 for "a word begins" and anything else for padding, and the machine answers (delayed streams modeling, arXiv
2509.08753; Kyutai's PyTorch package, moshi.models.tts, is the reference for every decision). A word's tokens go in one
a frame; padding holds back the next word (`Word.padding`), and it is forced where the model has padded for too long. A
model trained with look-ahead has a second text stream, in which the tokens of a later word go in beside those of this
one; both are one number, (second + 1) * (vocab_size + 1) + first.

All state is plain and immutable, so that each row of a batch has its own, and text may be added while it is spoken:
`ready` says whether the next answer is already the one that the whole text would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from ..errors import InputError

NEW_WORD, PADDING = 0, 3
NO_TEXT = -1  # stands for nothing at all in the text stream


@dataclass(frozen=True)
class Word:
    """A word to speak, or a pause: no tokens, and so many frames of padding.

    `padding` are the frames after its beginning in which no other word may begin.
    """

    tokens: tuple[int, ...]
    text: str
    padding: int = 0


@dataclass(frozen=True)
class Rules:
    """How a model was trained to be answered.

    `vocab_size` is that of the text (8000), `ahead` how many words the second stream is ahead, 0 where there is none.
    After `max_padding` frames of padding a word begins, asked for or not; `initial_padding` frames come before all.
    """

    vocab_size: int
    ahead: int = 0
    max_padding: int = 8
    initial_padding: int = 2

    def joined(self, first: int, second: int) -> int:
        """The number that stands for a token of each stream; second is -1 for none."""
        return (second + 1) * (self.vocab_size + 1) + first


@dataclass(frozen=True)
class Words:
    """Where the machine stands in a text."""

    waiting: tuple[Word, ...]
    padding_left: int  # frames for which the model may still go on padding
    padding_due: int  # frames for which it must
    feeding: tuple[int, ...] = ()  # tokens of the word that has begun
    feeding_ahead: tuple[int, ...] = ()  # the same for the second stream
    closed: bool = False  # no more words come
    ended: bool = False  # a word was asked for after the last one


class Answer(NamedTuple):
    """What the model is given in a frame."""

    text: int  # the number that goes in
    word: Word | None  # the word, or pause, that begins
    words: Words


def begin(rules: Rules) -> Words:
    """No words yet."""
    return Words((), rules.initial_padding, rules.initial_padding)


def append(words: Words, more: list[Word] | tuple[Word, ...]) -> Words:
    """Further words behind those that wait. Raises InputError after `close`."""
    if words.closed and more:
        raise InputError("text: got more of it after its end; begin another utterance")
    return replace(words, waiting=(*words.waiting, *more))


def close(words: Words) -> Words:
    """The text is complete."""
    return replace(words, closed=True)


def ready(rules: Rules, words: Words) -> bool:
    """Whether the next answer is the one that the whole text would give, whatever comes of it still.

    That is where the text is complete, where a word is under way, and where the next word waits together with those
    that the second stream needs. Until then the model has to stand still (as a row does in Kyutai's server, tts.py):
    any padding that it were given would be heard as a pause.
    """
    if words.closed or words.feeding or words.padding_due:
        return True
    if not words.waiting or not words.waiting[0].tokens:
        return bool(words.waiting)
    return len(list(islice(_spoken(words.waiting), rules.ahead + 1))) > rules.ahead


def answer(rules: Rules, words: Words, asked: int) -> Answer:
    """One frame: what the model asked for (a token of its text head) -> what it is given. See `ready`."""
    if not _begins(words, asked):
        return _given(rules, None, *_next_token(words))
    if not words.waiting:
        return _past_the_end(rules, words)
    word, *rest = words.waiting
    words = replace(words, waiting=tuple(rest), padding_due=word.padding)
    if not word.tokens:
        return _given(rules, word, *_next_token(words))
    ahead = (*words.feeding_ahead, *_tokens_ahead(words.waiting, rules.ahead))
    words = replace(words, feeding=word.tokens, feeding_ahead=ahead, padding_left=rules.max_padding)
    return _given(rules, word, NEW_WORD, words)


def _begins(words: Words, asked: int) -> bool:
    """Whether a word begins where the model asks for this token."""
    if words.feeding or words.padding_due:
        return False
    return asked == NEW_WORD or not words.padding_left


def _next_token(words: Words) -> tuple[int, Words]:
    """A frame in which no word begins: the next token of the one under way, or padding."""
    first, *feeding = words.feeding or (PADDING,)
    left, due = max(0, words.padding_left - 1), max(0, words.padding_due - 1)
    return first, replace(words, feeding=tuple(feeding), padding_left=left, padding_due=due)


def _given(rules: Rules, word: Word | None, first: int, words: Words) -> Answer:
    """A token with that of the second stream beside it."""
    if not rules.ahead:
        return Answer(first, word, words)
    if first == NEW_WORD:  # goes into the second stream, so that the first has room for the word itself
        first, *feeding = words.feeding or (PADDING,)
        return Answer(rules.joined(first, NEW_WORD), word, replace(words, feeding=tuple(feeding)))
    second, *ahead = words.feeding_ahead or (-1,)
    return Answer(rules.joined(first, second), word, replace(words, feeding_ahead=tuple(ahead)))


def _past_the_end(rules: Rules, words: Words) -> Answer:
    """A word is asked for and none is left. The first time the second stream says so."""
    if rules.ahead and not words.ended:
        return _given(rules, None, NEW_WORD, replace(words, ended=True))
    return _given(rules, None, *_next_token(replace(words, ended=True)))


def _tokens_ahead(waiting: tuple[Word, ...], ahead: int) -> tuple[int, ...]:
    """The tokens of the word that comes `ahead` words later, pauses not counted."""
    later = next(islice(_spoken(waiting), ahead - 1, None), None) if ahead else None
    return later.tokens if later else ()


def _spoken(waiting: tuple[Word, ...]) -> Iterator[Word]:
    """Words that are no pauses."""
    return (word for word in waiting if word.tokens)
