"""Causal streaming convolutions as matrix products, channels last: [B, T, C] in, [B, T', C'] out.

A streaming layer keeps the samples that its next window still needs (the tail) or the part of its output that the
next input still adds to (the overlap). Both start as zeros, which is the causal zero padding of the whole signal,
so that streaming over any chunks equals one call over everything. Weights are kept in the shape in which they are
multiplied: no transposition and no copy at run time.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .state import State


def elu(x: mx.array) -> mx.array:
    """ELU with alpha 1; the exponential never sees a positive number."""
    return mx.maximum(x, 0) + (mx.exp(mx.minimum(x, 0)) - 1)


class CausalConv(nn.Module):
    """Convolution of stride 1. weight [kernel, in, out], bias [out]; state: tail [B, (kernel - 1) * dilation, in].

    One product for each tap, over shifted views of the same samples, each added to the last: faster here than
    unfolding the windows, which copies the input `kernel` times.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.weight = mx.zeros((kernel_size, in_channels, out_channels))
        self.bias = mx.zeros((out_channels,))
        self.dilation = dilation

    def init_state(self, batch: int) -> State:
        kernel, channels, _ = self.weight.shape
        return mx.zeros((batch, (kernel - 1) * self.dilation, channels), self.weight.dtype)

    def __call__(self, x: mx.array, tail: State) -> tuple[mx.array, State]:
        length, kernel = x.shape[1], self.weight.shape[0]
        if kernel == 1:
            return mx.addmm(self.bias, x, self.weight[0]), tail
        x = mx.concatenate([tail, x], axis=1)
        tail = x[:, length:]
        if x.shape[-1] == 1:  # a single channel: the windows are as small as the input, one product does it
            taps = [x[:, k * self.dilation : k * self.dilation + length] for k in range(kernel)]
            return mx.addmm(self.bias, mx.concatenate(taps, axis=-1), self.weight[:, 0]), tail
        y = self.bias
        for k in range(kernel):
            y = mx.addmm(y, x[:, k * self.dilation : k * self.dilation + length], self.weight[k])
        return y, tail


class StridedConv(nn.Module):
    """Convolution whose kernel is twice its stride: each output is a product over two neighbouring blocks of input.

    weight [2, stride * in, out], bias [out] or none; state: the last block [B, stride, in]. T is a multiple of stride.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = mx.zeros((2, stride * in_channels, out_channels))
        if bias:
            self.bias = mx.zeros((out_channels,))
        self.stride = stride

    def init_state(self, batch: int) -> State:
        channels = self.weight.shape[1] // self.stride
        return mx.zeros((batch, self.stride, channels), self.weight.dtype)

    def __call__(self, x: mx.array, tail: State) -> tuple[mx.array, State]:
        batch, length, channels = x.shape
        blocks = mx.concatenate([tail, x], axis=1).reshape(batch, length // self.stride + 1, self.stride * channels)
        before, now = blocks[:, :-1], blocks[:, 1:]
        y = before @ self.weight[0] if "bias" not in self else mx.addmm(self.bias, before, self.weight[0])
        return mx.addmm(y, now, self.weight[1]), x[:, length - self.stride :]


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

    weight [2, stride, C]; state: the last input [B, 1, C].
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.weight = mx.zeros((2, stride, channels))

    def init_state(self, batch: int) -> State:
        return mx.zeros((batch, 1, self.weight.shape[-1]), self.weight.dtype)

    def __call__(self, x: mx.array, last: State) -> tuple[mx.array, State]:
        batch, length, channels = x.shape
        x = mx.concatenate([last, x], axis=1)[:, :, None]  # [B, T + 1, 1, C]
        y = x[:, 1:] * self.weight[0] + x[:, :-1] * self.weight[1]  # [B, T, stride, C]
        return y.reshape(batch, -1, channels), x[:, length:, 0]
