"""Measuring a row: times of a frame, what it costs the host, what it reads, and memory.

    python -m bench.measure '{"case": "lm-step", "size": "tiny"}' STARTED

measures one row in a process of its own (so that memory and starting time are that row's) and prints it as JSON;
STARTED is the time.time() at which the process was started. `python -m bench` runs it for every row.
"""

from __future__ import annotations

import gc
import io
import json
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import mlx.core as mx
import numpy as np

import moshi_mlx
from moshi_mlx import MoshiForConditionalGeneration
from moshi_mlx.machine.chips import FRAME_MS
from moshi_mlx.models.state import flatten, unflatten

from . import cases
from .cases import Spec, Work

# Primitives that only look at an array in another way, those that write into their first input, and those that would
# make another copy of a weight.
VIEWS = {"AsStrided", "Broadcast", "BroadcastAxes", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice", "Split",
         "Squeeze", "StopGradient", "Transpose", "Unflatten", "View"}  # fmt: skip
WRITES = {"DynamicSliceUpdate", "Scatter", "ScatterAxis", "SliceUpdate"}
GATHERS = {"Gather", "GatherAxis", "DynamicSlice"}
COPIES = {"AsType", "Concatenate", "Contiguous", "Copy", "Pad"}
PRODUCTS = {"AddMM", "Matmul", "QuantizedMatmul"}


class Traffic(NamedTuple):
    """What a frame reads, in bytes, and its operations: 2 for each multiplication of a matrix product."""

    weights: int  # of every weight that the graph uses: the whole of it, or the rows gathered from it
    state: int  # caches (their whole capacity) and tails of convolutions
    copied: int  # of weights that the graph casts, joins or copies at run time; 0 is right
    operations: int


def traffic(model: MoshiForConditionalGeneration, work: Work) -> Traffic:
    """Read off the graph of one uncompiled frame. Activations are left out: they stay in the chip's caches."""
    records, num_weights = recorded(model, work)
    return _traffic(records, num_weights)


def recorded(model: MoshiForConditionalGeneration, work: Work) -> tuple[list[dict[str, Any]], int]:
    """The graph of one uncompiled frame, whose inputs are the input, the weights and the state; how many weights."""
    weights, state = flatten(model.parameters()), flatten(work.state())
    records: list[dict[str, Any]] = []

    def frame(given: mx.array, *arrays: mx.array) -> list[mx.array]:
        model.update(unflatten(_named(weights, arrays[: len(weights)])))
        result = work.step(given, unflatten(_named(state, arrays[len(weights) :])))
        return [leaf for _, leaf in flatten(list(result))]

    arrays = [array for _, array in (*weights, *state)]
    try:
        mx.export_function(records.append, frame, work.given(0), *arrays)
    finally:
        model.update(unflatten(weights))
    return records, len(weights)


def _named(leaves: list[tuple[str, mx.array]], arrays: tuple[mx.array, ...]) -> list[tuple[str, mx.array]]:
    return [(name, array) for (name, _), array in zip(leaves, arrays, strict=True)]


def _traffic(records: list[dict[str, Any]], num_weights: int) -> Traffic:
    """Follow weights and state through the views of them to the primitives that read them."""
    by_type = {record["type"]: record for record in records}
    inputs = by_type["inputs"]["inputs"][1:]
    parts = {name: ("state" if i >= num_weights else "weights", _bytes(shape, dtype))
             for i, (name, shape, dtype) in enumerate(inputs)}  # fmt: skip
    # What the code holds outside its parameters is a weight as well, unless it is a handful of numbers or counts slots.
    held = {name: array.nbytes for name, array in by_type["constants"]["constants"]}
    counts = {name for name, array in by_type["constants"]["constants"] if array.dtype == mx.int32}
    parts |= {name: ("weights", size) for name, size in held.items() if size > 4096 and name not in counts}
    total: Counter[str] = Counter()
    primitives = {record["outputs"][0][0]: record for record in records if record["type"] == "primitive"}
    for record in primitives.values():
        name, outputs = record["name"], record["outputs"]
        if name in PRODUCTS:
            total["operations"] += 2 * int(np.prod(outputs[0][1])) * record["inputs"][0][1][-1]
        for position, (source, _, _) in enumerate(record["inputs"]):
            if source not in parts:
                continue
            kind, size = parts[source]
            if name in VIEWS or (name in WRITES and position == 0):
                parts |= {out: (kind, min(size, _bytes(shape, dtype))) for out, shape, dtype in outputs}
                continue
            gathered = name in GATHERS and position == 0
            size = _bytes(*outputs[0][1:]) if gathered else size
            total[kind] += size
            fixed = gathered and all(index in held for index, _, _ in record["inputs"][1:])
            if kind == "weights" and (name in COPIES or fixed):
                total["copied"] += size
    return Traffic(**{name: total[name] for name in Traffic._fields})


def _bytes(shape: tuple[int, ...], dtype: mx.Dtype) -> int:
    return int(np.prod(shape)) * dtype.size


def primitives(outputs: Any) -> Counter[str]:
    """How many primitives of each name the lazy graph of a tree of arrays has."""
    text = io.StringIO()
    mx.export_to_dot(text, *[leaf for _, leaf in flatten(list(outputs))])
    return Counter(re.findall(r'\[label ="([^"]*)", shape=rectangle\]', text.getvalue()))


def kernels(work: Work) -> int:
    """Primitives of one compiled frame that do work: fused ones count once, views of an array not at all."""
    state = work.state()
    mx.eval(state)
    counted = primitives(mx.compile(work.step)(work.given(0), state))
    return sum(count for name, count in counted.items() if name not in VIEWS)


class HostCounter(ExitStack):
    """Counts, while it is open, what the host asks of MLX.

    An evaluation is a call of mx.eval or mx.async_eval, or reading an array on the host (item, int(), bool(),
    tolist(), np.array ...) whose value is not computed yet; a synchronisation is one of these that waits: any but
    mx.async_eval, the first reading after that, and mx.synchronize. Reading what is computed already is only a read.
    """

    READERS = ("item", "tolist", "__array__", "__bool__", "__float__", "__index__", "__int__")

    def __init__(self) -> None:
        super().__init__()
        self.evaluations = self.synchronisations = self.reads = 0
        self._in_flight = self._inside = False

    def __enter__(self) -> HostCounter:
        super().__enter__()
        for owner, names, note in (
            (mx, ("eval",), self._evaluated),
            (mx, ("async_eval",), self._launched),
            (mx, ("synchronize",), self._waited),
            (mx.array, self.READERS, self._read),
            (np, ("array", "asarray"), self._read),
        ):
            for name in names:
                self._watch(owner, name, note)
        return self

    def _watch(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            if self._inside:
                return original(*arguments, **options)
            self._inside = True
            try:
                note(*arguments)
                return original(*arguments, **options)
            finally:
                self._inside = False

        self.enter_context(patch.object(owner, name, watched))

    def _evaluated(self, *trees: Any) -> None:
        self.evaluations += 1
        self.synchronisations += 1
        self._in_flight = False

    def _launched(self, *trees: Any) -> None:
        self.evaluations += 1
        self._in_flight = True

    def _waited(self, *stream: Any) -> None:
        self.synchronisations += 1
        self._in_flight = False

    def _read(self, value: Any, *rest: Any) -> None:
        if not isinstance(value, mx.array):
            return
        pending = bool(primitives([value]))
        self.reads += 1
        self.evaluations += pending
        self.synchronisations += pending or self._in_flight
        self._in_flight = False


def read_bandwidth(megabytes: int = 320, repeats: int = 10) -> float:
    """GB/s at which a float32 matrix-vector product reads its matrix: the best of some repeats, either way round."""
    side = round((megabytes * 2**20 / 4) ** 0.5)
    weight, x = mx.ones((side, side)), mx.ones((1, side))
    mx.eval(weight, x)
    best = float("inf")
    for n in range(2 * repeats):
        start = time.perf_counter()
        mx.eval(x @ (weight.T if n % 2 else weight))
        best = min(best, time.perf_counter() - start)
    size = weight.nbytes
    del weight
    mx.clear_cache()
    return size / best / 1e9


def resident_bytes() -> int:
    """What this process has resident now; where the system does not say (no /proc), the most it had."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else peak_bytes()


def peak_bytes() -> int:
    """The most that this process has had resident (ru_maxrss: kilobytes on Linux, bytes on a Mac)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_frames(work: Work, frames: int) -> tuple[list[float], list[tuple[int, int]]]:
    """Milliseconds of each frame after warming up; after each, (bytes in MLX arrays, bytes resident)."""
    step, state = mx.compile(work.step), work.state()
    times, memory = [], []
    for n in range(-cases.WARMUP, frames):
        start = time.perf_counter()
        reply, state = step(work.given(n), state)
        mx.eval(reply, state)
        times.append(1e3 * (time.perf_counter() - start))
        memory.append((mx.get_active_memory(), resident_bytes()))
    return times[cases.WARMUP :], memory[cases.WARMUP :]


def statistics(times: list[float]) -> dict[str, float]:
    """p50, p95, p99, worst and mean milliseconds; the real-time factor is the mean over the 80 ms of a frame."""
    p50, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
    mean = sum(times) / len(times)
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "worst_ms": max(times), "mean_ms": mean,
            "real_time_factor": mean / FRAME_MS}  # fmt: skip


def _start(model: MoshiForConditionalGeneration, spec: Spec) -> tuple[float, float, HostCounter]:
    """When the case was ready for its first frame, when that was done, and what a later frame asked of MLX."""
    frame = cases.public_frame(model, spec)
    ready = time.time()
    frame()
    first = time.time()
    frame()
    with HostCounter() as counter:
        frame()
    return ready, first, counter


def kv_agreement(model: MoshiForConditionalGeneration, kv_bits: int | None, positions: int = 128) -> float:
    """How often the text token that greedy decoding takes is the same with the cache in `kv_bits` as in full.

    Both see the same random tokens at every position, so that one other choice does not carry on.
    """
    config, language = model.config, model.decoder
    streams = 1 + len(config.audio_delays)
    tokens = np.random.default_rng(0).integers(0, config.audio_vocab_size, (1, streams, positions))
    chosen = []
    for bits in (None, kv_bits):
        state = language.model.init_state(1, positions=positions, kv_bits=bits)
        chosen.append(np.array(mx.argmax(language.step(mx.array(tokens), state)[1], axis=-1)))
    return float((chosen[0] == chosen[1]).mean())


def measure(spec: Spec, started: float) -> dict[str, Any]:
    """One row. `started`: time.time() at the start of the process."""
    imported = time.time()
    dtype = getattr(mx, spec.dtype) if spec.dtype else None
    model = moshi_mlx.load(spec.checkpoint or cases.checkpoint(spec.size, spec.bits), dtype=dtype)
    loaded = time.time()
    ready, first, counter = _start(model, spec)
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    work = cases.work(model, spec)
    times, memory = run_frames(work, spec.frames)
    row = asdict(spec) | statistics(times)
    row |= {"evaluations": counter.evaluations, "synchronisations": counter.synchronisations, "reads": counter.reads}
    row |= {"active_bytes": memory[-1][0], "mlx_peak_bytes": mx.get_peak_memory(), "peak_bytes": peak_bytes()}
    state = work.state()
    mx.eval(state)
    row |= {"primitives": sum(primitives(work.step(work.given(0), state)).values()), "kernels": kernels(work)}
    counted = traffic(model, work)
    row |= {f"{name}_{'bytes' if name != 'operations' else 'a_frame'}": n for name, n in counted._asdict().items()}
    row["start_s"] = {"import": imported - started, "load": loaded - imported, "prepare": ready - loaded,
                      "first_frame": first - ready, "total": first - started}  # fmt: skip
    row["kv_agreement"] = kv_agreement(model, spec.kv_bits) if spec.kv_bits else None
    return row | {"times_ms": times, "memory_bytes": memory}


def weights_label(row: dict[str, Any]) -> str:
    """How a row's weights and cache are kept."""
    weights = cases.weights_name(row["bits"], "as stored")
    return weights + (f" {row['dtype']}" if row["dtype"] else "") + (f" kv{row['kv_bits']}" if row["kv_bits"] else "")


def table(headers: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in [headers, *rows]) for i in range(len(headers))]
    lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
             for line in [headers, ["-" * width for width in widths], *rows]]  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def main(argv: list[str]) -> None:
    print(json.dumps(measure(Spec(**json.loads(argv[0])), float(argv[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
