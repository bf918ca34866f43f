"""Goldens, and what holds a conversation to them."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import soundfile

ROOT = Path(__file__).parents[1]
GOLDENS = Path(__file__).parent / "goldens"
GREEDY = {"temperature": 0, "text_temperature": 0}


def golden(name):
    """The arrays of a golden file, as NumPy."""
    return {key: np.array(value) for key, value in mx.load(str(GOLDENS / f"{name}.safetensors")).items()}


def question():
    """The spoken question at 24 kHz, cut to whole frames: float32 [frames * 1920]."""
    sound, rate = soundfile.read(GOLDENS / "question.flac", dtype="float32")
    assert rate == 24000
    return sound[: len(sound) // 1920 * 1920]


def edit_json(path, **values):
    """Change keys of a JSON file; None removes one."""
    config = json.loads(path.read_text())
    config.update(values)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def delays(delay):
    """Kyutai's `delays` with `delay` frames for codebooks 1 to 7 of both sides."""
    return [0] + ([0] + [delay] * 7) * 2


def check_tokens(frames, expected):
    """The frames of a session equal the reference's columns: codes [8, T], and text, whose index 0 priming gave."""
    codes = np.stack([frame.audio_codes for frame in frames if frame.audio_codes is not None], axis=1)
    text = np.array([frame.text_token for frame in frames])
    reference = expected["text"][1:]
    np.testing.assert_array_equal(codes, expected["audio"][:, : codes.shape[1]])
    np.testing.assert_array_equal(text[: len(reference)], reference)
    assert codes.shape[1] == expected["audio"].shape[1]


def run_codes(model, codes, **settings):
    """The frames of a greedy conversation fed with user codes [8, T]."""
    session = model.session(**{**GREEDY, **settings})
    return [session.step_codes(column) for column in codes.T]
