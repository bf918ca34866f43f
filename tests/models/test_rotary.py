"""Rotary positions: MLX's own rotation, with heads among them that stay."""

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.models.layers.rotary import pairs_of, turn, turned


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("interleaved", [True, False])
def test_turns_as_mlx_does_and_leaves_the_rest(interleaved, length, dtype):
    x = mx.random.normal((3, 6, length, 16), key=mx.random.key(0)).astype(dtype)
    offset = mx.array([0, 7, 45_000])
    positions = offset[:, None, None, None] + mx.arange(length)[:, None]
    pairs = x.reshape(*x.shape[:3], *pairs_of(16, interleaved))
    got = turned(pairs, turn(positions, 16, 10_000.0), interleaved, heads=4)
    assert (got.shape, got.dtype) == (pairs.shape, dtype)
    got = got.reshape(x.shape)
    expected = mx.fast.rope(x, 16, traditional=interleaved, base=10_000.0, scale=1.0, offset=offset)
    rounding = 0 if dtype == mx.float32 else 2e-2
    for row, far in enumerate((1e-5, 1e-5, 2e-2)):  # 45,000 radians, as float32 has them
        near = (np.array(each[row, :4].astype(mx.float32)) for each in (got, expected))
        np.testing.assert_allclose(*near, rtol=0, atol=far + rounding)
    assert mx.array_equal(got[:, 4:], x[:, 4:])
