"""The ring between an audio callback and the model thread."""

import collections
import random

import numpy as np
from stand_ins import in_thread

from moshi_mlx.audio.ring import Ring


def test_ring_equals_a_bounded_queue():
    chance = random.Random(0)
    ring, queue, value = Ring(50), collections.deque(), 0
    for _ in range(5000):
        if chance.random() < 0.5:
            count = chance.randint(0, 70)
            pushed = np.arange(value, value + count, dtype=np.float32)
            value = (value + count) % 10_000
            queue.extend(pushed)
            lost = max(0, len(queue) - 50)
            assert ring.push(pushed) == lost
            for _ in range(lost):
                queue.popleft()
        else:
            out = np.full(chance.randint(0, 70), -1, np.float32)
            count = min(len(out), len(queue))
            assert ring.pull(out) == count
            assert out.tolist() == [queue.popleft() for _ in range(count)] + [-1] * (len(out) - count)


def test_ring_wakes_who_waits_for_samples():
    ring = Ring(100)
    result = in_thread(lambda: ring.wait_filled(60, timeout=10))
    ring.push(np.zeros(50, np.float32))
    ring.push(np.zeros(10, np.float32))
    assert result()


def test_ring_wakes_who_waits_for_room():
    ring = Ring(100)
    ring.push(np.zeros(100, np.float32))
    result = in_thread(lambda: ring.wait_room(60, timeout=10))
    ring.pull(np.zeros(60, np.float32))
    assert result()


def test_end_of_the_ring_wakes_who_waits():
    ring = Ring(100)
    result = in_thread(lambda: ring.wait_filled(60, timeout=10))
    ring.end()
    assert not result()
    assert not ring.wait_filled(60, timeout=10)


def test_ring_gives_up_waiting():
    assert not Ring(100).wait_filled(1, timeout=0.01)


def test_a_cleared_ring_can_be_waited_for_again():
    ring = Ring(100)
    ring.end()
    ring.clear()
    result = in_thread(lambda: ring.wait_filled(10, timeout=10))
    ring.push(np.zeros(10, np.float32))
    assert result()


def test_peek_and_drop_go_around_the_end():
    ring = Ring(10)
    ring.push(np.arange(8, dtype=np.float32))
    ring.drop(6)
    ring.push(np.arange(8, 14, dtype=np.float32))
    assert ring.peek(100).tolist() == [6, 7, 8, 9, 10, 11, 12, 13]
    assert ring.peek(3).tolist() == [6, 7, 8]
    ring.drop(2)
    assert (ring.filled, ring.peek(2).tolist()) == (6, [8, 9])
    ring.drop(100)
    assert ring.filled == 0
