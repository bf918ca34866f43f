"""How many people a chip holds at once, on paper, and what a batch costs here.

    python -m bench.people chips                     # from a frame's bytes and published bandwidths; no Mac was run
    python -m bench.people family --chip M1 "M4 Max" # the same of Moshi's sister models
    python -m bench.people batch --slots 1 2 4 8     # B conversations in one step against B steps, measured here
    python -m bench.people sockets --people 8        # our own code between socket and model, measured here

"paper": weights once a frame and every person's cache, at the whole bandwidth, in 72 ms less what starting the kernels
takes. "likely": at 80% of it, in 74 ms, and with what users measured of MLX's products of 4-bit weights with several
rows (mlx issue 3839, on an M4 Pro; PR 3863, on an M3 Max): they cost more than a product with one.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moshi_mlx.machine import chips
from moshi_mlx.machine.chips import Chip
from moshi_mlx.models.state import flatten
from moshi_mlx.terminal.arguments import Parser

from . import cases, measure
from .paper import dispatches, roofline
from .published import PUBLISHED

PAPER_SECONDS, LIKELY_SECONDS, LIKELY_SHARE = 0.072, 0.074, 0.8
# (rows, what a product of 4-bit weights with so many rows costs of one with a single row)
ROWS = ((1, 1.0), (4, 1.35), (8, 2.2), (10, 4.0), (32, 4.0))
MOST = 200


class Needs(NamedTuple):
    """Of a frame: bytes of weights, bytes of one conversation's full cache, seconds to start the kernels."""

    weights: float
    cache: float
    kernels: float


def counted(bits: int | None, kv_bits: int | None, size: str = "7b") -> Needs:
    """Read off the graph of a frame."""
    model = roofline.weightless(cases.config_of(size), bits)
    work = cases.work(model, cases.Spec("duplex-frame", context="full", frames=1, kv_bits=kv_bits))
    state = roofline.weightless_tree(work.state())
    traffic = measure.traffic(model, work._replace(state=lambda: state))
    kernels = dispatches.of_work(work).total()
    cache = sum(leaf.nbytes for _, leaf in flatten(state))
    return Needs(traffic.weights, cache, kernels * roofline.KERNEL_US / 1e6)


def paper(chip: Chip, needs: Needs) -> int:
    """How many fit into the time."""
    room = (PAPER_SECONDS - needs.kernels) * chip.bandwidth * 1e9
    return max(0, int((room - needs.weights) // needs.cache))


def likely(chip: Chip, needs: Needs) -> int:
    """The same, with what is known of products of several rows."""
    room = (LIKELY_SECONDS - needs.kernels) * LIKELY_SHARE * chip.bandwidth * 1e9
    rows, factors = zip(*ROWS, strict=True)
    fits = [n for n in range(1, MOST) if float(np.interp(n, rows, factors)) * needs.weights + n * needs.cache <= room]
    return max(fits, default=0)


def of_chips(names: list[str]) -> str:
    """The table of chips."""
    kinds = {"q4": counted(4, None), "q4, 8-bit cache": counted(4, 8)}
    chosen = [chip for name in names for chip in chips.find(name)] if names else list(chips.CHIPS)
    rows = [
        [
            chip.name,
            f"{chip.bandwidth:g}",
            *(f"{paper(chip, kind)} / {likely(chip, kind)}" for kind in kinds.values()),
        ]
        for chip in chosen
    ]
    sizes = ", ".join(
        f"{name} {needs.weights / 1e9:.2f} GB of weights and {needs.cache / 1e9:.2f} a person"
        for name, needs in kinds.items()
    )
    title = f"People at once, paper / likely, with full contexts of 7B ({sizes}). Computed; no Mac was run."
    return f"{title}\n\n{measure.table(['chip', 'GB/s', *kinds], rows)}"


def of_family(names: list[str], bits: int | None = 4) -> str:
    """A table of the sister models: what a frame of each reads and launches, its least time and people at once."""
    chosen = [chip for name in names for chip in chips.find(name)]
    rows = []
    for size in PUBLISHED:
        needs = counted(bits, None, size)
        kernels = round(needs.kernels * 1e6 / roofline.KERNEL_US)
        least = (
            f"{1e3 * ((needs.weights + needs.cache) / chip.bandwidth / 1e9 + needs.kernels):.0f} ms, "
            f"{paper(chip, needs)} / {likely(chip, needs)}"
            for chip in chosen
        )
        rows.append([size, f"{needs.weights / 1e9:.2f}", f"{needs.cache / 1e9:.2f}", str(kernels), *least])
    headers = ["model", "GB of weights a frame", "GB of cache a person", "kernels", *(chip.name for chip in chosen)]
    title = (
        f"A frame of each sister model in {roofline.weights_name(bits)}, contexts full: its least ms, and people at "
        "once, paper / likely. Computed; no Mac was run."
    )
    return f"{title}\n\n{measure.table(headers, rows)}"


def of_batches(model: Any, slots: list[int], frames: int, rounds: int) -> str:
    """Steps of batches of every size in turn, every context full."""
    batches = {count: model.batch(count, progress=False) for count in slots}
    sounds: dict[int, Any] = {}
    for count, batch in batches.items():
        rows = [batch.join(seed=i) for i in range(count)]
        batch.fill_context()
        batch.step({})
        sounds[count] = dict.fromkeys(rows, np.zeros(batch.frame_size, np.float32))
    times: dict[int, list[float]] = {count: [] for count in slots}
    for _ in range(rounds):
        for count, batch in batches.items():
            for _ in range(frames):
                began = time.perf_counter()
                batch.step(sounds[count])
                times[count].append(time.perf_counter() - began)
    medians = {count: 1e3 * float(np.median(each)) for count, each in times.items()}
    one = medians[min(medians)] / min(medians)
    rows = [[str(n), f"{ms:.1f}", f"{ms / n:.1f}", f"{ms / (n * one):.2f}"] for n, ms in medians.items()]
    return measure.table(["people", "a step ms", "ms a person", "of as many single steps"], rows)


async def of_sockets(people: int, seconds: float) -> str:
    """Everybody talks over a socket in Opus to a model that takes no time: what is left is ours."""
    serving = _serving()
    async with serving.open_house(lambda: serving.EchoBatch(people)) as (house, address):
        command = [
            sys.executable,
            "-m",
            "bench.people",
            "talkers",
            address,
            f"--people={people}",
            f"--seconds={seconds}",
        ]
        talkers = await asyncio.create_subprocess_exec(*command)
        await talkers.wait()
        hearing, speaking = (_quantiles(histogram) for histogram in (house.figures.hearing, house.figures.speaking))
    rows = [["socket to the model's inbox", *hearing], ["the model's frame to the socket", *speaking]]
    return measure.table(["", "half within ms", "99% within ms", "messages"], rows)


async def talk_all(address: str, people: int, seconds: float) -> None:
    """So many people, each from a moment of his own on."""
    serving = _serving()
    noise = (0.05 * np.random.default_rng(0).standard_normal((10, 1920))).astype(np.float32)

    async def talk(number: int) -> None:
        await asyncio.sleep(0.08 * number / people)
        async with serving.visit(address) as me:
            await me.handshake()
            hearing = asyncio.ensure_future(me.until_closed())
            loop = asyncio.get_running_loop()
            began = loop.time()
            for i in range(round(seconds / 0.08)):
                await asyncio.sleep(began + 0.08 * i - loop.time())
                await me.say(noise[i % 10])
            hearing.cancel()

    await asyncio.gather(*(talk(number) for number in range(people)))


def _serving() -> Any:
    """The server's stand-ins of the tests."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    return importlib.import_module("serving")


def _quantiles(histogram: Any) -> list[str]:
    """The buckets of a histogram that half and 99% of what it saw lie within."""
    samples = next(iter(histogram.collect())).samples
    buckets = [(float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket")]
    total = buckets[-1][1]
    within = [next(bound for bound, count in buckets if count >= share * total) for share in (0.5, 0.99)]
    return [*(f"{1e3 * bound:g}" for bound in within), f"{total:.0f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = Parser("python -m bench.people", description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("chips").add_argument("--chip", nargs="+", default=[])
    family = kinds.add_parser("family")
    family.add_argument("--chip", nargs="+", default=["M1", "M2 Pro", "M4 Max"])
    family.add_argument("--bits", type=int, choices=(4, 8), default=4)
    batch = kinds.add_parser("batch")
    batch.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8])
    batch.add_argument("--model", default="miniature")
    batch.add_argument("--frames", type=int, default=20)
    batch.add_argument("--rounds", type=int, default=5)
    sockets = kinds.add_parser("sockets")
    sockets.add_argument("--people", type=int, default=8)
    sockets.add_argument("--seconds", type=float, default=20.0)
    talkers = kinds.add_parser("talkers", help="the other end of sockets, started by it")
    talkers.add_argument("address")
    talkers.add_argument("--people", type=int)
    talkers.add_argument("--seconds", type=float)
    arguments = parser.parse_args(argv)
    if arguments.kind == "talkers":
        if hasattr(os, "sched_setscheduler"):  # what the server is given by `chrt` is not theirs
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        asyncio.run(talk_all(arguments.address, arguments.people, arguments.seconds))
    elif arguments.kind == "chips":
        print(of_chips(arguments.chip))
    elif arguments.kind == "family":
        print(of_family(arguments.chip, arguments.bits))
    elif arguments.kind == "batch":
        import mlx.core as mx

        import moshi_mlx

        model = moshi_mlx.load(arguments.model, dtype=mx.float32)
        print(of_batches(model, arguments.slots, arguments.frames, arguments.rounds))
    else:
        print(asyncio.run(of_sockets(arguments.people, arguments.seconds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
