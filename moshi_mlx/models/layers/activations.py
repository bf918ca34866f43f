"""Activations that MLX's CPU backend computes value by value, there as operations of which it does several at once."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

# erf(u) = u P(u^2) / Q(u^2) for |u| up to 3.92, where it is 1 in float32: a rational fit to 2e-8.
ERF_END = 3.92
ERF_P = (1.1283790, 0.19276509, 0.053060620, 3.8683725e-3, 2.8748056e-4, 2.0347290e-6)
ERF_Q = (1.0, 0.50416528, 0.11508505, 0.015172386, 1.1881264e-3, 3.8070641e-5)


def on_cpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.cpu))


def elu(x: mx.array) -> mx.array:
    """ELU with alpha 1, to 2e-7.

    MLX's exponential, maximum and minimum go value by value on the CPU and would be a third of a codec frame. There
    the exponential of |x| is a series for a 32nd of it, doubled five times by expm1(2 y) = expm1(y) (expm1(y) + 2),
    and max(x, 0) is (x + |x|) / 2: all of it one fused handful of products. (Its gradient ends at x = -88, where
    exp(|x|) leaves float32.)
    """
    if not on_cpu():
        return mx.maximum(x, 0) + mx.expm1(mx.minimum(x, 0))
    size = mx.abs(x)
    y = (size - x) * (1 / 64)  # |x| / 32 where x < 0, else 0
    q = y * (1 + y * (1 / 2 + y * (1 / 6 + y * (1 / 24))))
    for _ in range(5):
        q = q * (q + 2)
    return 0.5 * (x + size) + (1 / (1 + q) - 1)


def gelu(x: mx.array) -> mx.array:
    """Exact GELU, to 3e-7 |x|: 0.5 x (1 + erf(x / sqrt(2))). On the CPU erf took an eighth of Mimi's transformers."""
    if not on_cpu() or x.dtype != mx.float32:
        return nn.gelu(x)
    u = x * 0.5**0.5
    u = 0.5 * (mx.abs(u + ERF_END) - mx.abs(u - ERF_END))  # between -ERF_END and ERF_END
    t = u * u
    return 0.5 * x * (1 + u * _polynomial(ERF_P, t) / _polynomial(ERF_Q, t))


def _polynomial(coefficients: tuple[float, ...], t: mx.array) -> mx.array:
    """The first coefficient is that of 1."""
    *rest, last = coefficients
    y = last * t + rest.pop()
    for coefficient in reversed(rest):
        y = y * t + coefficient
    return y
