"""The pictures of a run. Needs matplotlib (the extra `bench`), which nothing else here does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from moshi_mlx.machine.chips import FRAME_MS

from .measure import weights_label

STAGES = ("mimi-encode", "temporal", "depth-step", "mimi-decode")


def write(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """latency.png, stages.png and memory.png in `folder`; returns their paths."""
    matplotlib.use("Agg")  # pictures go to files: no screen is needed
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {"latency": _latency, "stages": _stages, "memory": _memory}
    paths = []
    for name, draw in drawings.items():
        figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
        draw(axes, rows)
        figure.legend(loc="outside lower center", ncols=2, fontsize=7)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
        pyplot.close(figure)
    return paths


def label(row: dict[str, Any]) -> str:
    """What a row is called in a picture."""
    return f"{row['case']}, {setting(row)}"


def setting(row: dict[str, Any]) -> str:
    return f"{row['size']} {weights_label(row)}, context {row['context']}, batch {row['batch']}"


def codec_setting(name: str) -> str:
    """A setting without what only the temporal transformer has: bits of its cache and context."""
    return re.sub(r" kv8|, context \w+", "", name)


def _latency(axes: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        times = np.sort(row["times_ms"])
        axes.step(times, np.arange(1, len(times) + 1) / len(times), where="post", label=label(row))
    axes.axvline(FRAME_MS, color="black", linestyle=":", label="80 ms")
    axes.set(title="Latency distribution", xlabel="ms a frame", ylabel="share of frames that took no longer")


def stages(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median ms of each stage, a setting; the language step is split where the depth decoder was timed as well.

    The codec has no context: its row counts for every context of its size and batch.
    """
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["case"] in ("lm-step", "duplex-frame"):
            found.setdefault(setting(row), {})[row["case"]] = row["p50_ms"]
    for name, times in found.items():
        for row in rows:
            if row["case"] in STAGES and codec_setting(setting(row)) == codec_setting(name):
                times[row["case"]] = row["p50_ms"]
        if "lm-step" in times:
            times["temporal"] = max(0.0, times.pop("lm-step") - times.get("depth-step", 0.0))
    return found


def _stages(axes: Any, rows: list[dict[str, Any]]) -> None:
    found = stages(rows)
    left = np.zeros(len(found))
    split = any("depth-step" in times for times in found.values())
    for stage in STAGES:
        widths = np.array([times.get(stage, 0.0) for times in found.values()])
        name = "language step" if stage == "temporal" and not split else stage
        axes.barh(list(found), widths, left=left, height=0.5, label=name)
        left += widths
    whole = {name: times["duplex-frame"] for name, times in found.items() if "duplex-frame" in times}
    axes.scatter(list(whole.values()), list(whole), color="black", marker="D", s=30, label="whole duplex frame")
    axes.axvline(FRAME_MS, color="black", linestyle=":", label="80 ms")
    axes.margins(y=0.5 / max(1, len(found)))
    axes.set(title="Time by stage (medians, each timed alone)", xlabel="ms a frame")


def _memory(axes: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        active, resident = np.array(row["memory_bytes"]).T / 1e6
        line = axes.plot(active, label=f"{label(row)}: in arrays")[0]
        axes.plot(resident, color=line.get_color(), linestyle="--", label=f"{label(row)}: resident")
    axes.set(title="Memory over time", xlabel="frame", ylabel="MB")
    axes.set_ylim(bottom=0)
