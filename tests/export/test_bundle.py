"""Bundles: they say what the Session says, the same bytes each time, and what is wrong is an error."""

import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS, delays, edit_json, question

from moshi_mlx.checkpoints.reading import build, open_checkpoint
from moshi_mlx.conversation import session
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.conversation.session import Session
from moshi_mlx.errors import CheckpointError, InputError
from moshi_mlx.export import bundle
from moshi_mlx.export.__main__ import main
from moshi_mlx.export.running import Bundle, read_manifest
from moshi_mlx.export.talking import Talk
from moshi_mlx.models.moshi import Moshi
from moshi_mlx.models.sampling import MOSHI

TINY = GOLDENS / "moshi_tiny"
SETTINGS = {
    "as Moshi": {},
    "greedy": {"temperature": 0, "text_temperature": 0},
    "text alone greedy": {"text_temperature": 0, "top_k": 7},
    "sound alone greedy": {"temperature": 0, "text_top_k": 0},
    "all limits": {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "text_top_p": 0.9, "text_min_p": 0.01},
    "one candidate": {"top_k": 1, "text_top_k": 1},
    "more than there are": {"top_k": 10_000, "text_top_k": 10_000},
    "cold": {"temperature": 1e-33, "text_temperature": 1e-35},
}


def equal(folder, checkpoint, settings, frames=12, dtype=mx.float32, kv_bits=None):
    model = build(open_checkpoint(checkpoint), dtype, Moshi)
    all_settings = {**MOSHI, **settings}
    expected = Session(model, 2**40 + 7, kv_bits=kv_bits, progress=False, **all_settings)
    talk = Talk(Bundle(folder, checkpoint), 2**40 + 7, DuplexSampling.of(all_settings))
    for pcm in np.resize(question(), (frames, 1920)):
        ours, theirs = talk.step(pcm), expected.step(pcm)
        assert ours.text_token == theirs.text_token
        assert (ours.pcm is None) == (theirs.pcm is None)
        if theirs.pcm is not None:
            np.testing.assert_array_equal(ours.audio_codes, theirs.audio_codes)
            np.testing.assert_allclose(ours.pcm, theirs.pcm, atol=1e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "bundle"
    bundle.export(TINY, folder, mx.float32)
    return folder


@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_the_session(tiny, settings):
    equal(tiny, TINY, SETTINGS[settings])


def test_is_the_same_bytes_where_there_is_a_gpu(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    bundle.export(TINY, tmp_path / "bundle", mx.float32)
    made = {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    assert made == {path.name: path.read_bytes() for path in tiny.iterdir()}


def test_grows_and_wraps_as_the_session(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "FIRST_CAPACITY", 16)
    bundle.export(TINY, tmp_path / "bundle", mx.float32)
    assert {"think.16.graph", "think.64.graph", "grow.32.graph"} <= {p.name for p in (tmp_path / "bundle").iterdir()}
    equal(tmp_path / "bundle", TINY, {}, frames=80)


@pytest.mark.parametrize("change", [{"delays": delays(2)}, {"delays": delays(0)}, {"context": 10}])
def test_of_other_configurations(checkpoint, tmp_path, change):
    folder = checkpoint(**change)
    bundle.export(folder, tmp_path / "bundle", mx.float32)
    equal(tmp_path / "bundle", folder, {}, frames=15)


@pytest.mark.parametrize("layout", ["moshi_tiny_mlx", "moshi_tiny_hf", "moshi_schedule"])
def test_of_every_layout(checkpoint, tmp_path, layout):
    # Hugging Face's has no tokenizer: a model without words
    folder = GOLDENS / layout if layout == "moshi_tiny_hf" else checkpoint("moshi_tiny")
    if layout == "moshi_schedule":
        folder = tmp_path / "schedule"
        shutil.copytree(TINY, folder)
        shutil.copy(GOLDENS / layout / "model.safetensors", folder / "model.safetensors")
        files = {"mimi_name": "mimi.safetensors", "mimi_config_name": "mimi_config.json"}
        shutil.copy(GOLDENS / layout / "config.json", folder / "config.json")
        edit_json(folder / "config.json", tokenizer_name="tokenizer.model", **files)
    elif layout == "moshi_tiny_mlx":
        shutil.copy(GOLDENS / layout / "model.safetensors", folder / "model.safetensors")
    bundle.export(folder, tmp_path / "bundle", mx.float32)
    equal(tmp_path / "bundle", folder, {})


def test_the_same_bytes_each_time(tiny, tmp_path):
    again = bundle.export(TINY, tmp_path / "again", mx.float32)
    for name, size in again.files.items():
        data = (tmp_path / "again" / name).read_bytes()
        assert data == (tiny / name).read_bytes()
        assert len(data) == size
    assert sum(again.files.values()) < 1e6
    assert b"\0" not in (tiny / "manifest.txt").read_bytes()


def test_only_a_bundle_is_replaced_by_one(tiny, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        bundle.export(TINY, tiny)
    shutil.copytree(TINY, tmp_path / "weights")
    with pytest.raises(InputError, match="is not a bundle, so it is not overwritten"):
        bundle.export(TINY, tmp_path / "weights", overwrite=True)
    shutil.copytree(tiny, tmp_path / "bundle")
    bundle.export(TINY, tmp_path / "bundle", overwrite=True)


@pytest.mark.parametrize("what", ["bytes", "cut", "gone", "format", "end"])
def test_a_damaged_bundle_is_refused(tiny, tmp_path, what):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny, folder)
    graph, manifest = folder / "depth.graph", folder / "manifest.txt"
    changes = {
        "bytes": lambda: graph.write_text(graph.read_text().replace("1", "2", 1)),
        "cut": lambda: graph.write_bytes(graph.read_bytes()[:-5]),
        "gone": graph.unlink,
        "format": lambda: manifest.write_text(manifest.read_text().replace("moshi_bundle 1", "moshi_bundle 2")),
        "end": lambda: manifest.write_text(manifest.read_text()[:-1]),
    }
    changes[what]()
    with pytest.raises(CheckpointError, match=r"manifest\.txt: not a bundle that can be read"):
        read_manifest(folder)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 262_144, 300_001])
def test_a_fingerprint_is_of_length_and_bytes(tmp_path, size):
    data = bytes(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8))
    marks = set()
    for change in (data, data + b"!", data[:-1], data[:-3] + b"???", b"???" + data[3:]):
        (tmp_path / "weights").write_bytes(change)
        marks.add((bundle.fingerprint(tmp_path / "weights"), change))
    assert len({mark for mark, _ in marks}) == len({change for _, change in marks})
    assert any(mark.startswith(f"{size}:") for mark, _ in marks)


def test_a_bundle_of_other_weights_is_refused(tiny, tmp_path):
    shutil.copytree(TINY, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: another file than .* was made of; export it again"):
        Bundle(tiny, tmp_path / "other")


def test_the_licence_is_what_the_card_says(checkpoint, tmp_path):
    folder = checkpoint()
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\n# Moshi\nlicense: other\n")
    bundle.export(folder, tmp_path / "bundle")
    assert read_manifest(tmp_path / "bundle")[0]["licence"] == "cc-by-4.0"


def test_the_command(tmp_path, capsys):
    assert main([str(TINY), str(tmp_path / "bundle"), "--check", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    assert f"{len(list((tmp_path / 'bundle').iterdir()))} files, " in out
    assert "greedy: 20 frames, equal to the session" in out
    assert main([str(tmp_path / "none"), str(tmp_path / "bundle2")]) == 2
    assert capsys.readouterr().err.startswith("moshi_mlx.export: error: ")
    assert not (tmp_path / "bundle2").exists()
    done = subprocess.run([sys.executable, "-m", "moshi_mlx.export", "--help"], capture_output=True, text=True)
    assert "--kv-bits" in done.stdout
