"""The benchmark: python -m bench, and python -m bench roofline. `--help` lists the options.

Every row is measured in a process of its own (bench/measure.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from moshi_mlx import MoshiError
from moshi_mlx.machine import chips
from moshi_mlx.terminal.arguments import Parser
from moshi_mlx.terminal.version import install

from . import cases, measure, peers
from .cases import Spec
from .paper import roofline

PROGRAM = "bench"
EPILOG = """\
columns: p50 to mean: ms a frame; rtf: mean / 80 ms; evals, syncs: evaluations and host synchronisations of one frame
of a Session (mimi-*: of a Mimi stream); prims: primitives of the uncompiled frame's graph; kernels: those of the
compiled one that do work; weights, state: MB that a frame reads; copied: MB of weights copied or cast in it; GB/s:
what a matrix-vector product reads here; bw: the share of that which weights and state make; active: MB in MLX arrays;
peak: the most MB that the process had resident; start: seconds from process start to the first frame; kv8 same:
how often, fed the same tokens, greedy text is the one that a cache in full precision gives.
"""
QUANTIZATIONS = {"none": None, "8": 8, "4": 4, "mxfp4": "mxfp4"}
CACHES = {"none": None, "8": 8, "4": 4}
CONTEXT = "empty"


class Failure(Exception):
    """Something that the user can put right; the message is one line."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        f"python -m {PROGRAM}",
        description="Time a frame of each case. `python -m bench roofline --help` for the bounds of Apple's chips.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--case", nargs="+", choices=cases.CASES, default=list(cases.DEFAULT_CASES), help="default: all but depth-step")
    add("--size", nargs="+", choices=cases.SIZES, help="of the random weights (default: tiny)")
    add("--bits", nargs="+", choices=QUANTIZATIONS, help="default: none, which is float32, of 7b bfloat16")
    add("--context", nargs="+", choices=cases.CONTEXTS, default=[CONTEXT], help="how full the ring is (default: empty)")
    add("--kv-bits", nargs="+", choices=CACHES, default=["none"], help="of the attention cache (default: none)")
    add("--dtype", choices=cases.DTYPES, help="run the language model in it (default: as stored)")
    add("--batch", nargs="+", type=int, choices=range(1, 9), default=[1], metavar="1..8", help="conversations at once")
    add("--frames", type=_count, default=40, metavar="N", help="timed frames a row or a round (default: 40; peers: 15)")
    add("--json", type=Path, metavar="FILE", help="write everything there, times of all frames included")
    add("--plot", type=Path, metavar="FOLDER", help="write latency.png, stages.png and memory.png (needs matplotlib)")
    add("--peer", nargs="+", default=[], metavar="PYTHON", help="also compare with the peer in these environments")
    add("--rounds", type=_count, default=7, metavar="N", help="of each comparison (default: 7)")
    add("--checkpoint", type=Path, metavar="FOLDER", help="these weights in the place of random ones")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.checkpoint and (arguments.size or arguments.bits):
        parser.error("--checkpoint has a size and bits of its own; leave --size and --bits out")
    if arguments.checkpoint and not arguments.checkpoint.is_dir():
        parser.error(f"--checkpoint {arguments.checkpoint}: no such folder")
    if arguments.plot and find_spec("matplotlib") is None:
        parser.error(f"--plot needs matplotlib: {install('bench')}")
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        parser.error(f"--json {arguments.json}: no such folder")
    arguments.size = arguments.size or ["tiny"]
    arguments.kv_bits = [CACHES[bits] for bits in arguments.kv_bits]
    arguments.bits = [QUANTIZATIONS[bits] for bits in arguments.bits or ["none"]]
    return arguments


def specs(arguments: argparse.Namespace) -> Iterator[Spec]:
    """The rows that are asked for, once each: a case without a ring has neither contexts nor bits of a cache."""
    folder = str(arguments.checkpoint.resolve()) if arguments.checkpoint else None
    sizes = [Path(folder).name] if folder else arguments.size
    asked = product(sizes, arguments.bits, arguments.case, arguments.batch, arguments.kv_bits, arguments.context)
    found: dict[Spec, None] = {}
    for size, bits, case, batch, kv_bits, context in asked:
        spec = Spec(case, size, bits, context, batch, arguments.frames, folder, kv_bits, arguments.dtype)
        found[spec if spec.has_context else replace(spec, context=CONTEXT, kv_bits=None)] = None
    yield from found


def measured(spec: Spec) -> dict[str, Any]:
    """A row, from a process of its own."""
    text = json.dumps(asdict(spec))
    command = [sys.executable, "-m", "bench.measure", text, str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=peers.ROOT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise Failure(f"{spec.case} {spec.size}: {last}")
    return json.loads(done.stdout)


def all_measured(asked: Iterator[Spec]) -> Iterator[dict[str, Any]]:
    """Rows, with the share that each makes of what this machine reads: the better of just before and just after."""
    before = measure.read_bandwidth()
    for spec in asked:
        row = measured(spec)
        after = measure.read_bandwidth()
        row["read_bandwidth_gb_s"] = max(before, after)
        row["bandwidth_share"] = (row["weights_bytes"] + row["state_bytes"]) / row["p50_ms"] / 1e6 / max(before, after)
        yield row
        before = after


HEADERS = ["case", "weights", "ctx", "B", "p50", "p95", "p99", "worst", "mean", "rtf", "evals", "syncs", "prims",
           "kernels", "weights MB", "state MB", "copied MB", "GB/s", "bw", "active MB", "peak MB",
           "start s", "kv same"]  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    agreement = "" if row["kv_agreement"] is None else f"{row['kv_agreement']:.1%}"
    megabytes = [f"{row[name] / 1e6:.1f}" for name in ("weights_bytes", "state_bytes", "copied_bytes")]
    memory = [f"{row[name] / 1e6:.0f}" for name in ("active_bytes", "peak_bytes")]
    times = [f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms", "worst_ms", "mean_ms")]
    counts = [str(row[name]) for name in ("evaluations", "synchronisations", "primitives", "kernels")]
    bandwidth = [f"{row['read_bandwidth_gb_s']:.1f}", f"{row['bandwidth_share']:.0%}"]
    weights = measure.weights_label(row)
    return [f"{row['case']} {row['size']}", weights, row["context"], str(row["batch"]), *times,
            f"{row['real_time_factor']:.2f}", *counts, *megabytes, *bandwidth, *memory,
            f"{row['start_s']['total']:.1f}", agreement]  # fmt: skip


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "date": date.today().isoformat(), "platform": platform.platform(), "processor": platform.machine(),
        "cores": os.cpu_count(), "python": platform.python_version(), "mlx": version("mlx"),
        "preloaded": os.environ.get("LD_PRELOAD", ""),
    }  # fmt: skip


def compared(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """(size, comparison) for each peer and piece of work; the earlier port's codec both ways."""
    work = dict.fromkeys(peers.WORK[case] for case in arguments.case if case in peers.WORK)
    names = {peers.WORK[case]: case for case in peers.WORK}
    frames = min(arguments.frames, 15)
    for python, size, bits in product(arguments.peer, arguments.size, arguments.bits):
        if isinstance(bits, str):
            raise Failure(f"--peer: no peer has {bits}; choose --bits of none, 4, 8")
        folder = arguments.checkpoint or cases.checkpoint(size, bits)
        both = peers.kind_of(python) == "port"
        for each in work:
            for codec in ("rustymimi", "mlx") if both and each == "mimi" else ("rustymimi",):
                name = arguments.checkpoint.name if arguments.checkpoint else size
                row = peers.compare(python, names[each], folder, bits, codec, arguments.rounds, frames)
                yield name, row


def run(arguments: argparse.Namespace) -> None:
    """Measure, compare, print, write. What is wrong with a peer or a size is said before minutes of work."""
    for python in arguments.peer:
        peers.kind_of(python)
    if not arguments.checkpoint:
        for size, bits in product(arguments.size, arguments.bits):
            cases.checkpoint(size, bits)
    about = machine()
    print(f"{about['date']}, {about['platform']}, {about['cores']} cores, mlx {about['mlx']}")
    if sys.platform == "linux" and "blas" not in about["preloaded"]:
        print("no BLAS is preloaded: matrix products run on the slow reference one")
    found = list(all_measured(specs(arguments)))
    print("\n" + measure.table(HEADERS, [cells(row) for row in found]), flush=True)
    ratios = []
    for size, row in compared(arguments):
        ratios.append({"size": size} | row)
    if ratios:
        print("\nratios, ours / theirs, of each round's median frame times, alternating")
        print(measure.table(peers.HEADERS, [peers.cells(row, row["size"]) for row in ratios]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "rows": found, "peers": ratios}, indent=1))
    if arguments.plot:
        from . import plots

        plots.write(arguments.plot, found)


def run_roofline(argv: Sequence[str]) -> None:
    """The subcommand: bounds of a frame on Apple's chips."""
    parser = Parser(f"python -m {PROGRAM} roofline", description=roofline.__doc__.splitlines()[0])
    add = parser.add_argument
    add("--chip", nargs="+", default=[], metavar="NAME", help='such as "M2" or "M4 Max" (default: all)')
    add("--size", choices=cases.SIZES, default="7b", help="default: 7b")
    add("--bits", nargs="+", choices=QUANTIZATIONS, default=list(QUANTIZATIONS), help="default: all; none: bfloat16")
    add("--context", choices=cases.CONTEXTS, default="full", help="how full the ring is (default: full)")
    add("--kernel-us", type=float, default=roofline.KERNEL_US, metavar="N", help="assumed cost of a kernel, in us")
    add("--json", type=Path, metavar="FILE", help="write all numbers there")
    arguments = parser.parse_args(argv)
    chosen = [chip for name in arguments.chip for chip in chips.find(name)] or list(chips.CHIPS)
    bits = [QUANTIZATIONS[b] for b in arguments.bits]
    print(roofline.report(arguments.size, chosen, bits, arguments.context, arguments.kernel_us, arguments.json))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: 0, or 2 with one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["roofline"]:
            run_roofline(argv[1:])
        else:
            run(_arguments(argv))
    except (MoshiError, Failure, peers.PeerError, OSError) as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
