"""How far a sound is from another, for training the codec: spectra through mel bands at several window lengths."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

SAMPLE_RATE = 24_000
WINDOWS = {128: 10, 256: 20, 512: 40, 1024: 64, 2048: 80}  # window length -> mel bands; the hop is a quarter of it
FLOOR = 1e-3
# Envelopes are compared as STOI does (Taal et al., 2011): bands below 5 kHz, spans of 384 ms.
ENVELOPE_WINDOW, ENVELOPE_BANDS, ENVELOPE_SPAN = 512, 28, 36  # samples, and frames of half a window


def mel_filters(window: int, bands: int) -> np.ndarray:
    """Triangles on the mel scale, each with area 1: float32 [window / 2 + 1, bands]."""
    frequencies = np.linspace(0, SAMPLE_RATE / 2, window // 2 + 1)
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    rise = (frequencies[:, None] - left) / (middle - left)
    fall = (right - frequencies[:, None]) / (right - middle)
    filters = np.maximum(0, np.minimum(rise, fall))
    return (filters / np.maximum(filters.sum(axis=0), 1)).astype(np.float32)


_FILTERS = {window: mx.array(mel_filters(window, bands)) for window, bands in WINDOWS.items()}
_HANN = {window: mx.array(np.hanning(window + 1)[:-1].astype(np.float32)) for window in WINDOWS}


def mel_spectrum(sound: mx.array, window: int) -> mx.array:
    """sound [B, T], T a multiple of a quarter of the window -> magnitudes in mel bands [B, frames, bands]."""
    hop = window // 4
    pieces = sound.reshape(len(sound), -1, hop)
    count = pieces.shape[1] - 3
    frames = mx.concatenate([pieces[:, i : i + count] for i in range(4)], axis=-1)
    spectrum = mx.fft.rfft(frames * _HANN[window])
    power = mx.square(mx.real(spectrum)) + mx.square(mx.imag(spectrum))
    return mx.sqrt(power / window + FLOOR**2 / 100) @ _FILTERS[window]


def spectral_distance(sound: mx.array, target: mx.array) -> mx.array:
    """The mean over window lengths of L1 between logarithms plus twice L1 between magnitudes."""
    total = mx.array(0.0)
    for window in WINDOWS:
        length = sound.shape[-1] // (window // 4) * (window // 4)
        ours, theirs = (mel_spectrum(x[:, :length], window) for x in (sound, target))
        logarithms = mx.abs(mx.log(ours + FLOOR) - mx.log(theirs + FLOOR)).mean()
        total += logarithms + 2 * mx.abs(ours - theirs).mean()
    return total / len(WINDOWS)


def envelope_distance(sound: mx.array, target: mx.array) -> mx.array:
    """1 - the mean correlation of mel bands' envelopes over spans that overlap by half; between silences it is 1."""
    correlations = []
    for first in (0, ENVELOPE_SPAN // 2):
        ours, theirs = (
            _spans(mel_spectrum(x, ENVELOPE_WINDOW)[:, ::2, :ENVELOPE_BANDS], first) for x in (sound, target)
        )
        power = mx.square(ours).sum(axis=2) * mx.square(theirs).sum(axis=2)
        correlations.append((ours * theirs).sum(axis=2) * mx.rsqrt(power + FLOOR**4))
    return 1 - mx.concatenate(correlations, axis=None).mean()


def _spans(envelopes: mx.array, first: int) -> mx.array:
    """[B, frames, bands] from frame `first` on -> [B, spans, ENVELOPE_SPAN, bands], about their means."""
    length = (envelopes.shape[1] - first) // ENVELOPE_SPAN * ENVELOPE_SPAN
    spans = envelopes[:, first : first + length].reshape(len(envelopes), -1, ENVELOPE_SPAN, envelopes.shape[-1])
    return spans - spans.mean(axis=2, keepdims=True)
