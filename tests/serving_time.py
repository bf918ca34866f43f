"""The engine in a time of a test's own: people who speak when they are planned to, and what they were given when."""

import itertools

import numpy as np
from serving import SIZE, EchoBatch

from moshi_mlx.serve.engine import TICK, Engine
from moshi_mlx.serve.inbox import Inbox
from moshi_mlx.serve.personas import Persona


class Person:
    def __init__(self, seed=0):
        self.inbox = Inbox(SIZE, 24_000, 2.0, now=itertools.count().__next__)
        self.seed, self.settings, self.persona, self.paused = seed, {}, Persona(), False

    def say(self, frames=1, value=0.5):
        self.inbox.push(np.full(frames * SIZE, value, np.float32))


class Time:
    """Goes on only while somebody waits, and then does what is planned for that moment."""

    def __init__(self):
        self.time, self.plan, self.waits = 100.0, [], 0

    def now(self):
        return self.time

    def at(self, seconds, act):
        self.plan.append((100.0 + seconds, act))
        self.plan.sort(key=lambda each: each[0])

    def wait(self, condition, seconds):
        """Never waits really: the next planned act, or the end of the wait, comes at once."""
        until = None if seconds is None else self.time + seconds
        if self.plan and (until is None or self.plan[0][0] <= until):
            self.time, act = self.plan.pop(0)
            condition.release()  # an act comes from another thread, as it were
            try:
                act()
            finally:
                condition.acquire()
        elif until is not None:
            self.time = until
        else:
            raise AssertionError("nothing is planned any more, and the engine waits for ever")


class Scene:
    def __init__(self, slots=4, step_seconds=0.02):
        self.clock, self.said = Time(), []
        self.batch = EchoBatch(slots)
        plain = self.batch.step

        def step(sounds):
            self.clock.time += step_seconds
            return plain(sounds)

        self.batch.step = step
        self.engine = Engine(lambda: self.batch, self.deliver, self.fail, self.clock)
        self.failure = None

    def fail(self, error):
        self.failure = error

    def deliver(self, said):
        self.said += [(round(self.clock.time - 100, 4), each.person, each.frame) for each in said]

    def run(self, seconds):
        self.clock.at(seconds, self.stop)
        self.engine._run()
        if self.failure:
            raise self.failure

    def stop(self):
        self.engine._stop = True

    def times(self, person):
        return [when for when, who, frame in self.said if who is person and frame is not None]

    def speaks(self, person, first, count, every=TICK, late=lambda i: 0.0):
        for i in range(count):
            self.clock.at(first + every * i + late(i), lambda: (person.say(), self.engine.wake()))
