"""Loudness as ITU-R BS.1770-4 measures it, of mono sound: K-weighted, gated, in LUFS.

Our own and not pyloudnorm's, because that brings SciPy along for one number; a test holds it to pyloudnorm's figures.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..inputs import Samples

BLOCK_SECONDS, OVERLAP = 0.4, 0.75
ABSOLUTE_GATE = -70.0  # LUFS
RELATIVE_GATE = -10.0  # LU below the mean of what passes the absolute one
SETTLING_SECONDS = 1.0  # after which the filters' answer to a sample has died away


def loudness(sound: Samples, sample_rate: int) -> float:
    """Of sound float [T]; -inf where it is silent. Raises InputError for sound shorter than one block."""
    block = round(BLOCK_SECONDS * sample_rate)
    if len(sound) < block:
        raise InputError(f"got {len(sound) / sample_rate:.2f} s of sound, expected {BLOCK_SECONDS} s or more")
    power = _block_powers(_k_weighted(np.asarray(sound, np.float64), sample_rate), sample_rate)
    passed = power[_lufs(power) >= ABSOLUTE_GATE]
    if not len(passed):
        return -np.inf
    passed = passed[_lufs(passed) > _lufs(passed.mean()) + RELATIVE_GATE]
    return float(_lufs(passed.mean())) if len(passed) else -np.inf


def matched(sound: Samples, sample_rate: int, target: float) -> Samples:
    """Sound brought to a loudness in LUFS. Raises InputError where it has none."""
    now = loudness(sound, sample_rate)
    if not np.isfinite(now):
        raise InputError("is silent, expected a voice")
    return (sound * 10 ** ((target - now) / 20)).astype(np.float32)


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(power)


def _block_powers(weighted: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mean square of every block; a block begins every quarter of one."""
    step = BLOCK_SECONDS * (1 - OVERLAP)
    count = int(np.round((len(weighted) / sample_rate - BLOCK_SECONDS) / step)) + 1
    sums = np.concatenate([[0.0], np.cumsum(np.square(weighted))])
    starts = (np.arange(count) * step * sample_rate).astype(int)
    ends = np.minimum(((np.arange(count) * step + BLOCK_SECONDS) * sample_rate).astype(int), len(weighted))
    return (sums[ends] - sums[starts]) / (BLOCK_SECONDS * sample_rate)


def _k_weighted(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """Both filters at once, in the frequency domain, with room for what rings on."""
    size = len(sound) + int(SETTLING_SECONDS * sample_rate)
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(size))  # one sample's delay
    response = _answer(_shelf(4.0, 1 / np.sqrt(2), 1500.0, sample_rate), z)
    response *= _answer(_high_pass(0.5, 38.0, sample_rate), z)
    return np.fft.irfft(np.fft.rfft(sound, size) * response, size)[: len(sound)]


def _answer(filter: tuple[np.ndarray, np.ndarray], z: np.ndarray) -> np.ndarray:
    b, a = filter
    powers = np.stack([np.ones_like(z), z, z * z])
    return (b @ powers) / (a @ powers)


def _shelf(gain_db: float, q: float, hertz: float, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """A high shelf (R. Bristow-Johnson's cookbook): what a head does to sound from the front."""
    gain, w = 10 ** (gain_db / 40), 2 * np.pi * hertz / sample_rate
    alpha, cos, root = np.sin(w) / (2 * q), np.cos(w), np.sqrt(gain)
    b = [
        gain * ((gain + 1) + (gain - 1) * cos + 2 * root * alpha),
        -2 * gain * ((gain - 1) + (gain + 1) * cos),
        gain * ((gain + 1) + (gain - 1) * cos - 2 * root * alpha),
    ]
    a = [
        (gain + 1) - (gain - 1) * cos + 2 * root * alpha,
        2 * ((gain - 1) - (gain + 1) * cos),
        (gain + 1) - (gain - 1) * cos - 2 * root * alpha,
    ]
    return np.array(b), np.array(a)


def _high_pass(q: float, hertz: float, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """What the ear leaves out at the low end."""
    w = 2 * np.pi * hertz / sample_rate
    alpha, cos = np.sin(w) / (2 * q), np.cos(w)
    return np.array([(1 + cos) / 2, -(1 + cos), (1 + cos) / 2]), np.array([1 + alpha, -2 * cos, 1 - alpha])
