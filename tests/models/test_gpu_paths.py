"""What a GPU would be given, computed here: the same values as the CPU's own way."""

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.models.config import MoshiDepthConfig
from moshi_mlx.models.depth import DepthDecoder
from moshi_mlx.models.layers.conv import CausalConv, StridedConv, TransposedConv
from moshi_mlx.models.layers.linear import QuantizedEmbedding
from moshi_mlx.models.layers.sequence import stacked
from moshi_mlx.models.sampling import Sampling, _last_kept, sample


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A function that computes as on a GPU what it is given."""

    def compute(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
            return function(*arguments)

    return compute


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 4, 2)])
@pytest.mark.parametrize(
    ("mode", "bits", "group_size"), [("affine", 4, 32), ("affine", 8, 64), ("mxfp4", 4, 32), ("mxfp8", 8, 32)]
)
def test_rows_of_a_quantized_table(as_on_a_gpu, mode, bits, group_size, shape):
    rows = mx.random.normal((50, 128), key=mx.random.key(0)).astype(mx.bfloat16)
    packed, scales, *biases = mx.quantize(rows, group_size=group_size, bits=bits, mode=mode)
    table = QuantizedEmbedding(packed, scales, biases[0] if biases else None, bits, group_size, mode)
    ids = mx.random.randint(0, 50, shape, key=mx.random.key(1))
    for read in (table, table.lookup):
        expected, got = read(ids), as_on_a_gpu(read, ids)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape) == (mx.bfloat16, (*shape, 128))
        assert mx.array_equal(got, expected).item()


@pytest.mark.parametrize("count", [1, 3, 8, 9, 16, 32])
@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_arrays_side_by_side(as_on_a_gpu, count, shape):
    parts = [mx.random.randint(0, 100, shape, key=mx.random.key(n)) for n in range(count)]
    got = as_on_a_gpu(lambda: stacked(parts, axis=1))
    np.testing.assert_array_equal(got, np.stack([np.array(part) for part in parts], axis=1))


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize(
    "layer",
    [CausalConv(3, 4, 3), CausalConv(3, 4, 3, dilation=2), CausalConv(5, 4, 1), CausalConv(2, 1, 7),
     StridedConv(3, 4, 2), StridedConv(3, 4, 5, bias=False), TransposedConv(3, 4, 2)],
)  # fmt: skip
def test_a_convolution_by_all_its_windows_at_once(as_on_a_gpu, layer, length):
    layer.apply(lambda value: mx.random.normal(value.shape, key=mx.random.key(value.size)))
    tail = mx.random.normal(layer.init_state(2).shape, key=mx.random.key(2))
    stride = layer.stride if isinstance(layer, StridedConv) else 1
    x = mx.random.normal((2, length * stride, tail.shape[-1]), key=mx.random.key(3))
    for got, expected in zip(as_on_a_gpu(layer, x, tail), layer(x, tail), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("size", [100, 2048, 2049, 4000, 32000, 32003])
@pytest.mark.parametrize("top_k", [1, 25, 250])
def test_a_draw_among_the_likeliest_of_a_large_vocabulary(as_on_a_gpu, size, top_k):
    kept = min(top_k, size - 1)
    logits = mx.random.normal((3, size), key=mx.random.key(0)).astype(mx.bfloat16)  # so that many are equal
    noise = mx.random.gumbel((3, size), key=mx.random.key(1))
    settings = Sampling(temperature=0.7, top_k=kept)
    expected, got = sample(logits, noise, settings), as_on_a_gpu(sample, logits, noise, settings)
    np.testing.assert_array_equal(got, expected)
    least = np.sort(np.array(logits.astype(mx.float32)), axis=-1)[:, -kept, None]
    np.testing.assert_array_equal(as_on_a_gpu(_last_kept, logits, kept).astype(mx.float32), least)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("heads", "kv_heads", "steps"), [(4, 4, 8), (4, 2, 3), (2, 1, 9)])
def test_the_codes_and_logits_of_a_frame(as_on_a_gpu, heads, kv_heads, steps, batch):
    config = MoshiDepthConfig(
        vocab_size=20, hidden_size=32, input_size=16, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, audio_vocab_size=30, ffn_dim=64, num_codebooks=steps, sliding_window=steps,
    )  # fmt: skip
    decoder = DepthDecoder(config, seed=1)
    hidden = mx.random.normal((batch, 16), key=mx.random.key(1))

    def sampled():
        seen = []

        def choose(step, logits):
            seen.append(logits)
            return (mx.argmax(logits, axis=-1) + step) % 30

        return decoder.sample(hidden, mx.array([7] * batch), choose), mx.stack(seen)

    (codes, logits), (expected, expected_logits) = as_on_a_gpu(sampled), sampled()
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-6)
