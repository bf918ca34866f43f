"""python -m moshi_mlx.translate: files, standard streams, the microphone, and what is wrong with any of it."""

import json
import os
import signal
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from batching import sound
from family import FAMILY, ROLES, loaded
from stand_ins import ListSink, RingSource

from moshi_mlx.audio import devices as sound_devices
from moshi_mlx.audio import files
from moshi_mlx.errors import AudioError
from moshi_mlx.local import __main__ as local
from moshi_mlx.local import ends
from moshi_mlx.machine import preflight
from moshi_mlx.roles.translator import Translator
from moshi_mlx.translate import run
from moshi_mlx.translate.__main__ import main

RATE, SIZE = 24_000, 1920
HIBIKI = ["--model", str(FAMILY / "hibiki"), "--seed", "4", "--tail", "1"]
IN_OUT = ["in.wav", "--output", "out.wav", *HIBIKI]


@pytest.fixture
def heard(tmp_path, monkeypatch):
    """A folder to work in, with eight frames and a bit of noise in in.wav."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moshi_mlx.conversation.session.Session._build_kernels", lambda self, progress: None)
    monkeypatch.setattr(preflight, "wait", lambda seconds: None)
    samples = sound(0, 9).reshape(-1)[:-900]
    soundfile.write("in.wav", samples, RATE, subtype="FLOAT")
    return samples


def written(name="out.wav"):
    samples, rate = soundfile.read(name, dtype="float32")
    assert rate == RATE
    return samples


def test_a_file_is_translated_as_in_python(heard, capsys):
    assert main([*IN_OUT, "--transcript", "words.json"]) == 0
    said, text = loaded("hibiki").translate(heard, seed=4, tail=1, progress=False)
    np.testing.assert_allclose(written(), np.clip(said, -1, 1), atol=1e-4)
    out, err = capsys.readouterr()
    assert out.strip() == text
    assert "reply written to out.wav" in err
    assert "you:" not in err
    words = json.loads(Path("words.json").read_text())["lines"]
    assert "".join(line["text"] for line in words).replace(" ", "") == text.replace(" ", "")


def test_of_any_rate_and_number_of_channels(heard):
    there = np.repeat(heard, 2)
    soundfile.write("in.flac", np.stack([there, there], axis=1), 48_000)
    assert main(["in.flac", *IN_OUT[1:]]) == 0
    assert len(written()) >= len(heard)


def test_guidance_and_conditions_change_it_and_the_usual_ones_do_not(heard, capsys):
    said = {}
    for name, flags in {"plain": [], "one": ["--guidance", "1"], "usual": ["--condition", "description=very_good"],
                        "three": ["--guidance", "3"], "bad": ["--condition", "description=bad"]}.items():  # fmt: skip
        assert main([*IN_OUT, "--overwrite", *flags]) == 0
        said[name] = (capsys.readouterr().out, written().tolist())
    assert said["plain"] == said["one"] == said["usual"]
    assert said["plain"] not in (said["three"], said["bad"])
    assert said["three"] != said["bad"]


def test_one_that_does_not_end_is_cut_and_that_is_said(heard, capsys, monkeypatch):
    monkeypatch.setattr("moshi_mlx.roles.translator.END", -7)
    assert main(IN_OUT) == 0
    assert "the model went on after 1 s: cut off there (--tail)" in capsys.readouterr().err
    config = loaded("hibiki").config
    assert len(written()) == (9 + 13 + max(config.audio_delays[: config.num_codebooks])) * SIZE


@pytest.mark.slow
def test_standard_streams(heard):
    import subprocess
    import sys

    command = [sys.executable, "-m", "moshi_mlx.translate", "-", "--output", "-", *HIBIKI]
    done = subprocess.run(command, input=Path("in.wav").read_bytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout[:4] == b"RIFF"
    assert b"loaded in" in done.stderr
    raw = files.pcm16(heard)
    done = subprocess.run([*command, "--raw"], input=raw, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > len(raw)


def test_without_a_speaker_the_words_are_there_all_the_same(heard, capsys, monkeypatch):
    def none(*given, **more):
        raise AudioError("no speaker")

    monkeypatch.setattr(sound_devices, "Speaker", none)
    assert main(["in.wav", *HIBIKI]) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    assert "nothing is played: no speaker (--output FILE.wav writes the translation)" in err
    assert main(["in.wav", *HIBIKI, "--output-device", "USB"]) == 2
    assert capsys.readouterr().err.endswith("moshi_mlx.translate: error: no speaker\n")


WRONG = {
    "nothing": ([], "nothing to translate: give a sound file, - for standard input, or --live"),
    "both": (["in.wav", "--live"], "--live is the microphone, but in.wav is a sound file: give one of them"),
    "missing": (["other.wav", "--output", "out.wav", *HIBIKI], "other.wav: cannot be read: No such file"),
    "no sound": (["words.txt", "--output", "out.wav", *HIBIKI], "words.txt: "),
    "no folder": (["in.wav", "--output", "no/out.wav", *HIBIKI], "no/out.wav: cannot be written"),
    "no wav": (["in.wav", "--output", "out.mp3", *HIBIKI], "out.mp3: the reply is written as WAV"),
    "the same": (["in.wav", "--output", "in.wav", *HIBIKI], "FILE and --output are the same file: in.wav"),
    "no number": (["in.wav", "--guidance", "much"], "--guidance: got 'much', expected a number of at least 0"),
    "no condition": (["in.wav", "--condition", "good"], "--condition: got 'good', expected NAME=VALUE"),
    "another": ([*IN_OUT, "--condition", "mood=good"], "conditions: got 'mood', expected one of description"),
    "no value": ([*IN_OUT, "--condition", "description=great"], "'description' got 'great', expected one of very_bad"),
    "tail": (["in.wav", "--tail", "1000"], "--tail: got '1000', expected a number of at least 0"),
    "microphone": (["in.wav", "--echo-cancel"], "--echo-cancel is about the microphone, which FILE takes the place of"),
    "raw": (["in.wav", "--raw"], "--raw needs - or --output -"),
    "live to standard output": (["--live", "--output", "-"], "--output - needs FILE"),
    "voice": (["in.wav", "--voice", "moshika"], "--voice moshika"),
    "persona": (["in.wav", "--persona", "a pirate"], "--persona"),
    "guided Zero": (
        [*IN_OUT[:3], "--model", str(FAMILY / "hibiki_zero"), "--guidance", "3"],
        "guidance: got 3, but this model takes no conditions to guide by",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_line(heard, capsys, wrong):
    Path("words.txt").write_text("no sound")
    arguments, message = WRONG[wrong]
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert last.startswith("moshi_mlx.translate: error: ")
    assert message in last
    assert sorted(os.listdir()) == ["in.wav", "words.txt"]


@pytest.mark.parametrize("role", sorted(set(ROLES) - {"translator"}))
def test_another_role_is_named_with_what_runs_it(heard, capsys, role):
    assert main([*IN_OUT[:3], "--model", str(FAMILY / ROLES[role])]) == 2
    command = {"dialogue": "local", "transcriber": "transcribe", "speaker": "say"}[role]
    assert f"expected a translator (Hibiki); python -m moshi_mlx.{command} runs it" in capsys.readouterr().err
    assert os.listdir() == ["in.wav"]


@pytest.mark.parametrize("role", sorted(set(ROLES) - {"dialogue"}))
def test_moshis_own_command_says_what_runs_the_others(heard, capsys, role):
    assert local.main(["--input", "in.wav", "--output", "out.wav", "--model", str(FAMILY / ROLES[role])]) == 2
    command = {"translator": "translate", "transcriber": "transcribe", "speaker": "say"}[role]
    assert f"expected a dialogue model (Moshi); python -m moshi_mlx.{command} runs it" in capsys.readouterr().err
    assert os.listdir() == ["in.wav"]


# --- live -----------------------------------------------------------------------------------------------------------


class Devices(RingSource):
    """A stand-in for both devices: the microphone hears four frames of noise, the speaker keeps what it gets."""

    def __init__(self):
        super().__init__(4)
        self.ring.push(sound(1, 4).reshape(-1))
        self.voice = self.speaker = ListSink()


@pytest.fixture
def devices(monkeypatch):
    talk = Devices()

    def device(*given, **more):
        common = {"close": lambda: None, "wait_running": lambda: True, "played": list}
        return types.SimpleNamespace(name="USB", note=None, volume=1.0, **common)

    monkeypatch.setattr(sound_devices, "Microphone", device)
    monkeypatch.setattr(sound_devices, "Speaker", device)
    monkeypatch.setattr(ends, "Conversation", lambda *given: talk)
    return talk


def test_live_it_is_brought_to_its_end(heard, devices, capsys):
    assert main(["--live", *HIBIKI[:-1], "0.16", "--output", "out.wav"]) == 0
    assert 4 < len(devices.speaker.frames) <= 4 + 2 + 3
    np.testing.assert_allclose(written(), np.clip(np.concatenate(devices.speaker.frames), -1, 1), atol=1e-4)
    assert "speak now; q or Ctrl-C ends the source" in capsys.readouterr().err


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_source_and_again_the_translation(heard, devices, capsys, monkeypatch, times):
    step, frames = Translator.step, []

    def stepping(self, pcm):
        frames.append(self.over)
        if len(frames) == 2 or (times == 2 and self.over):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, pcm)

    monkeypatch.setattr(Translator, "step", stepping)
    monkeypatch.setattr(preflight, "time_live", lambda session: [0.01])
    monkeypatch.setattr("moshi_mlx.roles.translator.END", -7)  # it goes on for longer than a signal usually may take
    status = main(["--live", *HIBIKI, "--output", "out.wav"])
    assert status == (0 if times == 1 else 130)
    over = frames.count(True)
    assert frames.count(False) == 2  # of the four that the microphone has
    assert over >= 14 if times == 1 else over == 1
    assert len(written()) == (2 + over - (times == 2)) * SIZE


def test_silence_comes_at_the_pace_of_devices_and_what_was_lost_is_of_the_source():
    translator = loaded("hibiki").translator(progress=False, tail=0.24)
    now, waited = [10.0], []

    class Stop:
        def wait(self, seconds):
            waited.append(round(seconds, 3))
            now[0] += seconds

    source = types.SimpleNamespace(read=iter([np.zeros(SIZE, np.float32), None]).__next__, drops=2, lost_seconds=0.5,
                                   backlog=1.0, latency=0.3, expected=7)  # fmt: skip
    ending = run.Ending(source, translator, Stop(), lambda: now[0])
    assert (ending.drops, ending.latency, ending.backlog, ending.expected) == (2, 0.3, 1.0, 7)
    translator.step(ending.read())
    while (pcm := ending.read()) is not None:
        source.drops = 9
        assert ending.drops == 2
        translator.step(pcm)
        now[0] += 0.01  # what a step takes
    assert (ending.lost_seconds, ending.latency, ending.backlog) == (0.5, None, 0.0)
    assert waited[0] == 0.08
    assert set(waited[1:]) == {0.07}


def test_a_stop_ends_the_wait():
    translator = loaded("hibiki").translator(progress=False)
    stop = threading.Event()
    stop.set()
    source = types.SimpleNamespace(read=lambda: None, drops=0, lost_seconds=0.0)
    ending = run.Ending(source, translator, stop)
    for _ in range(50):
        assert ending.read() is not None
