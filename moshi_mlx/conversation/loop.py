"""The frame pump between a source of sound, a session and a sink: the same for files and for live sound.

It does all its work on the thread that calls it, which must be the one that made the session.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..inputs import Samples

HOLD_SECONDS = 0.8  # a key's repeat begins after half a second on most systems


class Frame(Protocol):
    """What the pump needs of a frame that `Session.step` gives."""

    @property
    def pcm(self) -> Samples | None: ...


class Session(Protocol):
    """What the pump needs of a session."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def frame_size(self) -> int: ...
    @property
    def nonfinite_samples(self) -> int: ...
    def step(self, pcm: Samples, /) -> Frame: ...
    def reset(self) -> None: ...


class End(Protocol):
    """What a source and a sink have in common. `drops` counts the times that sound was lost or missing."""

    @property
    def drops(self) -> int: ...
    @property
    def lost_seconds(self) -> float: ...

    def close(self) -> None:
        """Lets go of file or device, and keeps what was written. May be called twice."""


class Source(End, Protocol):
    """Where frames come from."""

    @property
    def backlog(self) -> float:
        """Seconds of sound that wait to be read."""

    @property
    def latency(self) -> float | None:
        """Seconds from when the frame read last began to be captured to when its reply plays; None for files."""

    def read(self) -> Samples | None:
        """Waits for the next frame, float32 [frame_size], and returns it; None at the end."""

    def end(self) -> None:
        """From any thread, and from a signal handler: a `read` that waits returns None."""


class Sink(End, Protocol):
    """Where frames go."""

    def write(self, pcm: Samples) -> None:
        """Takes one frame, float32 [frame_size]."""

    def drain(self) -> None:
        """Waits until all that was written has been played."""

    def abort(self) -> None:
        """Ends now and leaves no trace. Does nothing after `close`."""


class Moment(NamedTuple):
    """One frame of a conversation, as observers see it after it was written."""

    number: int  # from 0
    heard: Samples  # float32 [frame_size], what the session was given
    said: Samples  # float32 [frame_size], its reply; silence while the delay fills
    frame: Any  # what `Session.step` gave
    started: float  # when the step began, by time.perf_counter
    seconds: float  # what the step took
    backlog: float  # seconds of sound that waited when the frame was done
    drops: tuple[int, int]  # so far, in and out
    lost: tuple[float, float]  # seconds of sound dropped so far, in and out
    reset: bool = False  # a new conversation began with this frame
    latency: float | None = None  # seconds from hearing this frame to playing its reply, where there are devices


class Controls:
    """What a person, on another thread, asks of a conversation."""

    def __init__(self) -> None:
        self.muted = False
        """Moshi hears silence."""
        self.push_to_talk = False
        """Moshi hears silence, but for HOLD_SECONDS after each `press`."""
        self._held_until = -1.0
        self._reset = threading.Event()

    def press(self) -> None:
        """The key to talk is down; it repeats while it is held."""
        self._held_until = time.monotonic() + HOLD_SECONDS

    @property
    def deaf(self) -> bool:
        """Whether Moshi hears silence just now."""
        return self.muted or (self.push_to_talk and time.monotonic() > self._held_until)

    def reset(self) -> None:
        """Begin a new conversation with the next frame."""
        self._reset.set()

    def take_reset(self) -> bool:
        """Whether a reset was asked for since the last call."""
        asked = self._reset.is_set()
        self._reset.clear()
        return asked


@dataclass
class Statistics:
    """What a conversation took. `input_drops` and `output_drops` count the times that sound was lost."""

    frame_seconds: float  # the sound of one frame
    times: array[float] = field(default_factory=lambda: array("d"))  # processing time of each frame, seconds
    input_drops: int = 0
    output_drops: int = 0
    input_lost: float = 0.0  # seconds
    output_lost: float = 0.0
    nonfinite_samples: int = 0  # NaN or infinite, replaced by silence
    latencies: array[float] = field(default_factory=lambda: array("d"))  # of each frame, where there are devices

    @property
    def frames(self) -> int:
        return len(self.times)

    @property
    def real_time_factor(self) -> float:
        """Processing time / sound time: below 1 keeps up with a speaker. 0 before the first frame."""
        return sum(self.times) / (self.frames * self.frame_seconds) if self.frames else 0.0

    def percentile_ms(self, percent: float) -> float:
        """The processing time of a frame, in ms, that `percent` % of the frames stay within."""
        return 1000.0 * float(np.percentile(self.times, percent)) if self.frames else 0.0

    @property
    def latency(self) -> float | None:
        """The median, in seconds, from hearing to playing the reply; None where nothing is played live."""
        return float(np.median(self.latencies)) if self.latencies else None

    def __str__(self) -> str:
        if not self.frames:
            return "no sound: 0 frames"
        line = (
            f"{self.frames * self.frame_seconds:.1f} s of sound in {sum(self.times):.1f} s "
            f"({self.real_time_factor:.2f}×); {self.percentile_ms(50):.0f} ms a frame, "
            f"95% within {self.percentile_ms(95):.0f}"
        )
        return line + "".join(f"; {part}" for part in self._troubles())

    def _troubles(self) -> Iterator[str]:
        if self.latency is not None:
            yield f"reply {1e3 * self.latency:.0f} ms after you (median)"
        if self.input_drops:
            yield f"{self.input_lost:.2f} s of your sound dropped, {_times(self.input_drops)}"
        if self.output_drops:
            yield f"Moshi's sound interrupted {_times(self.output_drops)}, {self.output_lost:.2f} s of it left out"
        if self.nonfinite_samples:
            yield f"{self.nonfinite_samples} NaN or infinite samples heard as silence"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


Observer = Callable[[Moment], None]


def run(
    session: Session,
    source: Source,
    sink: Sink,
    observers: Sequence[Observer] = (),
    steps: int | None = None,
    stop: threading.Event | None = None,
    controls: Controls | None = None,
) -> Statistics:
    """Feeds `source` to `session` and the reply to `sink`, until the source ends, `steps` frames or `stop`.

    While the session has no sound to give (`frame.pcm` is None) the sink gets silence, so that the reply stays
    aligned with the input. `observers` see every frame after it has been written. `stop` may be set from any
    thread: the frame at hand is finished, and nothing waits for the speaker. Source and sink stay open.
    """
    stop, controls = stop or threading.Event(), controls or Controls()
    statistics = Statistics(session.frame_size / session.sample_rate)
    nonfinite_before = session.nonfinite_samples
    while not stop.is_set() and statistics.frames != steps:
        pcm = source.read()
        if pcm is None:
            break
        reset = controls.take_reset()
        if reset:
            session.reset()
        moment = _frame(session, np.zeros_like(pcm) if controls.deaf else pcm, source, sink, statistics.frames)
        statistics.times.append(moment.seconds)
        if moment.latency is not None:
            statistics.latencies.append(moment.latency)
        for observe in observers:
            observe(moment._replace(reset=reset))
    if not stop.is_set():
        sink.drain()
    statistics.input_drops, statistics.output_drops = source.drops, sink.drops
    statistics.input_lost, statistics.output_lost = source.lost_seconds, sink.lost_seconds
    statistics.nonfinite_samples = session.nonfinite_samples - nonfinite_before
    return statistics


def _frame(session: Session, pcm: Samples, source: Source, sink: Sink, number: int) -> Moment:
    started = time.perf_counter()
    frame = session.step(pcm)
    seconds = time.perf_counter() - started
    said = np.zeros(session.frame_size, np.float32) if frame.pcm is None else frame.pcm
    sink.write(said)
    drops, lost = (source.drops, sink.drops), (source.lost_seconds, sink.lost_seconds)
    waits, latency = source.backlog, source.latency
    return Moment(number, pcm, said, frame, started, seconds, waits, drops, lost, latency=latency)
