"""Mimi, the streaming neural codec (Moshi paper, section 3.3): 24 kHz sound to 12.5 frames of codes a second and back.

SEANet encoder, transformer, downsampling, split residual quantizer; the decoder mirrors it. Everything is causal and
streams: the `*_step` methods are pure functions of whole frames and state.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..inputs import audible
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
        return mx.addmm(x, elu(h), pointwise.weight) + pointwise.bias, state  # so that the bias fuses with what follows


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


class Mimi(Freezable):
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
        """sound [B, frames * frame_size], state -> codes int32 [B, num_codebooks, frames], state.

        Samples that are NaN, infinite or absurdly loud are silence: they would stay in the state.
        """
        sound = audible(sound.astype(mx.float32)).astype(self.dtype)
        fresh = state["transformer"]["offset"][:, None, None] == 0
        x, seanet = self.encoder(sound[..., None], state["seanet"])
        x, transformer = self.encoder_transformer(x, state["transformer"])
        # The very first window is padded with the first value, not with zeros.
        tail = mx.where(fresh, x[:, :1], state["resample"])
        latent, tail = self.downsample(x, tail)
        codes = self.quantizer.encode(latent, num_codebooks)
        return codes, {"seanet": seanet, "transformer": transformer, "resample": tail}

    def decode_step(self, codes: mx.array, state: State) -> tuple[mx.array, State]:
        """codes int [B, codebooks, frames], state -> sound [B, frames * frame_size], state."""
        codes = mx.clip(codes, 0, self.config.codebook_size - 1)  # beyond them is foreign memory
        x, resample = self.upsample(self.quantizer.decode(codes), state["resample"])
        x, transformer = self.decoder_transformer(x, state["transformer"])
        x, seanet = self.decoder(x, state["seanet"])
        return x.squeeze(-1), {"seanet": seanet, "transformer": transformer, "resample": resample}

    def refresh(self) -> None:
        """Derive what is derived from the codebooks anew: call it when they have been changed."""
        self.quantizer.half_norms = 0.5 * mx.square(self.quantizer.embedding).sum(axis=-1)
