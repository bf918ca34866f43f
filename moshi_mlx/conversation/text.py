"""Moshi's inner monologue (Moshi paper, section 3.4.4): text a token a frame, and back to what is printed.

A word's tokens stand where it is spoken, one a frame; padding (id 3) fills the frames between words, and the end of
padding (id 0) the last frame before a word begins.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import InputError

END_OF_PADDING, PADDING = 0, 3
FRAME_RATE = 12.5


def align(
    words_with_times: Iterable[tuple[str, float]],
    tokenizer: Any,
    num_frames: int,
    frame_rate: float = FRAME_RATE,
    padding: int = PADDING,
    end_of_padding: int = END_OF_PADDING,
) -> np.ndarray:
    """Words with the seconds at which each begins (a third item, its end, is not needed) -> text int32 [num_frames].

    The tokens of a word follow each other from the frame in which it begins, or as soon as the word before it is out;
    the frame before its first token, where it is padding, gets `end_of_padding`. Tokens beyond the last frame are left
    out. This is how Kyutai's fine-tuning package aligns transcripts. Raises InputError for words out of order, for a
    word without letters, and for no frames.
    """
    if num_frames < 1:
        raise InputError(f"num_frames: got {num_frames}, expected 1 or more")
    text = np.full(num_frames, padding, np.int32)
    free, before = 0, 0.0
    for word, start, *_ in words_with_times:
        if not start >= before:
            raise InputError(f"words_with_times: {word!r} begins at {start}, expected {before} or later, in order")
        tokens = tokenizer.encode(word.strip())
        if not tokens:
            raise InputError(f"words_with_times: {word!r} has no tokens; leave it out")
        first, before = max(free, int(start * frame_rate + 1e-6)), start
        if 0 < first <= num_frames and text[first - 1] == padding:
            text[first - 1] = end_of_padding
        free = first + len(tokens)
        text[first:free] = tokens[: max(0, num_frames - first)]
    return text


class TextDecoder:
    """What text tokens print, one by one: nothing for padding; bytes of a character wait for the rest of it.

    Where the rest does not come, U+FFFD stands for them, before whatever comes instead.
    """

    def __init__(self, tokenizer: Any, silent_tokens: tuple[int, ...]) -> None:
        self._tokenizer, self._silent = tokenizer, silent_tokens
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token: int) -> str:
        return self._bytes.decode(bytes_of(self._tokenizer, token, self._silent))


def bytes_of(tokenizer: Any, token: int, silent_tokens: tuple[int, ...]) -> bytes:
    """What a token prints as UTF-8, perhaps a part of a character; nothing for silent tokens or without a tokenizer."""
    if tokenizer is None or token in silent_tokens or tokenizer.is_control(token):
        return b""
    piece: str = tokenizer.id_to_piece(token)
    return bytes([int(piece[3:-1], 16)]) if tokenizer.is_byte(token) else piece.replace("\u2581", " ").encode()
