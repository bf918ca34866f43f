"""A stream of sound through Mimi, there and back, in chunks of any length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from .. import inputs
from ..errors import InputError
from ..models.config import MimiConfig
from ..models.mimi import Mimi


def check_codebooks(config: MimiConfig, count: Any) -> int:
    """The number itself. Raises InputError where the codec does not have so many codebooks."""
    least, most = config.num_semantic_quantizers, config.num_quantizers
    if not isinstance(inputs.scalar(count), (int, np.integer)) or isinstance(count, bool) or not least <= count <= most:
        raise InputError(f"got {count!r} codebooks, expected {least} to {most}")
    return int(count)


class MimiStream:
    """One sound, encoded and decoded chunk by chunk; what does not fill a frame is kept for the next call.

    A chunk may hold anything from nothing to minutes. Belongs to the thread that uses it; a call while another one runs
    is refused with InputError and changes nothing.

    Sound is float32 at 24000 Hz; a frame is 1920 samples, 80 ms, and has a code of 0 to 2047 for each codebook.

    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> stream = model.audio_encoder.stream(8)
    >>> stream.encode(np.zeros(3000, np.float32)).shape  # a frame, and 1080 samples that wait
    (8, 1)
    >>> stream.flush().shape  # the rest, filled up with silence
    (8, 1)
    >>> stream.decode(np.zeros((8, 2), np.int32)).shape
    (3840,)
    """

    def __init__(self, mimi: Mimi, num_codebooks: int) -> None:
        self._mimi = mimi
        num_codebooks = check_codebooks(mimi.config, num_codebooks)
        self._encode = mx.compile(lambda x, state: mimi.encode_step(x, state, num_codebooks))
        self._decode = mx.compile(mimi.decode_step)
        self._num_codebooks, self._turns = num_codebooks, inputs.Turns()
        self.reset()

    def reset(self) -> None:
        """Begin a new sound."""
        with self._turns.taken("reset"):
            self._encoder_state = self._mimi.init_encoder_state(1)
            self._decoder_state = self._mimi.init_decoder_state(1)
            self._partial = np.zeros(0, np.float32)
            mx.eval(self._encoder_state, self._decoder_state)  # what has values may be used on any thread

    def encode(self, sound: Any) -> np.ndarray:
        """sound float [T], any T -> codes int32 [num_codebooks, frames] of the frames that it completes.

        Samples that are NaN, infinite or beyond a million are silence. Raises InputError for another shape and for
        samples that are not floats.
        """
        with self._turns.taken("encode"):
            samples, _ = inputs.silenced(inputs.sound("sound", sound, (None,)))
            size = self._mimi.config.frame_size
            samples = np.concatenate([self._partial, samples])
            whole = len(samples) - len(samples) % size
            self._partial = samples[whole:]
            codes = list(self._encoded(samples[:whole].reshape(-1, 1, size)))
            return np.concatenate([np.zeros((self._num_codebooks, 0), np.int32), *codes], axis=1)

    def flush(self) -> np.ndarray:
        """The end of the sound: codes int32 [num_codebooks, 1] of the part of a frame that waits, filled with silence.

        [num_codebooks, 0] where none waits. Decoding keeps nothing back. `reset` begins the next sound.
        """
        with self._turns.taken("flush"):
            missing = -len(self._partial) % self._mimi.config.frame_size
        return self.encode(np.zeros(missing, np.float32))

    def _encoded(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        for frame in frames:
            codes, self._encoder_state = self._encode(mx.array(frame), self._encoder_state)
            mx.eval(codes, self._encoder_state)
            yield np.array(codes)[0]  # evaluated: to index the array in MLX would start another evaluation

    def decode(self, codes: Any) -> np.ndarray:
        """codes int [codebooks, frames] -> sound float32 [frames * frame_size]; frames of -1 are silent.

        Raises InputError for another shape, and for codes that the codec does not have.
        """
        with self._turns.taken("decode"):
            config, given = self._mimi.config, inputs.on_host("codes", codes)
            if given.ndim != 2 or given.shape[1]:  # no frames are no sound
                given = np.array(inputs.tokens("codes", given, (None, None), -1, config.codebook_size - 1))
            check_codebooks(config, len(given))
            sounds = [self._decoded(given[None, :, frame : frame + 1]) for frame in range(given.shape[1])]
            return np.concatenate([np.zeros(0, np.float32), *sounds])

    def _decoded(self, column: np.ndarray) -> np.ndarray:
        sound, self._decoder_state = self._decode(mx.array(np.maximum(column, 0)), self._decoder_state)
        mx.eval(sound, self._decoder_state)
        return np.array(sound)[0] * (column >= 0).all()
