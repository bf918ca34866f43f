"""The frame pump between a source of sound, a session and a sink: the same for files and for live sound.

It does all its work on the thread that calls it, which must be the one that made the session.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .audio import Samples


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


class Source(Protocol):
    """Where frames come from. `drops` counts the times that sound was lost."""

    @property
    def drops(self) -> int: ...

    def read(self) -> Samples | None:
        """Waits for the next frame, float32 [frame_size], and returns it; None at the end."""

    def close(self) -> None:
        """Lets go of file or device. May be called twice."""


class Sink(Protocol):
    """Where frames go. `drops` counts the times that sound was lost or missing."""

    @property
    def drops(self) -> int: ...

    def write(self, pcm: Samples) -> None:
        """Takes one frame, float32 [frame_size]."""

    def drain(self) -> None:
        """Waits until all that was written has been played."""

    def close(self) -> None:
        """Ends now and keeps what was written. May be called twice."""

    def abort(self) -> None:
        """Ends now and leaves no trace. Does nothing after `close`."""


@dataclass
class Statistics:
    """What a conversation took. `input_drops` and `output_drops` count the times that sound was lost."""

    frame_seconds: float  # the sound of one frame
    times: array[float] = field(default_factory=lambda: array("d"))  # processing time of each frame, seconds
    input_drops: int = 0
    output_drops: int = 0
    nonfinite_samples: int = 0  # NaN or infinite, replaced by silence

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

    def __str__(self) -> str:
        return (
            f"{self.frames} frames, real-time factor {self.real_time_factor:.2f} (processing time / sound time), "
            f"frame time p50 {self.percentile_ms(50):.1f} ms, p95 {self.percentile_ms(95):.1f} ms, "
            f"drops {self.input_drops} in, {self.output_drops} out, "
            f"NaN or infinite samples replaced by silence {self.nonfinite_samples}"
        )


def run(
    session: Session,
    source: Source,
    sink: Sink,
    on_frame: Callable[[Any], None] | None = None,
    steps: int | None = None,
    stop: threading.Event | None = None,
) -> Statistics:
    """Feeds `source` to `session` and the reply to `sink`, until the source ends, `steps` frames or `stop`.

    While the session has no sound to give (`frame.pcm` is None) the sink gets silence, so that the reply stays
    aligned with the input. `on_frame` sees every frame after it has been written. `stop` may be set from any
    thread: the frame at hand is finished, and nothing waits for the speaker. Source and sink stay open.
    """
    stop = stop or threading.Event()
    statistics = Statistics(session.frame_size / session.sample_rate)
    silence = np.zeros(session.frame_size, np.float32)
    nonfinite_before = session.nonfinite_samples
    while not stop.is_set() and statistics.frames != steps:
        pcm = source.read()
        if pcm is None:
            break
        started = time.perf_counter()
        frame = session.step(pcm)
        statistics.times.append(time.perf_counter() - started)
        sink.write(silence if frame.pcm is None else frame.pcm)
        if on_frame:
            on_frame(frame)
    if not stop.is_set():
        sink.drain()
    statistics.input_drops, statistics.output_drops = source.drops, sink.drops
    statistics.nonfinite_samples = session.nonfinite_samples - nonfinite_before
    return statistics
