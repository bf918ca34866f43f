"""The codec under the names of Hugging Face's `MimiModel`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .. import inputs
from ..conversation.codec import MimiStream, check_codebooks
from ..errors import InputError
from ..models import config as plain
from ..models.mimi import FRAMES_PER_CALL, Mimi
from ..models.state import State
from . import pretrained
from .classes import Methods
from .config import MimiConfig
from .outputs import MimiOutput

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MimiModel(Methods, Mimi):
    """The codec. Sound is float [B, T] in [-1, 1] at `config.sampling_rate`; codes are int32 [B, codebooks, frames].

    Weights are random (`initializer_range`, `seed`) until some are loaded.

    >>> codec = moshi_mlx.MimiModel.from_pretrained("miniature")
    >>> codes = codec.encode(mx.zeros((1, 24000)), num_quantizers=8).audio_codes
    >>> codes.shape  # a second, padded to 13 frames of 1920 samples
    (1, 8, 13)
    >>> codec.decode(codes).audio_values.shape
    (1, 1, 24960)
    """

    config: MimiConfig

    def __init__(self, config: plain.MimiConfig, seed: int = 0) -> None:
        super().__init__(MimiConfig.of(config), seed)

    def encode(self, input_values: Any, padding_mask: Any = None, num_quantizers: int | None = None) -> MimiOutput:
        """input_values float [B, T] or [B, 1, T] -> audio_codes int32 [B, num_quantizers, frames].

        T is padded to whole frames with silence. `padding_mask` of the same shape, or [B, T], is 0 behind the end of a
        row: that row's codes are those of the row alone, then -1 (transformers 5.23 encodes what is there). NaN and
        infinite samples are silence. Raises InputError where the shape, the type (whole numbers are no sound), the mask
        or the number of codebooks does not fit.
        """
        count = check_codebooks(self.config, self.config.num_quantizers if num_quantizers is None else num_quantizers)
        sound = inputs.batch_of_sound("input_values", input_values)
        size = self.config.frame_size
        lengths = None if padding_mask is None else row_lengths(padding_mask, sound.shape)
        if lengths is not None:
            sound = mx.where(mx.arange(sound.shape[1]) < lengths[:, None], sound, 0)
        sound = mx.pad(sound, [(0, 0), (0, -sound.shape[1] % size)])
        codes = _in_calls(
            lambda x, s: self.encode_step(x, s, count), sound, self.init_encoder_state, FRAMES_PER_CALL * size
        )
        if lengths is not None:
            codes = mx.where(mx.arange(codes.shape[2]) * size < lengths[:, None, None], codes, -1)
        return MimiOutput(audio_codes=codes)

    def decode(self, audio_codes: Any, padding_mask: Any = None) -> MimiOutput:
        """audio_codes int [B, codebooks, frames] -> audio_values float [B, 1, frames * frame_size].

        Frames of -1 are silent, and so is what `padding_mask` [B, T] or [B, 1, T] marks with 0 behind the end of a row;
        the sound is cut to its T samples. Raises InputError where the shape, the mask or the codes do not fit.
        """
        codes = inputs.tokens("audio_codes", audio_codes, (None, None, None), -1, self.config.codebook_size - 1)
        check_codebooks(self.config, codes.shape[1])
        sound = _in_calls(self.decode_step, mx.maximum(codes, 0), self.init_decoder_state, FRAMES_PER_CALL)
        heard = mx.repeat(codes.min(axis=1) >= 0, self.config.frame_size, axis=1)
        if padding_mask is not None:
            mask = inputs.on_host("padding_mask", padding_mask)
            shape = (len(codes), min(mask.shape[-1] if mask.ndim else 0, sound.shape[1]))
            lengths = row_lengths(mask, (len(codes), *mask.shape[-1:]))
            sound, heard = sound[:, : shape[1]], heard[:, : shape[1]] & (mx.arange(shape[1]) < lengths[:, None])
        return MimiOutput(audio_values=mx.where(heard, sound, 0)[:, None])

    def __call__(
        self,
        input_values: Any = None,
        padding_mask: Any = None,
        num_quantizers: int | None = None,
        audio_codes: Any = None,
    ) -> MimiOutput:
        """There and back: audio_codes as `encode` gives them, audio_values as long as input_values.

        Given audio_codes are decoded as they are; input_values then say no more than how long the sound is.
        """
        if input_values is None and audio_codes is None:
            raise InputError("input_values, audio_codes: got none of them, expected one")
        length = None if input_values is None else inputs.batch_of_sound("input_values", input_values).shape[1]
        if audio_codes is None:
            audio_codes = self.encode(input_values, padding_mask, num_quantizers).audio_codes
        out = self.decode(audio_codes, padding_mask)
        return MimiOutput(audio_codes=_given(audio_codes), audio_values=out.audio_values[:, :, :length])

    def get_encoded_length(self, input_length: Any) -> Any:
        """Frames that so many samples are encoded as: of a number a number, of an array an array."""
        samples = inputs.on_host("input_length", input_length)
        if samples.dtype.kind not in "iu" or (samples < 0).any():
            raise InputError(f"input_length: got {input_length!r}, expected whole numbers of 0 or more")
        frames = -(-samples.astype(np.int64) // self.config.frame_size)
        return int(frames) if frames.ndim == 0 else mx.array(frames.astype(np.int32))

    @classmethod
    @inputs.spelled_out(pretrained.LoadSettings)
    def from_pretrained(cls, path_or_hub_id: str | Path, **settings: Unpack[pretrained.LoadSettings]) -> MimiModel:
        """The codec of a folder or hub id: of a whole Moshi in any layout, or alone in Hugging Face's.

        It runs in float32 alone: another `dtype` is refused. `revision` is a branch, tag or commit of the hub's
        repository. Raises CheckpointError or ConfigError.
        """
        return pretrained.mimi(cls, path_or_hub_id, settings)

    def stream(self, num_codebooks: int | None = None) -> MimiStream:
        """A stream of one sound, in chunks of any length, there and back."""
        count = self.config.num_quantizers if num_codebooks is None else num_codebooks
        return MimiStream(self, check_codebooks(self.config, count))


ROWS_PER_CALL = 64  # of a batch, however many it has

Step = Callable[[mx.array, State], tuple[mx.array, State]]


def _given(codes: Any) -> mx.array:
    return codes if isinstance(codes, mx.array) else mx.array(np.asarray(codes).astype(np.int32))


def row_lengths(padding_mask: Any, shape: tuple[int, ...]) -> mx.array:
    """int32 [B]: how much of each row is no padding, which lies behind it. padding_mask [B, T] or [B, 1, T]."""
    given = inputs.on_host("padding_mask", padding_mask)
    if not np.isin(given, (0, 1)).all():
        raise InputError("padding_mask: got other values than 0 (padding) and 1")
    mask = given.astype(bool)
    mask = mask[:, 0] if mask.ndim == 3 and mask.shape[1] == 1 else mask
    if mask.shape != tuple(shape):
        raise InputError(f"padding_mask: got shape {list(mask.shape)}, expected {list(shape)}")
    lengths = mask.sum(axis=1)
    if (mask != (np.arange(shape[1]) < lengths[:, None])).any():
        raise InputError("padding_mask: got padding before or inside a row, expected it behind the row's end alone")
    return mx.array(lengths.astype(np.int32))


def _in_calls(step: Step, x: mx.array, init_state: Callable[[int, int], State], size: int) -> mx.array:
    """Run `step` over the last axis of x, `size` and ROWS_PER_CALL at a call, each evaluated: memory does not grow."""
    groups = []
    for first in range(0, len(x), ROWS_PER_CALL):
        rows = x[first : first + ROWS_PER_CALL]
        state, outputs = init_state(len(rows), FRAMES_PER_CALL), []
        for start in range(0, x.shape[-1], size):
            y, state = step(rows[..., start : start + size], state)
            mx.eval(y, state)
            outputs.append(y)
        groups.append(mx.concatenate(outputs, axis=-1))
    return mx.concatenate(groups)
