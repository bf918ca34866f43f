"""A frame from C++ and from Swift, beside the Session's, in one run.

    MOSHI_MLX=$(python -m mlx --cmake-dir) swift build -c release --scratch-path build/embed/swift-release
    python -m bench.peers.embedding build/embed  # what embed/check has built, and Swift in release, where it is there

Each round runs every language's own process over every case, one after the other. "host": how long the calling thread
is at work itself in a frame, most of it MLX handing kernels out. "library": of that, what is spent outside of MLX's
functions. "as long as 7B": as many operations as 7B's frame has, in narrow layers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

import moshi_mlx
from moshi_mlx.terminal.arguments import Parser

from .. import measure, random_checkpoint

WARMUP = 5  # frames that do not count
CASES = {  # (dim, layers, depth dim, depth layers, text, codes), or a folder of the build's cases
    "miniature": None,
    "tiny": None,
    "as long as 7B": (64, 32, 64, 6, 512, 2048),
    "mid": (1024, 8, 512, 6, 32000, 2048),
}


def made(name: str, folder: Path, build: Path) -> tuple[Path, Path]:
    """The bundle and the checkpoint of a case."""
    sizes = CASES[name]
    if sizes is None:
        return build / "cases" / name / "bundle", build / "cases" / name / "checkpoint"
    bundle, checkpoint = folder / f"{name}-bundle", folder / f"{name}-checkpoint"
    if not bundle.exists():
        random_checkpoint.SIZES["of this run"] = (random_checkpoint.lm_config(*sizes), random_checkpoint.FULL_MIMI)
        random_checkpoint.write(checkpoint, "of this run", None, mx.float32, mx.float32)
        command = [sys.executable, "-m", "moshi_mlx.export", checkpoint, bundle]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return bundle, checkpoint


def session(checkpoint: str, frames: int) -> None:
    """Python's side, in a process of its own: the first two lines that the others print."""
    talk = moshi_mlx.load(checkpoint).session(seed=0, progress=False)
    times, host = [], []
    for _ in range(frames):
        began, before = time.perf_counter(), time.thread_time()
        talk.step(np.zeros(talk.frame_size, np.float32))
        times.append(1e3 * (time.perf_counter() - began))
        host.append(1e3 * (time.thread_time() - before))
    for line in (times, host):
        print(*(f"{ms:.3f}" for ms in line))


def timed(commands: dict[str, list[str]], rounds: int) -> dict[str, list[list[float]]]:
    """Of each language, round after round: the median ms of a frame, of its host time and of the library's, if told."""
    found: dict[str, list[list[float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            lines = [[float(ms) for ms in line.split()][WARMUP:] for line in done.stdout.splitlines()]
            found[name].append([float(np.median(line)) for line in lines])
    return found


def report(build: Path, frames: int, rounds: int, cases: Sequence[str]) -> str:
    """The table of all cases."""
    folder = build / "bench"
    folder.mkdir(exist_ok=True)
    rows = []
    for case in cases:
        bundle, checkpoint = map(str, made(case, folder, build))
        python = [sys.executable, "-m", "bench.peers.embedding", "session", checkpoint, str(frames)]
        programs = {"Python": python, "C++": [str(build / "new/tests/moshi-time"), bundle, checkpoint, str(frames)]}
        swift = build / "swift-release/release/moshi-time"
        if swift.exists():
            programs["Swift"] = [str(swift), bundle, checkpoint, str(frames)]
        found = timed(programs, rounds)
        for name, each in found.items():
            ratios = sorted(own[0] / theirs[0] for own, theirs in zip(each, found["Python"], strict=True))
            ms = [f"{np.median(column):.2f}" for column in zip(*each, strict=True)] + ["-", "-"]
            shown = f"{ratios[0]:.2f} / {float(np.median(ratios)):.2f} / {ratios[-1]:.2f}"
            rows.append([case, name, ms[0], shown, *ms[1:3]])
    headers = ["case", "language", "frame ms", "of Python's: least / median / most", "host ms", "library ms"]
    return measure.table(headers, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["session"]:
        session(argv[1], int(argv[2]))
        return 0
    parser = Parser("python -m bench.peers.embedding", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("build", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    print(report(arguments.build, arguments.frames, arguments.rounds, arguments.case))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
