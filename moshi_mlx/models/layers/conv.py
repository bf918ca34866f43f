"""Causal streaming convolutions as matrix products, channels last: [B, T, C] in, [B, T', C'] out.

A streaming layer keeps the samples that its next window still needs (the tail), which start as zeros: the causal zero
padding of the whole signal, so that streaming over any chunks equals one call over everything. A weight is kept as one
matrix whose rows are those of the window, oldest first, so that a window is multiplied as it lies in memory.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..state import State
from .activations import on_cpu


def windowed(x: mx.array, weight: mx.array, bias: mx.array | None, kernel: int, dilation: int = 1) -> mx.array:
    """x [B, (kernel - 1) * dilation + T, in], weight [kernel * in, out] -> [B, T, out].

    A GPU multiplies a view of all windows, which overlap, at once. BLAS takes no such view, and to unfold the windows
    copies x `kernel` times: on the CPU it is a product for each tap, over shifted views, each added to the last.
    """
    length = x.shape[1] - (kernel - 1) * dilation
    if not on_cpu():
        windows = _windows(x, length, kernel, dilation)
        return windows @ weight if bias is None else mx.addmm(bias, windows, weight)
    first, *others = mx.split(weight, kernel)
    y = x[:, :length] @ first if bias is None else mx.addmm(bias, x[:, :length], first)
    for k, tap in enumerate(others, 1):
        y = mx.addmm(y, x[:, k * dilation : k * dilation + length], tap)
    return y


def _windows(x: mx.array, length: int, kernel: int, dilation: int) -> mx.array:
    """[B, length, kernel * in], a view where there is no dilation."""
    batch, width, channels = x.shape
    if length == 1 and dilation == 1:  # of a single row Metal takes no other stride than its length
        return x.reshape(batch, 1, kernel * channels)
    if dilation == 1:
        return mx.as_strided(x, (batch, length, kernel * channels), (width * channels, channels, 1))
    strides = (width * channels, channels, dilation * channels, 1)
    return mx.as_strided(x, (batch, length, kernel, channels), strides).reshape(batch, length, -1)


class CausalConv(nn.Module):
    """Convolution of stride 1. weight [kernel * in, out]; bias [out]; state: tail [B, (kernel - 1) * dilation, in]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.weight = mx.zeros((kernel_size * in_channels, out_channels))
        self.bias = mx.zeros((out_channels,))
        self.kernel_size, self.dilation = kernel_size, dilation

    def init_state(self, batch: int) -> State:
        channels = self.weight.shape[0] // self.kernel_size
        return mx.zeros((batch, (self.kernel_size - 1) * self.dilation, channels), self.weight.dtype)

    def __call__(self, x: mx.array, tail: State) -> tuple[mx.array, State]:
        length = x.shape[1]
        x = mx.concatenate([tail, x], axis=1)
        return windowed(x, self.weight, self.bias, self.kernel_size, self.dilation), x[:, length:]


class StridedConv(nn.Module):
    """Convolution whose kernel is twice its stride: of stride 1 and kernel 2, where a position is a block of inputs.

    weight [2 * stride * in, out]; bias [out] or none; state: the last block [B, stride, in]. T: multiples of stride.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = mx.zeros((2 * stride * in_channels, out_channels))
        if bias:
            self.bias = mx.zeros((out_channels,))
        self.stride = stride

    def init_state(self, batch: int) -> State:
        return mx.zeros((batch, self.stride, self.weight.shape[0] // (2 * self.stride)), self.weight.dtype)

    def __call__(self, x: mx.array, tail: State) -> tuple[mx.array, State]:
        batch, length, channels = x.shape
        blocks = mx.concatenate([tail, x], axis=1).reshape(batch, -1, self.stride * channels)
        return windowed(blocks, self.weight, self.get("bias"), 2), x[:, length - self.stride :]


class TransposedConv(nn.Module):
    """Transposed convolution whose kernel is twice its stride: each input and the one before it give `stride` outputs.

    weight [2 * in, stride * out], the rows of the input before first; bias [out]; state: the last input [B, 1, in].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.weight = mx.zeros((2 * in_channels, stride * out_channels))
        self.bias = mx.zeros((out_channels,))
        self.stride = stride

    def init_state(self, batch: int) -> State:
        return mx.zeros((batch, 1, self.weight.shape[0] // 2), self.weight.dtype)

    def __call__(self, x: mx.array, last: State) -> tuple[mx.array, State]:
        batch, length, _ = x.shape
        x = mx.concatenate([last, x], axis=1)
        y = windowed(x, self.weight, None, 2).reshape(batch, length * self.stride, -1)
        return y + self.bias, x[:, length:]


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
        before = last if length == 1 else mx.concatenate([last, x[:, :-1]], axis=1)
        first, second = self.halves
        y = x[:, :, None] * first + before[:, :, None] * second  # [B, T, stride, C]
        return y.reshape(batch, -1, channels), x[:, length - 1 :]
