"""What is said before a conversation begins."""

import mlx.core as mx
from mlx.utils import tree_flatten

from moshi_mlx import preflight


def test_a_frame_reads_everything_but_tables_and_unused_codebooks(model):
    arrays = {id(a): a.nbytes for _, a in tree_flatten(model.parameters())}
    total, a_frame = preflight.weight_bytes(model)
    assert total == sum(arrays.values())
    tables = [model.decoder.model.embed_tokens.weight, *(s.emb.weight for s in model.depth_decoder.slices)]
    two_codebooks = 2 * 32 * 16 * 4  # of the ten that the codec has, a conversation uses eight
    assert a_frame == total - sum(t.nbytes for t in tables) - two_codebooks


def test_report_on_known_chips_and_others(model, monkeypatch):
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "Apple M2"})
    assert "M2's 100 GB/s take at least 0 ms" in preflight.report(model)
    monkeypatch.setattr(preflight, "weight_bytes", lambda model: (20 * 10**9, 15 * 10**9))
    assert "take at least 150 ms, too long to keep up: try -q 4" in preflight.report(model)
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "Some CPU"})
    assert preflight.report(model).endswith("read in every frame of 80 ms")
