"""The tiny checkpoints of Moshi's sister models, and what the reference makes of them."""

from pathlib import Path

import mlx.core as mx
import numpy as np

import moshi_mlx

FAMILY = Path("/work/shared/family/goldens")
ROLES = {"dialogue": "plain_2026", "translator": "hibiki", "transcriber": "stt", "speaker": "tts"}
"""A checkpoint of each role."""


def reference(kind):
    """The arrays of a kind, as NumPy."""
    return {name: np.array(value) for name, value in mx.load(str(FAMILY / kind / "ref.safetensors")).items()}


def loaded(kind):
    return moshi_mlx.load(FAMILY / kind, dtype=mx.float32)
