"""A speaker that was converted or quantized says the same, or nearly: no tensor is left behind, and its id is kept."""

import numpy as np
import pytest
from helpers import GOLDENS, GREEDY, golden
from moshi_mlx.convert import cli

import moshi_mlx
from moshi_mlx.checkpoints.safetensors import stored

KINDS = {"tts": "voice0.wav.1e68beda@240.safetensors", "tts_prefix": None}
FLAGS = {"plain": [], "cast": ["--dtype", "bfloat16"], "quantized": ["-q", "--q-bits", "8", "--q-group-size", "32"]}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_speaker(kind, flags, tmp_path):
    source, made = GOLDENS / "family" / kind, tmp_path / "made"
    assert cli.main(["--hf-path", str(source), "--mlx-path", str(made), *FLAGS[flags]]) in (0, None)
    original, model = moshi_mlx.load(source, dtype="float32"), moshi_mlx.load(made, dtype="float32")
    assert model.model_id == original.model_id
    assert model.config.role == "speaker"
    reference = golden(f"family/{kind}/ref")
    voice = source / KINDS[kind] if KINDS[kind] else reference["prefix"][1:]
    frames = list(model.speaker(voice, progress=False, **GREEDY).stream("hello big world"))
    assert all(np.isfinite(frame.pcm).all() for frame in frames)
    if flags == "plain":
        skipped = 4 + (0 if KINDS[kind] else 6)
        codes = np.stack([frame.codes for frame in frames], axis=1)
        np.testing.assert_array_equal(codes, reference["frames"][1:, skipped:])
        names = stored(made / "model.safetensors")
        assert any(name.endswith(".bias") for name in names) == (kind == "tts")
        assert any(name.endswith(".learnt_padding") for name in names) == (kind == "tts")
