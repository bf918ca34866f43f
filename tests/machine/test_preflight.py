"""What is said before a conversation begins."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from moshi_mlx import InputError
from moshi_mlx.machine import preflight


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
    assert preflight.report(model).endswith("read in every frame of 80 ms; 20.54 GB with a full context")


def test_a_folder_is_described_with_its_size(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))
    (tmp_path / "notes.txt").write_bytes(bytes(1_000_000))
    assert str(preflight.plan(str(tmp_path))) == f"{tmp_path}: 3.0 MB from the folder {tmp_path}"


def test_a_cached_repository_is_described(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--kyutai--moshiko-mlx-q4" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    plan = preflight.plan("kyutai/moshiko-mlx-q4")
    assert str(plan) == f"kyutai/moshiko-mlx-q4: 3.0 MB from the hub's cache, {folder}"


class Hub:
    def model_info(self, name, revision, files_metadata, timeout):
        if name == "no/body":
            raise OSError("no network")
        sizes = {"model.safetensors": 4_800_000_000, "training.bin": 10**9, "tokenizer.model": None}
        return type("Info", (), {"siblings": [type("F", (), {"rfilename": n, "size": s}) for n, s in sizes.items()]})


def test_a_repository_to_download_is_described(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    plan = str(preflight.plan("kyutai/moshiko-mlx-q4"))
    assert plan == "kyutai/moshiko-mlx-q4: 4.80 GB from the Hugging Face hub, 4.80 GB to download"
    assert preflight.plan("no/body") is None
    assert preflight.plan("neither a folder nor an id") is None


def test_memory_of_a_conversation_counts_the_full_context(model):
    small, large = (preflight.conversation_bytes(model, bits) for bits in (None, None))
    assert small == large
    weights, _ = preflight.weight_bytes(model)
    cache = 2 * model.config.sliding_window * 2 * 32 * 4  # keys and values of two layers of dim 32, float32
    assert small > weights + cache + preflight.BUFFER_CACHE_BYTES


def test_too_large_for_this_machine(monkeypatch):
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 10 * 10**9})
    preflight.check_memory(9 * 10**9, "it", "use -q 4")
    with pytest.raises(
        InputError, match=r"it takes 16.00 GB, this machine has 10.00 GB for it; use -q 4, or .*--force"
    ):
        preflight.check_memory(16 * 10**9, "it", "use -q 4")
    monkeypatch.setattr(mx, "device_info", dict)
    assert preflight.usable_bytes() > 10**9


def test_too_slow_for_a_conversation():
    assert preflight.check_speed([0.05] * 12, "") == "12 warm-up frames took p50 50 ms, p95 50 ms of 80 ms"
    assert preflight.check_speed([0.05] * 10 + [0.2] * 2, "").endswith("now and then too slow")
    with pytest.raises(InputError, match=r"p50 90 ms.* 80 ms is what there is; use -q 4, or .*--force"):
        preflight.check_speed([0.09] * 12, "use -q 4")


def test_timed_frames_leave_no_trace(model):
    session, fresh = model.session(seed=3), model.session(seed=3)
    assert len(preflight.time_frames(session, 3)) == 3
    frame = np.full(1920, 0.1, np.float32)
    assert session.step(frame).audio_codes.tolist() == fresh.step(frame).audio_codes.tolist()
