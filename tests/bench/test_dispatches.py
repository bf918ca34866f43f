"""What a frame launches on a GPU, counted on its graph, and the numbers that it must not go over again."""

import mlx.core as mx
import pytest

from bench import cases
from bench.paper import dispatches
from bench.paper.dispatches import counted, weightless
from moshi_mlx.models.state import flatten

pytestmark = pytest.mark.compiled

LIMITS = {"encode": 183, "language": 412, "depth": 572, "decode": 157, "frame": 1324}  # of Moshi 7B in 4 bits


@pytest.fixture(scope="module")
def of_7b():
    return dispatches.of_parts(weightless(cases.config_of("7b"), 4))


@pytest.mark.parametrize("part", LIMITS)
def test_a_frame_of_7b_launches_no_more_than_it_did(of_7b, part):
    assert of_7b[part].total() <= LIMITS[part]


def test_products_norms_and_attention_are_those_of_the_architecture(of_7b):
    layers = 32 + 6 * 8
    assert of_7b["language"]["product"] == 4 * 32 + 1 + 1  # the last: rows of the quantized table
    assert of_7b["depth"]["product"] == 4 * 6 * 8 + 8 + 8 + 1
    assert of_7b["frame"]["norm"] == 2 * (layers + 16) + 1
    assert of_7b["depth"]["attention"] == 6 * 7  # of a single key the softmax is 1


def test_a_concatenation_is_a_copy_for_each_input_and_a_view_is_nothing():
    x = mx.ones((4, 4))
    assert counted(lambda a: mx.concatenate([a, a + 1, a * 2]), x)["copy"] == 3
    assert not counted(lambda a: [a.T, a[1:], a.reshape(2, 8)], x)


def test_what_is_fused_is_one_and_so_is_what_metal_has_whole():
    x, weight = mx.ones((2, 64)), mx.quantize(mx.ones((8, 64)), group_size=32, bits=4)
    assert counted(lambda a: mx.exp(a * 2) + 1, x).total() == 1
    assert counted(lambda a: mx.fast.rms_norm(a, None, 1e-5), x) == {"norm": 1}
    assert counted(lambda a: mx.dequantize(*weight, group_size=32, bits=4) + 0, x)["dequantization"] == 1
    assert counted(lambda a: list(mx.quantize(a, group_size=32, bits=8)), x) == {"quantization": 1}


@pytest.mark.parametrize(("size", "kernels"), [(100, 1), (2048, 1), (2049, 4), (32000, 10)])
def test_sorting_takes_more_kernels_where_one_is_too_small(size, kernels):
    assert counted(lambda a: mx.partition(a, size // 2, axis=-1), mx.ones((1, size))) == {"search": kernels}


@pytest.mark.parametrize(("kv_bits", "share"), [(8, 0.5313), (4, 0.2813)])
def test_a_quantized_cache_of_7b_is_a_share_of_the_bytes(kv_bits, share):
    helium = weightless(cases.config_of("7b"), 4).decoder.model
    full, packed = (
        sum(leaf.nbytes for _, leaf in flatten(helium.init_state(1, kv_bits=bits))) for bits in (None, kv_bits)
    )
    assert packed <= share * full
