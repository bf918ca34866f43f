"""The pictures of README.md and docs/live.md: python -m bench.pictures [FOLDER]. The diagram needs matplotlib."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console

from moshi_mlx.conversation.loop import Controls, Moment
from moshi_mlx.local import screen

from .simulate import FRAME, RATE, Row, Simulation

WORDS = (
    " Sure, I can tell you about Paris. It is the capital of France, and about two million people live there."
    " The river Seine runs through it, and in the middle of the river lie two islands. Would you like to hear more"
)


def terminal_picture() -> str:
    """The view of a conversation, as SVG; its words and levels are made up, its drawing is the live one."""
    console = Console(record=True, width=96, file=io.StringIO(), force_terminal=True)
    terminal = screen.Terminal(Controls(), FRAME / RATE, console=console)
    terminal.close()
    chance = np.random.default_rng(1)
    pieces = WORDS.split(" ")
    for n in range(60):
        text = " " + pieces[n] if 0 < n < len(pieces) else ""
        frame = SimpleNamespace(text=text)
        ramp = np.ones(FRAME, np.float32)
        step = 0.048 + 0.004 * chance.normal() + (0.03 if n == 41 else 0)
        moment = Moment(4300 + n, 0.002 * ramp, 0.11 * ramp, frame, 0, step, 0.02, (1, 0), (0.08, 0.0))
        terminal(moment)
    console.export_text()  # what it drew until now
    console.print(terminal.picture())
    return console.export_svg(title="python -m moshi_mlx.local")


def timing_diagram(path: Path) -> None:
    """Where sound waits while the model is late, and when it is let go."""
    from matplotlib import pyplot

    runs = [
        ("120 ms a frame for 5 s, then 60", lambda now: 0.12 if now < 5 else 0.06, 9),
        ("one stall of 1 s", lambda now: 1.0 if 3 <= now < 3.07 else 0.06, 6),
        ("90 ms a frame: too slow a machine", lambda now: 0.09, 9),
    ]
    figure, rows = pyplot.subplots(len(runs), 1, figsize=(8, 6.5), layout="constrained")
    for axes, (title, durations, seconds) in zip(rows, runs, strict=True):
        _draw(axes, Simulation(lambda now: 0.3).run(durations, seconds))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel("ms")
    rows[0].legend(loc="upper right", fontsize=8)
    rows[-1].set_xlabel("seconds of conversation")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw(axes: Any, run: list[Row]) -> None:
    times = [row.time for row in run]
    latency = [1e3 * row.latency or None for row in run]
    axes.fill_between(times, [1e3 * row.backlog for row in run], step="post", color="#9ecae1", linewidth=0,
                      label="sound that waits for the model")  # fmt: skip
    axes.step(times, [1e3 * row.queued for row in run], "g", where="post", linewidth=1, label="replies that wait")
    axes.plot(times, latency, "k", linewidth=1.5, label="latency, capture to playing")
    axes.axhline(400, color="red", linewidth=0.8, linestyle="--", label="limit")
    cuts = [now.time for before, now in itertools.pairwise(run) if now.lost > before.lost]
    for n, time in enumerate(cuts):
        axes.axvline(time, color="red", linewidth=0.6, alpha=0.5, label=None if n else "sound dropped")
    axes.set_xlim(0, times[-1])
    axes.set_ylim(0, 1200 if max(row.latency for row in run) > 0.8 else 600)


def main(folder: str = "docs") -> None:
    Path(folder, "view.svg").write_text(terminal_picture())
    timing_diagram(Path(folder, "catching_up.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
