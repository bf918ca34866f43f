"""The text stream: words at the frames where they are spoken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

END_OF_PADDING, PADDING = 0, 3


def align(words: Iterable[tuple[str, float, float]], tokenizer: Any, num_frames: int) -> np.ndarray:
    """Text tokens int32 [num_frames] of words (word, start, end), in seconds."""
    frames = np.full(num_frames, PADDING, np.int32)
    free = 0
    for word, start, _ in words:
        at = max(int(start * 12.5), free)
        tokens = tokenizer.encode(word.strip())[: max(num_frames - at, 0)]
        if 0 < at <= num_frames and tokens and frames[at - 1] == PADDING:
            frames[at - 1] = END_OF_PADDING
        frames[at : at + len(tokens)] = tokens
        free = at + len(tokens)
    return frames
