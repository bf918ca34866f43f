"""A stream of sound through Mimi, there and back, in chunks of any length."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..models.config import MimiConfig
from ..models.mimi import Mimi


def check_codebooks(config: MimiConfig, count: int) -> int:
    """The number itself. Raises InputError where the codec does not have so many codebooks."""
    most, least = config.num_quantizers, config.num_semantic_quantizers
    if not least <= count <= most:
        raise InputError(f"got {count} codebooks, expected {least} to {most}")
    return count


class MimiStream:
    """One sound, encoded and decoded chunk by chunk; what does not fill a frame is kept for the next call.

    A chunk may hold anything from nothing to minutes. Belongs to the thread that uses it.
    """

    def __init__(self, mimi: Mimi, num_codebooks: int) -> None:
        self._mimi = mimi
        self._encode = mx.compile(lambda x, state: mimi.encode_step(x, state, num_codebooks))
        self._decode = mx.compile(mimi.decode_step)
        self._num_codebooks = num_codebooks
        self.reset()

    def reset(self) -> None:
        """Begin a new sound."""
        self._encoder_state = self._mimi.init_encoder_state(1)
        self._decoder_state = self._mimi.init_decoder_state(1)
        self._partial = np.zeros(0, np.float32)

    def encode(self, sound: np.ndarray) -> np.ndarray:
        """sound float [T], any T -> codes int32 [num_codebooks, frames] of the frames that it completes."""
        sound = np.asarray(sound, np.float32)
        if sound.ndim != 1:
            raise InputError(f"sound: got shape {list(sound.shape)}, expected [T]")
        size = self._mimi.config.frame_size
        sound = np.concatenate([self._partial, sound])
        whole = len(sound) - len(sound) % size
        self._partial = sound[whole:]
        codes = list(self._encoded(sound[:whole].reshape(-1, 1, size)))
        return np.concatenate([np.zeros((self._num_codebooks, 0), np.int32), *codes], axis=1)

    def _encoded(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        for frame in frames:
            codes, self._encoder_state = self._encode(mx.array(frame), self._encoder_state)
            mx.eval(codes, self._encoder_state)
            yield np.array(codes)[0]  # evaluated: to index the array in MLX would start another evaluation

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """codes int [codebooks, frames] -> sound float32 [frames * frame_size]."""
        codes = np.asarray(codes)
        if codes.ndim != 2:
            raise InputError(f"codes: got shape {list(codes.shape)}, expected [codebooks, frames]")
        check_codebooks(self._mimi.config, len(codes))
        sounds = [np.zeros(0, np.float32)]
        for frame in range(codes.shape[1]):
            column = mx.array(codes[None, :, frame : frame + 1].astype(np.int32))
            sound, self._decoder_state = self._decode(column, self._decoder_state)
            mx.eval(sound, self._decoder_state)
            sounds.append(np.array(sound)[0])
        return np.concatenate(sounds)
