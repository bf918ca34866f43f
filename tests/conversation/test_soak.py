"""The soak in short (`python -m bench.soak` is an hour of conversation), and the pictures of the docs."""

import pytest

from bench import pictures, soak


@pytest.mark.slow
def test_memory_is_flat(model):
    before, after = soak.memory(model.session(), 300)
    assert after - before < 10e6


def test_latency_is_timed_for_every_frame(model):
    times = soak.latency(model.session(), 0.8)
    assert [len(values) for values in times.values()] == [10, 10]
    assert all(value >= 0 for values in times.values() for value in values)


def test_pictures(tmp_path):
    pictures.main(str(tmp_path))
    view = (tmp_path / "view.svg").read_text()
    assert view.startswith("<svg")
    assert all(said in view for said in ("Paris", "Moshi", "frame", "dropped", "mute"))
    assert (tmp_path / "catching_up.png").read_bytes()[:4] == b"\x89PNG"
