"""Pauses: smoothing and thresholds as in Unmute, and when a memory is refreshed."""

import math

import pytest

from moshi_mlx.errors import InputError
from moshi_mlx.roles.pauses import PauseDetector, refresh_due


def heads(probability, head=2):
    return [probability if n == head else 0.5 for n in range(4)]


def test_the_first_frames_say_nothing():
    detector = PauseDetector()
    assert all(detector(heads(0.0), False) for _ in range(12))
    assert not detector(heads(0.0), False)


def test_it_is_smoothed_as_in_unmute():
    detector, value = PauseDetector(half_life=0.05, ignored=0), 1.0
    alpha = 1 - math.exp(-0.08 / 0.05 * math.log(2))  # their formula
    for probability in (0.1, 0.9, 0.3, 0.3, 0.8):
        value = (1 - alpha) * value + alpha * probability
        detector(heads(probability), False)
        assert detector.score == pytest.approx(value)


def test_between_the_thresholds_nothing_changes():
    detector = PauseDetector(ignored=0, half_life=0)
    probabilities = (0.5, 0.39, 0.5, 0.6, 0.61, 0.5, 0.4, 0.39)
    assert [detector(heads(p), False) for p in probabilities] == [
        True, False, False, False, True, True, True, False,
    ]  # fmt: skip


def test_another_head():
    detector = PauseDetector(head=0, ignored=0, half_life=0)
    assert not detector(heads(0.1, head=0), False)
    assert detector(heads(0.9, head=0), False)


def test_without_heads_a_second_without_text_is_a_pause():
    detector = PauseDetector()
    assert detector([], False)
    assert not detector([], True)
    paused = [detector([], False) for _ in range(13)]
    assert paused.index(True) == 11  # the twelfth frame: 12 * 80 ms
    detector.reset()
    assert detector([], False)


@pytest.mark.parametrize("wrong", [{"begins": 1.2}, {"ends": -1}, {"begins": 0.3}, {"head": -1}, {"half_life": "a"}])
def test_what_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong)) if wrong != {"begins": 0.3} else "ends"):
        PauseDetector(**wrong)


def test_a_memory_is_refreshed_at_a_pause_and_at_the_latest_when_full():
    due = [n for n in range(1, 101) if refresh_due(n, 100, paused=True)]
    assert due[0] == 60
    assert [n for n in range(1, 102) if refresh_due(n, 100, paused=False)] == [100, 101]
    assert refresh_due(30, 100, paused=True, share=0.3)
