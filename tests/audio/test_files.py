"""Sound files in and out."""

import os
import resource
import subprocess
import sys
import wave

import numpy as np
import pytest
import soundfile
from stand_ins import loudest_hertz, tone

from moshi_mlx.audio import files
from moshi_mlx.errors import AudioError, MoshiError

RATE = 24_000


# read_sound


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (24_000, 1), (44_100, 2), (48_000, 2)])
def test_any_format_rate_and_channels(tmp_path, suffix, rate, channels):
    path = tmp_path / f"sound.{suffix}"
    soundfile.write(path, np.repeat(tone(rate=rate)[:, None], channels, axis=1), rate)
    samples = files.read_sound(path, RATE)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - RATE) <= (RATE // 10 if suffix == "mp3" else 1)
    middle = samples[RATE // 4 : -RATE // 4]
    assert loudest_hertz(middle) == pytest.approx(440, abs=4)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.06)  # MP3 at 8 kHz is that lossy


def test_many_channels(tmp_path):
    soundfile.write(tmp_path / "six.wav", np.repeat(tone()[:, None], 6, axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(files.read_sound(tmp_path / "six.wav", RATE), tone(), atol=1e-6)


def test_samples_at_the_same_rate_are_untouched(tmp_path):
    samples = tone(5.0)  # more than one block
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(files.read_sound(tmp_path / "a.wav", RATE), samples)


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), 3 * tone(peak=0.2)], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(files.read_sound(tmp_path / "a.wav", RATE), 1.1 * tone(), atol=1e-6)


def test_broken_samples_are_passed_on_for_the_session_to_count(tmp_path):
    samples = tone()
    samples[[10, 5000]] = np.nan, np.inf
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert np.flatnonzero(~np.isfinite(files.read_sound(tmp_path / "a.wav", RATE))).tolist() == [10, 5000]


def test_resampling_does_not_spread_broken_samples(tmp_path):
    samples = tone(rate=48_000)
    samples[[0, 20_000, 47_999]] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 48_000, subtype="FLOAT")
    read = files.read_sound(tmp_path / "a.wav", RATE)
    assert np.flatnonzero(np.isnan(read)).tolist() == [0, 10_000, 23_999]


def test_infinities_of_opposite_sign_and_overflow_give_no_warning(tmp_path):
    largest = np.finfo(np.float32).max
    pairs = np.array([[np.inf, -np.inf], [largest, largest], [0.5, 0.5]], np.float32)
    soundfile.write(tmp_path / "a.wav", pairs, RATE, subtype="FLOAT")
    read = files.read_sound(tmp_path / "a.wav", RATE)
    assert np.isfinite(read).tolist() == [False, False, True]


def test_sound_from_a_pipe(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    code = f"from moshi_mlx.audio.files import read_sound; print(len(read_sound('/dev/stdin', {RATE})))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=(tmp_path / "a.wav").read_bytes(), capture_output=True, check=True
    )
    assert int(done.stdout) == RATE


def write_nothing(path):
    soundfile.write(path, np.zeros(0, np.float32), RATE)


def write_one_hertz(path):
    soundfile.write(path, np.zeros(10, np.float32), 1)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("missing.wav", lambda path: None, "No such file"),
        ("folder.wav", lambda path: path.mkdir(), "is a folder"),
        ("zero.wav", lambda path: path.write_bytes(b""), "not a sound file"),
        ("empty.wav", write_nothing, "no samples"),
        ("text.wav", lambda path: path.write_text("To be, or not to be"), "not a sound file"),
        ("text.mp3", lambda path: path.write_text("To be, or not to be"), "not a sound file"),
        ("cut.wav", lambda path: path.write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt "), "not a sound file"),
        ("headerless.raw", lambda path: path.write_bytes(bytes(1000)), "not a sound file"),
        ("slow.wav", write_one_hertz, "sample rate of 1 Hz"),
        ("a" * 300 + ".wav", lambda path: None, "name too long"),
    ],
)
def test_bad_sound_files(tmp_path, name, make, said):
    make(tmp_path / name)
    with pytest.raises(AudioError, match=said) as caught:
        files.read_sound(tmp_path / name, RATE)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, MoshiError)


def test_sound_file_without_permission(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read: Permission denied"):
        files.read_sound(tmp_path / "a.wav", RATE)


# FileSource


def all_of(source):
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    return frames


@pytest.mark.parametrize(("count", "tail", "frames"), [(1, 0, 1), (10, 0, 1), (11, 0, 2), (11, 9, 2), (11, 10, 3)])
def test_source_gives_whole_frames(count, tail, frames):
    source = files.FileSource(np.ones(count, np.float32), 10, tail)
    read = all_of(source)
    assert len(read) == frames
    assert {(frame.shape, frame.dtype) for frame in read} == {((10,), np.dtype(np.float32))}
    assert source.length == count + tail
    np.testing.assert_array_equal(np.concatenate(read), np.arange(10 * frames) < count)
    assert source.read() is None


def test_closed_source_has_ended():
    source = files.FileSource(np.ones(100, np.float32), 10)
    source.close()
    assert source.read() is None


# FileSink


def read_wav(path):
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    return samples


def test_sink_writes_what_it_gets(tmp_path):
    sink = files.FileSink(tmp_path / "a.wav", RATE)
    for part in np.split(tone(), 10):
        sink.write(part)
    assert not (tmp_path / "a.wav").exists()
    sink.drain()
    sink.close()
    sink.close()
    sink.abort()
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav"), tone(), atol=1e-4)
    assert os.listdir(tmp_path) == ["a.wav"]
    with wave.open(str(tmp_path / "a.wav")) as written:
        assert written.getparams()[:4] == (1, 2, RATE, RATE)
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.wav").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_sink_stops_at_its_length(tmp_path):
    sink = files.FileSink(tmp_path / "a.wav", RATE, length=1000)
    for _ in range(4):
        sink.write(np.ones(400, np.float32))
    sink.close()
    assert len(read_wav(tmp_path / "a.wav")) == 1000


def test_sink_stops_where_the_header_of_wav_does(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAV_SAMPLES", 500)
    for length in (None, 1000):
        sink = files.FileSink(tmp_path / "a.wav", RATE, length)
        sink.write(np.ones(600, np.float32))
        sink.close()
        assert len(read_wav(tmp_path / "a.wav")) == 500


def test_sink_clips_and_replaces_nan(tmp_path):
    sink = files.FileSink(tmp_path / "a.wav", RATE)
    sink.write(np.array([2.0, -2.0, np.nan, np.inf, -np.inf, 0.5], np.float32))
    sink.close()
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav"), [1, -1, 0, 1, -1, 0.5], atol=1e-4)


def test_aborted_sink_leaves_what_was_there(tmp_path):
    (tmp_path / "a.wav").write_text("before")
    sink = files.FileSink(tmp_path / "a.wav", RATE)
    sink.write(tone())
    sink.abort()
    sink.abort()
    sink.close()
    assert os.listdir(tmp_path) == ["a.wav"]
    assert (tmp_path / "a.wav").read_text() == "before"
    with pytest.raises(AudioError, match="closed"):
        sink.write(tone())


def test_sink_writes_through_a_link(tmp_path):
    (tmp_path / "link.wav").symlink_to("a.wav")
    sink = files.FileSink(tmp_path / "link.wav", RATE)
    sink.write(tone())
    sink.close()
    assert (tmp_path / "link.wav").is_symlink()
    assert len(read_wav(tmp_path / "a.wav")) == RATE


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing/a.wav", "No such file"),
        ("folder", "not a regular file"),
        ("pipe.wav", "not a regular file"),
        ("file/a.wav", "Not a directory"),
        ("a" * 253 + ".wav", "name too long"),
        *(
            (f"a.{kind}", "written as WAV")
            for kind in ("mp3", "flac", "m4a", "aac", "opus", "webm", "mp4", "M4A", "raw")
        ),
    ],
)
def test_output_that_cannot_be_written(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.wav")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(AudioError, match=said) as caught:
        files.FileSink(tmp_path / name, RATE)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_read_only_output_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "a.wav").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(AudioError, match=r"a\.wav: cannot be written: Permission denied"):
        files.FileSink(tmp_path / "a.wav", RATE, overwrite=True)


def test_full_disk_leaves_nothing(tmp_path):
    sink = files.FileSink(tmp_path / "a.wav", RATE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(AudioError, match=r"a\.wav: cannot be written: File too large"):
            sink.write(tone())
        sink.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_folder_that_vanishes_is_told_at_the_end(tmp_path):
    (tmp_path / "folder").mkdir()
    sink = files.FileSink(tmp_path / "folder" / "a.wav", RATE)
    sink.write(tone())
    (tmp_path / "folder").rename(tmp_path / "gone")
    with pytest.raises(AudioError, match=r"a\.wav: cannot be written"):
        sink.close()


def test_files_need_no_portaudio():
    code = "import moshi_mlx.audio.files, sys; sys.exit('sounddevice' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
