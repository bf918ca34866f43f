"""The command on the tiny checkpoint: text from everywhere, sound to everywhere, voices, and what it refuses."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import GOLDENS, golden
from hub_stand_in import served

import moshi_mlx
from moshi_mlx.errors import AudioError
from moshi_mlx.machine import preflight
from moshi_mlx.say import __main__ as command
from moshi_mlx.say import run

TTS, PREFIX = str(GOLDENS / "family" / "tts"), str(GOLDENS / "family" / "tts_prefix")
VOICE = Path(TTS) / "voice0.wav.1e68beda@240.safetensors"
ROOT = Path(__file__).parents[2]
TEXT = "hello big world"
GREEDY = ["--temperature", 0, "--text-temperature", 0]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def loaded():
    return {name: moshi_mlx.load(name, dtype="float32") for name in (TTS, PREFIX)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, loaded):
    """A folder to work in; models are loaded once, and nobody asks the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    load = moshi_mlx.load
    monkeypatch.setattr(moshi_mlx, "load", lambda name: loaded[name] if name in loaded else load(name))


def main(*arguments, model=TTS, voice="voice0"):
    voiced = [] if voice is None else ["--voice", voice]
    return command.main([*map(str, arguments), "--model", model, *voiced])


def refused(capsys, *arguments, **settings):
    """The line that a command is refused with."""
    with contextlib.suppress(SystemExit):  # a wrong flag, after which argparse ends the program with status 2
        assert main(*arguments, **settings) == 2
    out, err = capsys.readouterr()
    *_, line = err.splitlines()
    assert line.startswith("moshi_mlx.say: error: ")
    assert out == ""
    assert not list(Path().glob("*.wav"))
    assert not list(Path().glob(".*"))
    return line


def heard(path="out.wav"):
    sound, rate = soundfile.read(path, dtype="float32")
    assert rate == 24_000
    return sound


def expected(loaded, text=TEXT, model=TTS, voice="voice0", **settings):
    return loaded[model].speaker(voice, **settings).say(text)


# --- what is said ---------------------------------------------------------------------------------------------------


def test_a_text_to_a_file(loaded, capsys):
    assert main(TEXT, "--output", "out.wav", "--seed", 5, "--times") == 0
    speaker = loaded[TTS].speaker("voice0", seed=5)
    np.testing.assert_allclose(heard(), speaker.say(TEXT), atol=1e-4)
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{start:.2f} {stop:.2f} {word}" for word, start, stop in speaker.words]
    assert "s of speech in" in err
    assert "speech written to out.wav" in err
    assert "seed" not in err


def test_it_is_the_references(loaded):
    assert main(TEXT, "--output", "out.wav", *GREEDY) == 0
    codes = golden("family/tts/ref")["frames"][1:, 4:]
    sound = loaded[TTS].audio_encoder.stream(4).decode(codes)
    np.testing.assert_allclose(heard(), np.clip(sound, -1, 1), atol=1e-4)


def test_a_seed_that_is_drawn_is_told(loaded, capsys):
    assert main(TEXT, "--output", "out.wav") == 0
    seed = int(capsys.readouterr().err.split("seed ")[1].split()[0])
    np.testing.assert_allclose(heard(), expected(loaded, seed=seed), atol=1e-4)


def test_the_text_of_a_file(loaded):
    Path("text").write_text("\ufeffhello big\n\nworld’s", encoding="utf-8")
    assert main("text", "--output", "out.wav", "--seed", 1) == 0
    np.testing.assert_allclose(heard(), expected(loaded, "hello big world's", seed=1), atol=1e-4)


WILD = {"text_temperature": 5.0}  # so that what words begin with is a matter of chance
SETTINGS = {
    "--guidance": (3.0, {}), "--codebooks": (2, {}), "--temperature": (0, {}), "--top-k": (1, {}),
    "--text-temperature": (4.0, {}), "--text-top-k": (1, WILD), "--padding-between": (3, {}),
    "--padding-bonus": (90.0, WILD), "--context": (3, {}),
}  # fmt: skip


@pytest.mark.parametrize("flag", SETTINGS)
def test_settings_reach_the_speaker(loaded, flag):
    value, base = SETTINGS[flag]
    more = [word for name, number in base.items() for word in (f"--{name.replace('_', '-')}", number)]
    assert main(TEXT, "--output", "out.wav", "--seed", 2, flag, value, *more) == 0
    sound, setting = heard(), {flag.removeprefix("--").replace("-", "_"): value}
    np.testing.assert_allclose(sound, expected(loaded, seed=2, **base, **setting), atol=1e-4)
    usual = expected(loaded, seed=2, **base)
    assert sound.shape != usual.shape or not np.allclose(sound, usual, atol=1e-3)


# --- voices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", [str(VOICE), "voice0.wav"])
def test_a_voice_by_file_and_name(loaded, voice):
    assert main(TEXT, "--output", "out.wav", "--seed", 1, voice=voice) == 0
    np.testing.assert_allclose(heard(), expected(loaded, seed=1), atol=1e-4)


def test_no_voice(loaded):
    assert main(TEXT, "--output", "out.wav", "--seed", 1, voice="none") == 0
    np.testing.assert_allclose(heard(), expected(loaded, voice=None, seed=1), atol=1e-4)


def test_two_voices_are_a_dialogue(loaded):
    Path("talk.txt").write_text("hello\nyou can talk\ni am fine")
    assert main("talk.txt", "--output", "out.wav", "--seed", 1, "--voice", VOICE) == 0
    both = expected(loaded, "hello\nyou can talk\ni am fine", voice=["voice0", VOICE], seed=1)
    np.testing.assert_allclose(heard(), both, atol=1e-4)


def test_a_recording_to_go_on_from(loaded, capsys):
    noise = np.random.default_rng(0).normal(0, 0.1, 1920 * 8).astype(np.float32)
    soundfile.write("me.wav", noise, 24_000, subtype="FLOAT")
    for voice, given in (("me.wav", noise), (None, None)):
        assert main(TEXT, "--output", "out.wav", "--overwrite", "--seed", 1, model=PREFIX, voice=voice) == 0
        np.testing.assert_allclose(heard(), expected(loaded, model=PREFIX, voice=given, seed=1), atol=1e-4)


def test_the_usual_voice_and_the_list(loaded, capsys, monkeypatch, tmp_path):
    with served(monkeypatch, tmp_path / "cache") as hub:
        name = f"{run.voices.DEFAULT_VOICE}.1e68beda@240.safetensors"
        hub.repositories[run.voices.REPOSITORY] = {name: VOICE.read_bytes(), "b/c.wav.other@1.safetensors": b""}
        assert main(TEXT, "--output", "out.wav", "--seed", 1, voice=None) == 0
        np.testing.assert_allclose(heard(), expected(loaded, seed=1), atol=1e-4)
        capsys.readouterr()
        assert main("--list-voices", voice=None) == 0
        assert capsys.readouterr().out.splitlines() == [run.voices.DEFAULT_VOICE, "voice0.wav"]


# --- standard streams -----------------------------------------------------------------------------------------------


def program(*arguments, **streams):
    line = [sys.executable, "-m", "moshi_mlx.say", *map(str, arguments), "--model", TTS, "--voice", "voice0"]
    return subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **streams)


@pytest.mark.slow
def test_a_pipe_is_spoken_as_it_comes(loaded):
    """The first sound is there before the last word was written."""
    said = program("-", "--output", "-", "--raw", "--seed", 1, stdin=subprocess.PIPE)
    text = "good morning you fox i am fine’s thank you"
    first, last = text.encode()[:33], text.encode()[33:]  # cut in the middle of a letter
    said.stdin.write(first)
    said.stdin.flush()
    begun = said.stdout.read(3840)
    assert len(begun) == 3840
    rest, err = said.communicate(last)
    assert said.returncode == 0, err
    sound = np.frombuffer(begun + rest, "<i2") / 32767
    np.testing.assert_allclose(sound, expected(loaded, text, seed=1), atol=1e-3)


@contextlib.contextmanager
def piped(monkeypatch, data):
    """A standard input that holds this."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with os.fdopen(read) as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield


def test_text_from_a_pipe(loaded, monkeypatch):
    with piped(monkeypatch, b"hello big\nworld"):
        assert main("-", "--output", "out.wav", "--seed", 1) == 0
    np.testing.assert_allclose(heard(), expected(loaded, seed=1), atol=1e-4)


def test_lines_of_a_terminal_are_said_one_by_one(loaded, monkeypatch):
    typed = io.StringIO("hello\n\nbig world\n")
    typed.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", typed)
    assert main("-", "--output", "out.wav", "--seed", 1) == 0
    speaker, gap = loaded[TTS].speaker("voice0", seed=1), np.zeros(round(0.24 * 24_000), np.float32)
    np.testing.assert_allclose(
        heard(), np.concatenate([speaker.say("hello"), gap, speaker.say("big world")]), atol=1e-4
    )


@pytest.mark.slow
def test_wav_on_standard_output(loaded):
    said = program(TEXT, "--output", "-", "--seed", 1)
    out, err = said.communicate()
    assert said.returncode == 0, err
    assert out[:4] == b"RIFF"
    np.testing.assert_allclose(np.frombuffer(out[44:], "<i2") / 32767, expected(loaded, seed=1), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_said_is_kept_when_it_is_ended(number):
    said = program("-", "--output", "out.wav", stdin=subprocess.PIPE, cwd=os.getcwd())
    said.stdin.write(b"good morning you fox i am fine thank you can talk ")
    said.stdin.flush()
    part = Path(".out.wav.part")
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 44 + 3840 * 5) and time.monotonic() < until:
        time.sleep(0.05)
    said.send_signal(number)
    out, err = said.communicate(timeout=60)
    assert (said.returncode, out) == (130, b"")
    assert len(heard()) >= 1920 * 5
    assert b"speech written to out.wav" in err
    assert not part.exists()


# --- the speaker ----------------------------------------------------------------------------------------------------


class Speaker:
    """A stand-in for the sound card."""

    def __init__(self, *given, **settings):
        self.given, self.settings, self.sound, self.drained = given, settings, [], False
        Speaker.made.append(self)

    def write(self, pcm):
        self.sound.append(pcm)

    def drain(self):
        self.drained = True

    def close(self):
        pass


@pytest.mark.parametrize("output", [[], ["--output", "play"]])
def test_it_is_played(loaded, monkeypatch, output):
    Speaker.made = []
    monkeypatch.setattr(run.devices, "Speaker", Speaker)
    assert main(TEXT, "--seed", 1, "--output-device", "headphones", "--device-rate", 48_000, *output) == 0
    (speaker,) = Speaker.made
    assert (speaker.given, speaker.settings) == ((24_000, 1920, "headphones", 48_000), {"pace": True})
    np.testing.assert_allclose(np.concatenate(speaker.sound), expected(loaded, seed=1), atol=1e-5)
    assert speaker.drained


def test_no_speaker(capsys, monkeypatch):
    def none(*_, **__):
        raise AudioError("no sound output")

    monkeypatch.setattr(run.devices, "Speaker", none)
    assert "no sound output" in refused(capsys, TEXT)


# --- what is refused ------------------------------------------------------------------------------------------------

REFUSED = {
    "nothing to say": [],
    "got nothing to say": ["", "--output", "out.wav"],
    "got nothing to say ": [" : ", "--output", "out.wav"],
    "break of 1000 s, expected at most 600": ['one <break time="1000s"/> two', "--output", "out.wav"],
    "needs --output -": [TEXT, "--output", "out.wav", "--raw"],
    "both write to standard output": [TEXT, "--output", "-", "--times"],
    "is about the speaker": [TEXT, "--output", "out.wav", "--output-device", "x"],
    "is about the speaker ": [TEXT, "--output", "out.wav", "--device-rate", 48000],
    "expected one of 1.0, 1.5": [TEXT, "--output", "out.wav", "--guidance", 1.7],
    "codebooks: got 9": [TEXT, "--output", "out.wav", "--codebooks", 9],
    "context: got 1000": [TEXT, "--output", "out.wav", "--context", 1000],
    "expected a whole number of at least 0": [TEXT, "--seed", -1],
    "unrecognized arguments: --loud": [TEXT, "--loud"],
    "there is no folder": [TEXT, "--output", "no/such/out.wav"],
    "a name that ends in .wav": [TEXT, "--output", "out.mp3"],
    "it is a folder": [TEXT, "--output", TTS],
}


@pytest.mark.parametrize("said", REFUSED, ids=str.strip)
def test_what_is_refused(capsys, said):
    assert said.strip() in refused(capsys, *REFUSED[said])


@pytest.mark.parametrize(
    ("voice", "said"),
    [
        ("/no/such/voice.wav", "voice /no/such/voice.wav: no such file"),
        ("nobody", "voice nobody: no such file"),
        (str(GOLDENS / "question.flac"), "is a recording, and this model takes vectors"),
        (str(GOLDENS / "lm.safetensors"), "has no tensor 'speaker_wavs'"),
    ],
)
def test_a_voice_that_there_is_not(capsys, voice, said):
    assert said in refused(capsys, TEXT, "--output", "out.wav", voice=voice)


def test_a_voice_of_another_kind(capsys):
    assert "this one takes a recording" in refused(capsys, TEXT, "--output", "out.wav", model=PREFIX, voice=str(VOICE))


@pytest.mark.parametrize("model", ["miniature", str(GOLDENS / "moshi_tiny")])
def test_a_model_that_does_not_speak(capsys, model):
    line = refused(capsys, TEXT, "--output", "out.wav", model=model)
    assert "expected a speaker (TTS); python -m moshi_mlx.local runs it" in line


def test_a_model_that_there_is_not(capsys):
    assert "no such folder" in refused(capsys, TEXT, "--output", "out.wav", model="/no/such/model")


def test_a_file_that_is_no_text(capsys, monkeypatch):
    Path("text").write_bytes(b"\xff\xfe\x00")
    assert "text: is not text in UTF-8" in refused(capsys, "text", "--output", "out.wav")
    with piped(monkeypatch, b"hello \xff"):
        assert "standard input: is not text in UTF-8" in refused(capsys, "-", "--output", "out.wav")


def test_an_output_that_nobody_may_write(capsys, monkeypatch):
    monkeypatch.setattr(
        run.files, "FileSink", lambda *_, **__: (_ for _ in ()).throw(AudioError("out.wav: cannot be written"))
    )
    assert "cannot be written" in refused(capsys, TEXT, "--output", "out.wav")


def test_a_machine_that_is_too_small(capsys, monkeypatch):
    monkeypatch.setattr(preflight, "usable_bytes", lambda: 1000)
    assert "this machine has 1.0 kB" in refused(capsys, TEXT, "--output", "out.wav")
    assert main(TEXT, "--output", "out.wav", "--force") == 0
    assert "warning: " in capsys.readouterr().err


def test_a_file_that_is_there_is_kept(capsys):
    Path("out.wav").write_bytes(b"mine")
    assert main(TEXT, "--output", "out.wav") == 0
    assert Path("out.wav").read_bytes() == b"mine"
    assert len(heard("out-2.wav"))
    assert "out.wav is there already: this goes to out-2.wav" in capsys.readouterr().err
    assert main(TEXT, "--output", "out.wav", "--overwrite", "--quiet") == 0
    assert len(heard())
    assert capsys.readouterr() == ("", "")


def test_settings_of_ones_own(loaded, monkeypatch):
    Path("own.toml").write_text(f'[say]\nvoice = "none"\nseed = 7\nmodel = "{TTS}"\n')
    monkeypatch.setenv("MOSHI_MLX_CONFIG", "own.toml")
    assert command.main([TEXT, "--output", "out.wav"]) == 0
    np.testing.assert_allclose(heard(), expected(loaded, voice=None, seed=7), atol=1e-4)
    assert command.main([TEXT, "--output", "out.wav", "--overwrite", "--voice", "voice0"]) == 0
    np.testing.assert_allclose(heard(), expected(loaded, seed=7), atol=1e-4)
