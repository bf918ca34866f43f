"""The microphone and the speaker: one stream each, whose callback only copies into or out of a bounded ring.

PortAudio's own threads call back. All else (resampling, echo, dropping) happens on the model thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..inputs import Samples
from . import portaudio, stream
from .pacing import FADE_SECONDS, Playout, leave_out, level_db
from .resample import Resampler
from .ring import Ring
from .stream import DeviceLost, DeviceStream

__all__ = ["DeviceLost", "Microphone", "Speaker"]

RING_SECONDS = 2.0  # what is kept of either side in a stall of the model
PACED_SECONDS = 0.4  # the most that a file's reply may be ahead of the speaker
QUIET_DB = -50.0  # a reply softer than this may be left out unheard

Clean = Callable[[Samples], Samples]
"""(what was heard, at the codec's rate) -> the same without its echo, perhaps some samples later."""


class Microphone(DeviceStream):
    """A sound input. Raises AudioError where there is none.

    It runs from the start, since a device takes its time to wake; the first `fill` begins with what comes then.
    """

    direction = "Input"

    def __init__(
        self,
        sample_rate: int,
        frame_size: int,
        device: str | None = None,
        device_rate: int | None = None,
        clean: Clean | None = None,
    ) -> None:
        self.overflows = 0  # times that sound was lost before the model thread took it
        self.block = 0  # the largest number of samples that came at once
        self.clean = clean
        self._listening = self._ended = False
        self._zeros = 0  # samples of the device in a row that were exactly zero
        self._arrived = Ring(int(RING_SECONDS * max(sample_rate, device_rate or 0, 48_000)))
        self._heard = Ring(int(2 * RING_SECONDS * sample_rate))  # at sample_rate
        super().__init__(sample_rate, frame_size, device, device_rate)
        self._resample = Resampler(self.rate, sample_rate)

    def _on_block(self, data: Samples, frames: int, times: Any, status: Any) -> None:
        self._note_call()
        lost = self._arrived.push(data[:, 0] if data.shape[1] == 1 else data.mean(axis=1))
        if self._listening:
            self.block = max(self.block, frames)
            self.overflows += bool(lost or status.input_overflow)
        if self.note:
            self.note(self.direction, frames)

    def _ring_ends(self) -> None:
        self._arrived.end()

    def reopen(self) -> None:
        self._arrived.clear()
        self._listening, self._zeros = False, 0
        super().reopen()
        self._resample = Resampler(self.rate, self.sample_rate)

    def end(self) -> None:
        """From any thread, and from a signal handler: `fill` returns False from now on."""
        self._ended = True
        self._running.set()
        self._arrived.end()

    def fill(self) -> bool:
        """Waits for a whole frame. False after `end`; raises DeviceLost where no more sound comes."""
        if not self._listening:
            if self.gone:
                raise DeviceLost(f"the microphone {self.name!r} is gone")
            self._arrived.clear()
            self._listening = True
        while not self._ended and self.backlog < self.frame_size:
            if not self._arrived.wait_filled(self._missing(), stream.TIMEOUT) and not self._ended and self.gone:
                raise DeviceLost(f"the microphone {self.name!r} is gone")
            self.collect()
        self.collect()
        return not self._ended

    def _missing(self) -> int:
        """How many samples to wait for. Echo is taken out as it comes, so that only the last block's is waited for."""
        if self.clean:
            return 1
        return max(1, (self.frame_size - self.backlog) * self.rate // self.sample_rate)

    def collect(self) -> None:
        """Takes over what the callback brought: everything but waiting happens here."""
        arrived = np.empty(self._arrived.filled, np.float32)
        arrived = arrived[: self._arrived.pull(arrived)]
        sounding = np.flatnonzero(arrived)
        self._zeros = len(arrived) - 1 - int(sounding[-1]) if len(sounding) else self._zeros + len(arrived)
        sound = self._resample(arrived)
        lost = self._heard.push(self.clean(sound) if self.clean else sound)
        self.overflows += bool(lost)

    @property
    def dead_seconds(self) -> float:
        """For how long it has given exact zeros, as a microphone does that is switched off, or not permitted."""
        return self._zeros / self.rate

    @property
    def backlog(self) -> int:
        """Samples, at `sample_rate`, that wait for the model."""
        return self._heard.filled

    def peek(self, count: int) -> Samples:
        """The oldest samples of the backlog."""
        return self._heard.peek(count)

    def drop(self, count: int) -> None:
        """Forgets the oldest samples of the backlog."""
        self._heard.drop(count)

    def take(self) -> Samples:
        """The next frame, after `fill`."""
        frame = np.empty(self.frame_size, np.float32)
        self._heard.pull(frame)
        return frame


class Speaker(DeviceStream):
    """A sound output with an adaptive buffer (`pacing.Playout`). Raises AudioError where there is none.

    `pace` makes `write` wait for room, so that the speaker sets the pace of a source that has none (a file).
    Without it the source sets the pace, and what queues up too long is left out. `tap` keeps what was played, silence
    included, for an echo canceller: `played` gives it.
    """

    direction = "Output"

    def __init__(
        self,
        sample_rate: int,
        frame_size: int,
        device: str | None = None,
        device_rate: int | None = None,
        pace: bool = False,
        tap: bool = False,
    ) -> None:
        self.overflows = 0  # times that a reply found no room, or was left out
        self._starved = 0  # times that the device itself ran dry: its callback came too late
        self.left_out = 0.0  # seconds of it
        self.volume = 1.0
        """What is played is multiplied by it."""
        self._pace, self._tap, self._flushing = pace, tap, False
        self._capacity = int((PACED_SECONDS if pace else RING_SECONDS) * max(sample_rate, device_rate or 0))
        self._ring = Ring(self._capacity)
        self._played: Ring | None = None
        self._last, self._falling, self._rising = 0.0, 0, 0
        self.playout = Playout(sample_rate, frame_size)  # the first callback may come before the rate is known
        self._fade = np.zeros(0, np.float32)
        super().__init__(sample_rate, frame_size, device, device_rate)
        self._prepare()

    def _prepare(self) -> None:
        """What depends on the rate that the device took."""
        underruns = self.playout.underruns
        self._resample = Resampler(self.sample_rate, self.rate)
        self._back = Resampler(self.rate, self.sample_rate)
        self._capacity = int((PACED_SECONDS if self._pace else RING_SECONDS) * self.rate)
        self._played = Ring(int(RING_SECONDS * self.rate)) if self._tap else None
        self._fade = np.linspace(0.0, 1.0, int(FADE_SECONDS * self.rate), dtype=np.float32)
        self._rising = len(self._fade)
        playout = Playout(self.rate, self.frame_size * self.rate // self.sample_rate)
        playout.underruns = underruns
        self.playout, self._ring = playout, Ring(self._capacity)

    def _on_block(self, data: Samples, frames: int, times: Any, status: Any) -> None:
        self._note_call()
        out, queued = data[:, 0], self._ring.filled
        self._starved += bool(status.output_underflow and not self.playout.waiting)
        wanted = min(frames, queued) if self._flushing else self.playout.play(frames, queued)
        filled = self._ring.pull(out[:wanted])
        self._fade_edges(out, filled)
        data[:, 1:] = data[:, :1]
        if self._played is not None:
            self._played.push(out)
        if self.note:
            self.note(self.direction, filled)

    def _fade_edges(self, out: Samples, filled: int) -> None:
        """Rises after a gap; falls from the last sample where the sound ran dry."""
        if filled:
            rise = min(filled, len(self._fade) - self._rising)
            out[:rise] *= self._fade[self._rising : self._rising + rise]
            self._rising += rise
            self._last, self._falling = float(out[filled - 1]), len(self._fade)
        rest = out[filled:]
        fall = min(len(rest), self._falling)
        rest[:fall] = self._last * self._fade[self._falling - fall : self._falling][::-1]
        rest[fall:] = 0.0
        self._falling -= fall
        if len(rest) and self._last:
            self._rising = 0

    def _ring_ends(self) -> None:
        self._ring.end()

    def reopen(self) -> None:
        super().reopen()
        self._prepare()

    @property
    def queued(self) -> float:
        """Seconds of reply that wait to be played."""
        return self._ring.filled / self.rate

    def queue(self, step: float) -> tuple[float, float, int]:
        """(seconds queued, seconds that it wants queued after a frame, frames that it waits for before it plays on).

        `step`: the seconds that a frame takes. What a callback took has not been played: a block counts as queued.
        """
        block = round(self.rate * portaudio.BLOCK_SECONDS) / self.rate
        frames = self.playout.frames_wanted(self._ring.filled, round(step * self.rate))
        return self.queued + block, self.playout.target / self.rate + block, frames

    def wait_seconds(self, frame: float) -> float:
        """Seconds until a frame that is written now begins to play: after what is queued, and the frames that it waits
        for, of `frame` seconds each."""
        playout, queued = self.playout, self._ring.filled
        missing = playout.target - queued - playout.frame if playout.waiting else 0
        return queued / self.rate + max(0, -(-missing // playout.frame)) * frame

    def played(self) -> Samples:
        """What was played since the last call, at `sample_rate`."""
        ring = self._played
        if ring is None:
            return np.zeros(0, np.float32)
        sound = np.empty(ring.filled, np.float32)
        return self._back(sound[: ring.pull(sound)])

    @property
    def drops(self) -> int:
        """Times that there was nothing to play, or too much."""
        return self.playout.underruns + self.overflows + self._starved

    @property
    def lost_seconds(self) -> float:
        return self.left_out

    def write(self, pcm: Samples) -> None:
        """Queues a frame. Raises DeviceLost where the speaker plays no more."""
        self._flushing = False
        sound = self._resample(pcm if self.volume == 1.0 else np.clip(pcm * np.float32(self.volume), -1.0, 1.0))
        if self._pace:
            self._ring.wait_room(len(sound), stream.TIMEOUT)
        if self.gone:
            raise DeviceLost(f"the speaker {self.name!r} is gone; see that it is connected, and start again")
        self._ring.push(sound if self._pace else self._trimmed(sound, level_db(pcm) < QUIET_DB))

    def _trimmed(self, sound: Samples, silent: bool) -> Samples:
        count = self.playout.trim(len(sound), self._ring.filled, silent)
        count = max(count, len(sound) + self._ring.filled - self._capacity)
        if count <= 0:
            return sound
        self.overflows += 1
        self.left_out += count / self.rate
        return leave_out(sound, count, len(self._fade))

    def drain(self) -> None:
        """Silence is sent after the reply: when the device has taken it, the reply has left its buffers."""
        self._flushing = True  # from here on running empty is no drop
        silence = np.zeros(int(self.device_latency * self.rate) + int(0.08 * self.rate), np.float32)
        self._ring.wait_room(self._capacity, stream.TIMEOUT)
        self._ring.push(silence)
        self._ring.wait_room(self._capacity, stream.TIMEOUT)

    def abort(self) -> None:
        self.close()
