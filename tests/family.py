"""The tiny checkpoints of Moshi's sister models, and what the reference makes of them."""

import mlx.core as mx
from helpers import GOLDENS, golden

import moshi_mlx

FAMILY = GOLDENS / "family"
KINDS = ("plain_2026", "hibiki", "hibiki_zero", "stt", "stt_no_heads", "tts", "tts_prefix")
ROLES = {"dialogue": "plain_2026", "translator": "hibiki", "transcriber": "stt", "speaker": "tts"}
"""A checkpoint of each role."""


def reference(kind):
    """The arrays of a kind, as NumPy."""
    return golden(f"family/{kind}/ref")


def loaded(kind):
    return moshi_mlx.load(FAMILY / kind, dtype=mx.float32)
