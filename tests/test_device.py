"""Microphone and speaker on a sound card; tests/virtual_sound.sh makes one where there is none."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_audio import loudest_hertz, tone
from test_loop import EchoSession

import moshi_mlx
from moshi_mlx import audio, loop

pytestmark = pytest.mark.device

RATE, SIZE = 24_000, 1920
MODEL = Path(__file__).parent / "goldens" / "moshi_tiny"


def virtual_sound_is_there():
    try:
        said = subprocess.run(["pactl", "info"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return False
    return "Default Sink: speaker\n" in said and "Default Source: microphone.monitor\n" in said


@pytest.fixture(autouse=True)
def virtual_sound():
    """In CI these tests are never skipped."""
    if virtual_sound_is_there():
        return
    missing = "no virtual sound card; run tests/virtual_sound.sh"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(autouse=True)
def nothing_stays(virtual_sound):
    """Threads of a device are PortAudio's: Python does not list them, Linux does."""
    import sounddevice  # noqa: F401  what its start leaves behind is not a test's

    before = threads()
    yield
    assert threads() == before
    assert own_streams() == []


def threads():
    return sorted(os.listdir("/proc/self/task"))


def own_streams():
    """What PulseAudio still plays to or records for this process."""
    lists = [
        subprocess.run(["pactl", "list", kind], capture_output=True, text=True, check=True).stdout
        for kind in ("sink-inputs", "source-outputs")
    ]
    return [line for text in lists for line in text.splitlines() if f'application.process.id = "{os.getpid()}"' in line]


class Recorder:
    """What is heard on speaker.monitor, from when the recording has begun."""

    def __enter__(self):
        command = ["parec", "--device=speaker.monitor", f"--rate={RATE}", "--channels=1", "--format=float32le"]
        self.process = subprocess.Popen([*command, "--raw", "--latency-msec=20"], stdout=subprocess.PIPE)
        self.data = [self.process.stdout.read(4)]  # waits for the first sample
        self.thread = threading.Thread(target=lambda: self.data.append(self.process.stdout.read()))
        self.thread.start()
        return self

    def __exit__(self, *_):
        time.sleep(0.5)  # what has left the speaker is on its way through PulseAudio
        self.process.terminate()
        self.thread.join()
        self.process.wait()
        self.process.stdout.close()
        self.heard = np.frombuffer(b"".join(self.data), np.float32)


def sounding(samples):
    """The part from the first to the last sample that is not silence."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    assert len(loud), "nothing was heard"
    return samples[loud[0] : loud[-1] + 1]


def play(path):
    return subprocess.Popen(["paplay", "--device=microphone", str(path)])


@pytest.fixture
def spoken(tmp_path):
    """A sound file of a second and a half at 1 kHz. The silence before it is what a null sink may swallow."""
    sound = np.concatenate([np.zeros(RATE // 2, np.float32), tone(1.5, hertz=1000, peak=0.5)])
    soundfile.write(tmp_path / "tone.wav", sound, RATE)
    return tmp_path / "tone.wav"


def timed(device, durations):
    """The callback of a device class, noting what it takes of the processor, in seconds."""
    callback = device._callback

    def timing(self, *arguments):
        started = time.thread_time()
        callback(self, *arguments)
        durations.append(time.thread_time() - started)

    return timing


def read_until_quiet(microphone, limit=100):
    """Frames from the first that sounds to the first quiet one after it."""
    frames = []
    for _ in range(limit):
        frame = microphone.read()
        loud = np.abs(frame).max() > 0.01
        if frames and not loud:
            return np.concatenate(frames)
        if loud:
            frames.append(frame)
    raise AssertionError("the tone did not come, or did not end")


def test_microphone_hears(spoken):
    microphone = audio.Microphone(RATE, SIZE)
    try:
        assert np.abs(microphone.read()).max() < 0.01  # it is awake
        player = play(spoken)
        heard = sounding(read_until_quiet(microphone))
        player.wait()
    finally:
        microphone.close()
    assert len(heard) == pytest.approx(1.5 * RATE, abs=0.02 * RATE)
    assert loudest_hertz(heard) == pytest.approx(1000, abs=2)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.05)
    assert microphone.drops == 0


def test_speaker_is_heard_to_the_last_sample():
    with Recorder() as recorder:
        speaker = audio.Speaker(RATE, SIZE, pace=True)
        source = audio.FileSource(tone(1.5, hertz=1000), SIZE)
        loop.run(EchoSession(), source, speaker)
        speaker.close()
        speaker.abort()
    heard = sounding(recorder.heard)
    assert len(heard) == pytest.approx(1.5 * RATE, abs=0.02 * RATE)
    assert loudest_hertz(heard) == pytest.approx(1000, abs=2)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.05)


def test_conversation(spoken, monkeypatch):
    """Microphone to speaker through the loop, with a session that echoes, and callbacks that only copy."""
    durations = []
    for device in (audio.Microphone, audio.Speaker):
        monkeypatch.setattr(device, "_callback", timed(device, durations))
    sounds = []

    def on_frame(frame):
        """Speaks once the device is awake; stops after a second of quiet."""
        sounds.append(np.abs(frame.pcm).max() > 0.01)
        if len(sounds) == 25:
            players.append(play(spoken))
        if any(sounds) and not any(sounds[-25:]):
            stop.set()

    stop, players = threading.Event(), []
    with Recorder() as recorder:
        microphone, speaker = audio.Microphone(RATE, SIZE), audio.Speaker(RATE, SIZE)
        statistics = loop.run(EchoSession(), microphone, speaker, on_frame, steps=200, stop=stop)
        microphone.close()
        speaker.close()
    players[0].wait()
    assert stop.is_set(), "the tone did not come, or did not end"
    assert statistics.input_drops == 0
    heard = sounding(recorder.heard)
    assert len(heard) == pytest.approx(1.5 * RATE, abs=0.02 * RATE)
    assert loudest_hertz(heard) == pytest.approx(1000, abs=2)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.05)
    assert len(durations) > 50
    assert np.median(durations) < 0.001
    assert np.percentile(durations, 99) < 0.005


def test_steady_speaker_runs_on_time():
    """A source in step with the clock: after the device's own buffer has filled, nothing is dropped."""
    microphone, speaker = audio.Microphone(RATE, SIZE), audio.Speaker(RATE, SIZE)
    loop.run(EchoSession(), microphone, speaker, steps=40)
    settled = speaker.drops
    statistics = loop.run(EchoSession(), microphone, speaker, steps=40)
    microphone.close()
    speaker.close()
    assert statistics.input_drops == 0
    assert speaker.drops - settled <= 2


def test_closing_a_microphone_that_is_read():
    microphone = audio.Microphone(RATE, SIZE)
    microphone.read()
    results = []

    def read_to_the_end():
        while (frame := microphone.read()) is not None:
            results.append(frame.shape)

    reader = threading.Thread(target=read_to_the_end)
    reader.start()
    microphone.close()
    reader.join(10)
    assert not reader.is_alive()


def start(*options, folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "moshi_mlx.local", *map(str, options)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(moshi_mlx.__file__).parents[1]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_no_sound_device_is_one_line(tmp_path):
    process = start(folder=tmp_path, PULSE_SERVER="unix:/missing")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("moshi_mlx.local: error: no microphone can be opened")


def test_live_command_until_ctrl_c(tmp_path, spoken):
    """The tiny model hears, speaks and records until Ctrl-C, and the file is whole."""
    process = start("--model", MODEL, "--output", "talk.wav", folder=tmp_path)
    lines = []
    while not lines or "Ctrl-C" not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    play(spoken).wait()
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.splitlines()[-1] == "reply written to talk.wav"
    reply, rate = soundfile.read(tmp_path / "talk.wav")
    frames = int(err.splitlines()[-2].split()[0])
    assert (rate, len(reply)) == (RATE, frames * SIZE)
    assert frames > 5
    assert sorted(os.listdir(tmp_path)) == ["talk.wav", "tone.wav"]
