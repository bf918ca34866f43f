"""Rotary positions (RoFormer, section 3.2): pairs of values, turned by angles that grow with the position."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np


class Turn(NamedTuple):
    """How far the pairs of T positions are turned; made once a call, shared by all layers."""

    cos: mx.array  # float32 [B, 1, T, D / 2]
    sin: mx.array


def turn(positions: mx.array, head_dim: int, theta: float) -> Turn:
    """The turn of positions int [B, 1, T, 1] in heads of `head_dim` values."""
    half = head_dim // 2
    frequencies = mx.array((theta ** (-np.arange(half) / half)).astype(np.float32))
    angles = positions * frequencies
    first = mx.array([True, False]).reshape(2, 1, 1, 1, 1)
    both = mx.where(first, mx.cos(angles), mx.sin(angles))  # one kernel, where each on its own would make three
    return Turn(*(part.squeeze(0) for part in mx.split(both, 2)))


def pairs_of(head_dim: int, interleaved: bool) -> tuple[int, int]:
    """The shape of a head that shows its pairs: neighbours where `interleaved`, else one of each half."""
    return (head_dim // 2, 2) if interleaved else (2, head_dim // 2)


def turned(pairs: mx.array, by: Turn, interleaved: bool, heads: int | None = None) -> mx.array:
    """pairs [B, H, T, *pairs_of(D)] with the first `heads` (default: all) turned, and the rest as it was.

    It is one fused operation, so that values, which stay, come out beside their keys.
    """
    axis, is_first = (-1, [True, False]) if interleaved else (-2, [[True], [False]])
    a, b = mx.split(pairs, 2, axis=axis)
    cos, sin = (mx.expand_dims(part, axis) for part in by)
    y = mx.where(mx.array(is_first), a * cos - b * sin, a * sin + b * cos)
    if heads is not None:
        y = mx.where(mx.array(np.arange(pairs.shape[1])[:, None, None, None] < heads), y, pairs)
    return y.astype(pairs.dtype)
