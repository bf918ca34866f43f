"""Sound at a device's rate, as a stream: no seam where one block ends and the next begins."""

from __future__ import annotations

import numpy as np
import soxr

from ..inputs import Samples


class Resampler:
    """Takes blocks of any length at one rate, gives what is ready of them at another. Equal rates pass untouched.

    It holds back up to some 40 ms (the length of soxr's filter and its own blocks), which a device that takes the
    codec's rate saves.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._stream = None if from_rate == to_rate else soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")

    def __call__(self, sound: Samples) -> Samples:
        if self._stream is None:
            return sound
        given: Samples = self._stream.resample_chunk(np.nan_to_num(sound, nan=0.0, posinf=0.0, neginf=0.0))
        return given
