"""Loudness against the figures of pyloudnorm 0.2.0, which NVIDIA's code measures voices with."""

import numpy as np
import pytest
from helpers import question

from moshi_mlx import InputError
from moshi_mlx.audio.loudness import loudness, matched


def noise():
    """Loud, all but silent, softer: the gate leaves the middle out."""
    random = np.random.RandomState(0)
    return random.standard_normal(3 * 48000).astype("f4") * 0.1 * np.repeat([1, 0.001, 0.3], 48000)


def tone():
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype("f4")


@pytest.mark.parametrize(
    ("sound", "rate", "lufs"),
    [(question, 24000, -22.71332), (noise, 48000, -20.04874), (tone, 16000, -9.75904)],
)
def test_figures(sound, rate, lufs):
    assert loudness(sound(), rate) == pytest.approx(lufs, abs=1e-5)


@pytest.mark.parametrize("target", [-24.0, -30.0])
def test_matched_to(target):
    assert loudness(matched(question(), 24000, target), 24000) == pytest.approx(target, abs=1e-4)


def test_what_has_no_loudness():
    assert loudness(np.zeros(24000, np.float32), 24000) == -np.inf
    with pytest.raises(InputError, match="is silent"):
        matched(np.zeros(24000, np.float32), 24000, -24)
    with pytest.raises(InputError, match=r"0\.40 s|0\.4 s"):
        loudness(np.zeros(9000, np.float32), 24000)
