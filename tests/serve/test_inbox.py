"""Sound on its way to the model: whole frames, newest first time, late ones left out where nobody hears it."""

import itertools

import numpy as np
import pytest

from moshi_mlx import InputError
from moshi_mlx.serve.inbox import SPEECH_LIMIT, WATCHED, Inbox

SIZE = 1920


def inbox(**settings):
    """What comes to it comes a second after what came before: nobody is too fast."""
    return Inbox(SIZE, 24_000, **{"limit": 2.0, "now": itertools.count().__next__, **settings})


def ramp(start, count):
    return np.arange(start, start + count, dtype=np.float32)


def test_frames_come_whole_and_in_order():
    box = inbox()
    assert box.frame() is None
    for start in range(0, 4 * SIZE, 480):
        box.push(ramp(start, 480))
    assert box.ready
    assert box.waiting == pytest.approx(0.32)
    for i in range(4):
        np.testing.assert_array_equal(box.frame(), ramp(i * SIZE, SIZE))
    assert box.frame() is None


@pytest.mark.parametrize("chunk", [480, 960, 1920])
@pytest.mark.parametrize("phase", [0, 1, 2, 3])
def test_the_first_frame_ends_with_the_newest_sample(chunk, phase):
    """Whenever a person's sound begins within a tick, what waits behind a frame is less than a message."""
    box = inbox()
    sent = chunk * (SIZE // chunk) + chunk * phase % SIZE
    for start in range(0, sent, chunk):
        box.push(ramp(start, chunk))
    frame = box.frame()
    assert frame[-1] == sent - 1
    assert box.waiting == 0


def test_only_what_fills_no_frame_is_left_out_at_the_start():
    box = inbox()
    box.push(ramp(0, 3 * SIZE + 700))
    np.testing.assert_array_equal(box.frame(), ramp(700, SIZE))
    np.testing.assert_array_equal(box.frame(), ramp(700 + SIZE, SIZE))


def test_silence_that_waits_tick_after_tick_is_left_out():
    box = inbox()
    silence = np.zeros(SIZE, np.float32)
    box.push(np.zeros(3 * SIZE, np.float32))
    for _ in range(3 * WATCHED):
        box.frame()
        box.push(silence)
    assert box.lost_samples == 2 * SIZE
    assert box.waiting == pytest.approx(0.08)


def test_speech_is_left_out_only_beyond_the_limit():
    box = inbox()
    speech = np.full(SIZE, 0.5, np.float32)
    for _ in range(3):
        box.push(speech)
    for _ in range(3 * WATCHED):
        box.frame()
        box.push(speech)
    assert box.lost_samples == 0
    for _ in range(8):
        box.push(speech)
    box.frame()
    assert box.waiting <= SPEECH_LIMIT
    assert box.lost_samples > 0


def test_who_is_not_to_catch_up_is_heard_whole():
    box = inbox(limit=60.0, catch_up=False)
    box.push(ramp(0, 100 * SIZE))
    for i in range(100):
        np.testing.assert_array_equal(box.frame(), ramp(i * SIZE, SIZE))
    assert box.lost_samples == 0


def test_too_fast_is_named_and_nothing_is_kept_of_it():
    clock = [0.0]
    box = inbox(now=lambda: clock[0])
    box.push(np.zeros(40_000, np.float32))
    with pytest.raises(InputError, match=r"^audio: got it 2.1 s ahead of time"):
        box.push(np.zeros(10_000, np.float32))
    assert box.waiting == pytest.approx(40_000 / 24_000)
    clock[0] = 0.2
    box.push(np.zeros(10_000, np.float32))


def test_a_model_that_stands_still_is_nobodys_fault_and_takes_no_memory():
    box = inbox()
    for _ in range(100):
        box.push(np.zeros(2400, np.float32))
    assert box.waiting == pytest.approx(2.0)
    assert box.lost_samples == 8 * 24_000


def test_clear_forgets():
    box = inbox()
    box.push(ramp(0, 5000))
    box.clear()
    assert box.frame() is None
    box.push(ramp(9000, 2000))
    assert box.frame()[-1] == 10_999
