"""Causal streaming convolutions as matrix products, channels last: [B, T, C] in, [B, T', C'] out.

A streaming layer keeps the samples that its next window still needs (the tail) or the part of its output that the
next input still adds to (the overlap). Both start as zeros, which is the causal zero padding of the whole signal,
so that streaming over any chunks equals one call over everything. Weights are kept as the matrices by which the input
is multiplied, one for each tap or block: no transposition and no copy at run time (to index an array with a number is
a gather, which copies).
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..state import State


class CausalConv(nn.Module):
    """Convolution of stride 1. taps: kernel x [in, out]; bias [out]; state: tail [B, (kernel - 1) * dilation, in].

    One product for each tap, over shifted views of the same samples, each added to the last: faster here than
    unfolding the windows, which copies the input `kernel` times.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.taps = [mx.zeros((in_channels, out_channels)) for _ in range(kernel_size)]
        self.bias = mx.zeros((out_channels,))
        self.dilation = dilation

    def init_state(self, batch: int) -> State:
        channels = self.taps[0].shape[0]
        return mx.zeros((batch, (len(self.taps) - 1) * self.dilation, channels), self.bias.dtype)

    def __call__(self, x: mx.array, tail: State) -> tuple[mx.array, State]:
        length = x.shape[1]
        x = mx.concatenate([tail, x], axis=1)
        y = self.bias
        for k, tap in enumerate(self.taps):
            y = mx.addmm(y, x[:, k * self.dilation : k * self.dilation + length], tap)
        return y, x[:, length:]


class StridedConv(nn.Module):
    """Convolution whose kernel is twice its stride: each output is a product over two neighbouring blocks of input.

    blocks: 2 x [stride * in, out]; bias [out] or none; state: the last block [B, stride, in]. T: multiples of stride.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: bool = True) -> None:
        super().__init__()
        self.blocks = [mx.zeros((stride * in_channels, out_channels)) for _ in range(2)]
        if bias:
            self.bias = mx.zeros((out_channels,))
        self.stride = stride

    def init_state(self, batch: int) -> State:
        channels = self.blocks[0].shape[0] // self.stride
        return mx.zeros((batch, self.stride, channels), self.blocks[0].dtype)

    def __call__(self, x: mx.array, tail: State) -> tuple[mx.array, State]:
        batch, length, channels = x.shape
        inputs = mx.concatenate([tail, x], axis=1).reshape(batch, length // self.stride + 1, self.stride * channels)
        before, now = self.blocks
        y = mx.addmm(self.bias, inputs[:, :-1], before) if "bias" in self else inputs[:, :-1] @ before
        return mx.addmm(y, inputs[:, 1:], now), x[:, length - self.stride :]


class TransposedConv(nn.Module):
    """Transposed convolution whose kernel is twice its stride: one product, then an overlap-add of the two halves.

    weight [in, 2 * stride * out], bias [out]; state: the half that the next input adds to [B, stride * out].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.weight = mx.zeros((in_channels, 2 * stride * out_channels))
        self.bias = mx.zeros((out_channels,))
        self.stride = stride

    def init_state(self, batch: int) -> State:
        return mx.zeros((batch, 1, self.weight.shape[1] // 2), self.weight.dtype)

    def __call__(self, x: mx.array, overlap: State) -> tuple[mx.array, State]:
        batch, length, _ = x.shape
        first, second = mx.split(x @ self.weight, 2, axis=-1)  # [B, T, stride * out] each
        overlaps = mx.concatenate([overlap, second], axis=1)
        y = (first + overlaps[:, :-1]).reshape(batch, length * self.stride, -1) + self.bias
        return y, overlaps[:, length:]


class DepthwiseUpsample(nn.Module):
    """Depthwise transposed convolution, kernel twice the stride, no bias: each output is two multiplications.

    halves: 2 x [stride, C]; state: the last input [B, 1, C].
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.halves = [mx.zeros((stride, channels)) for _ in range(2)]

    def init_state(self, batch: int) -> State:
        return mx.zeros((batch, 1, self.halves[0].shape[-1]), self.halves[0].dtype)

    def __call__(self, x: mx.array, last: State) -> tuple[mx.array, State]:
        batch, length, channels = x.shape
        x = mx.concatenate([last, x], axis=1)[:, :, None]  # [B, T + 1, 1, C]
        first, second = self.halves
        y = x[:, 1:] * first + x[:, :-1] * second  # [B, T, stride, C]
        return y.reshape(batch, -1, channels), x[:, length:].squeeze(2)
