"""The miniature that ships really talks: what it says guards streaming, quantization and conversion."""

import os
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from moshi_mlx.convert import cli

import moshi_mlx
from miniature import live
from miniature.conversations import dialogues
from miniature.evaluate import ask, is_silent, score
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.local import options

speaking = pytest.mark.skipif(
    not (shutil.which("espeak-ng") or os.environ.get("CI")), reason="needs espeak-ng, which CI installs"
)
ASKED = 8


@pytest.fixture(scope="module")
def renderings():
    """Questions in voices and at moments that were never trained on."""
    return dialogues.held_out(ASKED, seed=1)


def check(folder, renderings, heard):
    scores = score(moshi_mlx.load(folder), renderings, heard)
    assert scores.answered >= ASKED - 1, scores.wrong
    assert scores.silent == ASKED
    assert scores.stoi >= 0.7


@pytest.mark.slow
def test_demo_is_an_exchange(tmp_path):
    command = [sys.executable, "-m", "moshi_mlx.local", "--demo", "--output-device", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "you: Hello, Moshi. What is two plus three?\nMoshi:\n" in done.stderr
    assert done.stdout.strip() == "It is five."
    question, _ = soundfile.read(options.DEMO_INPUT)
    reply, _ = soundfile.read(tmp_path / "reply.wav")
    before, after = np.split(reply, [len(question)])
    assert np.sqrt(np.mean(before**2)) < 0.003
    assert np.abs(after).max() > 0.2


@speaking
@pytest.mark.slow
def test_it_answers_in_four_bits(renderings, tmp_path):
    whole, target = tmp_path / "whole", tmp_path / "q4"
    assert cli.main([f"--hf-path={options.DEMO_MODEL}", f"--mlx-path={whole}", "-d"]) == 0
    assert cli.main([f"--hf-path={whole}", f"--mlx-path={target}", "-q", "--q-bits=4"]) == 0
    check(target, renderings, ask(moshi_mlx.load(target, dtype=mx.float32), renderings, DuplexSampling()))


@speaking
@pytest.mark.slow
def test_it_answers_in_hugging_faces_layout(renderings, tmp_path):
    target = tmp_path / "huggingface"
    assert (
        cli.main(
            [f"--hf-path={options.DEMO_MODEL}", f"--mlx-path={target}", "-d", "--to=huggingface", "--dtype=float32"]
        )
        == 0
    )
    check(target, renderings, ask(moshi_mlx.load(target, dtype=mx.float32), renderings, DuplexSampling()))


@speaking
@pytest.mark.slow
def test_it_answers_live_one_question_after_the_other(renderings):
    check(options.DEMO_MODEL, renderings, live.ask(options.DEMO_MODEL, renderings))


@speaking
@pytest.mark.slow
def test_silence_is_not_answered():
    model = moshi_mlx.load(options.DEMO_MODEL)
    rendering = dialogues.held_out(1)[0]
    nothing = rendering._replace(sound=np.zeros(60 * dialogues.FRAME, np.float32), end=60 * dialogues.FRAME / 24000)
    (heard,) = ask(model, [nothing], DuplexSampling())
    assert is_silent(heard, nothing, model.config.silent_text_tokens)
