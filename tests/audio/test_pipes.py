"""Standard input and output as the ends of a conversation."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_mlx.audio import files

GOLDENS = Path(__file__).parents[1] / "goldens"
MODEL, QUESTION = GOLDENS / "moshi_tiny", GOLDENS / "question.flac"
RATE, SIZE = 24_000, 1920
PCM = files.pcm16(files.read_sound(QUESTION, RATE)[: 10 * SIZE + 7])


def run(*options, given=b"", status=0, folder=None):
    command = [sys.executable, "-m", "moshi_mlx.local", "--model", MODEL, "--seed", "3", "--tail", "0.1", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(moshi_mlx.__file__).parents[1])}
    done = subprocess.run(list(map(str, command)), input=given, capture_output=True, env=environment, cwd=folder)
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr
    return done


def test_raw_in_and_raw_out_equal_files(tmp_path):
    soundfile.write(tmp_path / "in.wav", np.frombuffer(PCM, np.int16), RATE)
    run("--input", "in.wav", "--output", "out.wav", folder=tmp_path)
    wanted, _ = soundfile.read(tmp_path / "out.wav", dtype="int16")
    done = run("--input", "-", "--output", "-", "--raw", given=PCM)
    said = np.frombuffer(done.stdout, "<i2")
    np.testing.assert_array_equal(said[: len(wanted)], wanted)
    assert len(said) == -(-(10 * SIZE + 7 + 2400) // SIZE) * SIZE
    assert b" s of sound in " in done.stderr


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_any_format_in_and_a_wav_without_end_out(tmp_path, kind):
    soundfile.write(tmp_path / f"in.{kind}", np.frombuffer(PCM, np.int16), RATE)
    done = run("--input", "-", "--output", "-", given=(tmp_path / f"in.{kind}").read_bytes())
    (tmp_path / "out.wav").write_bytes(done.stdout)
    assert done.stdout[:4] == b"RIFF"
    sound, rate = soundfile.read(tmp_path / "out.wav")
    assert (rate, len(sound) % SIZE) == (RATE, 0)
    assert len(sound) > 10 * SIZE


def test_frames_come_out_as_they_go_in():
    command = [sys.executable, "-m", "moshi_mlx.local", "--model", MODEL, "--input", "-", "--output", "-", "--raw"]
    environment = {**os.environ, "PYTHONPATH": str(Path(moshi_mlx.__file__).parents[1])}
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, env=environment, bufsize=0) as process:  # fmt: skip
        for _ in range(3):
            process.stdin.write(bytes(2 * SIZE))
            left = 2 * SIZE
            while left:
                left -= len(process.stdout.read(left))
        process.terminate()
        process.stdin.close()
        assert process.wait(20) == 130


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        (("--input", "-"), b"To be, or not to be", b"-: not a sound file"),
        (("--input", "-"), b"", b"-: not a sound file"),
        (("--input", QUESTION, "--json"), b"", b"both write to standard output"),
        (("--input", QUESTION, "--output", "o.wav", "--raw"), b"", b"--raw needs --input - or --output -"),
    ],
)
def test_what_cannot_be(tmp_path, options, given, said):
    output = () if "--output" in options else ("--output", "-")
    done = run(*options, *output, given=given, status=2, folder=tmp_path)
    assert said in done.stderr
    assert done.stdout == b""
    assert os.listdir(tmp_path) == []


def test_nothing_to_read_is_no_sound():
    assert run("--input", "-", "--output", "-", "--raw", "--tail", "0").stdout == b""


def test_a_reader_that_leaves_is_one_line(tmp_path):
    shell = (
        f"{sys.executable} -m moshi_mlx.local --model {MODEL} --input {QUESTION} --output - | head -c 100 >/dev/null"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "moshi_mlx.local: error: standard output: cannot be written: Broken pipe"
