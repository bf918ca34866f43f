"""The sound of recordings, damaged and lying: named within bounds, while the others are prepared."""

import json
import os
import tracemalloc

import numpy as np
import pytest
import soundfile
from helpers import GOLDENS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training import tones

from moshi_mlx import AudioError, MoshiError
from moshi_mlx.train import prepare, recordings, sounds
from moshi_mlx.train.__main__ import main

RATE, SECONDS = 24000, 1.0
FORMATS = ("wav", "flac", "ogg", "mp3")


def noise(seconds=SECONDS):
    return 0.1 * np.random.default_rng(0).normal(size=(int(RATE * seconds), 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a sound in each format."""
    folder = tmp_path_factory.mktemp("sounds")
    for kind in FORMATS:
        soundfile.write(folder / f"a.{kind}", noise(), RATE)
    return {kind: (folder / f"a.{kind}").read_bytes() for kind in FORMATS}


def read(path):
    sounds.header(path)
    return np.concatenate(list(sounds.stream([path], RATE)), axis=1)


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_files_are_read_whole(tmp_path, whole, kind):
    (tmp_path / f"a.{kind}").write_bytes(whole[kind])
    assert abs(read(tmp_path / f"a.{kind}").shape[1] - RATE) < 0.1 * RATE


def cut(data):
    return data[: len(data) * 2 // 5]


def scrambled(data):
    """Whole in the head, noise behind it."""
    return data[:2000] + np.random.default_rng(1).bytes(len(data) - 2000)


@pytest.mark.parametrize("damage", [cut, scrambled])
@pytest.mark.parametrize("kind", ["flac", "mp3"])
def test_cut_and_scrambled_files_are_named(tmp_path, whole, kind, damage, capfd):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(damage(whole[kind]))
    with pytest.raises(AudioError, match=rf"a.{kind}: .*(damaged|not a sound file)"):
        read(path)
    assert capfd.readouterr().err == ""  # nothing of the decoder's own


def lying_flac(data, rate=RATE, frames=600_000_000):
    """Another rate and number of frames in STREAMINFO: 20 bits, and 36 after 3 + 5 of other things."""
    fields = int.from_bytes(data[18:26], "big")
    fields = rate << 44 | fields & (2**44 - 1) & ~(2**36 - 1) | frames
    return data[:18] + fields.to_bytes(8, "big") + data[26:]


def rate_of_wav(data, rate):
    place = data.index(b"fmt ") + 12
    return data[:place] + rate.to_bytes(4, "little") + data[place + 4 :]


def test_lying_headers_are_named_within_bounds(tmp_path, whole):
    path = tmp_path / "a.flac"
    path.write_bytes(lying_flac(whole["flac"]))
    assert sounds.header(path).frames == 600_000_000
    tracemalloc.start()
    with pytest.raises(AudioError, match=r"a.flac: .*damaged"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("rate", [0, 1, 999, 1_000_001, 2**31 - 1])
def test_rates_that_no_recording_has_are_named(tmp_path, whole, rate):
    path = tmp_path / "a.wav"
    path.write_bytes(rate_of_wav(whole["wav"], rate))
    with pytest.raises(AudioError, match=r"a.wav: (has a sample rate of|not a sound file)"):
        read(path)


def test_a_long_file_is_read_as_a_stream(tmp_path):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", RATE, 2) as file:
        for _ in range(10):
            file.write(np.zeros((60 * RATE, 2), np.float32))
    tracemalloc.start()
    length = sum(block.shape[1] for block in sounds.stream([path], 16000))
    assert tracemalloc.get_traced_memory()[1] < 30e6  # all of it would be 115 MB
    tracemalloc.stop()
    assert length == 600 * 16000


@pytest.mark.parametrize("what", ["folder", "fifo", "missing", "unreadable name"])
def test_what_is_no_file_is_named(tmp_path, what):
    path = tmp_path / "a.wav"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "unreadable name":
        path = tmp_path / ("n" * 300 + ".wav")
    with pytest.raises(AudioError, match="no such sound file"):
        sounds.header(path)


def test_names_that_are_no_utf8_are_read(tmp_path, whole):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    with open(path, "wb") as file:
        file.write(whole["wav"])
    (found,) = recordings.find(tmp_path)
    assert read(found.moshi).shape == (2, RATE)


def test_damaged_recordings_are_left_out_and_the_others_prepared(tmp_path, whole, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_SECONDS", 1)
    source = tones(tmp_path / "recordings", 2, seconds=1)
    bad = {"a.flac": cut(whole["flac"]), "b.wav": b"\xff\x00no sound", "c.wav": rate_of_wav(whole["wav"], 1),
           "d.flac": lying_flac(whole["flac"])}  # fmt: skip
    for name, data in bad.items():
        (source / name).write_bytes(data)
        (source / name).with_suffix(".json").write_text("[]")
    arguments = ["prepare", "--model", GOLDENS / "moshi_tiny", "--data", source, "--output", tmp_path / "data"]
    for _ in range(2):  # made, and kept from the run before
        assert main([str(argument) for argument in arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        for name in bad:
            assert len([line for line in lines if f"{name}: " in line and line.endswith("; left out")]) == 1, name
        assert "4 recordings are left out (see above); the others are in" in lines[-1]
        index = json.loads((tmp_path / "data" / "train" / "prepared.json").read_text())
        assert (index["conversations"], index["frames"]) == (2, 26)
    for n in range(2):
        (source / f"{n}.wav").unlink()
    assert main([str(argument) for argument in arguments]) == 2
    assert not (tmp_path / "data" / "train" / "prepared.json").exists()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(FORMATS),
    start=st.integers(0, 3000),
    drop=st.integers(0, 500),
    insert=st.binary(max_size=40),
    length=st.integers(0, 20000),
)
def test_damage_of_any_kind_is_read_or_named(tmp_path, whole, kind, start, drop, insert, length):
    data = whole[kind]
    path = tmp_path / f"a.{kind}"
    path.write_bytes((data[:start] + insert + data[start + drop :])[: max(length, 1)])
    said = f"{path}: "
    try:
        assert np.isfinite(read(path)).all()
    except MoshiError as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    assert len(said) < len(str(path)) + 300
