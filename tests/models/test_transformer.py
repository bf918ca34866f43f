"""The ring cache against plain attention over the whole past, for every way of cutting it into calls."""

import os
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from moshi_mlx.errors import InputError
from moshi_mlx.models.layers.cache import capacity_of, create
from moshi_mlx.models.layers.linear import Embedding, QuantizedEmbedding
from moshi_mlx.models.layers.transformer import LayerConfig, Transformer, grow

CONTEXT, LENGTH = 10, 36


def transformer(gated=True, kv_heads=4, context=CONTEXT, layers=2):
    mx.random.seed(3)
    config = LayerConfig(
        dim=32, num_heads=4, num_key_value_heads=kv_heads, hidden=48, norm_eps=1e-5, gated=gated, head_dim=8
    )
    model = Transformer(config, layers, context, 10000.0)
    model.apply(lambda p: p + 0.1 * mx.random.normal(p.shape))
    return model


def rotated(x, positions, base=10000.0):
    """Rotary positions on interleaved pairs: x [T, H, D]."""
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * base ** (-np.arange(half) / half)
    even, odd = x[..., ::2], x[..., 1::2]
    y = np.stack([even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)], axis=-1)
    return y.reshape(x.shape)


def normalised(x, norm):
    """RMSNorm, or LayerNorm where the norm has a bias, in float64."""
    x = x - x.mean(-1, keepdims=True) if "bias" in norm else x
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * np.array(norm.weight)
    return y + np.array(norm.bias) if "bias" in norm else y


def gelu(x):
    return np.array(nn.gelu(mx.array(x.astype(np.float32))))


def reference(model, x, context):
    """All positions at once, in float64 with an explicit mask. x [T, dim]."""
    positions = np.arange(len(x))
    distance = positions[:, None] - positions[None]
    mask = (distance >= 0) & (distance < context)
    for layer in model.layers:
        heads, kv_heads, _ = layer.self_attn.heads
        h = normalised(x, layer.norm1) @ np.array(layer.self_attn.in_proj.weight)
        q, k, v = np.split(h.reshape(len(x), -1, 8), [heads, heads + kv_heads], axis=1)
        q, k = rotated(q, positions), rotated(k, positions)
        k, v = (np.repeat(a, heads // kv_heads, axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(8)
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1) @ np.array(layer.self_attn.out_proj.weight)
        x = x + (y * np.array(layer.layer_scale_1.scale) if "layer_scale_1" in layer else y)
        h = normalised(x, layer.norm2)
        if "gating" in layer:
            gate, up = np.split(h @ np.array(layer.gating.linear_in.weight), 2, axis=-1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ np.array(layer.gating.linear_out.weight)
        else:
            h = gelu(h @ np.array(layer.mlp.linear1.weight)) @ np.array(layer.mlp.linear2.weight)
            x = x + h * np.array(layer.layer_scale_2.scale)
    return x


def streamed(model, x, chunk, positions=None):
    state = model.init_state(len(x), mx.float32, positions or chunk)
    outputs = []
    for start in range(0, x.shape[1], chunk):
        y, state = model(mx.array(x[:, start : start + chunk]), state)
        outputs.append(np.array(y))
    return np.concatenate(outputs, axis=1)


def sound(batch=1):
    return np.random.default_rng(1).normal(size=(batch, LENGTH, 32)).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, LENGTH])
@pytest.mark.parametrize(("gated", "kv_heads"), [(True, 4), (True, 2), (True, 1), (False, 4)])
def test_window_is_exactly_the_context_for_any_positions_a_call(gated, kv_heads, chunk):
    model, x = transformer(gated, kv_heads), sound(2)
    expected = np.stack([reference(model, row.astype(np.float64), CONTEXT) for row in x])
    np.testing.assert_allclose(streamed(model, x, chunk), expected, atol=2e-5)
    # and one key more or less is another answer: the test would notice
    for wrong in (CONTEXT - 1, CONTEXT + 1):
        assert np.abs(reference(model, x[0].astype(np.float64), wrong) - expected[0]).max() > 1e-3


def test_two_positions_a_call_are_causal():
    model, x = transformer(), sound()
    y = streamed(model, x, 2)
    x[:, 21] += 1  # the second position of its call
    changed = np.abs(streamed(model, x, 2) - y).max(axis=(0, 2)) > 1e-6
    assert not changed[:21].any()
    assert changed[21:30].all()


def test_calls_of_mixed_length_wrap_the_ring():
    model, x = transformer(), sound()
    state, outputs, start = model.init_state(1, mx.float32, 5), [], 0
    for length in [5, 1, 3, 5, 2, 5, 5, 4, 1, 5]:
        y, state = model(mx.array(x[:, start : start + length]), state)
        outputs.append(np.array(y))
        start += length
    np.testing.assert_allclose(np.concatenate(outputs, 1), streamed(model, x, 1), atol=2e-5)


def test_growing_keeps_what_was_seen():
    model, x = transformer(), sound()
    state, outputs = model.init_state(1, mx.float32, capacity=4), []
    for t in range(LENGTH):
        capacity = capacity_of(state["layers"][0])
        if t == capacity < CONTEXT:
            state = grow(state, min(2 * capacity, CONTEXT))
        y, state = model(mx.array(x[:, t : t + 1]), state)
        outputs.append(np.array(y))
    assert capacity_of(state["layers"][0]) == CONTEXT
    np.testing.assert_allclose(np.concatenate(outputs, 1), streamed(model, x, 1), atol=2e-5)


def test_more_positions_than_the_rings_take_are_refused():
    model = transformer()
    with pytest.raises(InputError, match="got 3 positions in one call, but the state's caches take 2"):
        model(mx.zeros((1, 3, 32)), model.init_state(1, mx.float32, 2))


def test_bfloat16_norms_are_computed_in_float32():
    norm = nn.RMSNorm(512, eps=1e-8)
    x = 300 + mx.random.normal((1, 512), key=mx.random.key(0))
    expected = np.array(x) / np.sqrt((np.array(x) ** 2).mean())
    got = np.array(norm(x.astype(mx.bfloat16)).astype(mx.float32))
    np.testing.assert_allclose(got, expected, rtol=2**-7)


@pytest.mark.parametrize(("kv_bits", "error", "share"), [(8, 0.02, 9 / 32), (4, 0.2, 5 / 32)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_quantized_cache_is_close_and_a_fraction_of_the_bytes(kv_heads, kv_bits, error, share):
    mx.random.seed(5)
    config = LayerConfig(
        dim=256, num_heads=4, num_key_value_heads=kv_heads, hidden=48, norm_eps=1e-5, gated=True, head_dim=64
    )
    model = Transformer(config, 2, CONTEXT, 10000.0)
    model.apply(lambda p: p + 0.05 * mx.random.normal(p.shape))
    x = mx.random.normal((2, LENGTH, 256))
    states = [model.init_state(2, mx.float32, 2, kv_bits=bits) for bits in (None, kv_bits)]
    for start in range(0, LENGTH, 2):
        outputs = []
        for n, state in enumerate(states):
            y, states[n] = model(x[:, start : start + 2], state)
            outputs.append(np.array(y))
        np.testing.assert_allclose(outputs[1], outputs[0], atol=error * np.abs(outputs[0]).max())
        assert np.abs(outputs[1] - outputs[0]).max() > 0  # it is the quantized path that ran
    full, packed = (sum(leaf.nbytes for cache in s["layers"] for leaf in cache.values()) for s in states)
    assert packed == share * full  # float32: a scale and a bias of 64 values are one bit of each


def test_caches_of_other_bits_are_refused():
    with pytest.raises(InputError, match="kv_bits: got 4 with heads of 8 values, expected a multiple of 32"):
        transformer().init_state(1, mx.float32, kv_bits=4)
    with pytest.raises(InputError, match="kv_bits: got 3, only 8 or 4"):
        create(1, 4, 16, 64, mx.float32, 3)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("low_rank", [None, 32])
def test_token_minus_one_embeds_to_zero(quantized, low_rank):
    table = Embedding(5, 64, low_rank)
    table.weight = mx.random.normal(table.weight.shape, key=mx.random.key(1)) + 3
    if low_rank:
        table.low_rank.weight = mx.random.normal(table.low_rank.weight.shape, key=mx.random.key(2))
    if quantized:
        packed, scales, biases = mx.quantize(table.weight, group_size=32, bits=4)
        new = QuantizedEmbedding(packed, scales, biases, 4, 32, "affine")
        if low_rank:
            new.low_rank = table.low_rank
        table = new
    y = np.array(table(mx.array([[2, -1, 4]])))
    assert y.shape == (1, 3, 64)
    assert (y[:, 1] == 0).all()
    assert (np.abs(y[:, [0, 2]]).max(-1) > 0.5).all()


BUILT_KERNELS = """
import os, pathlib
import os
import subprocess
import sys

import mlx.core as mx
from moshi_mlx.models.layers import cache
for capacity in (16, 32):
    step = mx.compile(lambda offset: cache.window(offset, 1, capacity, 100)[1:])
    mx.eval(step(mx.zeros((1,), mx.int32)))
    print(len(list(pathlib.Path(os.environ["TMPDIR"]).rglob("*.so"))))
"""


@pytest.mark.compiled
@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="only the CPU backend leaves its kernels in files")
def test_a_larger_ring_needs_no_kernel_that_a_smaller_one_did_not(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", BUILT_KERNELS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before == after > 0
