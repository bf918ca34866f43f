"""Sound files in and out, the ring of the devices, and devices that are not there."""

import collections
import os
import random
import resource
import subprocess
import sys
import threading
import types
import wave

import numpy as np
import pytest
import soundfile

from moshi_mlx import audio
from moshi_mlx.errors import AudioError, MoshiError

RATE = 24_000


def tone(seconds=1.0, rate=RATE, hertz=440.0, peak=0.5):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def loudest_hertz(samples, rate=RATE):
    return np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples))))) * rate / len(samples)


# read_sound


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (24_000, 1), (44_100, 2), (48_000, 2)])
def test_any_format_rate_and_channels(tmp_path, suffix, rate, channels):
    path = tmp_path / f"sound.{suffix}"
    soundfile.write(path, np.repeat(tone(rate=rate)[:, None], channels, axis=1), rate)
    samples = audio.read_sound(path, RATE)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - RATE) <= (RATE // 10 if suffix == "mp3" else 1)
    middle = samples[RATE // 4 : -RATE // 4]
    assert loudest_hertz(middle) == pytest.approx(440, abs=4)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.06)  # MP3 at 8 kHz is that lossy


def test_many_channels(tmp_path):
    soundfile.write(tmp_path / "six.wav", np.repeat(tone()[:, None], 6, axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(audio.read_sound(tmp_path / "six.wav", RATE), tone(), atol=1e-6)


def test_samples_at_the_same_rate_are_untouched(tmp_path):
    samples = tone(5.0)  # more than one block
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read_sound(tmp_path / "a.wav", RATE), samples)


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), 3 * tone(peak=0.2)], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(audio.read_sound(tmp_path / "a.wav", RATE), 1.1 * tone(), atol=1e-6)


def test_broken_samples_are_passed_on_for_the_session_to_count(tmp_path):
    samples = tone()
    samples[[10, 5000]] = np.nan, np.inf
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert np.flatnonzero(~np.isfinite(audio.read_sound(tmp_path / "a.wav", RATE))).tolist() == [10, 5000]


def test_resampling_does_not_spread_broken_samples(tmp_path):
    samples = tone(rate=48_000)
    samples[[0, 20_000, 47_999]] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 48_000, subtype="FLOAT")
    read = audio.read_sound(tmp_path / "a.wav", RATE)
    assert np.flatnonzero(np.isnan(read)).tolist() == [0, 10_000, 23_999]


def test_infinities_of_opposite_sign_and_overflow_give_no_warning(tmp_path):
    largest = np.finfo(np.float32).max
    pairs = np.array([[np.inf, -np.inf], [largest, largest], [0.5, 0.5]], np.float32)
    soundfile.write(tmp_path / "a.wav", pairs, RATE, subtype="FLOAT")
    read = audio.read_sound(tmp_path / "a.wav", RATE)
    assert np.isfinite(read).tolist() == [False, False, True]


def test_sound_from_a_pipe(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    code = f"from moshi_mlx.audio import read_sound; print(len(read_sound('/dev/stdin', {RATE})))"
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
        audio.read_sound(tmp_path / name, RATE)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, MoshiError)


def test_sound_file_without_permission(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read: Permission denied"):
        audio.read_sound(tmp_path / "a.wav", RATE)


# FileSource


def all_of(source):
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    return frames


@pytest.mark.parametrize(("count", "tail", "frames"), [(1, 0, 1), (10, 0, 1), (11, 0, 2), (11, 9, 2), (11, 10, 3)])
def test_source_gives_whole_frames(count, tail, frames):
    source = audio.FileSource(np.ones(count, np.float32), 10, tail)
    read = all_of(source)
    assert len(read) == frames
    assert {(frame.shape, frame.dtype) for frame in read} == {((10,), np.dtype(np.float32))}
    assert source.length == count + tail
    np.testing.assert_array_equal(np.concatenate(read), np.arange(10 * frames) < count)
    assert source.read() is None


def test_closed_source_has_ended():
    source = audio.FileSource(np.ones(100, np.float32), 10)
    source.close()
    assert source.read() is None


# FileSink


def read_wav(path):
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    return samples


def test_sink_writes_what_it_gets(tmp_path):
    sink = audio.FileSink(tmp_path / "a.wav", RATE)
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
    sink = audio.FileSink(tmp_path / "a.wav", RATE, length=1000)
    for _ in range(4):
        sink.write(np.ones(400, np.float32))
    sink.close()
    assert len(read_wav(tmp_path / "a.wav")) == 1000


def test_sink_stops_where_the_header_of_wav_does(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "WAV_SAMPLES", 500)
    for length in (None, 1000):
        sink = audio.FileSink(tmp_path / "a.wav", RATE, length)
        sink.write(np.ones(600, np.float32))
        sink.close()
        assert len(read_wav(tmp_path / "a.wav")) == 500


def test_sink_clips_and_replaces_nan(tmp_path):
    sink = audio.FileSink(tmp_path / "a.wav", RATE)
    sink.write(np.array([2.0, -2.0, np.nan, np.inf, -np.inf, 0.5], np.float32))
    sink.close()
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav"), [1, -1, 0, 1, -1, 0.5], atol=1e-4)


def test_aborted_sink_leaves_what_was_there(tmp_path):
    (tmp_path / "a.wav").write_text("before")
    sink = audio.FileSink(tmp_path / "a.wav", RATE)
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
    sink = audio.FileSink(tmp_path / "link.wav", RATE)
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
        ("a.mp3", "written as WAV"),
        ("a.flac", "written as WAV"),
    ],
)
def test_output_that_cannot_be_written(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.wav")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(AudioError, match=said) as caught:
        audio.FileSink(tmp_path / name, RATE)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_read_only_output_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "a.wav").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(AudioError, match=r"a\.wav: cannot be written: Permission denied"):
        audio.FileSink(tmp_path / "a.wav", RATE)


def test_full_disk_leaves_nothing(tmp_path):
    sink = audio.FileSink(tmp_path / "a.wav", RATE)
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
    sink = audio.FileSink(tmp_path / "folder" / "a.wav", RATE)
    sink.write(tone())
    (tmp_path / "folder").rename(tmp_path / "gone")
    with pytest.raises(AudioError, match=r"a\.wav: cannot be written"):
        sink.close()


# Ring


def test_ring_equals_a_bounded_queue():
    chance = random.Random(0)
    ring, queue, value = audio.Ring(50), collections.deque(), 0
    for _ in range(5000):
        if chance.random() < 0.5:
            count = chance.randint(0, 70)
            pushed = np.arange(value, value + count, dtype=np.float32)
            value = (value + count) % 10_000
            queue.extend(pushed)
            lost = max(0, len(queue) - 50)
            assert ring.push(pushed) == lost
            for _ in range(lost):
                queue.popleft()
        else:
            out = np.full(chance.randint(0, 70), -1, np.float32)
            count = min(len(out), len(queue))
            assert ring.pull(out) == count
            assert out.tolist() == [queue.popleft() for _ in range(count)] + [-1] * (len(out) - count)


def in_thread(work):
    """Starts `work`, and gives a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def result():
        thread.join(10)
        return results[0]

    return result


def test_ring_wakes_who_waits_for_samples():
    ring = audio.Ring(100)
    result = in_thread(lambda: ring.wait_filled(60, timeout=10))
    ring.push(np.zeros(50, np.float32))
    ring.push(np.zeros(10, np.float32))
    assert result()


def test_ring_wakes_who_waits_for_room():
    ring = audio.Ring(100)
    ring.push(np.zeros(100, np.float32))
    result = in_thread(lambda: ring.wait_room(60, timeout=10))
    ring.pull(np.zeros(60, np.float32))
    assert result()


def test_end_of_the_ring_wakes_who_waits():
    ring = audio.Ring(100)
    result = in_thread(lambda: ring.wait_filled(60, timeout=10))
    ring.end()
    assert not result()
    assert not ring.wait_filled(60, timeout=10)


def test_ring_gives_up_waiting():
    assert not audio.Ring(100).wait_filled(1, timeout=0.01)


# Devices that are not there, or go away. Real ones are in test_device.py.


class FakeStream:
    latency = 0.1
    active = True
    closed = False

    def __init__(self, *_, callback, finished_callback, **__):
        self.callback, self.finished_callback = callback, finished_callback

    def start(self):
        pass

    def abort(self):
        self.active = False
        self.finished_callback()

    def close(self):
        self.closed = True


class NoDevice(Exception):
    pass


def refuse(*_, **__):
    raise NoDevice("Error querying device -1")


@pytest.fixture
def streams(monkeypatch):
    module = types.SimpleNamespace(InputStream=FakeStream, OutputStream=FakeStream, PortAudioError=NoDevice)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    monkeypatch.setattr(audio, "DEVICE_TIMEOUT", 0.05)
    return module


QUIET = types.SimpleNamespace(input_overflow=False, output_underflow=False)
FLAGGED = types.SimpleNamespace(input_overflow=True, output_underflow=True)


def speak(microphone, samples, status=QUIET):
    microphone._callback(samples[:, None], len(samples), None, status)


def play(speaker, count, status=QUIET):
    out = np.full((count, 1), 9.0, np.float32)
    speaker._callback(out, count, None, status)
    return out[:, 0]


@pytest.mark.parametrize("device", [audio.Microphone, audio.Speaker])
def test_no_device_is_one_clear_line(streams, device):
    streams.InputStream = streams.OutputStream = refuse
    with pytest.raises(
        AudioError, match=r"no (microphone|speaker) can be opened .*--input and --output.*--demo"
    ) as caught:
        device(RATE, 1920)
    assert "\n" not in str(caught.value)


def test_microphone_gives_what_comes_after_the_first_read(streams, monkeypatch):
    microphone = audio.Microphone(RATE, 10)
    speak(microphone, np.ones(10, np.float32))

    def device(count, timeout):
        speak(microphone, np.full(5, 2, np.float32))
        speak(microphone, np.full(10, 3, np.float32))
        return True

    monkeypatch.setattr(microphone._ring, "wait_filled", device)
    assert microphone.read().tolist() == [2] * 5 + [3] * 5
    assert microphone.drops == 0


def test_microphone_counts_what_is_lost(streams):
    microphone = audio.Microphone(RATE, 1920)
    microphone._listening = True
    for _ in range(25):  # two seconds are kept
        speak(microphone, tone(0.08))
    assert microphone.drops == 0
    speak(microphone, tone(0.08))
    assert microphone.drops == 1
    microphone.read()
    speak(microphone, tone(0.08), FLAGGED)
    assert microphone.drops == 2


def test_silent_microphone_is_an_error(streams):
    with pytest.raises(AudioError, match="microphone gives no more sound"):
        audio.Microphone(RATE, 1920).read()


def test_microphone_that_stops_is_an_error(streams, monkeypatch):
    monkeypatch.setattr(audio, "DEVICE_TIMEOUT", 10)
    microphone = audio.Microphone(RATE, 1920)
    microphone._stream.abort()
    with pytest.raises(AudioError, match="microphone gives no more sound"):
        microphone.read()


def test_closing_the_microphone_ends_a_read(streams, monkeypatch):
    monkeypatch.setattr(audio, "DEVICE_TIMEOUT", 10)
    microphone = audio.Microphone(RATE, 1920)
    result = in_thread(microphone.read)
    microphone.close()
    microphone.close()
    assert result() is None


def test_speaker_plays_zeros_and_counts_when_it_has_nothing(streams):
    speaker = audio.Speaker(RATE, 10)
    assert play(speaker, 10).tolist() == [0] * 10
    assert speaker.drops == 0  # nothing was to be played yet
    speaker.write(np.ones(15, np.float32))
    assert play(speaker, 10).tolist() == [1] * 10
    assert speaker.drops == 0
    assert play(speaker, 10).tolist() == [1] * 5 + [0] * 5
    assert speaker.drops == 1
    speaker.write(np.ones(10, np.float32))
    play(speaker, 10, FLAGGED)
    assert speaker.drops == 2


def test_speaker_drops_the_oldest_and_counts(streams):
    speaker = audio.Speaker(RATE, 1920)
    for value in range(6):  # five are kept
        speaker.write(np.full(1920, value, np.float32))
    assert speaker.drops == 1
    assert play(speaker, 1920).tolist() == [1] * 1920


def test_pacing_speaker_waits_for_room(streams, monkeypatch):
    monkeypatch.setattr(audio, "DEVICE_TIMEOUT", 10)
    speaker = audio.Speaker(RATE, 1920, pace=True)
    for _ in range(5):
        speaker.write(np.ones(1920, np.float32))
    result = in_thread(lambda: speaker.write(np.ones(1920, np.float32)))
    play(speaker, 1920)
    assert result() is None
    assert speaker.drops == 0


def test_stalled_pacing_speaker_is_an_error(streams):
    speaker = audio.Speaker(RATE, 1920, pace=True)
    for _ in range(5):
        speaker.write(np.ones(1920, np.float32))
    with pytest.raises(AudioError, match="speaker plays no more"):
        speaker.write(np.ones(1920, np.float32))


def test_speaker_that_stopped_is_an_error(streams):
    speaker = audio.Speaker(RATE, 1920)
    speaker._stream.abort()
    with pytest.raises(AudioError, match="speaker plays no more"):
        speaker.write(np.ones(1920, np.float32))
    speaker.abort()
    with pytest.raises(AudioError, match="speaker plays no more"):
        speaker.write(np.ones(1920, np.float32))


def test_drain_follows_the_reply_with_the_latency_of_the_device(streams, monkeypatch):
    speaker = audio.Speaker(RATE, 1920)
    speaker.write(np.ones(1920, np.float32))
    played = []

    def device(count, timeout):
        played.append(play(speaker, speaker._ring._filled))
        return True

    monkeypatch.setattr(speaker._ring, "wait_room", device)
    speaker.drain()
    reply, silence = played
    assert reply.tolist() == [1] * 1920
    assert silence.tolist() == [0] * (int(0.1 * RATE) + 1920)
    assert speaker.drops == 0


def test_files_need_no_portaudio():
    code = "import moshi_mlx.audio, sys; sys.exit('sounddevice' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_library_imports_no_sound():
    code = "import moshi_mlx, sys; sys.exit(bool({'sounddevice', 'soundfile', 'soxr'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
