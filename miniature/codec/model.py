"""The miniature's codec in training: whole clips through `MimiModel`'s layers, without streaming state.

The parameters and sums are those of `encode_step` and `decode_step` (a test holds the two together); what differs is
what a gradient wants: no caches, gradients written out where MLX's own would copy, and straight-through quantization
(van den Oord et al., 2017; of residuals as in SoundStream, 2021).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from moshi_mlx import MimiModel
from moshi_mlx.models.layers.conv import CausalConv, StridedConv, TransposedConv
from moshi_mlx.models.layers.quantizer import SplitResidualVectorQuantizer
from moshi_mlx.models.layers.transformer import Transformer, TransformerLayer
from moshi_mlx.models.mimi import ResidualBlock, SEANetStack

GAIN = 1.2  # makes up for what ELU takes away
# Speech is brought to 1 by the first convolution and back by the last: near zero ELU is a straight line, and layers of
# straight lines learn hardly anything.
LOUDNESS = 0.1


class Coded(NamedTuple):
    """What a clip became: sound [B, T]; codes [B, K, frames]; residuals [K, B, frames, dim] that each codebook saw;
    how far, squared, those were from the entries chosen.
    """

    sound: mx.array
    codes: mx.array
    residuals: mx.array
    commitment: mx.array


def elu(x: mx.array) -> mx.array:
    """ELU to 6e-6, in operations of which the CPU does several at once (a maximum or an exponential is far dearer)."""
    y: Any = _elu(x)
    return y


@mx.custom_function
def _elu(x: mx.array) -> mx.array:
    # exp(-u) is the reciprocal of a series for exp(u / 32), squared five times: large u end at 0.
    size = mx.abs(x)
    u = (size - x) * (1 / 64)
    p = 1 + u * (1 + u * (1 / 2 + u * (1 / 6)))
    for _ in range(5):
        p = p * p
    return 0.5 * (x + size) - 1 + mx.reciprocal(p)


@_elu.vjp
def _elu_vjp(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:
    return cotangent * (0.5 * (y - mx.abs(y)) + 1)  # the slope is 1 above zero and y + 1 below


def _shifted_sum(x: mx.array, taps: list[mx.array], offsets: list[int]) -> mx.array:
    """The sum over k of x[:, t + offset_k] @ tap_k, zeros beyond both ends: [B, T, in] -> [B, T, out]."""
    length, front = x.shape[1], -min(0, *offsets)
    x = mx.pad(x, [(0, 0), (front, max(0, *offsets)), (0, 0)])
    views = [x[:, front + offset : front + offset + length] for offset in offsets]
    return sum((view @ tap for view, tap in zip(views[1:], taps[1:], strict=True)), views[0] @ taps[0])


@functools.cache
def _convolution(kernel: int, dilation: int) -> Callable[..., mx.array]:
    """(x, taps) -> x convolved. Its gradient is written out: through slices and padding it would copy x every time."""
    offsets = [(k + 1 - kernel) * dilation for k in range(kernel)]

    @mx.custom_function
    def convolve(x: mx.array, *taps: mx.array) -> mx.array:
        return _shifted_sum(x, list(taps), offsets)

    @convolve.vjp
    def _vjp(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        x, *taps = primals
        length, front = x.shape[1], -offsets[0]
        padded = mx.pad(x, [(0, 0), (front, 0), (0, 0)]).swapaxes(1, 2)
        views = [padded[:, :, front + offset : front + offset + length] for offset in offsets]
        backward = _shifted_sum(cotangent, [tap.T for tap in taps], [-offset for offset in offsets])
        return backward, *((view @ cotangent).sum(axis=0) for view in views)

    found: Any = convolve
    return found


def causal_conv(layer: CausalConv, x: mx.array) -> mx.array:
    """x [B, T, in] -> [B, T, out]."""
    kernel, length = layer.kernel_size, x.shape[1]
    if kernel == 1:
        return x @ layer.weight + layer.bias
    if x.shape[2] > 1:
        return _convolution(kernel, layer.dilation)(x, *mx.split(layer.weight, kernel)) + layer.bias
    x = mx.pad(x, [(0, 0), ((kernel - 1) * layer.dilation, 0), (0, 0)])
    views = [x[:, k * layer.dilation : k * layer.dilation + length] for k in range(kernel)]
    return mx.concatenate(views, axis=-1) @ layer.weight + layer.bias


def strided_conv(layer: StridedConv, x: mx.array) -> mx.array:
    """x [B, T, in] -> [B, T / stride, out]: one product of every block with both halves of the kernel."""
    blocks = x.reshape(len(x), x.shape[1] // layer.stride, -1)
    before, now = mx.split(blocks @ mx.concatenate(list(mx.split(layer.weight, 2)), axis=1), 2, axis=-1)
    return now + mx.pad(before[:, :-1], [(0, 0), (1, 0), (0, 0)]) + layer.bias


def residual_block(block: ResidualBlock, x: mx.array) -> mx.array:
    h = causal_conv(block.dilated, elu(x))
    return x + causal_conv(block.pointwise, elu(h))


def seanet(stack: SEANetStack, x: mx.array) -> mx.array:
    """[B, T, C] through all layers; as in `SEANetStack.__call__`, from the start of a sound."""
    for i, layer in enumerate(stack.layers):
        if isinstance(layer, ResidualBlock):
            x = residual_block(layer, x)
            continue
        x = elu(x) if i else x
        if isinstance(layer, CausalConv):
            x = causal_conv(layer, x)
        elif isinstance(layer, StridedConv):
            x = strided_conv(layer, x)
        else:
            x = layer(x, layer.init_state(len(x)))[0]
    return x


def transformer(stack: Transformer, x: mx.array) -> mx.array:
    """x [B, T, dim], T up to the window -> [B, T, dim]."""
    for layer in stack.layers:
        x = layer.finish(x, _attended(layer, layer.norm1(x), stack.rope_theta))
    return x


def _attended(layer: TransformerLayer, x: mx.array, rope_theta: float) -> mx.array:
    attention = layer.self_attn
    queries, keys, _ = attention.heads
    turning, v = mx.split(attention.project(x, len(x), attention.head_dim), [queries + keys], axis=1)
    turned = mx.fast.rope(turning, v.shape[-1], traditional=True, base=rope_theta, scale=1.0, offset=0)
    q, k = mx.split(turned, [queries], axis=1)
    mask = mx.triu(mx.full((x.shape[1], x.shape[1]), -mx.inf), 1)
    weights = mx.softmax((q * attention.scale) @ k.swapaxes(-1, -2) + mask, axis=-1)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)


def quantize(quantizer: SplitResidualVectorQuantizer, latent: mx.array) -> tuple[mx.array, Coded]:
    """latent [B, frames, hidden] -> quantized latent, straight-through, and all of `Coded` but the sound."""
    halves = mx.split(quantizer.input_proj(latent), 2, axis=-1)
    semantic, total = quantizer.num_semantic, len(quantizer.embedding)
    outputs, codes, residuals = [], [], []
    commitment = mx.array(0.0)
    for half, books in zip(halves, (range(semantic), range(semantic, total)), strict=True):
        residual = half
        for k in books:
            entries = quantizer.embedding[k : k + 1].squeeze(0)
            residuals.append(mx.stop_gradient(residual))
            distance = 0.5 * mx.square(entries).sum(axis=-1) - residuals[-1] @ entries.T
            code = mx.stop_gradient(mx.argmin(distance, axis=-1))
            codes.append(code)
            residual = residual - entries[code]
            commitment += mx.square(residual).mean()
        outputs.append(half - mx.stop_gradient(residual))
    quantized = quantizer.output_proj(mx.concatenate(outputs, axis=-1))
    coded = Coded(quantized, mx.stack(codes, axis=1), mx.stack(residuals), commitment)
    return quantized, coded


def reconstruct(model: MimiModel, sound: mx.array) -> Coded:
    """sound [B, T], T whole frames and no longer than the window -> what the codec makes of it."""
    x = transformer(model.encoder_transformer, seanet(model.encoder, sound[..., None]))
    latent = model.downsample(x, x[:, :1] * mx.ones((1, model.downsample.stride, 1)))[0]
    quantized, coded = quantize(model.quantizer, latent)
    x = model.upsample(quantized, model.upsample.init_state(len(x)))[0]
    x = seanet(model.decoder, transformer(model.decoder_transformer, x))
    return coded._replace(sound=x.squeeze(-1))


def initialize(model: MimiModel, seed: int) -> None:
    """First weights: variance 1 / fan-in, quiet residual branches (what lets so small a codec begin to learn)."""
    key = mx.random.key(seed)

    def normal(shape: tuple[int, ...], fan_in: int, gain: float = 1.0) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return gain * fan_in**-0.5 * mx.random.normal(shape, key=now)

    for _, module in model.named_modules():
        if isinstance(module, (CausalConv, StridedConv, TransposedConv)):
            module.weight = normal(module.weight.shape, module.weight.shape[0], GAIN)
        elif "weight" in module and module.weight.ndim == 2:
            module.weight = normal(module.weight.shape, module.weight.shape[0])
    for _, module in model.named_modules():
        if isinstance(module, ResidualBlock):
            module.pointwise.weight = 0.5 * module.pointwise.weight
        elif isinstance(module, TransformerLayer):
            module.self_attn.out_proj.weight = 0.1 * module.self_attn.out_proj.weight
            module.mlp.linear2.weight = 0.1 * module.mlp.linear2.weight
    first, last = model.encoder.layers[0], model.decoder.layers[-1]
    first.weight = first.weight / (GAIN * LOUDNESS)
    last.weight = LOUDNESS * last.weight
    model.upsample.halves = [
        mx.full(half.shape, 1.0 if n == 0 else 0.0) for n, half in enumerate(model.upsample.halves)
    ]
