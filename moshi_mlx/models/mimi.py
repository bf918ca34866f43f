"""Mimi, the streaming neural codec (Moshi paper, section 3.3): 24 kHz sound to 12.5 frames of codes a second and back.

SEANet encoder, transformer, downsampling, split residual quantizer; the decoder mirrors it. Everything is causal and
streams: the `*_step` methods are pure functions of whole frames and state; `encode` and `decode` run them over a
whole sound; `MimiStream` takes chunks of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .. import inputs
from ..errors import InputError
from ..huggingface.outputs import MimiOutput
from .config import MimiConfig
from .layers.activations import elu
from .layers.conv import CausalConv, DepthwiseUpsample, StridedConv, TransposedConv
from .layers.initial import Freezable, initialize
from .layers.quantizer import SplitResidualVectorQuantizer
from .layers.transformer import LayerConfig, Transformer
from .state import State

# Frames that one call of the whole-file methods carries: enough work for a product, little memory.
FRAMES_PER_CALL = 16


class ResidualBlock(nn.Module):
    """x + pointwise(elu(dilated(elu(x)))), narrower by `compress` inside."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, compress: int) -> None:
        super().__init__()
        self.dilated = CausalConv(channels, channels // compress, kernel_size, dilation)
        self.pointwise = CausalConv(channels // compress, channels, 1)

    def init_state(self, batch: int) -> State:
        return self.dilated.init_state(batch)

    def __call__(self, x: mx.array, state: State) -> tuple[mx.array, State]:
        h, state = self.dilated(elu(x), state)
        pointwise = self.pointwise
        return mx.addmm(x + pointwise.bias, elu(h), pointwise.taps[0]), state


class SEANetStack(nn.Module):
    """A sequence of streaming layers; State: a list, a leaf for each layer."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = layers

    def init_state(self, batch: int) -> State:
        return [layer.init_state(batch) for layer in self.layers]

    def __call__(self, x: mx.array, state: State) -> tuple[mx.array, State]:
        states = []
        for i, (layer, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            # Every convolution but the first is preceded by an activation; a residual block has its own.
            if i and not isinstance(layer, ResidualBlock):
                x = elu(x)
            x, layer_state = layer(x, layer_state)
            states.append(layer_state)
        return x, states


def _residual_blocks(channels: int, config: MimiConfig) -> list[nn.Module]:
    dilations = [config.dilation_growth_rate**j for j in range(config.num_residual_layers)]
    return [ResidualBlock(channels, config.residual_kernel_size, d, config.compress) for d in dilations]


def seanet_encoder(config: MimiConfig) -> SEANetStack:
    """[B, T, 1] -> [B, T / hop_length, hidden_size]."""
    channels = config.num_filters
    layers: list[nn.Module] = [CausalConv(1, channels, config.kernel_size)]
    for ratio in reversed(config.upsampling_ratios):
        layers += _residual_blocks(channels, config)
        layers.append(StridedConv(channels, 2 * channels, ratio))
        channels *= 2
    return SEANetStack([*layers, CausalConv(channels, config.hidden_size, config.last_kernel_size)])


def seanet_decoder(config: MimiConfig) -> SEANetStack:
    """[B, T, hidden_size] -> [B, T * hop_length, 1]."""
    channels = config.num_filters * 2 ** len(config.upsampling_ratios)
    layers: list[nn.Module] = [CausalConv(config.hidden_size, channels, config.kernel_size)]
    for ratio in config.upsampling_ratios:
        layers.append(TransposedConv(channels, channels // 2, ratio))
        channels //= 2
        layers += _residual_blocks(channels, config)
    return SEANetStack([*layers, CausalConv(channels, 1, config.last_kernel_size)])


def _transformer(config: MimiConfig) -> Transformer:
    layer = LayerConfig(
        dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.key_value_heads,
        hidden=config.intermediate_size,
        norm_eps=config.norm_eps,
        gated=False,
        head_dim=config.head_width,
    )
    return Transformer(layer, config.num_hidden_layers, config.sliding_window, config.rope_theta)


def _mono(input_values: Any) -> mx.array:
    """Sound [B, T] from [B, T] or [B, 1, T]."""
    sound = mx.array(input_values)
    flat = sound.squeeze(1) if sound.ndim == 3 and sound.shape[1] == 1 else sound
    if flat.ndim != 2 or flat.shape[1] == 0:
        raise InputError(f"input_values: got shape {list(sound.shape)}, expected [B, T] or [B, 1, T] with T > 0")
    return flat


def row_lengths(padding_mask: Any, shape: tuple[int, ...]) -> mx.array:
    """int32 [B]: how much of each row is no padding, which lies behind it. padding_mask [B, T] or [B, 1, T]."""
    mask = np.asarray(padding_mask).astype(bool)
    mask = mask[:, 0] if mask.ndim == 3 and mask.shape[1] == 1 else mask
    if mask.shape != tuple(shape):
        raise InputError(f"padding_mask: got shape {list(mask.shape)}, expected {list(shape)}")
    lengths = mask.sum(axis=1)
    if (mask != (np.arange(shape[1]) < lengths[:, None])).any():
        raise InputError("padding_mask: got padding before or inside a row, expected it behind the row's end alone")
    return mx.array(lengths.astype(np.int32))


class MimiModel(Freezable):
    """The codec. Sound is float [B, T] in [-1, 1] at `config.sampling_rate`; codes are int32 [B, codebooks, frames].

    Weights are random (`initializer_range`, `seed`) until some are loaded.
    """

    def __init__(self, config: MimiConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.encoder = seanet_encoder(config)
        self.encoder_transformer = _transformer(config)
        self.downsample = StridedConv(config.hidden_size, config.hidden_size, config.positions_per_frame, bias=False)
        self.quantizer = SplitResidualVectorQuantizer(config)
        self.upsample = DepthwiseUpsample(config.hidden_size, config.positions_per_frame)
        self.decoder_transformer = _transformer(config)
        self.decoder = seanet_decoder(config)
        initialize(self, config.initializer_range, seed)
        self.refresh()

    @property
    def dtype(self) -> mx.Dtype:
        """The type that sound is computed in."""
        return self.upsample.halves[0].dtype

    def init_encoder_state(self, batch: int, frames: int = 1) -> State:
        """State of `encode_step` for calls of up to `frames` frames."""
        return self._init_state(batch, frames, self.encoder, self.encoder_transformer, self.downsample)

    def init_decoder_state(self, batch: int, frames: int = 1) -> State:
        """State of `decode_step` for calls of up to `frames` frames."""
        return self._init_state(batch, frames, self.decoder, self.decoder_transformer, self.upsample)

    def _init_state(
        self, batch: int, frames: int, seanet: SEANetStack, transformer: Transformer, resample: nn.Module
    ) -> State:
        positions = frames * self.config.positions_per_frame
        return {
            "seanet": seanet.init_state(batch),
            "transformer": transformer.init_state(batch, self.dtype, positions),
            "resample": resample.init_state(batch),
        }

    def encode_step(self, sound: mx.array, state: State, num_codebooks: int) -> tuple[mx.array, State]:
        """sound [B, frames * frame_size], state -> codes int32 [B, num_codebooks, frames], state."""
        fresh = state["transformer"]["offset"] == 0
        x, seanet = self.encoder(sound[..., None].astype(self.dtype), state["seanet"])
        x, transformer = self.encoder_transformer(x, state["transformer"])
        # The very first window is padded with the first value, not with zeros.
        tail = mx.where(fresh[:, None, None], x[:, :1], state["resample"])
        latent, tail = self.downsample(x, tail)
        codes = self.quantizer.encode(latent, num_codebooks)
        return codes, {"seanet": seanet, "transformer": transformer, "resample": tail}

    def decode_step(self, codes: mx.array, state: State) -> tuple[mx.array, State]:
        """codes int [B, codebooks, frames], state -> sound [B, frames * frame_size], state."""
        x, resample = self.upsample(self.quantizer.decode(codes), state["resample"])
        x, transformer = self.decoder_transformer(x, state["transformer"])
        x, seanet = self.decoder(x, state["seanet"])
        return x.squeeze(-1), {"seanet": seanet, "transformer": transformer, "resample": resample}

    def encode(self, input_values: Any, padding_mask: Any = None, num_quantizers: int | None = None) -> MimiOutput:
        """input_values float [B, T] or [B, 1, T] -> audio_codes int32 [B, num_quantizers, frames].

        T is padded to whole frames with silence. `padding_mask` of the same shape, or [B, T], is 0 behind the end of a
        row: that row's codes are those of the row alone, then -1 (transformers 5.23 encodes what is there). Raises
        InputError where the shape, the mask or the number of codebooks does not fit.
        """
        count = self._check_codebooks(self.config.num_quantizers if num_quantizers is None else num_quantizers)
        sound = _mono(input_values)
        size = self.config.frame_size
        lengths = None if padding_mask is None else row_lengths(padding_mask, sound.shape)
        if lengths is not None:
            sound = mx.where(mx.arange(sound.shape[1]) < lengths[:, None], sound, 0)
        sound = mx.pad(sound, [(0, 0), (0, -sound.shape[1] % size)])
        state = self.init_encoder_state(len(sound), FRAMES_PER_CALL)
        codes = _in_calls(lambda x, s: self.encode_step(x, s, count), sound, state, FRAMES_PER_CALL * size)
        if lengths is not None:
            codes = mx.where(mx.arange(codes.shape[2]) * size < lengths[:, None, None], codes, -1)
        return MimiOutput(audio_codes=codes)

    def decode(self, audio_codes: Any, padding_mask: Any = None) -> MimiOutput:
        """audio_codes int [B, codebooks, frames] -> audio_values float [B, 1, frames * frame_size].

        Frames of -1 are silent, and so is what `padding_mask` [B, T] or [B, 1, T] marks with 0 behind the end of a row;
        the sound is cut to its T samples. Raises InputError where the shape, the mask or the codes do not fit.
        """
        codes = inputs.tokens("audio_codes", audio_codes, (None, None, None), -1, self.config.codebook_size - 1)
        self._check_codebooks(codes.shape[1])
        state = self.init_decoder_state(len(codes), FRAMES_PER_CALL)
        sound = _in_calls(self.decode_step, mx.maximum(codes, 0), state, FRAMES_PER_CALL)
        heard = mx.repeat(codes.min(axis=1) >= 0, self.config.frame_size, axis=1)
        if padding_mask is not None:
            mask = mx.array(padding_mask)
            shape = (len(codes), min(mask.shape[-1], sound.shape[1]))
            lengths = row_lengths(mask, (len(codes), mask.shape[-1]))
            sound, heard = sound[:, : shape[1]], heard[:, : shape[1]] & (mx.arange(shape[1]) < lengths[:, None])
        return MimiOutput(audio_values=mx.where(heard, sound, 0)[:, None])

    def __call__(self, input_values: Any, padding_mask: Any = None, num_quantizers: int | None = None) -> MimiOutput:
        """There and back: audio_codes as `encode` gives them, audio_values as long as input_values."""
        codes = self.encode(input_values, padding_mask, num_quantizers).audio_codes
        sound = self.decode(codes, padding_mask).audio_values
        return MimiOutput(audio_codes=codes, audio_values=sound[:, :, : _mono(input_values).shape[1]])

    def refresh(self) -> None:
        """Derive what is derived from the codebooks anew: call it when they have been changed."""
        self.quantizer.half_norms = 0.5 * mx.square(self.quantizer.embedding).sum(axis=-1)

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> MimiModel:
        """The codec of a folder or hub id: of a whole Moshi in any layout, or alone in Hugging Face's."""
        from ..huggingface.pretrained import mimi

        return mimi(path_or_hub_id)

    def _check_codebooks(self, count: int) -> int:
        most, least = self.config.num_quantizers, self.config.num_semantic_quantizers
        if not least <= count <= most:
            raise InputError(f"got {count} codebooks, expected {least} to {most}")
        return count

    def stream(self, num_codebooks: int | None = None) -> MimiStream:
        """A stream of one sound, in chunks of any length, there and back."""
        count = self.config.num_quantizers if num_codebooks is None else num_codebooks
        return MimiStream(self, self._check_codebooks(count))


Step = Callable[[mx.array, State], tuple[mx.array, State]]


def _in_calls(step: Step, x: mx.array, state: State, size: int) -> mx.array:
    """Run `step` over the last axis of x, `size` at a call; each call is evaluated, so memory does not grow."""
    outputs = []
    for start in range(0, x.shape[-1], size):
        y, state = step(x[..., start : start + size], state)
        mx.eval(y, state)
        outputs.append(y)
    return mx.concatenate(outputs, axis=-1)


class MimiStream:
    """One sound, encoded and decoded chunk by chunk; what does not fill a frame is kept for the next call.

    A chunk may hold anything from nothing to minutes. Belongs to the thread that uses it.
    """

    def __init__(self, mimi: MimiModel, num_codebooks: int) -> None:
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
        self._mimi._check_codebooks(len(codes))
        sounds = [np.zeros(0, np.float32)]
        for frame in range(codes.shape[1]):
            column = mx.array(codes[None, :, frame : frame + 1].astype(np.int32))
            sound, self._decoder_state = self._decode(column, self._decoder_state)
            mx.eval(sound, self._decoder_state)
            sounds.append(np.array(sound)[0])
        return np.concatenate(sounds)
