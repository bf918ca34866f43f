"""The bound of a frame on each Apple chip, computed from the frame's own graph; nothing here was measured on a Mac.

    python -m bench roofline --chip "M2" --bits 4

The step that conversations run is traced over weights that have shapes and no memory, so that bytes, operations and
primitives are those of the code as it is. Memory bandwidths are Apple's published ones (moshi_mlx/machine/chips.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from moshi_mlx.machine import chips
from moshi_mlx.machine.chips import FRAME_MS, Chip

from .. import cases, measure
from ..cases import weights_name
from ..random_checkpoint import Bits
from . import dispatches, serving
from .costs import KERNEL_US, Cost, cost
from .dispatches import weightless

# What users of the earlier port report of its language step alone, codec not included: (chip, bits) -> ms.
REPORTED: dict[tuple[str, Bits], str] = {("M1 Pro", 4): "45-55", ("M5", 4): "48 (p95 50)", ("M5", 8): "74 (p95 91)"}


class Bound(NamedTuple):
    """What a frame takes at least, in ms. `total` adds the kernels' assumed cost to the greater of the two bounds."""

    memory_ms: float
    compute_ms: float | None
    kernels_ms: float
    total_ms: float

    @property
    def left(self) -> float:
        """The share of the 80 ms that remains; below 0 the chip cannot keep up."""
        return 1 - self.total_ms / FRAME_MS

    @property
    def binds(self) -> str:
        """What takes the most of it: bytes, operations or the launching of kernels."""
        parts = {"bytes": self.memory_ms, "operations": self.compute_ms or 0, "kernels": self.kernels_ms}
        return max(parts, key=lambda name: parts[name])


def bound(chip: Chip, frame: Cost, kernel_us: float = KERNEL_US) -> Bound:
    """Of one frame on a chip: its bytes at the published bandwidth, its operations at the chip's float32 rate."""
    memory = chips.frame_bound_ms(frame.weights + frame.state, chip.bandwidth)
    compute = frame.operations / chip.teraflops / 1e9 if chip.teraflops else None
    kernels = frame.kernels * kernel_us / 1e3
    return Bound(memory, compute, kernels, max(memory, compute or 0) + kernels)


def verdict(chip: Chip, frame: Cost, least: Bound) -> str:
    """Whether the chip can hold a conversation, and with how much memory."""
    memory = chips.least_memory(chip, frame.held)
    if memory is None:
        return "does not fit"
    if least.left < 0:
        return "too slow"
    return f"yes, {memory} GB" if least.left >= 0.1 else f"barely, {memory} GB"


def rows(chosen: list[Chip], costs: dict[Bits, Cost], kernel_us: float) -> list[dict[str, Any]]:
    """A row for each chip and quantization."""
    found = []
    for chip in chosen:
        for bits, frame in costs.items():
            least = bound(chip, frame, kernel_us)
            found.append(
                {"chip": chip.name, "bandwidth_gb_s": chip.bandwidth, "bits": bits, **least._asdict(),
                 "share_left": least.left, "binds": least.binds,
                 "conversation": verdict(chip, frame, least),
                 "people": serving.both(chip, serving.needs_of(frame, bits, kernel_us)),
                 "reported_by_users_of_earlier_port_ms": REPORTED.get((chip.name, bits))}
            )  # fmt: skip
    return found


HEADERS = ["chip", "GB/s", "weights", "memory ms", "compute ms", "+ kernels ms", "= frame ms", "of 80 ms left", "binds",
           "conversation", "people", "earlier port, reported"]  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    compute = row["compute_ms"]
    return [
        row["chip"], f"{row['bandwidth_gb_s']:g}", weights_name(row["bits"]), f"{row['memory_ms']:.1f}",
        "-" if compute is None else f"{compute:.1f}", f"{row['kernels_ms']:.1f}", f"{row['total_ms']:.1f}",
        f"{row['share_left']:.0%}", row["binds"], row["conversation"], row["people"],
        row["reported_by_users_of_earlier_port_ms"] or "",
    ]  # fmt: skip


def report(
    size: str, chosen: list[Chip], bits: list[Bits], context: str, kernel_us: float, file: Path | None = None
) -> str:
    """The tables as text; with `file`, all numbers as JSON there."""
    config = cases.config_of(size)
    costs = {b: cost(config, b, context) for b in bits}
    found = rows(chosen, costs, kernel_us)
    if file:
        counted = {weights_name(b): frame._asdict() for b, frame in costs.items()}
        file.write_text(json.dumps({"size": size, "context": context, "frame": counted, "chips": found}, indent=1))
    frames = [[weights_name(b), f"{f.weights / 1e9:.2f}", f"{f.state / 1e9:.2f}", f"{f.operations / 1e9:.1f}",
               str(f.kernels), f"{f.held / 1e9:.2f}"] for b, f in costs.items()]  # fmt: skip
    least = min(bits, key=lambda b: costs[b].weights)
    launched = dispatches.of_parts(weightless(config, least))
    headers = ["weights", "GB of weights a frame", "GB of caches", "10^9 operations", "kernels", "GB held"]
    return "\n\n".join((
        f"One duplex frame of {size}, context {context}, counted on its graph. Computed, not measured: no Mac was run.",
        measure.table(headers, frames),
        f"Kernels of {weights_name(least)} by part and kind, on Metal's terms (see bench/paper/dispatches.py):",
        dispatches.report(launched),
        measure.table(HEADERS, [cells(row) for row in found]),
        f"frame ms = greater of memory and compute + kernels at {kernel_us:g} us each (an assumption). 'barely': less "
        "than 10% of the 80 ms left. people: at once, in one step, paper / likely (bench/paper/serving.py). Reported: "
        "by users, of the earlier port's language step without the codec.",
    ))  # fmt: skip
