"""Graphs: traced text equals the function, sizes stay open, what has no place in one is refused by name."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from moshi_mlx.errors import ConfigError
from moshi_mlx.export import operations, running
from moshi_mlx.export.parameters import of_parameters, places, values
from moshi_mlx.export.running import Graph
from moshi_mlx.export.symbols import with_symbols
from moshi_mlx.export.tracing import trace

X = mx.array(np.random.default_rng(3).normal(size=(2, 3, 64)).astype(np.float32))
I = mx.array([[2, 0, 1], [1, 1, 0]])  # noqa: E741


def rotate(x):
    return mx.fast.rope(x[:, None], 64, traditional=True, base=1e4, scale=1.0, offset=mx.array([3, 9]))


FUNCTIONS = {
    "arithmetic": lambda x: (x * 2 - 1) / (x.abs() + 3) + mx.maximum(x, 0) % 0.3,
    "comparisons": lambda x: mx.where((x > 0) & (x != 1) | ~(x <= -1), x, -mx.inf),
    "functions": lambda x: mx.exp(-(x**2)) + mx.sin(x) * mx.cos(x) + mx.erf(x) * mx.tanh(mx.log1p(x * x)),
    "reductions": lambda x: x.sum(-1) + x.max(-1) * x.min(-1) + x.mean(-1) + mx.var(x, axis=-1),
    "orders": lambda x: mx.take_along_axis(x, mx.argsort(x, axis=-1), axis=-1) + mx.sort(x, axis=-1),
    "cut": lambda x: mx.take_along_axis(x, mx.argpartition(x, 60, axis=-1)[..., 60:], axis=-1).sum(-1),
    "scans": lambda x: mx.cumsum(x, axis=1) + mx.cummax(x, axis=-1, reverse=True),
    "shapes": lambda x: mx.concatenate([x.swapaxes(0, 1).reshape(6, 64).T, mx.expand_dims(x[0, 1], 1)], axis=1),
    "slices": lambda x: x[:, ::-1, 3:-2] + x[:, :, 1:60],
    "pads": lambda x: mx.pad(x, [(0, 0), (1, 0), (2, 3)], constant_values=7.0),
    "convolutions": lambda x: mx.conv1d(x, mx.ones((4, 2, 64)), stride=2) + mx.conv_general(x, mx.ones((4, 2, 64)), 2),
    "gathers": lambda x: mx.ones((5, 4))[mx.array([3, 1])] * x[0, :2, :4],
    "scatters": lambda x: mx.put_along_axis(x, mx.zeros((2, 3, 1), mx.int32), x[..., 1:2], axis=-1),
    "softmax": lambda x: mx.softmax(x.astype(mx.bfloat16), axis=-1, precise=True).astype(mx.float32) + mx.logsumexp(x),
    "layer norm": lambda x: mx.fast.layer_norm(x, mx.ones(64) * 2, mx.ones(64), 1e-5),
    "rms norm": lambda x: mx.fast.rms_norm(x, mx.ones(64) * 2, 1e-6),
    "rotary": rotate,
    "attention": lambda x: mx.fast.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], scale=0.1, mask=mx.array([True, False, True])
    ),
    "quantize": lambda x: mx.dequantize(*mx.quantize(x, group_size=32, bits=8), group_size=32, bits=8),
    "quantized product": lambda x: mx.quantized_matmul(x, *mx.quantize(x[0], 32, 4), group_size=32, bits=4),
    "mxfp4": lambda x: mx.dequantize(*mx.quantize(x, mode="mxfp4"), group_size=32, bits=4, mode="mxfp4").astype(
        mx.float32
    ),
    "random": lambda x: mx.random.gumbel((6,), key=mx.random.key(7)) + mx.random.uniform(key=mx.random.key(3)),
    "bits": lambda x: (x.view(mx.uint32) >> 3) ^ (x.view(mx.uint32) & 255),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_is_the_function(name):
    function = FUNCTIONS[name]
    text = trace(name, lambda x: [function(x)], [], [X])
    expected = function(X)
    (got,) = Graph(text, [])(X)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("layer norm", "LayerNorm"), ("rms norm", "RMSNorm"), ("rotary", "RoPE"), ("attention", "Attention"),
        ("quantize", "Quantize"), ("quantize", "Dequantize"), ("quantized product", "QuantizedMatmul"),
        ("mxfp4", "Dequantize"),
    ],
)  # fmt: skip
def test_fused_operations_stay_whole(name, op):
    function = FUNCTIONS[name]
    assert f"op {op} " in trace(name, lambda x: [function(x)], [], [X])


def test_tracing_leaves_mlx_as_it_was():
    before = mx.fast.rope, mx.dequantize, mx.contiguous
    with pytest.raises(ZeroDivisionError):
        trace("fails", lambda x: [x / (1 // 0)], [], [X])
    assert (mx.fast.rope, mx.dequantize, mx.contiguous) == before


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: [mx.hadamard_transform(x)], "no operation 'Hadamard' in a graph"),
        (lambda x: [~x.view(mx.uint32)], "cannot be exported"),
        (lambda x: [x + mx.zeros((500_000,)).reshape(-1, 1, 1)[:2]], ""),
        (lambda x: [x * BIG[:2, :3, :64]], "a constant of 300000 values"),
    ],
)
def test_what_has_no_place_is_refused(function, words):
    if not words:
        trace("zeros", function, [], [X])  # zeros are made of one number
        return
    with pytest.raises(ConfigError, match=words):
        trace("refused", function, [], [X])


BIG = mx.array(np.ones((3, 100, 1000), np.float32))


def test_weights_that_are_used_are_named_and_others_left_out():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = mx.ones((3,)), mx.full((3,), 2.0)
            self._hidden = mx.full((3,), 5.0)  # no parameter, and computed with
            self.shared = self.again = nn.Linear(3, 3)

    model = Model()
    found = places(model)
    assert list(found) == ["a", "b", "_hidden", "shared.weight", "shared.bias"]
    text = trace("model", of_parameters(found, lambda x: [x * model.b + model._hidden]), values(found), [mx.ones((3,))])
    assert "weights 1:" in text
    assert len(text.splitlines()[2].split()) == 3
    (got,) = Graph(text, values(found))(mx.array([1.0, 2.0, 3.0]))
    assert got.tolist() == [7, 9, 11]
    assert model.b.tolist() == [2, 2, 2]


def test_sizes_stay_open():
    def at(n, k):
        return trace("sizes", lambda: [mx.arange(n)[n - k :].reshape(1, k)], [], [])

    text = with_symbols("sizes", "NK", [(10, 3), (20, 7), (31, 11), (12, 5)], at)
    (got,) = Graph(text, [], {"N": 100, "K": 4})()
    assert got.tolist() == [[96, 97, 98, 99]]
    with pytest.raises(ConfigError, match="which is no sum of them"):
        with_symbols("square", "N", [(2,), (3,), (4,), (9,)], lambda n: f"moshi graph 1\nop {n * n}")
    with pytest.raises(ConfigError, match="its operations change"):
        with_symbols("jump", "N", [(2,), (3,)], lambda n: "op a" if n < 3 else "op b")


def test_the_three_tables_of_operations_are_one():
    from pathlib import Path

    source = (Path(__file__).parents[2] / "embed" / "src" / "operations.cpp").read_text()
    table = source[source.index("operations() {") :]
    assert {line.split('"')[1] for line in table.splitlines() if line.strip().startswith('{"')} == set(
        operations.OPERATIONS
    )
    assert set(running.OPERATIONS) == set(operations.OPERATIONS) - {"Choose"}
