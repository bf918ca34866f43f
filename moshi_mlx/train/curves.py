"""The course of a run: losses.csv, a row for every iteration and validation, and losses.png."""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..terminal.version import install
from .files import named_errors, say, sync, write
from .loss import KINDS

CSV_NAME, PNG_NAME = "losses.csv", "losses.png"
SMOOTHED = 20  # iterations of the moving average
WIDE = 50.0  # losses that span more are drawn on a logarithmic axis


class Losses(NamedTuple):
    """Of an iteration ("train") or of a validation ("valid"). `loss` is what is trained, the others are means."""

    iteration: int
    split: str
    loss: float
    text: float
    semantic: float
    acoustic: float
    learning_rate: float


class Curve:
    """losses.csv in a folder. A run that goes on after iteration n drops the rows behind it: they come again."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        self.rows = [row for row in _read(folder / CSV_NAME) if row.iteration <= after] if after else []
        self._folder = folder
        write(folder / CSV_NAME, lambda part: _write(part, self.rows))

    def add(self, row: Losses) -> None:
        self.rows.append(row)
        path = self._folder / CSV_NAME
        with named_errors(path), path.open("a", newline="") as file:
            csv.writer(file).writerow(row)

    def sync(self) -> None:
        """On the disk, before the state that goes on from the last row is."""
        path = self._folder / CSV_NAME
        with named_errors(path), path.open("rb") as file:
            sync(file.fileno())

    def draw(self) -> None:
        """losses.png, where matplotlib is installed."""
        try:
            import matplotlib
        except ImportError:
            say(f"no {PNG_NAME}: matplotlib is not installed ({install('train')})")
            return
        matplotlib.use("Agg")  # to a file: no screen is needed
        write(self._folder / PNG_NAME, lambda part: _draw(part, self.rows))


def _write(path: Path, rows: Sequence[Losses]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([Losses._fields, *rows])


def _read(path: Path) -> list[Losses]:
    """The rows up to the first that is damaged: the last may be half-written, if the machine went down."""
    if not path.is_file():
        return []
    rows: list[Losses] = []
    with path.open(newline="", errors="replace") as file, contextlib.suppress(ValueError, TypeError, csv.Error):
        for number, split, *values in itertools.islice(csv.reader(file), 1, None):
            rows.append(Losses(int(number), split, *(float(value) for value in values)))
    return rows


def moving_average(values: Sequence[float], count: int = SMOOTHED) -> list[float]:
    """Of each value and those before it, `count` at most."""
    return [sum(values[max(0, n - count) : n]) / min(n, count) for n in range(1, len(values) + 1)]


def _draw(path: Path, rows: Sequence[Losses]) -> None:
    from matplotlib import pyplot

    names = ("loss", *KINDS)
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex=True)
    for name, plot in zip(names, axes.flat, strict=True):
        for split, style in (("train", {"linewidth": 0.6, "alpha": 0.5}), ("valid", {"marker": "o", "markersize": 3})):
            points: list[tuple[int, Any]] = [(row.iteration, getattr(row, name)) for row in rows if row.split == split]
            if points:
                plot.plot(*zip(*points, strict=True), label=split, **style)
            if split == "train" and len(points) >= 2 * SMOOTHED:
                smooth = moving_average([value for _, value in points])
                plot.plot([n for n, _ in points], smooth, label=f"mean of {SMOOTHED}", color="black", linewidth=1.2)
        low, high = plot.dataLim.intervaly
        if 0 < WIDE * low < high:  # from first weights: what comes after the first fall would be a flat line
            plot.set_yscale("log")
        plot.set_title(name)
        plot.set_ylabel("cross-entropy, nats")
        plot.grid(alpha=0.3)
    for plot in axes[1]:
        plot.set_xlabel("iteration")
    axes[0][0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
