"""The recording of a conversation: stereo, aligned, with its words, and whole at any moment."""

import json
import os
import resource
import signal
import subprocess
import sys
import wave

import numpy as np
import pytest
import soundfile
from stand_ins import moment

from moshi_mlx.audio import recorder
from moshi_mlx.audio.recorder import Recorder, Words
from moshi_mlx.errors import AudioError

RATE, SIZE = 24_000, 1920


def words(path):
    return json.loads(path.read_text())


def test_both_sides_are_aligned_sample_by_sample(tmp_path):
    record = Recorder(tmp_path / "talk.wav", RATE, SIZE)
    for n in range(3):
        record(moment(n, heard=0.1 * n))
    record.close()
    record.close()
    sound, rate = soundfile.read(tmp_path / "talk.wav")
    assert (rate, sound.shape) == (RATE, (3 * SIZE, 2))
    ramp = np.arange(SIZE) / SIZE
    np.testing.assert_allclose(sound[:, 0], np.concatenate([0 * ramp, 0.1 * ramp, 0.2 * ramp]), atol=1e-4)
    np.testing.assert_allclose(sound[:, 1], np.tile(0.5 * ramp, 3), atol=1e-4)
    with wave.open(str(tmp_path / "talk.wav")) as plain:
        assert plain.getparams()[:4] == (2, 2, RATE, 3 * SIZE)


def test_sound_is_whole_after_every_frame(tmp_path):
    record = Recorder(tmp_path / "talk.wav", RATE, SIZE)
    for n in range(5):
        record(moment(n))
        assert soundfile.info(tmp_path / "talk.wav").frames == (n + 1) * SIZE
        assert words(tmp_path / "talk.json")["sample_rate"] == RATE


def test_clipped_and_broken_samples(tmp_path):
    record = Recorder(tmp_path / "talk.wav", RATE, SIZE)
    record(moment(0, heard=np.nan, said=4.0))
    sound, _ = soundfile.read(tmp_path / "talk.wav")
    assert not sound[:, 0].any()
    assert sound[-1, 1] == pytest.approx(1.0, abs=1e-4)


TESTS = os.path.dirname(os.path.dirname(__file__))
CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from stand_ins import RATE, SIZE, moment
from moshi_mlx.audio.recorder import Recorder
record = Recorder(sys.argv[1], RATE, SIZE)
n = 0
while True:
    record(moment(n, text=f" word{n}"))
    n += 1
    if n == 20:
        print("go", flush=True)
"""


@pytest.mark.parametrize("attempt", range(3))
def test_recording_is_whole_after_a_kill(tmp_path, attempt):
    path = tmp_path / "talk.wav"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, path, TESTS],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "go\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    sound, _ = soundfile.read(path)
    assert len(sound) >= 20 * SIZE
    assert len(sound) % SIZE == 0
    assert sound[:, 1].max() == pytest.approx(0.5, abs=1e-3)
    assert words(tmp_path / "talk.json")["words"][0] == {"word": "word0", "start": 0.0, "end": 0.08}


def test_beyond_what_a_plain_header_can_say_it_is_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "LARGEST_RIFF", 3 * 4 * SIZE)
    record = Recorder(tmp_path / "talk.wav", RATE, SIZE)
    for n in range(4):
        record(moment(n))
    record.close()
    assert (tmp_path / "talk.wav").read_bytes()[:4] == b"RF64"
    sound, _ = soundfile.read(tmp_path / "talk.wav")
    assert sound.shape == (4 * SIZE, 2)


def test_words_and_their_times():
    spoken = Words(0.08)
    for frame, text in enumerate(["", " Hel", "lo", "", "  the", "re, you ", "x"]):
        spoken.add(frame, text)
    assert [json.loads(word) for word in spoken.done] == [
        {"word": "Hello", "start": 0.08, "end": 0.24},
        {"word": "there,", "start": 0.32, "end": 0.48},
        {"word": "you", "start": 0.4, "end": 0.48},
    ]
    assert [word["word"] for word in json.loads(str(spoken))] == ["Hello", "there,", "you", "x"]
    assert len(spoken.done) == 3
    assert json.loads(str(Words(0.08))) == []


def test_drops_and_resets_are_told(tmp_path):
    record = Recorder(tmp_path / "talk.wav", RATE, SIZE)
    record(moment(0, text=" be"))
    record(moment(1, text="gin", lost=(0.16, 0.0)))
    record(moment(2, text="ning", lost=(0.16, 0.04), reset=True))
    record.close()
    content = words(tmp_path / "talk.json")
    assert content["drops"] == [
        {"time": 0.08, "side": "user", "seconds": 0.16},
        {"time": 0.16, "side": "moshi", "seconds": 0.04},
    ]
    assert content["resets"] == [0.16]
    assert [word["word"] for word in content["words"]] == ["begin", "ning"]
    assert content["seconds"] == 0.24
    assert content["channels"] == ["user", "moshi"]


def test_nothing_is_replaced_before_the_first_frame(tmp_path):
    (tmp_path / "talk.wav").write_text("before")
    Recorder(tmp_path / "talk.wav", RATE, SIZE, overwrite=True).close()
    assert (tmp_path / "talk.wav").read_text() == "before"
    assert os.listdir(tmp_path) == ["talk.wav"]
    record = Recorder(tmp_path / "talk.wav", RATE, SIZE, overwrite=True)
    record(moment(0))
    record.close()
    assert soundfile.info(tmp_path / "talk.wav").frames == SIZE
    assert sorted(os.listdir(tmp_path)) == ["talk.json", "talk.wav"]


@pytest.mark.parametrize("there", ["talk.wav", "talk.json"])
def test_an_earlier_recording_stays_and_sound_and_words_get_the_same_number(tmp_path, there):
    (tmp_path / there).write_text("before")
    (tmp_path / "talk-2.json").write_text("before")
    record = Recorder(tmp_path / "talk.wav", RATE, SIZE)
    record(moment(0, text=" word"))
    record.close()
    assert (record.path, record.json_path) == (tmp_path / "talk-3.wav", tmp_path / "talk-3.json")
    assert (tmp_path / there).read_text() == (tmp_path / "talk-2.json").read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == sorted([there, "talk-2.json", "talk-3.json", "talk-3.wav"])


def test_a_disk_that_fills_up_leaves_what_was_whole(tmp_path):
    record = Recorder(tmp_path / "talk.wav", RATE, SIZE)
    record(moment(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 4 * SIZE, hard))
    try:
        with pytest.raises(AudioError, match=r"talk\.wav: cannot be written: File too large"):
            record(moment(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    record.close()
    assert (tmp_path / "talk.wav").stat().st_size == soundfile.info(tmp_path / "talk.wav").frames * 4 + 80
    assert words(tmp_path / "talk.json")["seconds"] == 0.08
    assert sorted(os.listdir(tmp_path)) == ["talk.json", "talk.wav"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("talk.mp3", "ends in .wav"), ("missing/talk.wav", "no folder"), ("folder.wav", "not a regular file"),
     ("words.wav", "words.json: cannot be written: it is not a regular file"),
     ("file/talk.wav", "Not a directory")],
)  # fmt: skip
def test_recording_that_cannot_be_written(tmp_path, name, said):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "words.json").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(AudioError, match=said):
        Recorder(tmp_path / name, RATE, SIZE)


def test_folder_that_vanishes_is_one_error(tmp_path):
    (tmp_path / "folder").mkdir()
    record = Recorder(tmp_path / "folder" / "talk.wav", RATE, SIZE)
    (tmp_path / "folder").rename(tmp_path / "gone")
    with pytest.raises(AudioError, match=r"talk\.wav: cannot be written: No such file"):
        record(moment(0))
