"""An hour of people who come and go, in a time of the test's own."""

import gc
import tracemalloc
from array import array

import numpy as np
import pytest
from serving_time import Person, Scene

from moshi_mlx.serve.engine import TICK

HOUR = 3600.0


@pytest.mark.slow
def test_an_hour_with_eight_people_coming_and_going():
    """Nobody's frames come late because of others, and nothing is left of those who have gone."""
    scene, random = Scene(slots=8), np.random.default_rng(0)
    gaps, visits, sizes = array("d"), [0], []
    last = {}

    def deliver(said):
        now = scene.clock.time
        for person, frame, *_ in said:
            if frame is not None:
                if person in last:
                    gaps.append(now - last[person])
                last[person] = now

    scene.engine._deliver = deliver

    def visit(ends):
        """Somebody comes, speaks for a while, now and then late, and leaves; then comes another."""
        person = Person(visits[0])
        visits[0] += 1
        scene.engine.join(person)
        first = scene.clock.time - 100 + 0.3
        leaves = min(ends, first + float(random.uniform(1, 60)))
        count = int((leaves - first) / TICK)

        def speak(left, when):
            person.say()
            scene.engine.wake()
            if left:
                scene.clock.at(max(when + TICK, scene.clock.time - 100), lambda: speak(left - 1, when + TICK))

        def leave():
            scene.engine.leave(person)
            last.pop(person, None)
            if leaves < ends:
                scene.clock.at(leaves + float(random.uniform(0.1, 5)), lambda: visit(ends))

        scene.clock.at(first, lambda: speak(max(0, count - 2), first))
        scene.clock.at(leaves, leave)

    for i in range(8):
        scene.clock.at(0.1 + 0.37 * i, lambda: visit(HOUR))
    for minute in (10, 59):
        scene.clock.at(60 * minute, lambda: (gc.collect(), sizes.append(tracemalloc.get_traced_memory()[0])))
    tracemalloc.start()
    try:
        scene.run(HOUR + 5)
    finally:
        tracemalloc.stop()
    assert visits[0] > 500
    assert scene.batch.most == 8
    assert scene.batch.rows == []
    assert scene.engine.people == 0
    assert len(gaps) > 200_000
    assert np.percentile(gaps, 99.9) < 2 * TICK + 0.001
    assert sizes[1] - sizes[0] < 2**20 + 10 * len(gaps)  # what this test itself notes down
