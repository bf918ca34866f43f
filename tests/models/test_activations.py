"""Activations against their definitions in float64; on the CPU they are computed in ways of their own."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from moshi_mlx.models.layers import activations
from moshi_mlx.models.layers.activations import elu, gelu

X = np.linspace(-100, 100, 40001, dtype=np.float32)


@pytest.fixture(params=["this device's way", "any device's way"])
def way(request, monkeypatch):
    if request.param.startswith("any"):
        monkeypatch.setattr(activations, "on_cpu", lambda: False)


def test_elu(way):
    expected = np.where(X > 0, X, np.expm1(np.minimum(X, 0)))
    np.testing.assert_allclose(np.array(elu(mx.array(X))), expected, atol=3e-7)


def test_gelu(way):
    x = X.astype(np.float64)
    expected = 0.5 * x * (1 + np.array([math.erf(value / math.sqrt(2)) for value in x]))
    error = np.abs(np.array(gelu(mx.array(X))) - expected)
    assert (error <= 3e-7 * np.abs(x)).all()


@pytest.mark.parametrize(("ours", "theirs"), [(elu, nn.elu), (gelu, nn.gelu)])
def test_slopes(ours, theirs):
    x = mx.array(np.linspace(-80, 80, 4001, dtype=np.float32) + 0.01)
    slopes = [np.array(mx.grad(lambda x, f=f: f(x).sum())(x)) for f in (ours, theirs)]
    np.testing.assert_allclose(*slopes, atol=2e-6)


def test_gelu_of_half_precision_is_in_it():
    x = mx.array(X[::100]).astype(mx.bfloat16)
    assert mx.array_equal(gelu(x), nn.gelu(x))
