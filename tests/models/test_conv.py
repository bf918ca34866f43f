"""Every convolution against a plain loop over its definition, and streamed in chunks against the whole."""

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.models.layers.conv import CausalConv, DepthwiseUpsample, StridedConv, TransposedConv

RNG = np.random.default_rng(0)


def filled(layer):
    """The layer with random weights."""
    layer.apply(lambda value: mx.array(RNG.normal(size=value.shape).astype(np.float32)))
    return layer


def causal_reference(x, weight, bias, dilation, stride):
    """y[t] = bias + sum over taps of x[t * stride + stride - 1 - (K - 1 - k) * dilation] @ weight[k]; zeros before."""
    kernel = len(weight)
    y = np.zeros((x.shape[0], x.shape[1] // stride, weight.shape[-1])) + bias
    for t in range(y.shape[1]):
        for k in range(kernel):
            at = t * stride + stride - 1 - (kernel - 1 - k) * dilation
            if at >= 0:
                y[:, t] += x[:, at] @ weight[k]
    return y


def transposed_reference(x, weight, bias, stride):
    """y[t * stride + k] += x[t] @ weight[k]; what falls behind the end is cut."""
    batch, length, _ = x.shape
    y = np.zeros((batch, (length + 1) * stride, weight.shape[-1]))
    for t in range(length):
        for k in range(2 * stride):
            y[:, t * stride + k] += x[:, t] @ weight[k]
    return y[:, : length * stride] + bias


def streamed(layer, x, chunk):
    state, outputs = layer.init_state(len(x)), []
    for start in range(0, x.shape[1], chunk):
        y, state = layer(mx.array(x[:, start : start + chunk]), state)
        outputs.append(np.array(y))
    return np.concatenate(outputs, axis=1)


CHUNKS = [1, 2, 3, 5, 12]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("channels", "kernel", "dilation"), [(3, 3, 1), (3, 3, 4), (1, 7, 1), (2, 1, 1), (4, 5, 2)])
def test_causal_conv(channels, kernel, dilation, chunk):
    layer = filled(CausalConv(channels, 4, kernel, dilation))
    x = RNG.normal(size=(2, 12, channels)).astype(np.float32)
    expected = causal_reference(
        x, np.array(layer.weight).reshape(kernel, channels, 4), np.array(layer.bias), dilation, 1
    )
    np.testing.assert_allclose(streamed(layer, x, chunk), expected, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("stride", [2, 5])
def test_strided_conv(stride, chunk, bias):
    layer = filled(StridedConv(3, 4, stride, bias=bias))
    x = RNG.normal(size=(2, 12 * stride, 3)).astype(np.float32)
    weight = np.array(layer.weight).reshape(2 * stride, 3, 4)
    expected = causal_reference(x, weight, np.array(layer.bias) if bias else 0, 1, stride)
    np.testing.assert_allclose(streamed(layer, x, chunk * stride), expected, atol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("stride", [2, 5])
def test_transposed_conv(stride, chunk):
    layer = filled(TransposedConv(3, 4, stride))
    x = RNG.normal(size=(2, 12, 3)).astype(np.float32)
    later, now = np.array(layer.weight).reshape(2, 3, stride, 4)
    weight = np.concatenate([now, later], axis=1).transpose(1, 0, 2)
    expected = transposed_reference(x, weight, np.array(layer.bias), stride)
    np.testing.assert_allclose(streamed(layer, x, chunk), expected, atol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_depthwise_upsample(chunk):
    layer = filled(DepthwiseUpsample(4, 2))
    x = RNG.normal(size=(2, 12, 4)).astype(np.float32)
    weight = np.concatenate(layer.halves)
    dense = weight[:, :, None] * np.eye(4)
    np.testing.assert_allclose(streamed(layer, x, chunk), transposed_reference(x, dense, 0, 2), atol=1e-5)
