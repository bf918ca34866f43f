"""What it costs a conversation that its attention cache grows: every frame until the ring has its whole context.

python -m bench.growth --size mid --json growth.json --plot growth.png
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import moshi_mlx
from moshi_mlx import MoshiConfig
from moshi_mlx.conversation.session import Session

from . import cases
from .measure import table

NEIGHBOURS = 25  # frames on either side of a growth that it is compared with
AFTER = 100  # frames with the whole ring, at the end


class Growth(NamedTuple):
    """`extra`: how much longer the frame took than the median after it, in medians after it (1: one more frame)."""

    frame: int
    slots: int
    frame_ms: float
    before_ms: float
    after_ms: float

    @property
    def extra(self) -> float:
        return (self.frame_ms - self.after_ms) / self.after_ms


def frame_times(session: Session, config: MoshiConfig) -> Iterator[float]:
    """Milliseconds of each frame, from the first to `AFTER` beyond a full ring."""
    codes = np.random.default_rng(0).integers(0, config.audio_vocab_size, (16, config.user_codebooks), np.int32)
    for n in range(config.sliding_window + AFTER):
        start = time.perf_counter()
        session.step_codes(codes[n % len(codes)])
        yield 1e3 * (time.perf_counter() - start)


def growths(times: list[float], context: int, head_dim: int = 0, kv_bits: int | None = None) -> list[Growth]:
    """The frames that found the ring full, of a conversation whose frame n is position n + 1."""
    found = []
    for n in range(1, len(times)):
        before, slots = (cases.ring_capacity(positions, context, head_dim, kv_bits) for positions in (n + 1, n + 2))
        if slots > before:
            earlier, later = times[max(0, n - NEIGHBOURS) : n], times[n + 1 : n + 1 + NEIGHBOURS]
            found.append(Growth(n, slots, times[n], statistics.median(earlier), statistics.median(later)))
    return found


def plot(path: Path, times: list[float], found: list[Growth]) -> None:
    """Every frame's time, with the growths marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    axes.plot(times, ".", markersize=2, label="a frame")
    axes.plot([g.frame for g in found], [g.frame_ms for g in found], "r^", label="the ring grows")
    axes.set(xlabel="frame", ylabel="ms", ylim=(0, None), title="Frame time while the attention cache grows")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=cases.SIZES, default="tiny", help="of the random weights (default: tiny)")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="these weights in the place of random ones")
    parser.add_argument("--kv-bits", type=int, choices=(8, 4), help="the cache in so many bits")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times of all frames there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there (needs matplotlib)")
    arguments = parser.parse_args()
    model = moshi_mlx.load(arguments.checkpoint or cases.checkpoint(arguments.size, None))
    session = model.session(kv_bits=arguments.kv_bits)
    times = list(frame_times(session, model.config))
    found = growths(times, model.config.sliding_window, model.config.head_width, arguments.kv_bits)
    rows = [[f"{g.frame}", f"{g.slots}", f"{g.frame_ms:.1f}", f"{g.before_ms:.1f}", f"{g.after_ms:.1f}",
             f"{g.extra:+.2f}"] for g in found]  # fmt: skip
    print(table(["frame", "slots", "its ms", "p50 before", "p50 after", "extra frames"], rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"times_ms": times, "growths": [g._asdict() for g in found]}))
    if arguments.plot:
        plot(arguments.plot, times, found)


if __name__ == "__main__":
    main()
