"""The command on the tiny checkpoint: files of any kind, the microphone, transcripts, and what it refuses."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import GOLDENS

import moshi_mlx
from moshi_mlx.audio.devices import DeviceLost
from moshi_mlx.errors import AudioError
from moshi_mlx.machine import preflight
from moshi_mlx.roles.hearing import EndWord, Word
from moshi_mlx.roles.listener import Step
from moshi_mlx.roles.pauses import EndPause, Pause
from moshi_mlx.roles.transcript import Transcript
from moshi_mlx.transcribe import __main__ as command
from moshi_mlx.transcribe import options, run, view
from moshi_mlx.transcribe.live import Listening

RATE, SIZE = 24_000, 1920
STT, WITHOUT_HEADS = str(GOLDENS / "family" / "stt"), str(GOLDENS / "family" / "stt_no_heads")
ROOT = Path(__file__).parents[2]


def noise(frames, channels=1, rate=RATE):
    return np.random.default_rng(0).normal(0, 0.1, (round(frames * 0.08 * rate), channels)).astype(np.float32)


@pytest.fixture(scope="module")
def loaded():
    return {name: moshi_mlx.load(name, dtype="float32") for name in (STT, WITHOUT_HEADS)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, loaded):
    """A folder to work in, with thirty frames in in.wav; models are loaded once."""
    monkeypatch.chdir(tmp_path)
    load = moshi_mlx.load
    monkeypatch.setattr(moshi_mlx, "load", lambda name: loaded[name] if name in loaded else load(name))
    soundfile.write("in.wav", noise(30.5), RATE, subtype="FLOAT")


def main(*arguments, model=STT):
    return command.main([*map(str, arguments), "--model", model])


def refused(capsys, *arguments, model=STT):
    """The line that a command is refused with."""
    with contextlib.suppress(SystemExit):  # a wrong flag, after which argparse ends the program with status 2
        assert main(*arguments, model=model) == 2
    out, err = capsys.readouterr()
    *_, line = err.splitlines()
    assert line.startswith("moshi_mlx.transcribe: error: ")
    assert out == ""
    return line


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file(loaded, capsys):
    assert main("in.wav", "--output", "out.json") == 0
    out, err = capsys.readouterr()
    content = json.loads(Path("out.json").read_text())
    expected = loaded[STT].transcribe("in.wav")
    assert content["text"] == str(expected)
    assert content["seconds"] == 2.44
    assert len(content["pause_probabilities"]) == 31
    assert "".join(out.split()).replace("[00:00:00.000]", "") == "".join(content["text"].split())
    assert "in.wav: 2.4 s of sound in" in err
    assert "transcript written to out.json" in err


@pytest.mark.parametrize("model", [STT, WITHOUT_HEADS])
@pytest.mark.parametrize(("channels", "rate", "kind"), [(2, 44_100, "wav"), (1, 8000, "wav"), (1, 48_000, "flac")])
def test_any_rate_and_channels(loaded, capsys, model, channels, rate, kind):
    soundfile.write(f"other.{kind}", noise(30, channels, rate), rate)
    assert main(f"other.{kind}", "--output", "out.txt", model=model) == 0
    assert Path("out.txt").read_text() == loaded[model].transcribe(f"other.{kind}").as_txt()
    assert f"other.{kind}: 2.4 s of sound" in capsys.readouterr().err


@pytest.mark.parametrize("model", [STT, WITHOUT_HEADS])
def test_silence_in_stereo(loaded, capsys, model):
    soundfile.write("silent.wav", np.zeros((44_100, 2), np.float32), 44_100)
    assert main("silent.wav", "--output", "out.srt", "--quiet", model=model) == 0
    assert capsys.readouterr().err == ""
    assert Path("out.srt").read_text() == loaded[model].transcribe("silent.wav").as_srt()


def test_several_files_have_their_names_and_transcripts_beside_them(loaded, capsys):
    os.mkdir("there")
    soundfile.write("there/second.flac", noise(20), RATE)
    assert main("in.wav", "there/second.flac", "--output", ".srt") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "== in.wav"
    assert "\n== there/second.flac\n" in out
    for sound in ("in.wav", "there/second.flac"):
        assert Path(sound).with_suffix(".srt").read_text() == loaded[STT].transcribe(sound).as_srt()


def test_what_is_there_is_kept(capsys):
    Path("in.txt").write_text("mine")
    assert main("in.wav", "--output", ".txt") == 0
    assert "in.txt is there already: this goes to in-2.txt (--overwrite replaces)" in capsys.readouterr().err
    assert Path("in.txt").read_text() == "mine"
    assert main("in.wav", "--output", "in.txt", "--overwrite") == 0
    assert Path("in.txt").read_text() == Path("in-2.txt").read_text()
    assert sorted(os.listdir()) == ["in-2.txt", "in.txt", "in.wav"]


def test_json_lines(loaded, capsys):
    assert main("in.wav", "--json", "--pauses") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    words = [row for row in rows if row["event"] == "word"]
    transcript = loaded[STT].transcribe("in.wav")
    assert "".join(word["text"] for word in words) == "".join(said.word for said in transcript.words)
    steps = [row for row in rows if row["event"] == "step"]
    assert len(steps) == 31 + 19
    assert all(len(step["pauses"]) == 4 for step in steps)
    assert main("in.wav", "--json") == 0
    kinds = {json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()}
    assert kinds <= {"word", "end_word", "pause", "end_pause"}


def test_settings_reach_the_model(loaded, capsys):
    given = ["--temperature", "0.9", "--seed", "3", "--codebooks", "5", "--context", "20", "--refresh", "never"]
    assert main("in.wav", "--output", "out.txt", *given) == 0
    expected = loaded[STT].transcribe("in.wav", 3, temperature=0.9, codebooks=5, context=20, refresh=None)
    assert Path("out.txt").read_text() == expected.as_txt()
    assert main("in.wav", "--output", "other.txt", "--refresh", "0.5") == 0
    assert Path("other.txt").read_text() == loaded[STT].transcribe("in.wav", refresh=0.5).as_txt()


@pytest.mark.slow
def test_standard_input_and_output_in_processes():
    run_it = f"'{sys.executable}' -m moshi_mlx.transcribe --model {STT} --quiet"
    raw = (noise(30)[:, 0] * 32767).astype("<i2")
    raw.tofile("raw")
    soundfile.write("raw.wav", raw, RATE, subtype="PCM_16")
    ways = ["raw.wav", "- < raw.wav", "in.wav | head -c 1", "in.wav >&-", "in.wav > /dev/full", "- </dev/null"]
    lines = [f"cat raw | {run_it} - --raw", *(f"{run_it} {way}" for way in ways)]
    statuses = [f"{line}; exit ${{PIPESTATUS[{int(line.startswith('cat'))}]}}" for line in lines]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = [subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment) for line in statuses]
    assert done[0].stdout
    assert done[0].stdout == done[1].stdout == done[2].stdout
    assert [one.returncode for one in done] == [0, 0, 0, 0, 0, 0, 2]
    assert all("Traceback" not in one.stderr for one in done)
    assert done[6].stderr.count("\n") == 1


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to write down"),
        (["--live", "in.wav"], "--live is the microphone, but in.wav is a sound file"),
        (["-", "-"], "which can be read once"),
        (["in.wav", "--raw"], "--raw needs -"),
        (["in.wav", "--input-device", "3"], "--input-device needs --live"),
        (["in.wav", "--device-rate", "48000"], "--device-rate needs --live"),
        (["--live", "--output", ".srt"], "beside a sound file"),
        (["in.wav", "in.wav", "--output", "out.srt"], "is one file, but there are 2 sounds; --output .srt"),
        (["in.wav", "--refresh", "2"], "expected a number from 0.1 to 1, or never"),
        (["in.wav", "--temperature", "-1"], "--temperature"),
        (["in.wav", "--temperature", "nan"], "--temperature"),
        (["in.wav", "--kv-bits", "5"], "--kv-bits"),
        (["in.wav", "--what"], "--what"),
        (["no.wav"], "no.wav: cannot be read: No such file or directory"),
        (["in.wav", "no.wav"], "no.wav: cannot be read: No such file or directory"),
        (["."], "is a folder"),
        (["in.wav", "--output", "out.doc"], "out.doc: a transcript is .txt, .srt or .json"),
        (["in.wav", "--output", "no/out.txt"], "there is no folder no"),
        (["in.wav", "--codebooks", "9"], "got 9, expected at most the 8 that this model hears"),
        (["in.wav", "--context", "25"], "context: got 25, expected 1 to 24"),
    ],
)
def test_what_is_refused(capsys, arguments, said):
    assert said in refused(capsys, *arguments)
    assert os.listdir() == ["in.wav"]


@pytest.mark.parametrize("content", [b"", b"no sound at all", b"RIFF"])
def test_what_is_no_sound(capsys, content):
    Path("odd.wav").write_bytes(content)
    assert "odd.wav" in refused(capsys, "odd.wav")


def test_another_model(capsys):
    line = refused(capsys, "in.wav", model=str(GOLDENS / "moshi_tiny"))
    assert "got a dialogue model (Moshi), expected a transcriber (STT)" in line
    assert "python -m moshi_mlx.local runs it" in line


def test_a_model_that_is_missing(capsys):
    assert "no such folder" in refused(capsys, "in.wav", model="no/such/model/here")


def test_too_small_a_machine(capsys, monkeypatch):
    monkeypatch.setattr(preflight, "usable_bytes", lambda: 1000)
    assert "go on all the same with --force" in refused(capsys, "in.wav")
    assert main("in.wav", "--force") == 0
    assert "warning: " in capsys.readouterr().err


def test_a_file_that_breaks_off_keeps_what_was_written(capsys, monkeypatch):
    blocks_at, calls = run.decoding.blocks_at, []

    def breaking(path, rate):
        expected, blocks = blocks_at(path, rate)
        calls.append(path)
        if len(calls) == 1:
            return expected, blocks

        def some():
            yield next(blocks)[: 20 * SIZE]
            raise AudioError("in.wav: cannot be decoded any further")

        return expected, some()

    monkeypatch.setattr(run.decoding, "blocks_at", breaking)
    assert main("in.wav", "--output", "out.json") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("cannot be decoded any further")
    content = json.loads(Path("out.json").read_text())
    assert content["text"]
    assert content["seconds"] == 1.6


def test_settings_of_a_person_s_own(capsys, monkeypatch):
    Path("own.toml").write_text(f'[transcribe]\nmodel = "{STT}"\nquiet = true\ninput-device = "USB"\n')
    monkeypatch.setenv("MOSHI_MLX_CONFIG", "own.toml")
    assert command.main(["in.wav"]) == 0
    assert capsys.readouterr().err == ""


# --- live -----------------------------------------------------------------------------------------------------------


class Microphone:
    """A stand-in: some frames, between which it may go away, and then Ctrl-C."""

    direction, name, chosen = "Input", "USB microphone", True
    overflows, dead_seconds = 0, 0.0

    def __init__(self, frames, lost_at=(), ends=None):
        self.frames, self.lost_at, self.ends = list(frames), list(lost_at), ends or (lambda: None)
        self.taken, self.reopened, self.closed = 0, 0, False
        self.ended = False

    def fill(self):
        if self.taken in self.lost_at:
            self.lost_at.remove(self.taken)
            raise DeviceLost(f"the microphone {self.name!r} is gone")
        if self.taken == len(self.frames):
            self.ends()
            return False
        return not self.ended

    def take(self):
        self.taken += 1
        return self.frames[self.taken - 1]

    def reopen(self):
        self.reopened += 1
        if self.reopened == 1:
            raise AudioError("not yet")

    def end(self):
        self.ended = True

    def close(self):
        self.closed = True


def test_live_until_it_is_ended(loaded, capsys, monkeypatch):
    sound = noise(30)[:, 0]
    microphone = Microphone(sound.reshape(-1, SIZE), ends=lambda: signal.raise_signal(signal.SIGINT))
    asked = []
    monkeypatch.setattr(run.devices, "Microphone", lambda *given: asked.append(given) or microphone)
    assert main("--live", "--output", "out.json", "--input-device", "USB") == 0
    assert asked == [(RATE, SIZE, "USB", None)]
    assert microphone.closed
    expected = loaded[STT].transcriber(refresh=0.6)
    events, transcript = [*expected.feed(sound), *expected.flush()], Transcript()
    for event in events:
        transcript.add(event)
    transcript.finish(expected.seconds)
    assert Path("out.json").read_text() == transcript.as_json()
    assert "speak now; Ctrl-C ends the transcription" in capsys.readouterr().err


def test_ctrl_c_in_a_file_keeps_what_was_written(capsys, monkeypatch):
    feed = moshi_mlx.roles.transcriber.Transcriber.feed

    def interrupted(self, sound):
        if self.seconds > 1.5:
            signal.raise_signal(signal.SIGINT)
        return feed(self, sound)

    monkeypatch.setattr("moshi_mlx.roles.transcriber.Transcriber.feed", interrupted)
    assert main("in.wav", "in.wav", "--output", ".json") == 130
    content = json.loads(Path("in.json").read_text())
    assert content["text"]
    assert 1.5 < content["seconds"] < 2
    assert not Path("in-2.json").exists()


def test_a_microphone_that_goes_away_and_comes_back(monkeypatch):
    monkeypatch.setattr("moshi_mlx.transcribe.live.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("moshi_mlx.transcribe.live.portaudio.look_again", lambda: None)
    said, frames = [], noise(4)[:, 0].reshape(-1, SIZE)
    microphone = Microphone(frames, lost_at=[2])
    heard = list(Listening(microphone, said.append))
    np.testing.assert_array_equal(heard, frames)
    assert microphone.reopened == 2
    assert said == [
        "the microphone 'USB microphone' is gone; waiting until it, or another one, can be opened",
        "sound is back: microphone 'USB microphone'",
    ]


def test_what_is_wrong_with_a_microphone_is_said_once_in_a_while():
    said, now = [], [0.0]
    microphone = Microphone(np.zeros((40, SIZE), np.float32))
    microphone.dead_seconds = 3.0
    listening = Listening(microphone, said.append, lambda: now[0])
    for n, _ in enumerate(listening):
        now[0] += 1.0
        microphone.overflows = n
    assert sum("nothing but zeros" in line for line in said) == 4
    assert sum("too slow" in line for line in said) == 4


def test_ending_a_microphone_from_another_thread():
    microphone = Microphone(np.zeros((10**6, SIZE), np.float32))
    listening = Listening(microphone, lambda line: None)
    threading.Timer(0.01, listening.end).start()
    assert sum(1 for _ in listening) < 10**6
    listening.close()
    assert microphone.closed


# --- what is shown --------------------------------------------------------------------------------------------------


def shown(events, pauses=False):
    plain, transcript = view.Plain(pauses), Transcript()
    plain.begin(None)
    for event in events:
        transcript.add(event)
        plain(event, transcript)
    plain.end()


TALK = [
    EndPause(0.2), Word("Hel", 0.4), Word("lo", 0.4, True), EndWord(0.8), Word("there.", 0.8), EndWord(6.0), Pause(2.0),
    Step(9, 2.5, 3, (), 1.0), EndPause(5.9), Word("Yes,", 6.0), EndWord(6.4), Word("and", 6.4),
]  # fmt: skip


def test_words_stand_in_lines_as_they_come(capsys):
    shown(TALK)
    assert capsys.readouterr().out == "[00:00:00.400] Hello there.\n[00:00:06.000] Yes, and\n"
    shown([])
    assert capsys.readouterr().out == ""


def test_pauses_are_shown(capsys):
    shown(TALK, pauses=True)
    assert capsys.readouterr().out == ("[00:00:00.400] Hello there.\n[00:00:02.000] (pause)\n[00:00:06.000] Yes, and\n")


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit):
        options.parse(["--help"])
    printed = capsys.readouterr().out
    for flag in ("--live", "--model", "--output", "--pauses", "--json", "--codebooks", "--refresh", "--raw", "FILE"):
        assert flag in printed
