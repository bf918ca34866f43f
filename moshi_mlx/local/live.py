"""The microphone and the speaker as one conversation: it catches up when late, and outlives its devices.

All of it runs on the model thread; only `end` may be called from elsewhere.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from ..audio import defaults, portaudio
from ..audio.devices import DeviceLost, Microphone, Speaker
from ..audio.pacing import CatchUp, Silence, level_db
from ..errors import AudioError
from ..inputs import Samples

RETRY_SECONDS = 0.5  # PortAudio tells nobody of new devices: one has to look
SLOW_SECONDS = 10.0  # so often at most it is said that this machine is too slow
DEAD_SECONDS = 2.0  # of exact zeros, after which a microphone is reported
DEAD_AGAIN_SECONDS = 60.0  # so often at most
NOT_PERMITTED = (
    "if it is not muted, it is not permitted: open System Settings > Privacy & Security > Microphone, allow your "
    "terminal, then restart the terminal"
    if sys.platform == "darwin"
    else "see that it is not muted, and that it is the one you mean (--list-devices)"
)

Say = Callable[[str], None]


class Conversation:
    """The `loop.Source` of a live conversation; `voice` is the sink that belongs to it.

    `say` gets one line for the person: a device is gone or back, the model is too slow.
    """

    def __init__(
        self,
        microphone: Microphone,
        speaker: Speaker,
        limit: float,
        say: Say,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.microphone, self.speaker = microphone, speaker
        self.voice = Voice(self)
        self.catch_up = CatchUp(microphone.frame_size / microphone.sample_rate, limit)
        self._cuts, self._lost = 0, 0  # times and samples
        self._silence = Silence()
        self._say, self._clock = say, clock
        self.latency: float | None = None
        self._began: float | None = None
        self._waited = 0.0
        self._said_slow, self._said_dead = -SLOW_SECONDS, -DEAD_AGAIN_SECONDS
        self._stop = threading.Event()
        self._changed: str | None = None
        directions = tuple(end.direction for end in (microphone, speaker) if not end.chosen)
        self._watch = defaults.Watch(directions, self.default_changed)

    def read(self) -> Samples | None:
        """The next frame of what the user says; None after `end`. Waits while a device is gone."""
        while not self._listen():
            if self._stop.is_set():
                return None
        self._cut()
        frame = self.microphone.take()
        self._waited = self.catch_up.frame + self.backlog
        self._silence.learn(level_db(frame))
        self._tell_dead()
        self._began = self._clock()
        return frame

    def _listen(self) -> bool:
        """Waits for a whole frame. False after `end`, and where a device had to be opened again."""
        try:
            if self._changed:
                self._changed = None
                raise DeviceLost("the system's default device changed")
            if self.speaker.gone:
                raise DeviceLost(f"the speaker {self.speaker.name!r} is gone")
            return self.microphone.fill()
        except DeviceLost as lost:
            self._recover(str(lost))
            return False

    def write(self, pcm: Samples) -> None:
        """The reply to the frame that was read last."""
        if self._began is not None:
            step = self._clock() - self._began
            self.catch_up.stepped(step)
            self.latency = self._latency(step)
        try:
            self.speaker.write(pcm)
        except DeviceLost:
            return  # said, and put right, by the next `read`

    def _latency(self, step: float) -> float:
        """From when the frame began to be captured: it filled, waited, was answered, and its answer waits to play."""
        waits = self.speaker.wait_seconds(self.catch_up.frame)
        return self._waited + step + waits + self.microphone.device_latency + self.speaker.device_latency

    # Catching up

    def _cut(self) -> None:
        """Drops what `CatchUp` says of the backlog, and counts it."""
        microphone, rate = self.microphone, self.microphone.sample_rate
        self.catch_up.block = microphone.block / microphone.rate
        playout = self.speaker.playout
        playout.block = max(playout.block, round(self.catch_up.block * self.speaker.rate))
        queued, target, frames = self.speaker.queue(self.catch_up.step)
        seconds = self.catch_up.cut(microphone.backlog / rate, queued, target, frames, self._silent_frames())
        count = round(seconds * rate)
        if not count:
            return
        microphone.drop(count)
        self._cuts += 1
        self._lost += count
        self._tell_slow()

    def _silent_frames(self) -> int:
        """How many whole frames of the backlog, from the oldest on, are silence; the newest is never dropped."""
        size = self.microphone.frame_size
        spare = self.microphone.backlog - size
        if spare < size:
            return 0
        frames = self.microphone.peek(spare)[: spare // size * size].reshape(-1, size)
        levels = [self._silence.is_silent(level_db(frame)) for frame in frames]
        return levels.index(False) if False in levels else len(levels)

    def _tell_slow(self) -> None:
        step, frame = self.catch_up.step, self.catch_up.frame
        if step <= frame or self._clock() - self._said_slow < SLOW_SECONDS:
            return
        self._said_slow = self._clock()
        self._say(
            f"too slow to keep up: a frame takes {1e3 * step:.0f} ms, it must take less than {1e3 * frame:.0f}; "
            "sound is dropped (try -q 4, or close other programs)"
        )

    # Devices

    def _tell_dead(self) -> None:
        """macOS gives zeros, and no error, to a program that may not use the microphone."""
        if self.microphone.dead_seconds < DEAD_SECONDS or self._clock() - self._said_dead < DEAD_AGAIN_SECONDS:
            return
        self._said_dead = self._clock()
        self._say(f"the microphone {self.microphone.name!r} gives nothing but zeros: {NOT_PERMITTED}")

    def default_changed(self, direction: str) -> None:
        """From any thread: the system has another default microphone or speaker ("Input", "Output")."""
        self._changed = direction

    def _recover(self, what: str) -> None:
        """Says what is gone and opens both devices again, as soon as they can be. Gives up after `end`."""
        self._say(f"{what}; the conversation waits until it, or another one, can be opened")
        while not self._stop.is_set():
            try:
                self._reopen()
            except AudioError:
                self._stop.wait(RETRY_SECONDS)
                continue
            self._say(f"sound is back: microphone {self.microphone.name!r}, speaker {self.speaker.name!r}")
            return

    def _reopen(self) -> None:
        """The microphone first: a wireless headset then changes its rate, which a speaker that is open would miss."""
        self.microphone.close()
        self.speaker.close()
        portaudio.look_again()
        self.microphone.reopen()
        self.microphone.wait_running()
        self.speaker.reopen()

    def end(self) -> None:
        """From any thread, and from a signal handler: `read` returns None from now on."""
        self._stop.set()
        self.microphone.end()

    def close(self) -> None:
        self._watch.close()
        self.microphone.close()
        self.speaker.close()

    # What was lost, and what waits

    @property
    def drops(self) -> int:
        """Times that sound of the user was lost: cut, or not taken in time."""
        return self._cuts + self.microphone.overflows

    @property
    def lost_seconds(self) -> float:
        """What was cut of the user's sound."""
        return self._lost / self.microphone.sample_rate

    @property
    def backlog(self) -> float:
        """Seconds of the user's sound that wait."""
        return self.microphone.backlog / self.microphone.sample_rate


class Voice:
    """The other end of a conversation: its speaker."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self.write = talk.write

    @property
    def drops(self) -> int:
        """Times that there was nothing to play, or too much."""
        return self._talk.speaker.drops

    @property
    def lost_seconds(self) -> float:
        """What was left out of Moshi's replies."""
        return self._talk.speaker.lost_seconds

    def drain(self) -> None:
        self._talk.speaker.drain()

    def close(self) -> None:
        self._talk.speaker.close()

    def abort(self) -> None:
        self.close()


class UserFile:
    """What the user says first comes from a file, at the microphone's pace; then the microphone is heard."""

    def __init__(self, source: Conversation, samples: Samples, frame_size: int) -> None:
        self._source = source
        padded = np.pad(samples, (0, -len(samples) % frame_size))
        self._frames = iter(padded.reshape(-1, frame_size))

    def read(self) -> Samples | None:
        heard = self._source.read()
        return None if heard is None else next(self._frames, heard)

    @property
    def drops(self) -> int:
        return self._source.drops

    @property
    def lost_seconds(self) -> float:
        return self._source.lost_seconds

    @property
    def backlog(self) -> float:
        return self._source.backlog

    @property
    def latency(self) -> float | None:
        return self._source.latency

    def end(self) -> None:
        self._source.end()

    def close(self) -> None:
        self._source.close()
