"""Hours of conversation in minutes, and what our own code adds to its latency: python -m bench.soak.

The live code itself, with its recording, its view and stand-in devices. `memory` runs frames as fast as the model
gives them and watches the resident memory. `latency` runs devices in real time, a block of 20 ms after the other on a
thread of their own as PortAudio's is, and times the way from the microphone's callback to the model, and from the model
to where the speaker's callback takes its samples.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import moshi_mlx
from moshi_mlx.audio.recorder import Recorder
from moshi_mlx.conversation.loop import Controls, Moment
from moshi_mlx.local import options, screen

from .simulate import FRAME, QUIET, RATE, Simulation

MODEL = options.DEMO_MODEL
WARM_UP = 2000  # frames, or a fifth of them, after which the memory is looked at first


def resident_bytes() -> int:
    """Resident memory now; on a Mac, where that cannot be read without a package, the peak, which bounds growth."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Observers:
    """What a conversation at a terminal has: the recording and the view, drawn to nowhere."""

    def __init__(self, folder: str) -> None:
        self.recorder = Recorder(Path(folder) / "talk.wav", RATE, FRAME)
        self.nowhere = open(os.devnull, "w")  # noqa: SIM115
        self.view = screen.Terminal(Controls(), FRAME / RATE, console=Console(file=self.nowhere, force_terminal=True))
        self.number = 0

    def __call__(self, simulation: Simulation, heard: Any, frame: Any, seconds: float) -> None:
        talk = simulation.talk
        drops, lost = (talk.drops, talk.voice.drops), (talk.lost_seconds, talk.voice.lost_seconds)
        moment = Moment(self.number, heard, frame.pcm, frame, 0.0, seconds, talk.backlog, drops, lost)
        self.number += 1
        self.recorder(moment)
        self.view(moment)

    def close(self) -> None:
        self.view.close()
        self.recorder.close()
        self.nowhere.close()


def memory(session: Any, frames: int) -> tuple[int, int]:
    """-> resident bytes after the warm-up and after `frames` frames of a conversation in simulated time."""
    simulation = Simulation(lambda now: 0.3 if now % 4 < 2 else 0.0)
    resident = []
    with tempfile.TemporaryDirectory() as folder:
        observers = Observers(folder)
        for n in range(frames):
            heard = simulation.talk.read()
            frame = session.step(heard)
            simulation.advance(simulation.now + 0.06)
            simulation.talk.write(frame.pcm)
            observers(simulation, heard, frame, 0.06)
            if n in (min(WARM_UP, frames // 5), frames - 1):
                resident.append(resident_bytes())
        observers.close()
    return resident[0], resident[1]


def latency(session: Any, seconds: float) -> dict[str, list[float]]:
    """-> seconds from the callback that completes a frame to the model, and from the model to the speaker's ring."""
    simulation = Simulation(lambda now: 0.0)
    del simulation.microphone._arrived.__dict__["wait_filled"]  # it waits in real time
    arrived, stop = [0.0], threading.Event()
    simulation.microphone.note = lambda direction, samples: arrived.__setitem__(0, time.perf_counter())
    device = threading.Thread(target=_device, args=(simulation, stop))
    device.start()
    times: dict[str, list[float]] = {"microphone to model": [], "model to speaker": []}
    with tempfile.TemporaryDirectory() as folder:
        observers = Observers(folder)
        for _ in range(round(seconds * RATE / FRAME)):
            asked = time.perf_counter()
            heard = simulation.talk.read()
            times["microphone to model"].append(time.perf_counter() - max(arrived[0], asked))
            frame = session.step(heard)
            done = time.perf_counter()
            simulation.talk.write(frame.pcm)
            times["model to speaker"].append(time.perf_counter() - done)
            observers(simulation, heard, frame, done - asked)
        observers.close()
    stop.set()
    device.join()
    return times


def _device(simulation: Simulation, stop: threading.Event) -> None:
    """Both callbacks, every block."""
    block = simulation.block
    sound, out = np.zeros((block, 1), np.float32), np.zeros((block, 1), np.float32)
    due = time.perf_counter()
    while not stop.is_set():
        simulation.microphone._on_block(sound, block, None, QUIET)
        simulation.speaker._on_block(out, block, None, QUIET)
        due += block / RATE
        time.sleep(max(0.0, due - time.perf_counter()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=45_000, help="of 80 ms, for memory (default: an hour)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of real time, for latency (default: 60)")
    parser.add_argument("--model", default=str(MODEL), help="a folder (default: the package's miniature)")
    arguments = parser.parse_args()
    sys.setswitchinterval(0.001)  # as the command line does
    session = moshi_mlx.load(arguments.model).session()
    session.step(np.zeros(FRAME, np.float32))
    for name, times in latency(session, arguments.seconds).items():
        p50, p99, most = (1e3 * float(np.percentile(times, percent)) for percent in (50, 99, 100))
        print(f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, largest {most:.2f} ms of {len(times)} frames", flush=True)
    before, after = memory(session, arguments.frames)
    print(f"{arguments.frames} frames: resident {before / 1e6:.1f} MB, then {after / 1e6:.1f} MB, "
          f"{(after - before) / 1e6:+.1f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
