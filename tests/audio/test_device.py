"""Microphone and speaker on a sound card; tests/virtual_sound.sh makes one where there is none."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from stand_ins import EchoSession, loudest_hertz, tone

import moshi_mlx
from moshi_mlx.audio import files, portaudio
from moshi_mlx.audio.devices import Microphone, Speaker
from moshi_mlx.conversation import loop
from moshi_mlx.local.live import Conversation

pytestmark = [pytest.mark.device, pytest.mark.slow]

RATE, SIZE = 24_000, 1920
TESTS = Path(__file__).parents[1]
MODEL, QUESTION = TESTS / "goldens" / "moshi_tiny", TESTS / "goldens" / "question.flac"


def virtual_sound_is_there():
    try:
        said = subprocess.run(["pactl", "info"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return False
    return "Default Sink: speaker\n" in said and "Default Source: microphone.monitor\n" in said


@pytest.fixture(autouse=True)
def virtual_sound():
    """In CI on Linux, which provides one, these tests are never skipped; other systems have none."""
    if virtual_sound_is_there():
        return
    missing = "no virtual sound card; run tests/virtual_sound.sh"
    if os.environ.get("CI") == "true" and sys.platform == "linux":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="module")
def model():
    """MLX's threads, which its first frame starts, are no test's."""
    model = moshi_mlx.load(MODEL, dtype=mx.float32)
    model.session().step(np.zeros(SIZE, np.float32))
    return model


@pytest.fixture(autouse=True)
def nothing_stays(virtual_sound, model):
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


@contextlib.contextmanager
def conversation(notices=None, **settings):
    notices = [] if notices is None else notices
    speaker = Speaker(RATE, SIZE, **settings)
    microphone = Microphone(RATE, SIZE, **settings)
    talk = Conversation(microphone, speaker, 0.4, notices.append)
    try:
        yield talk
    finally:
        talk.close()


def test_a_spoken_question_is_answered_sample_for_sample(tmp_path, model):
    """The virtual speaker plays what the Session gave for the frames that it heard, and it heard the question."""
    question = files.read_sound(QUESTION, RATE)
    soundfile.write(tmp_path / "spoken.wav", np.pad(question, (RATE // 2, RATE)), RATE, subtype="FLOAT")
    session = model.session()
    moments, players, stop = [], [], threading.Event()

    def observe(moment):
        moments.append(moment)
        if moment.number == 10:
            players.append(play(tmp_path / "spoken.wav"))
        if moment.number > 10 + len(question) // SIZE + 30:
            stop.set()

    with Recorder() as recorder, conversation() as talk:
        loop.run(session, talk, talk.voice, [observe], stop=stop)
        time.sleep(0.3)
    players[0].wait()
    again = model.session()
    expected = [again.step(moment.heard).pcm for moment in moments]
    np.testing.assert_array_equal(np.stack([m.said for m in moments]), np.stack(expected))
    heard = np.concatenate([moment.heard for moment in moments])
    check_whole(question, heard, talk)
    check_whole(np.concatenate([m.said for m in moments[:-12]]), recorder.heard, talk.voice)


def check_whole(wanted, stream, end, size=480):
    """All of `wanted` occurs, sample for sample, in `stream`, except around what `end` declares as dropped."""
    pieces = [piece for piece in wanted[: len(wanted) // size * size].reshape(-1, size) if np.abs(piece).max() > 1e-3]
    assert len(pieces) > 50
    missing = [not occurs(piece, stream) for piece in pieces]
    runs = sum(now and not before for before, now in zip([False, *missing], missing, strict=False))
    assert runs <= 2 * end.drops  # a gap has two ends
    assert sum(missing) * size / RATE <= end.lost_seconds + 0.1 * end.drops
    assert not all(missing)


def occurs(piece, stream):
    loudest = int(np.argmax(np.abs(piece)))
    candidates = np.flatnonzero(np.abs(stream - piece[loudest]) < 1e-6) - loudest
    return any(
        0 <= start <= len(stream) - len(piece) and np.abs(stream[start : start + len(piece)] - piece).max() < 1e-6
        for start in candidates
    )


@pytest.mark.parametrize("rate", [None, 48_000])
def test_conversation_at_the_device_s_rate(tmp_path, rate):
    """Microphone to speaker through the loop, with a session that echoes; PulseAudio and we resample."""
    soundfile.write(tmp_path / "tone.wav", np.pad(tone(1.0, hertz=1000), (RATE // 2, 0)), RATE)
    sounds, players, stop = [], [], threading.Event()

    def observe(moment):
        """Speaks once the device is awake; stops after most of a second of quiet."""
        sounds.append(np.abs(moment.heard).max() > 0.01)
        if len(sounds) == 10:
            players.append(play(tmp_path / "tone.wav"))
        if any(sounds) and not any(sounds[-10:]):
            stop.set()

    with Recorder() as recorder, conversation(device_rate=rate) as talk:
        assert talk.microphone.rate == (rate or RATE)
        loop.run(EchoSession(), talk, talk.voice, [observe], steps=150, stop=stop)
        time.sleep(0.3)
    players[0].wait()
    assert stop.is_set(), "the tone did not come, or did not end"
    heard = sounding(recorder.heard)
    assert len(heard) == pytest.approx(RATE, abs=0.25 * RATE)  # less what was dropped, more what was waited for
    assert loudest_hertz(heard) == pytest.approx(1000, abs=5)


def test_ten_starts_and_stops_leave_nothing():
    """`nothing_stays` looks for threads and streams."""
    import sounddevice

    for n in range(10):
        with conversation() as talk:
            if n % 5 == 0:
                talk.read()
    assert sounddevice._initialized == 1


def test_devices_are_listed_and_chosen_by_name_and_number():
    listed = portaudio.devices()
    (default,) = [device for device in listed if "Output" in device.default_for]
    assert "default microphone and speaker" in str(default)
    pulse = portaudio.find("PULS", "Input")
    assert portaudio.find(str(pulse.number), "Output").name == pulse.name == "pulse"
    for wanted in ("no such thing", "99"):
        with pytest.raises(moshi_mlx.AudioError, match="--list-devices shows them"):
            portaudio.find(wanted, "Output")


# The device goes away


def unload(sink):
    """As when a device is pulled out: PulseAudio would move a stream elsewhere, other systems end it."""
    modules = subprocess.run(["pactl", "list", "short", "modules"], capture_output=True, text=True).stdout
    (number,) = [line.split()[0] for line in modules.splitlines() if f"sink_name={sink} " in line + " "]
    ours = {line.split()[0] for line in streams()}
    subprocess.run(["pactl", "unload-module", number], check=True)
    for index in ours:
        subprocess.run(["pacmd", "kill-sink-input", index], check=False, capture_output=True)


def streams():
    listed = subprocess.run(["pactl", "list", "short", "sink-inputs"], capture_output=True, text=True).stdout
    return listed.splitlines()


def back():
    subprocess.run(["bash", TESTS / "virtual_sound.sh"], check=True)


def test_vanished_speaker_is_said_and_the_conversation_goes_on():
    """The sink is unloaded, its stream with it: another default takes its place, and the state is kept."""
    notices, moments, stop, session = [], [], threading.Event(), EchoSession()

    def observe(moment):
        moments.append(len(notices))
        if moment.number == 10:
            unload("speaker")
        if len(notices) > 1 and moments.count(len(notices)) > 5:
            stop.set()

    try:
        with conversation(notices) as talk:
            loop.run(session, talk, talk.voice, [observe], steps=300, stop=stop)
    finally:
        back()
    assert "is gone" in notices[0]
    assert "sound is back" in notices[1]
    assert len(session.heard) == len(moments) > 15


def test_conversation_waits_for_a_sound_system_that_is_gone(tmp_path):
    """No device is left at all; it is back a while later."""
    process = start("--model", MODEL, "--json", "--force", folder=tmp_path)
    try:
        wait_for(process.stderr, "talk now")
        for _ in range(10):
            process.stdout.readline()
        subprocess.run(["pulseaudio", "--kill"], check=True)
        wait_for(process.stderr, "is gone")
        back()
        wait_for(process.stderr, "is back")
        later = [json.loads(process.stdout.readline()) for _ in range(20)]
    finally:
        back()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert [row["frame"] for row in later] == list(range(later[0]["frame"], later[0]["frame"] + 20))
    assert not any(row["reset"] for row in later)
    assert process.returncode == 0


# The command


def start(*options, folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "moshi_mlx.local", *map(str, options)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(moshi_mlx.__file__).parents[1]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(stream, said):
    lines = []
    while not lines or said not in lines[-1]:
        lines.append(stream.readline())
        assert lines[-1], lines


def test_no_sound_device_is_one_line(tmp_path):
    process = start(folder=tmp_path, PULSE_SERVER="unix:/missing")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("moshi_mlx.local: error: no ")
    assert "can be opened" in line


def test_list_devices(tmp_path):
    out, _ = start("--list-devices", folder=tmp_path).communicate(timeout=60)
    assert "pulse (ALSA)" in out


def test_live_command_until_ctrl_c(tmp_path):
    """The tiny model hears, speaks and records until Ctrl-C, and every file is whole."""
    options = ("--output", "reply.wav", "--record", "talk.wav", "--trace", "trace.json", "--user-file", QUESTION)
    process = start("--model", MODEL, "--force", "--json", *options, folder=tmp_path)
    rows = [json.loads(process.stdout.readline()) for _ in range(25)]
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 5  # its own second is what test_interrupt.py is about
    assert process.returncode == 0, err
    assert "Traceback" not in err
    rows += [json.loads(line) for line in out.splitlines()]
    talk, rate = soundfile.read(tmp_path / "talk.wav")
    reply, _ = soundfile.read(tmp_path / "reply.wav")
    assert (rate, len(talk), len(reply)) == (RATE, len(rows) * SIZE, len(rows) * SIZE)
    np.testing.assert_allclose(talk[:, 1], reply, atol=1e-4)
    question = files.read_sound(QUESTION, RATE)
    count = min(len(question), len(talk))
    np.testing.assert_allclose(talk[:count, 0], question[:count], atol=1e-4)
    words = json.loads((tmp_path / "talk.json").read_text())["words"]
    text = "".join(row["text"] for row in rows)
    assert [word["word"] for word in words] == text.split()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "step" for event in events) == len(rows)
    assert {event["tid"] for event in events if event["name"] == "block"} == {1, 2}
    assert sorted(os.listdir(tmp_path)) == ["reply.wav", "talk.json", "talk.wav", "trace.json"]
