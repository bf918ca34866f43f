"""The microphone and the speaker as one conversation: it catches up when late, and outlives its devices.

All of it runs on the model thread; only `end` may be called from elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from ..audio import portaudio
from ..audio.devices import DeviceLost, Microphone, Speaker
from ..audio.pacing import CatchUp, Silence, level_db
from ..errors import AudioError
from ..inputs import Samples

RETRY_SECONDS = 0.5  # PortAudio tells nobody of new devices: one has to look
SLOW_SECONDS = 10.0  # so often at most it is said that this machine is too slow

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
        self._began: float | None = None
        self._said_slow = -SLOW_SECONDS
        self._stop = threading.Event()

    def read(self) -> Samples | None:
        """The next frame of what the user says; None after `end`. Waits while a device is gone."""
        while True:
            try:
                if self.speaker.gone:
                    raise DeviceLost(f"the speaker {self.speaker.name!r} is gone")
                if not self.microphone.fill():
                    return None
                break
            except DeviceLost as lost:
                if not self._recover(str(lost)):
                    return None
        self._cut()
        frame = self.microphone.take()
        self._silence.learn(level_db(frame))
        self._began = self._clock()
        return frame

    def write(self, pcm: Samples) -> None:
        """The reply to the frame that was read last."""
        if self._began is not None:
            self.catch_up.stepped(self._clock() - self._began)
        try:
            self.speaker.write(pcm)
        except DeviceLost:
            return  # said, and put right, by the next `read`

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
            f"too slow: a frame takes {1e3 * step:.0f} ms and {1e3 * frame:.0f} ms is what there is; "
            "sound is dropped to keep up (try -q 4, or close other programs)"
        )

    # Devices

    def _recover(self, what: str) -> bool:
        """Says what is gone and opens both devices again, as soon as they can be. False after `end`."""
        self._say(f"{what}; the conversation waits until it, or another one, can be opened")
        while not self._stop.is_set():
            try:
                self._reopen()
            except AudioError:
                self._stop.wait(RETRY_SECONDS)
                continue
            self._say(f"the conversation goes on: {self.microphone.name!r} to {self.speaker.name!r}")
            return True
        return False

    def _reopen(self) -> None:
        self.microphone.close()
        self.speaker.close()
        portaudio.look_again()
        self.microphone.reopen()
        self.speaker.reopen()

    def end(self) -> None:
        """From any thread, and from a signal handler: `read` returns None from now on."""
        self._stop.set()
        self.microphone.end()

    def close(self) -> None:
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

    def end(self) -> None:
        self._source.end()

    def close(self) -> None:
        self._source.close()
