"""Moshi's inner monologue (Moshi paper, section 3.4.4): text a token a frame, and back to what is printed.

A word's tokens stand where it is spoken, one a frame; padding (id 3) fills the frames between words, and the end of
padding (id 0) the last frame before a word begins.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import InputError

END_OF_PADDING, PADDING = 0, 3
FRAME_RATE = 12.5


def align(
    words_with_times: Iterable[tuple[Any, ...]],
    tokenizer: Any,
    num_frames: int,
    frame_rate: float = FRAME_RATE,
    padding: int = PADDING,
    end_of_padding: int = END_OF_PADDING,
    shift: bool = False,
) -> np.ndarray:
    """Words with the seconds at which each begins and ends, (word, start) or (word, start, end) -> int32 [num_frames].

    The tokens of a word stand one a frame from the frame in which it begins; the frame before its first token, where it
    is padding, gets `end_of_padding`. A word that begins while the one before it is still being said cuts off the rest
    of it; of several in one frame the last stands. With `shift` nothing is cut off: a word waits until the one before
    it is out. A word without length (its end is not after its start) is left out, as is what lies beyond the last
    frame. This is how Kyutai's fine-tuning package aligns transcripts: it trains without shifting (moshi-finetune,
    train.py; there the option is called keep_and_shift). Raises InputError for words out of order and for no frames.
    """
    if num_frames < 1:
        raise InputError(f"num_frames: got {num_frames}, expected 1 or more")
    text = np.full(num_frames, padding, np.int32)
    spoken = _spoken(words_with_times, tokenizer, frame_rate)
    free = 0
    for n, (first, tokens) in enumerate(spoken):
        if shift:
            first = max(free, first)
            free = first + len(tokens)
        elif n + 1 < len(spoken):
            tokens = tokens[: max(0, spoken[n + 1][0] - first)]
        if first > num_frames or not tokens:
            continue
        if first and text[first - 1] == padding:
            text[first - 1] = end_of_padding
        text[first : first + len(tokens)] = tokens[: num_frames - first]
    return text


def _spoken(words: Iterable[tuple[Any, ...]], tokenizer: Any, frame_rate: float) -> list[tuple[int, list[int]]]:
    """The frame in which each word begins, and its tokens: those of its lines, with a line break's between them."""
    line_break = tokenizer.encode("\n")[-1:]
    spoken: list[tuple[int, list[int]]] = []
    before = -math.inf
    for word, start, *rest in words:
        if not before <= start < math.inf:
            raise InputError(f"words_with_times: {word!r} begins at {start}, expected {before} or later, in order")
        before = start
        if rest and not rest[0] > start:
            continue
        tokens: list[int] = []
        for number, line in enumerate(word.strip().split("\n")):
            tokens += (line_break if number else []) + list(tokenizer.encode(line))
        spoken.append((int(min(max(start * frame_rate, 0.0), 2.0**53)), tokens))
    return spoken


class TextDecoder:
    """What text tokens print, one by one: nothing for padding; bytes of a character wait for the rest of it.

    Where that does not come, because another piece does, U+FFFD stands in its place, in order.
    """

    def __init__(self, tokenizer: Any, silent_tokens: tuple[int, ...]) -> None:
        self._tokenizer, self._silent = tokenizer, silent_tokens
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token: int) -> str:
        return self._bytes.decode(bytes_of(self._tokenizer, token, self._silent))

    @property
    def pending(self) -> bytes:
        """The bytes of a character that wait for the rest of it."""
        return self._bytes.getstate()[0]

    @pending.setter
    def pending(self, waiting: bytes) -> None:
        self._bytes.setstate((waiting, 0))


def bytes_of(tokenizer: Any, token: int, silent_tokens: tuple[int, ...]) -> bytes:
    """What a token prints as UTF-8, perhaps a part of a character; nothing for silent tokens or without a tokenizer."""
    if tokenizer is None or token in silent_tokens or tokenizer.is_control(token):
        return b""
    piece: str = tokenizer.id_to_piece(token)
    return (
        bytes([int(piece[3:-1], 16)])
        if tokenizer.is_byte(token)
        else piece.replace("\u2581", " ").encode("utf-8", "replace")
    )
