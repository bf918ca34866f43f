"""What is said before a conversation begins."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from bench.paper.roofline import weightless
from moshi_mlx import InputError
from moshi_mlx.machine import advice, chips, preflight
from moshi_mlx.models.config import PRESETS


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
    assert "take at least 150 ms, too long to keep up" in preflight.report(model)
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "Some CPU"})
    assert preflight.report(model).endswith("15.00 GB read in every frame of 80 ms, 20.54 GB in memory")


def test_a_chip_that_no_table_has_is_measured(model, monkeypatch):
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "Apple M9 Pro"})
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(preflight.chips, "measured_bandwidth", lambda: 1234.5)
    assert "Apple M9 Pro (measured)'s 1234 GB/s take at least 0 ms" in preflight.report(model)


def test_bandwidth_is_measured_from_what_is_read():
    assert chips.measured_bandwidth(2**20, 2) > 0


@pytest.mark.parametrize(("name", "gigabytes", "bandwidth"), [
    ("Apple M1", 16, 68.25), ("Apple M3 Max", 36, 300), ("Apple M3 Max", 96, 300), ("Apple M3 Max", 64, 400),
    ("Apple M4 Max", 36, 410), ("Apple M4 Max", 128, 546), ("Apple M5 Max", 36, 460), ("Apple M5 Max", 48, 614),
    ("Apple M5 Max", 512, 460), ("Apple M5 Ultra", 96, 1200), ("Apple M6", 16, 170),
])  # fmt: skip
def test_memory_tells_apart_what_a_name_does_not(name, gigabytes, bandwidth):
    assert chips.of_machine({"device_name": name, "memory_size": gigabytes * 2**30}).bandwidth == bandwidth


@pytest.mark.parametrize("info", [{}, {"device_name": "Intel(R) Xeon(R)"}, {"device_name": "Apple M7"}])
def test_other_chips_have_no_row(info):
    assert chips.of_machine(info) is None


def test_the_table_is_whole():
    for generation in range(1, 6):
        for kind in ("", " Pro", " Max", " Ultra"):
            assert (generation, kind) == (4, " Ultra") or chips.find(f"Apple M{generation}{kind}")  # there was none
    for chip in chips.CHIPS:
        assert chip.source
        others = [other for other in chips.CHIPS if other.name.split(" (")[0] == chip.name.split(" (")[0]]
        assert len({size for other in others for size in other.memory}) == sum(len(other.memory) for other in others)


@pytest.mark.parametrize("reported", [{8: 5.72e9}, {16: 12.7e9}, {36: 28.6e9}, {128: 107.5e9}])
def test_on_paper_no_mac_is_given_more_than_was_reported(reported):
    ((memory, most),) = reported.items()
    assert 0.9 * most < chips.usable_bytes(memory) <= 1.01 * most


def test_a_folder_is_described_with_its_size(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))
    (tmp_path / "notes.txt").write_bytes(bytes(1_000_000))
    assert str(preflight.plan(str(tmp_path))) == f"{tmp_path}: 3.0 MB from this folder"


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
    weights, a_frame = preflight.weight_bytes(model)
    position = 2 * 2 * 32 * 4  # keys and values of two layers of dim 32, float32
    whole = preflight.conversation_bytes(model)
    assert whole > weights + 64 * position + preflight.BUFFER_CACHE_BYTES
    assert whole - preflight.conversation_bytes(model, context=24) == 40 * position
    assert preflight.frame_bytes(model) - preflight.frame_bytes(model, context=24) == 40 * position
    assert preflight.frame_bytes(model) == a_frame + 64 * position + 4  # and the offset


def test_too_large_for_this_machine(monkeypatch):
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 10 * 10**9})
    preflight.check_memory(9 * 10**9, "it", "use -q 4")
    with pytest.raises(
        InputError, match=r"it takes 16.00 GB, this machine has 10.00 GB for it; use -q 4, or .*--force"
    ):
        preflight.check_memory(16 * 10**9, "it", "use -q 4")
    monkeypatch.setattr(mx, "device_info", dict)
    assert preflight.usable_bytes() > 10**9


def test_a_process_may_have_less_than_the_machine(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("123456789\n")
    monkeypatch.setattr(mx, "device_info", dict)
    monkeypatch.setattr(preflight, "CGROUP_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "missing")))
    assert preflight.usable_bytes() == 123456789
    (tmp_path / "memory.max").write_text("max\n")
    assert preflight.usable_bytes() > 123456789


def test_too_slow_for_a_conversation():
    assert (
        preflight.check_speed([0.05] * 12, "") == "a frame takes 50 ms with a full context, 95% within 50, and lasts 80"
    )
    assert preflight.check_speed([0.05] * 10 + [0.2] * 2, "").endswith("; some frames are too slow")
    with pytest.raises(InputError, match=r"a frame takes 90 ms \(median of 12\).*less than 80; use -q 4, or .*--force"):
        preflight.check_speed([0.09] * 12, "use -q 4")


class Clocked:
    """A session and a clock: frames take the given seconds, one after the other, and waiting takes what it says."""

    frame_size = 1920

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.log = 0.0, list(seconds), []
        monkeypatch.setattr(preflight.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(preflight, "wait", self.wait)

    def wait(self, seconds):
        self.now += seconds

    def fill_context(self):
        self.log.append("full")

    def step(self, pcm):
        self.log.append(round(self.now, 6))
        self.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]

    def reset(self):
        self.log.append("reset")


def test_frames_are_timed_at_a_full_context_one_every_80_ms(monkeypatch):
    session = Clocked(monkeypatch, [0.5, 0.03, 0.1, 0.05])
    assert preflight.time_frames(session, 3) == pytest.approx([0.03, 0.1, 0.05])
    assert session.log == ["full", 0.0, 0.5, 0.58, 0.68, "reset"]


def test_a_machine_that_was_busy_for_a_moment_gets_a_second_look(monkeypatch):
    busy = Clocked(monkeypatch, [0.09] * 13 + [0.04])
    assert preflight.median_ms(preflight.time_live(busy)) == pytest.approx(40)
    assert busy.log.count("full") == 2
    fine = Clocked(monkeypatch, [0.04])
    preflight.time_live(fine)
    assert fine.log.count("full") == 1
    slow = Clocked(monkeypatch, [0.09])
    assert len(preflight.time_live(slow)) == preflight.SECOND_LOOK


def test_timed_frames_leave_no_trace(model, monkeypatch):
    monkeypatch.setattr(preflight, "wait", lambda seconds: None)
    session, fresh = model.session(seed=3), model.session(seed=3)
    assert len(preflight.time_frames(session, 3)) == 3
    frame = np.full(1920, 0.1, np.float32)
    assert session.step(frame).audio_codes.tolist() == fresh.step(frame).audio_codes.tolist()


# What would help


@pytest.fixture(scope="module")
def sizes():
    """Moshi's sizes in 16, 8 and 4 bits, no weights."""
    return {bits: weightless(PRESETS["moshi-7b"], bits) for bits in (None, 8, 4)}


def test_what_helps_a_slow_machine_is_named_with_its_figures(sizes):
    q8, q4 = advice.Asked("kyutai/moshiko-mlx-q8"), advice.Asked("kyutai/moshika-mlx-q4")
    assert advice.for_speed(sizes[8], q8, 82).startswith("-q 4: about 5")
    assert "--kv-bits 8: about 7" in advice.for_speed(sizes[8], q8, 82)
    assert "--kv-bits 8" not in advice.for_speed(sizes[8], q8, 100)  # it would not help enough
    assert "--kv-bits" not in advice.for_speed(sizes[8], q8._replace(kv_bits=8), 82)  # it is used already
    assert "--context 2000 (it remembers 160 s): about 75 ms" in advice.for_speed(sizes[4], q4, 82)
    assert "-q 4" not in advice.for_speed(sizes[4], q4, 82)
    assert "nothing else would bring it below 80" in advice.for_speed(sizes[4], q4, 300)
    assert "a copy in 4 bits (moshi_mlx.convert -q): about" in advice.for_speed(sizes[None], advice.Asked("./mine"), 82)


def test_what_helps_where_memory_is_small_is_named_with_its_figures(sizes):
    asked = advice.Asked("kyutai/moshiko-mlx-q8")
    assert advice.for_memory(sizes[8], asked, 10 * 10**9).startswith("-q 4: 7.32 GB, --kv-bits 8: 9.94 GB, --context ")
    assert advice.for_memory(sizes[8], asked, 10**9) == "no setting makes it fit"
    held = preflight.conversation_bytes(sizes[8], None, 1750)
    limit = held + 10**6
    assert f"--context 1750 (it remembers 140 s): {held / 1e9:.2f} GB" in advice.for_memory(sizes[8], asked, limit)


def test_a_slow_blas_is_named(sizes, monkeypatch):
    monkeypatch.setattr(advice.Path, "read_text", lambda path: "/usr/lib/mlx/libblas.so")
    assert advice.for_speed(sizes[4], advice.Asked("x"), 300).startswith("preload OpenBLAS")
    monkeypatch.setattr(advice.Path, "read_text", lambda path: "/usr/lib/openblas-pthread/libblas.so.3")
    assert "OpenBLAS" not in advice.for_speed(sizes[4], advice.Asked("x"), 300)
    monkeypatch.setattr(advice.sys, "platform", "darwin")
    assert "OpenBLAS" not in advice.for_speed(sizes[4], advice.Asked("x"), 300)


@pytest.mark.parametrize(
    ("bits", "device", "helps"),
    [
        (4, "Apple M1 Max", True), (8, "Apple M2", True), ("mxfp4", "Apple M1 Max", False), (None, "Apple M2", False),
        (4, "Apple M3 Ultra", False), (4, "Apple M10", False), (4, "NVIDIA H100", False), (4, "", False),
    ],
)  # fmt: skip
def test_weights_that_are_read_anew_for_each_person_are_named(bits, device, helps):
    said = advice.for_many(weightless(PRESETS["moshi-7b"], bits), device)
    assert ("--q-mode mxfp4" in said) == helps
    assert said.startswith(device) if helps else not said
