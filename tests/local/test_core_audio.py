"""The command with devices that behave as a Mac's do, good and bad (tests/core_audio)."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import moshi_mlx

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
MODEL = TESTS / "goldens" / "moshi_tiny"
SIZE = 1920


def environment(**settings):
    paths = [str(TESTS / "core_audio"), str(Path(moshi_mlx.__file__).parents[1])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        **{name: str(value) for name, value in settings.items()},
    }


@contextlib.contextmanager
def command(folder, *options, **settings):
    process = subprocess.Popen(
        [sys.executable, "-m", "moshi_mlx.local", "--model", str(MODEL), "--force", "--json", *options],
        cwd=folder, env=environment(**settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def row(process):
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


def rows_until(process, wanted):
    rows = []
    while not rows or not wanted(rows[-1]):
        rows.append(row(process))
    return rows


def noticed(said):
    return lambda row: any(said in notice for notice in row["notices"])


def test_a_microphone_without_permission_is_reported(tmp_path):
    with command(tmp_path, SOUND=0) as process:
        rows = rows_until(process, noticed("gives nothing but zeros"))
        assert rows[-1]["frame"] >= 20
        (line,) = rows[-1]["notices"]
        assert "MacBook Pro Microphone" in line
        assert ("System Settings > Privacy & Security > Microphone" in line) == (sys.platform == "darwin")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert err.count(line) == 1


def test_a_microphone_that_hears_is_not_reported(tmp_path):
    with command(tmp_path, "--steps", "40", SOUND=0.1) as process:
        out, _ = process.communicate(timeout=60)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 40
    assert not any("zeros" in notice for row in rows for notice in row["notices"])
    assert all(20 + 20 + 80 < row["latency_ms"] < 2000 for row in rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_files_are_closed_before_a_device_that_takes_its_time(tmp_path, number):
    files = ("--output", "reply.wav", "--record", "talk.wav", "--trace", "trace.json", "--transcript", "talk.txt")
    with command(tmp_path, *files, STOP=2.5) as process:
        for _ in range(5):
            row(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert sorted(os.listdir(tmp_path)) == ["reply.wav", "talk.json", "talk.txt", "talk.wav", "trace.json"]
    frames = soundfile.info(tmp_path / "reply.wav").frames
    assert frames == soundfile.info(tmp_path / "talk.wav").frames == (5 + len(out.splitlines())) * SIZE
    assert "reply written to reply.wav" in err


def test_once_all_is_kept_another_signal_ends_at_once(tmp_path):
    with command(tmp_path, "--output", "reply.wav", STOP=600) as process:
        for _ in range(5):
            row(process)
        process.send_signal(signal.SIGINT)
        for line in process.stderr:
            if line.startswith("reply written"):
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert soundfile.info(tmp_path / "reply.wav").frames >= 5 * SIZE


def test_a_stream_that_ends_is_noticed_at_once_and_sound_comes_back(tmp_path):
    """Its device is gone, PortAudio calls it active for ever, and does not start again at the first tries."""
    with command(tmp_path, ENDS=2, DOWN=2) as process:
        rows = rows_until(process, noticed("sound is back"))
        notices = [notice for row in rows for notice in row["notices"]]
        assert any("microphone 'MacBook Pro Microphone' is gone" in notice for notice in notices)
        after = [row(process) for _ in range(3)]
        assert [r["frame"] for r in after] == [rows[-1]["frame"] + n for n in (1, 2, 3)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_devices_with_any_number_of_channels_are_used(tmp_path, channels):
    with command(tmp_path, "--steps", "5", "--record", "talk.wav", CHANNELS=channels) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    talk, _ = soundfile.read(tmp_path / "talk.wav")
    assert talk[2400:, 0] == pytest.approx(0.1, abs=1e-3)


def test_a_demo_is_heard_and_written(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "moshi_mlx.local", "--demo", "--steps", "10"], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "nothing is played" not in process.stderr
    assert process.stderr.splitlines()[-1] == "reply written to reply.wav"
    assert soundfile.info(tmp_path / "reply.wav").frames == 10 * SIZE


# On a terminal


class Screen:
    """A pseudo-terminal, and all that was drawn on it."""

    def __init__(self, folder, *options, **settings):
        self.ours, theirs = pty.openpty()
        self.theirs = theirs
        self.seen, self._changed = "", threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moshi_mlx.local", "--model", str(MODEL), "--force", *options], cwd=folder,
            env=environment(TERM="xterm", COLUMNS="100", LINES="30", **settings), stdin=theirs, stdout=theirs,
            stderr=theirs, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with contextlib.suppress(OSError):
            while data := os.read(self.ours, 65536):
                with self._changed:
                    self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode(errors="replace"))
                    self._changed.notify_all()

    def wait_for(self, said, timeout=30):
        with self._changed:
            assert self._changed.wait_for(lambda: said in self.seen, timeout), self.seen[-2000:]
            self.seen = self.seen[self.seen.index(said) + len(said) :]

    def press(self, keys):
        os.write(self.ours, keys.encode())

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.theirs)
        os.close(self.ours)


@pytest.fixture
def screen(tmp_path):
    opened = []

    def open_screen(*options, **settings):
        opened.append(Screen(tmp_path, *options, **settings))
        return opened[-1]

    yield open_screen
    for one in opened:
        one.close()


def test_keys_do_what_they_say_and_the_terminal_is_given_back(screen):
    shown = screen("--user-file", str(TESTS / "goldens" / "question.flac"))
    before = termios.tcgetattr(shown.theirs)
    shown.wait_for("q quit")
    for key, said in (("-", "volume 90%"), ("m", "MUTED"), ("m", "m mute"), ("p", "HOLD SPACE TO TALK"),
                      ("r", "new conversation (seed ")):  # fmt: skip
        shown.press(key)
        shown.wait_for(said)
    shown.press("q")
    assert shown.process.wait(20) == 0
    assert termios.tcgetattr(shown.theirs) == before


def test_what_others_write_to_the_terminal_stands_among_the_words(screen):
    shown = screen(NOISE="ALSA lib pcm.c:2721: cannot open", ENDS=2)
    shown.wait_for("is gone")
    shown.wait_for("ALSA lib pcm.c:2721: cannot open")
    shown.wait_for("sound is back")
    shown.press("q")
    assert shown.process.wait(20) == 0


def test_push_to_talk_is_silence_until_the_key_is_pressed(screen, tmp_path):
    shown = screen("--push-to-talk", "--record", "talk.wav")
    shown.wait_for("HOLD SPACE TO TALK")
    time.sleep(0.5)
    shown.press(" ")
    time.sleep(0.5)
    shown.press("q")
    assert shown.process.wait(20) == 0
    talk, _ = soundfile.read(tmp_path / "talk.wav")
    heard = abs(talk[:, 0]).reshape(-1, SIZE).max(axis=1) > 0.05
    assert not heard[0]
    assert heard.any()


def test_push_to_talk_needs_a_terminal(tmp_path):
    with command(tmp_path, "--push-to-talk") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--push-to-talk needs a terminal" in err


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_the_keys_again(screen):
    shown = screen()
    shown.wait_for("q quit")
    assert not termios.tcgetattr(shown.theirs)[3] & termios.ICANON
    shown.process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(shown.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert termios.tcgetattr(shown.theirs)[3] & termios.ICANON
    shown.seen = ""
    shown.process.send_signal(signal.SIGCONT)
    shown.wait_for("q quit")
    assert not termios.tcgetattr(shown.theirs)[3] & termios.ICANON
    shown.press("q")
    assert shown.process.wait(20) == 0


def test_a_terminal_that_is_closed_ends_the_conversation_and_keeps_it(screen, tmp_path):
    shown = screen("--record", "talk.wav", "--output", "reply.wav")
    shown.wait_for("q quit")
    os.close(shown.theirs)
    os.close(shown.ours)
    shown.process.send_signal(signal.SIGHUP)
    assert shown.process.wait(20) == 0
    shown.ours, shown.theirs = pty.openpty()
    assert soundfile.info(tmp_path / "reply.wav").frames == soundfile.info(tmp_path / "talk.wav").frames > 0


@pytest.mark.parametrize(("shown", "said"), [("stderr", " of 47 s of sound, "), ("both", "0:00:46, 0:00:0")])
def test_a_long_file_shows_how_far_it_is_and_the_time_that_is_left(tmp_path, shown, said):
    import fcntl
    import struct

    question, rate = soundfile.read(TESTS / "goldens" / "question.flac")
    soundfile.write(tmp_path / "long.wav", np.tile(question, 12), rate)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "moshi_mlx.local", "--model", MODEL, "--input", "long.wav", "--output", "o.wav",
         "--tail", "3.5", "--steps", "100"], cwd=tmp_path, env=environment(TERM="xterm"), stderr=theirs,
        stdout=theirs if shown == "both" else subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):
        while data := os.read(ours, 65536):
            seen += data
    os.close(ours)
    assert process.wait(20) == 0
    assert said in seen.decode()
    assert " left" in seen.decode()
