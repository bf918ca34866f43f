"""How many people a chip holds at once, on paper, and what a batch costs here.

    python -m bench.people chips                     # from a frame's bytes and published bandwidths; no Mac was run
    python -m bench.people family --chip M1 "M4 Max" # the same of Moshi's sister models
    python -m bench.people batch --slots 1 2 4 8     # B conversations in one step against B steps, measured here
    python -m bench.people sockets --people 8        # our own code between socket and model, measured here

bench/paper/serving.py says what "paper" and "likely" are.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moshi_mlx.machine import chips
from moshi_mlx.terminal.arguments import Parser

from . import cases, measure
from .paper import serving
from .paper.costs import KERNEL_US, cost
from .paper.serving import Needs
from .published import PUBLISHED
from .random_checkpoint import QUANTIZED, Bits, bits_of


def counted(size: str, bits: Bits = 4, kv_bits: int | None = None) -> Needs:
    """Read off the graph of a frame with a full context."""
    return serving.needs_of(cost(cases.config_of(size), bits, "full", kv_bits=kv_bits), bits)


def of_chips(names: list[str]) -> str:
    """The table of chips."""
    kinds = {
        f"{cases.weights_name(bits)}{', 8-bit cache' if kv_bits else ''}": counted("7b", bits, kv_bits)
        for bits in (4, "mxfp4")
        for kv_bits in (None, 8)
    }
    chosen = [chip for name in names for chip in chips.find(name)] if names else list(chips.CHIPS)
    rows = [
        [chip.name, f"{chip.bandwidth:g}", *(serving.both(chip, kind) for kind in kinds.values())] for chip in chosen
    ]
    sizes = ", ".join(
        f"{name} {needs.weights / 1e9:.2f} GB of weights and {needs.cache / 1e9:.2f} a person"
        for name, needs in kinds.items()
    )
    title = f"People at once, paper / likely, with full contexts of 7B ({sizes}). Computed; no Mac was run."
    return f"{title}\n\n{measure.table(['chip', 'GB/s', *kinds], rows)}"


def of_family(names: list[str], bits: Bits = 4) -> str:
    """A table of the sister models: what a frame of each reads and launches, its least time and people at once."""
    chosen = [chip for name in names for chip in chips.find(name)]
    rows = []
    for size in PUBLISHED:
        needs = counted(size, bits)
        kernels = round(needs.kernels * 1e6 / KERNEL_US)
        least = (
            f"{1e3 * ((needs.weights + needs.cache) / chip.bandwidth / 1e9 + needs.kernels):.0f} ms, "
            f"{serving.both(chip, needs)}"
            for chip in chosen
        )
        rows.append([size, f"{needs.weights / 1e9:.2f}", f"{needs.cache / 1e9:.2f}", str(kernels), *least])
    headers = ["model", "GB of weights a frame", "GB of cache a person", "kernels", *(chip.name for chip in chosen)]
    title = (
        f"A frame of each sister model in {cases.weights_name(bits)}, contexts full: its least ms, and people at "
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
    stand_ins = _serving()
    async with stand_ins.open_house(lambda: stand_ins.EchoBatch(people)) as (house, address):
        hearing, speaking = _noted(house.figures.hearing), _noted(house.figures.speaking)
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
    rows = [
        ["socket to the model's inbox", *_quantiles(hearing)],
        ["the model's frame to the socket", *_quantiles(speaking)],
    ]
    return measure.table(["", "half within ms", "99% within ms", "all within ms", "messages"], rows)


async def talk_all(address: str, people: int, seconds: float) -> None:
    """So many people, each from a moment of his own on."""
    stand_ins = _serving()
    noise = (0.05 * np.random.default_rng(0).standard_normal((10, 1920))).astype(np.float32)

    async def talk(number: int) -> None:
        await asyncio.sleep(0.08 * number / people)
        async with stand_ins.visit(address) as me:
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


def _noted(histogram: Any) -> list[float]:
    """The list that gets every value that a histogram is told from now on."""
    values: list[float] = []
    observe = histogram.observe

    def noted(value: float) -> None:
        values.append(value)
        observe(value)

    histogram.observe = noted
    return values


def _quantiles(seconds: list[float]) -> list[str]:
    """What half, 99% and all of them lie within, in ms."""
    return [*(f"{1e3 * each:.2f}" for each in np.quantile(seconds, (0.5, 0.99, 1))), str(len(seconds))]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = Parser("python -m bench.people", description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("chips").add_argument("--chip", nargs="+", default=[])
    family = kinds.add_parser("family")
    family.add_argument("--chip", nargs="+", default=["M1", "M2 Pro", "M4 Max"])
    family.add_argument("--bits", choices=[str(bits) for bits in QUANTIZED], default="4")
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
        print(of_family(arguments.chip, bits_of(arguments.bits)))
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
