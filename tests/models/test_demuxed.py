"""A table for two tokens at once: every pair against NumPy, from the published tensors."""

import mlx.core as mx
import numpy as np
import pytest
from family import FAMILY, loaded

from moshi_mlx.models.layers.demuxed import DemuxedEmbedding

ROWS = 65
PLACES = {"text_emb": lambda model: model.decoder.model.embed_text,
          "depformer_text_emb": lambda model: model.depth_decoder.slices[0].emb}  # fmt: skip


@pytest.fixture(scope="module", params=["tts", "tts_prefix"])
def kind(request):
    return request.param, loaded(request.param)


@pytest.mark.parametrize("name", PLACES)
def test_every_pair(kind, name):
    folder, model = kind
    tensors = mx.load(str(FAMILY / folder / "model.safetensors"))
    table, out1, out2 = (np.array(tensors[f"{name}.{leaf}weight"], np.float64) for leaf in ("", "out1.", "out2."))
    first, second = np.meshgrid(np.arange(ROWS), np.arange(-1, ROWS), indexing="ij")
    ids = (second + 1) * ROWS + first
    ids = ids[second < ROWS - 1]  # a pair's number is below ROWS * ROWS
    expected = (table @ out1.T)[first] + np.where((second < 0)[..., None], 0, (table @ out2.T)[second])
    got = np.array(PLACES[name](model)(mx.array(ids)))
    np.testing.assert_allclose(got, expected[second < ROWS - 1], atol=1e-4)


@pytest.mark.parametrize("name", PLACES)
def test_no_token_is_nothing(kind, name):
    table = PLACES[name](kind[1])
    made = np.array(table(mx.array([[-1, 0], [3, -1]])))
    assert (made[0, 0] == 0).all()
    assert (made[1, 1] == 0).all()
    assert (made[0, 1] != 0).any()
    np.testing.assert_array_equal(made, np.array(table.lookup(mx.array([[-1, 0], [3, -1]]))))


def test_a_table_is_multiplied_out_again():
    table = DemuxedEmbedding(5, 4, 2)
    assert (np.array(table(mx.array([3]))) == 0).all()
    table.weight, table.out1.weight = mx.ones((5, 2)), mx.ones((2, 4))
    table.refresh()
    np.testing.assert_array_equal(np.array(table(mx.array([3, 3 + 5 * 2]))), np.full((2, 4), 2.0))
