"""How near a frame comes to its own matrix products: the same products alone, with nothing between them.

python -m bench.floor --case mimi-encode mimi-decode --size mid

The bare products of a frame (same shapes, same order, matrices of their own that lie as the model's do) are the least
that MLX and the BLAS underneath can take for it. The last lines say what a product of few rows reads here by itself:
where BLAS copies a matrix into panels before it multiplies, two rows cost more than reading the matrix.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx

import moshi_mlx

from . import cases
from .cases import Spec, Work
from .measure import PRODUCTS, recorded, table


class Product(NamedTuple):
    """Shapes of x [..., rows, in] and w [..., in, out]."""

    x: tuple[int, ...]
    w: tuple[int, ...]


def products(model: Any, work: Work) -> list[Product]:
    """The plain matrix products of one frame, in the order of its graph."""
    records, _ = recorded(model, work)
    found = [record for record in records if record["type"] == "primitive" and record["name"] in PRODUCTS]
    return [Product(*(tuple(shape) for _, shape, _ in record["inputs"][:2])) for record in found]


def bare(shapes: list[Product]) -> Callable[[], list[mx.array]]:
    """A function that does all of them, each with a matrix of its own."""
    pairs = [(mx.random.normal(p.x), mx.random.normal(p.w)) for p in shapes]
    mx.eval(pairs)
    return lambda: [x @ w for x, w in pairs]


def alternating(*functions: Callable[[], Any], rounds: int) -> list[float]:
    """Median milliseconds of each, one after the other in every round, so that a slow minute hits all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 2):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            mx.eval(function())
            taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken[2:]) for taken in times]


def frame_of(work: Work) -> Callable[[], Any]:
    """A function that runs the next frame."""
    step, states = mx.compile(work.step), [work.state()]

    def frame() -> Any:
        reply, state = step(work.given(0), states.pop())
        mx.eval(reply, state)
        states.append(state)
        return reply

    return frame


def rates(rounds: int, side: int = 2048, count: int = 12) -> list[list[str]]:
    """GB/s at which products of 1, 2, 4 and 8 rows read `count` matrices, too many for the processor's caches."""
    found = []
    for rows in (1, 2, 4, 8):
        function = bare([Product((rows, side), (side, side))] * count)
        (taken,) = alternating(function, rounds=rounds)
        found.append([f"{rows}", f"{taken:.1f}", f"{4e-6 * side * side * count / taken:.1f}"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.floor", description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=cases.CASES, default=list(cases.DEFAULT_CASES))
    parser.add_argument("--size", choices=cases.SIZES, default="tiny", help="of the random weights (default: tiny)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="frames of each (default: 15)")
    arguments = parser.parse_args()
    model = moshi_mlx.load(cases.checkpoint(arguments.size, None))
    rows = []
    for case in arguments.case:
        work = cases.work(model, Spec(case, arguments.size, frames=arguments.rounds + 2))
        shapes = products(model, work)
        frame, least = alternating(frame_of(work), bare(shapes), rounds=arguments.rounds)
        weights = sum(4 * prod(p.w) for p in shapes)
        rows.append([case, f"{frame:.1f}", f"{least:.1f}", f"{least / frame:.0%}", f"{len(shapes)}",
                     f"{weights / 1e6:.0f}", f"{weights / least / 1e6:.1f}"])  # fmt: skip
    print(table(["case", "frame ms", "products ms", "share", "products", "MB", "GB/s"], rows))
    print()
    print(table(["rows", "ms", "GB/s"], rates(arguments.rounds)))


if __name__ == "__main__":
    main()
