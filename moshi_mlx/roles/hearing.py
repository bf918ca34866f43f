"""What a transcriber writes, one token a frame, as words with the times at which they were said.

Token 0 says that a word begins, 3 is padding, any other a piece of a word (Kyutai's delayed-streams models; `asr.rs` of
their Rust server). Text comes a fixed delay after the sound, half a second or 2.5, so that a word was said that much
before its tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..conversation.text import END_OF_PADDING, FRAME_RATE, PADDING, bytes_of
from ..errors import InputError

SILENT = (END_OF_PADDING, PADDING)


class Word(NamedTuple):
    """A word, or with `joined` the rest of the one before it, and the second of sound at which it begins."""

    text: str
    start: float
    joined: bool = False


class EndWord(NamedTuple):
    """The last word has ended at this second of sound: where the next one begins, or where the sound ends."""

    stop: float


@dataclass
class _Hand:
    """What the machine has in hand."""

    announced: float | None = None  # when a word begins whose pieces are still to come
    waiting: str = ""  # bytes of the word at hand, as hexadecimal digits
    pieces: int = 0  # of it
    begun: float = 0.0  # when it begins, or the last one began
    joined: bool = False  # whether it is the rest of one that was given out
    open: bool = False  # whether a word was given out and its end was not
    ended: float = 0.0  # when the last one ended


class WordMachine:
    """Tokens, one by one -> words as soon as they are whole, and the ends of words.

    A word is whole when padding, or the next word, follows its pieces. It begins at its 0. Where several words follow
    one 0, since people speak fast, each is as many frames long as it has pieces, as in Kyutai's scripts; a word without
    a 0 begins a frame before its first piece. Pieces that go on after padding come as a word of their own, `joined`.
    Bytes of a character wait for the rest of it.

    >>> from moshi_mlx.roles.hearing import WordMachine
    >>> machine = WordMachine(moshi_mlx.load("miniature").tokenizer)
    >>> machine(0, 0.08), machine(3, 0.16)  # token, second of sound: a word begins, and padding
    ([], [])
    """

    def __init__(self, tokenizer: Any, silent: Sequence[int] = SILENT, frame_seconds: float = 1 / FRAME_RATE) -> None:
        self._tokenizer, self._silent, self._frame = tokenizer, tuple(silent), frame_seconds
        self.reset()

    def reset(self) -> None:
        """Nothing was said so far."""
        self._hand = _Hand()

    @property
    def state(self) -> dict[str, Any]:
        """What it has in hand, as JSON can say it; may be set, to go on from there."""
        return asdict(self._hand)

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        try:
            hand = _Hand(**state)
            bytes.fromhex(hand.waiting)
        except (TypeError, ValueError) as error:
            raise InputError(f"state: expected what `state` of a WordMachine gave ({error})") from error
        self._hand = hand

    def __call__(self, token: int, time: float) -> list[Word | EndWord]:
        """The next frame's token; `time` is the second of sound that it is about: now, less the model's delay."""
        if token == self._silent[0]:
            given = [*self._whole(), *self._ended(time)]
            self._hand.announced = time
            return given
        piece = bytes_of(self._tokenizer, token, self._silent)
        return self._take(piece, time) if piece else self._as_far_as_whole()

    def _take(self, piece: bytes, time: float) -> list[Word | EndWord]:
        """A piece: of the word at hand, or the first of another."""
        hand, begins = self._hand, piece.startswith(b" ")
        if hand.waiting and not (begins and bytes.fromhex(hand.waiting).strip()):
            return self._add(piece)
        if hand.waiting:
            start = min(hand.begun + hand.pieces * self._frame, time)
            given = [*self._whole(), *self._ended(start)]
        elif hand.announced is not None:
            start, given = hand.announced, []
        elif hand.open and not begins:
            hand.joined = True
            return self._add(piece)
        else:
            start = max(hand.ended, time - self._frame)
            given = self._ended(start)
        hand.announced, hand.begun, hand.joined = None, start, False
        return [*given, *self._add(piece)]

    def _add(self, piece: bytes) -> list[Word | EndWord]:
        self._hand.waiting += piece.hex()
        self._hand.pieces += 1
        return []

    def finish(self, time: float) -> list[Word | EndWord]:
        """The sound ends, at this second of it: what is left."""
        return [*self._whole(), *self._ended(time)]

    def _whole(self) -> list[Word | EndWord]:
        """The word at hand, with U+FFFD for bytes that did not become a character."""
        return self._out(bytes.fromhex(self._hand.waiting).decode("utf-8", "replace"))

    def _as_far_as_whole(self) -> list[Word | EndWord]:
        """The same at padding, where a character may still become whole."""
        reader = codecs.getincrementaldecoder("utf-8")("replace")
        text = reader.decode(bytes.fromhex(self._hand.waiting))
        return [] if reader.getstate()[0] else self._out(text)

    def _out(self, text: str) -> list[Word | EndWord]:
        hand = self._hand
        hand.waiting, hand.pieces = "", 0
        if not text.strip():
            return []
        hand.open = True
        return [Word(" ".join(text.split()), round(hand.begun, 3), hand.joined)]

    def _ended(self, time: float) -> list[Word | EndWord]:
        hand = self._hand
        if not hand.open:
            return []
        hand.open, hand.ended = False, round(max(time, hand.begun), 3)
        return [EndWord(hand.ended)]


class Clock:
    """Samples that a model was fed -> seconds of the sound that somebody brought: silence put between does not count.

    >>> from moshi_mlx.roles.hearing import Clock
    >>> clock = Clock(24000)
    >>> clock.sound(24000)
    >>> clock.silence(12000)  # pushed through at a pause
    >>> clock.sound(24000)
    >>> clock.seconds(24000), clock.seconds(30000), clock.seconds(48000)
    (1.0, 1.0, 1.5)
    """

    def __init__(self, rate: int, kept: int = 100) -> None:
        self._rate, self._kept = rate, kept
        self.reset()

    def reset(self) -> None:
        """Nothing was fed."""
        self._fed, self._silent = 0, 0  # samples; silent ones that are no longer in the list
        self._silences: list[tuple[int, int]] = []  # where each began, in samples fed, and how long it was

    @property
    def fed(self) -> int:
        """Samples so far, of both kinds."""
        return self._fed

    @property
    def now(self) -> float:
        """Seconds of sound so far."""
        return self.seconds(self._fed)

    def sound(self, samples: int) -> None:
        """So many samples were somebody's."""
        self._fed += samples

    def silence(self, samples: int) -> None:
        """So many were put between. Those before the last hundred times are no longer told apart."""
        if samples:
            self._silences.append((self._fed, samples))
            self._fed += samples
        while len(self._silences) > self._kept:
            self._silent += self._silences.pop(0)[1]

    def seconds(self, sample: float) -> float:
        """The second of sound at which the model was when it had been fed so many samples; 0 before the first."""
        passed = sum(min(max(sample - begun, 0), length) for begun, length in self._silences)
        return max(0.0, (sample - self._silent - passed) / self._rate)
