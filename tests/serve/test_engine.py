"""Ticks in a time of the test's own: who is heard when, and that nobody waits for another."""

import threading
import time

import numpy as np
import pytest
from serving import EchoBatch
from serving_time import Person, Scene

from moshi_mlx.serve.engine import IDLE_TICKS, MARGIN, TICK, Engine


def test_a_newcomer_is_primed_at_once_and_heard_as_soon_as_a_frame_is_complete():
    scene, person = Scene(), Person()
    scene.clock.at(1.0, lambda: scene.engine.join(person))
    scene.speaks(person, 1.37, 5)
    scene.run(2.0)
    assert scene.said[0] == (1.02, person, None)
    assert scene.times(person) == pytest.approx([1.37 + MARGIN + 0.02 + TICK * i for i in range(5)])


def test_one_step_for_all_and_none_waits_for_the_slow():
    scene, fast, slow = Scene(), Person(1), Person(2)
    for person in (fast, slow):
        scene.clock.at(0.5, lambda person=person: scene.engine.join(person))
    scene.speaks(fast, 1.0, 50)
    scene.speaks(slow, 1.03, 50, late=lambda i: 0.5 if 10 <= i < 15 else 0.0)  # half a second held back
    scene.run(8.0)
    times = scene.times(fast)
    assert len(times) == 50
    assert np.diff(times) == pytest.approx(TICK)
    assert 40 < len(scene.times(slow)) <= 50
    assert scene.batch.steps < 80


def test_who_comes_in_the_middle_delays_nobody():
    scene, first = Scene(), Person(1)
    scene.clock.at(0.1, lambda: scene.engine.join(first))
    scene.speaks(first, 0.5, 40)
    others = [Person(i) for i in range(2, 5)]
    for i, other in enumerate(others):
        scene.clock.at(1.0 + 0.3 * i, lambda other=other: scene.engine.join(other))
        scene.clock.at(1.9 + 0.3 * i, lambda other=other: scene.engine.leave(other))
    scene.run(5.0)
    assert np.diff(scene.times(first)) == pytest.approx(TICK)
    for other in others:  # primed within a tick
        ready = next(when for when, who, frame in scene.said if who is other and frame is None)
        assert ready - (1.0 + 0.3 * others.index(other)) < TICK + 0.03
    assert scene.batch.rows[0].seed == 1
    assert len(scene.batch.rows) == 1


def test_the_clock_stands_while_nobody_speaks_and_begins_with_the_next():
    scene, person = Scene(), Person()
    scene.clock.at(0.1, lambda: scene.engine.join(person))
    scene.speaks(person, 0.5, 3)
    scene.speaks(person, 5.01, 3)
    scene.run(8.0)
    assert scene.times(person)[3:] == pytest.approx([5.01 + MARGIN + 0.02 + TICK * i for i in range(3)])
    assert scene.batch.steps <= 7 + 2 * IDLE_TICKS


def test_late_ticks_are_made_up_for_but_not_for_ever():
    scene, person = Scene(), Person()
    slow = {20: 0.3, 60: 2.0}
    plain = scene.batch.step

    def step(sounds):
        scene.clock.time += slow.pop(scene.batch.steps, 0.0)
        return plain(sounds)

    scene.batch.step = step
    scene.clock.at(0.1, lambda: scene.engine.join(person))
    scene.speaks(person, 0.5, 150)
    scene.run(14.0)
    gaps = np.diff(scene.times(person))
    assert (gaps > 0.2).sum() == 2
    assert gaps.min() < 0.03  # one after the other, until it is made up for
    assert person.inbox.waiting < 0.5


def test_a_pause_and_a_restart():
    scene, person = Scene(), Person()
    scene.clock.at(0.1, lambda: scene.engine.join(person))
    scene.speaks(person, 0.5, 60)
    scene.clock.at(1.0, lambda: setattr(person, "paused", True))
    scene.clock.at(1.5, lambda: (person.inbox.clear(), setattr(person, "paused", False), scene.engine.wake()))
    scene.clock.at(3.0, lambda: scene.engine.join(person))
    scene.run(6.0)
    times = np.array(scene.times(person))
    assert not ((times > 1.05) & (times < 1.5)).any()
    assert [when for when, _, frame in scene.said if frame is None] == pytest.approx([0.12, 3.05], abs=0.1)
    assert len(scene.batch.rows) == 1


def test_leaving_twice_or_before_it_began_does_no_harm():
    scene, person = Scene(), Person()
    scene.clock.at(0.1, lambda: (scene.engine.join(person), scene.engine.leave(person)))
    scene.clock.at(0.2, lambda: scene.engine.leave(person))
    scene.clock.at(0.3, lambda: scene.engine.join(person))
    scene.clock.at(0.5, lambda: (scene.engine.leave(person), scene.engine.leave(person)))
    scene.run(1.0)
    assert [frame for _, _, frame in scene.said] == [None]
    assert scene.batch.rows == []


def test_a_model_that_fails_is_reported():
    scene, person = Scene(), Person()

    def step(sounds):
        raise RuntimeError("out of memory")

    scene.batch.step = step
    scene.clock.at(0.1, lambda: scene.engine.join(person))
    with pytest.raises(RuntimeError, match="out of memory"):
        scene.run(1.0)
    assert scene.engine.ready.is_set()


def test_all_work_on_the_batch_is_on_one_thread():
    """In real time, with threads that come and go."""
    threads = set()

    class Batch(EchoBatch):
        def __getattribute__(self, name):
            if name in ("step", "join", "leave"):
                threads.add(threading.current_thread().name)
            return super().__getattribute__(name)

    primed = threading.Event()
    engine = Engine(lambda: Batch(2), lambda said: primed.set())
    engine.start()
    person = Person()
    engine.join(person)
    assert primed.wait(5)
    engine.leave(person)
    until = time.monotonic() + 5
    while engine.people and time.monotonic() < until:
        time.sleep(0.01)
    engine.stop()
    assert threads == {"model"}
    assert "model" not in {thread.name for thread in threading.enumerate()}
