"""Echo cancellation, on a synthetic room."""

import os
import sys

import numpy as np
import pytest

from moshi_mlx.audio import files
from moshi_mlx.audio.echo import EchoCanceller
from moshi_mlx.errors import AudioError
from moshi_mlx.local import options

RATE = 24_000


@pytest.fixture
def installed():
    if os.environ.get("CI") != "true":
        pytest.importorskip("livekit")


def room(far, delay=0.12):
    """What a microphone hears of `far`: late, through a room of 100 ms, with a little noise."""
    chance = np.random.default_rng(0)
    response = chance.normal(size=2400) * np.exp(-np.arange(2400) / 400)
    response *= 0.4 / np.sqrt((response**2).sum())
    late = np.pad(far, (int(delay * RATE), 0))[: len(far)]
    return (np.convolve(late, response)[: len(far)] + 1e-4 * chance.normal(size=len(far))).astype(np.float32)


def cancel(far, heard, block):
    """Both sides block by block, as devices give them."""
    pieces = iter([far[n : n + block] for n in range(0, len(far), block)])
    canceller = EchoCanceller(RATE, lambda: next(pieces))
    return np.concatenate([canceller(heard[n : n + block]) for n in range(0, len(heard), block)])


def decibels(sound, reference):
    return 10 * np.log10((sound**2).mean() / (reference**2).mean())


@pytest.mark.parametrize("block", [480, 441, 1920])
def test_echo_is_taken_out(installed, block):
    far = np.tile(files.read_sound(options.DEMO_INPUT, RATE), 2)
    heard = room(far)
    cleaned = cancel(far, heard, block)
    assert 0 <= len(heard) - len(cleaned) < 240
    half = len(cleaned) // 2
    erle = decibels(heard[half : len(cleaned)], cleaned[half:])
    assert erle > 30, f"ERLE {erle:.0f} dB"


def test_the_user_stays(installed):
    """Speech of the user while nothing is played goes through."""
    user = files.read_sound(options.DEMO_INPUT, RATE)
    cleaned = cancel(np.zeros_like(user), user, 480)
    assert abs(decibels(cleaned, user[: len(cleaned)])) < 1
    assert np.corrcoef(cleaned, user[: len(cleaned)])[0, 1] > 0.95 or np.abs(np.correlate(cleaned, user)).max() > 0


def test_what_was_played_while_nothing_was_heard_is_not_kept(installed):
    given = iter([np.zeros(RATE, np.float32)] + [np.zeros(0, np.float32)] * 10)
    canceller = EchoCanceller(RATE, lambda: next(given))
    assert len(canceller(np.zeros(100, np.float32))) == 0
    assert len(canceller(np.zeros(200, np.float32))) == 240
    assert len(canceller._far) <= 0.06 * RATE


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "livekit", None)
    with pytest.raises(AudioError, match=r"pip install 'moshi-duplex\[echo\]', or wear headphones"):
        EchoCanceller(RATE, lambda: np.zeros(0, np.float32))
