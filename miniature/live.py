"""Ask a model as a person would: all questions in one conversation of the command line, `python -m moshi_mlx.local`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from moshi_mlx.conversation.text import PADDING
from moshi_mlx.errors import MoshiError

from .conversations.dialogues import FRAME, Rendering
from .evaluate import Heard
from .talk.speech import SAMPLE_RATE


def ask(model: Path, renderings: list[Rendering]) -> list[Heard]:
    """One rendering after the other, at the default settings: a conversation far longer than any trained on."""
    with tempfile.TemporaryDirectory() as folder:
        asked, reply = Path(folder, "asked.wav"), Path(folder, "reply.wav")
        soundfile.write(asked, np.concatenate([rendering.sound for rendering in renderings]), SAMPLE_RATE, "FLOAT")
        files = ["--input", str(asked), "--output", str(reply), "--tail", "0", "--seed", "0"]
        command = [sys.executable, "-m", "moshi_mlx.local", "--model", str(model), *files, "--json", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise MoshiError(done.stderr.strip())
        tokens = np.array([json.loads(line)["text_token"] for line in done.stdout.splitlines()])
        sound, _ = soundfile.read(reply, dtype="float32")
    return _parted(tokens, sound, [len(rendering.sound) for rendering in renderings])


def _parted(tokens: np.ndarray, sound: np.ndarray, lengths: list[int]) -> list[Heard]:
    """What was said to each of the renderings of these lengths in samples, whole frames all of them."""
    ends = np.cumsum(lengths)
    parts = np.split(tokens[: ends[-1] // FRAME], ends[:-1] // FRAME), np.split(sound, ends[:-1])
    return [Heard(np.concatenate([[PADDING], said]), heard) for said, heard in zip(*parts, strict=True)]
