"""What Apple publishes of its chips, and the least time that a frame can take on one of them.

A frame of a conversation reads every weight once, so its bound is bytes / memory bandwidth. These are figures on
paper, no measurements: no chip reaches its published bandwidth in full.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from ..errors import InputError

FRAME_MS = 80.0


class Chip(NamedTuple):
    """`bandwidth` in GB/s (1e9 bytes), `memory`: sizes that were sold, in GB, `teraflops` of float32 on the GPU.

    A chip whose bandwidth depends on the cores of its GPU has a row for each; its memory tells which it is.
    """

    name: str
    bandwidth: float
    memory: tuple[int, ...]
    teraflops: float | None
    source: str  # of bandwidth and memory


# Source "Apple" and a day: the announcement of the first Macs with the chip, taken from reports of it; "reported": from
# reports alone, and sizes that were not reported are missing. M1's 68.25 GB/s follow from its LPDDR4X-4266 on 128 bits
# ("almost 6x" of it is M1 Max's 400). M3 Ultra's 819 GB/s are from Mac Studio's specifications.
# Teraflops: Apple's own up to M2, except M2 Pro, Max and Ultra; those and all later ones are not published and are
# taken from huggingface.js, packages/tasks/src/hardware.ts, which has them from cores x clock. They decide nothing
# here: at one conversation the bandwidth bounds every chip several times sooner.
CHIPS = (
    Chip("M1", 68.25, (8, 16), 2.6, "Apple, 2020-11-10"),
    Chip("M1 Pro", 200, (16, 32), 5.2, "Apple, 2021-10-18"),
    Chip("M1 Max", 400, (32, 64), 10.4, "Apple, 2021-10-18"),
    Chip("M1 Ultra", 800, (64, 128), 21, "Apple, 2022-03-08"),
    Chip("M2", 100, (8, 16, 24), 3.6, "Apple, 2022-06-06"),
    Chip("M2 Pro", 200, (16, 32), 6.8, "Apple, 2023-01-17"),
    Chip("M2 Max", 400, (32, 64, 96), 13.5, "Apple, 2023-01-17"),
    Chip("M2 Ultra", 800, (64, 128, 192), 27.2, "Apple, 2023-06-05"),
    Chip("M3", 100, (8, 16, 24), 4.1, "Apple, 2023-10-30"),
    Chip("M3 Pro", 150, (18, 36), 7.4, "Apple, 2023-10-30"),
    Chip("M3 Max (30-core GPU)", 300, (36, 96), None, "Apple, 2023-10-30"),
    Chip("M3 Max (40-core GPU)", 400, (48, 64, 128), 14.2, "Apple, 2023-10-30"),
    Chip("M3 Ultra", 819, (96, 256, 512), 28.4, "Apple, 2025-03-05"),
    Chip("M4", 120, (16, 24, 32), 4.6, "Apple, 2024-05-07"),
    Chip("M4 Pro", 273, (24, 48, 64), 9.2, "Apple, 2024-10-30"),
    Chip("M4 Max (32-core GPU)", 410, (36,), None, "Apple, 2024-10-30"),
    Chip("M4 Max (40-core GPU)", 546, (48, 64, 128), 18.4, "Apple, 2024-10-30"),
    Chip("M5", 153, (16, 24, 32), 5.7, "Apple, 2025-10-15"),
    Chip("M5 Pro", 307, (24, 48, 64), 11.4, "Apple, 2026-03-03"),
    Chip("M5 Max (32-core GPU)", 460, (36,), None, "Apple, 2026-03-03"),
    Chip("M5 Max (40-core GPU)", 614, (48, 64, 128), 22.8, "Apple, 2026-03-03"),
    Chip("M5 Ultra", 1200, (96,), None, "reported, 2026-08"),
    Chip("M6", 170, (16,), None, "reported, 2026-08"),
)


def find(name: str) -> list[Chip]:
    """The rows of a chip: "M2", "m2", "Apple M2" (as MLX and the system call it); two where its GPU comes in two sizes.

    Raises InputError for a name that the table does not have.
    """
    wanted = name.strip().lower().removeprefix("apple ")
    found = [chip for chip in CHIPS if wanted in (chip.name.lower(), chip.name.lower().partition(" (")[0])]
    if not found:
        names = ", ".join(dict.fromkeys(chip.name.partition(" (")[0] for chip in CHIPS))
        raise InputError(f"chip: got {name!r}, expected one of {names}")
    return found


def of_machine(info: Mapping[str, Any]) -> Chip | None:
    """The row of the machine that `mlx.core.device_info()` describes; None for a chip that the table does not have.

    Where a chip comes in two, the memory tells them apart; where it does not, the slower one is taken.
    """
    try:
        rows = find(str(info.get("device_name", "")))
    except InputError:
        return None
    gigabytes = round(int(info.get("memory_size", 0)) / 2**30)
    fitting = [chip for chip in rows if gigabytes in chip.memory]
    return min(fitting or rows, key=lambda chip: chip.bandwidth)


def reads_anew(name: str, mode: str) -> bool:
    """Whether a chip reads weights of a quantization mode anew for each row of a product with several.

    MLX's product of several rows with affine weights asks for M3 or later (PR 3764); those of mxfp4 it has everywhere.
    """
    return mode == "affine" and name.removeprefix("Apple ").split(" ")[0] in ("M1", "M2")


def measured_bandwidth(read_bytes: int = 2**29, times: int = 5) -> float:
    """GB/s at which the default device reads memory, the best of some sums over one array."""
    array = mx.zeros((read_bytes // 4,))
    mx.eval(array, array.sum())  # the first sum builds its kernel
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        mx.eval(array.sum())
        seconds.append(time.perf_counter() - started)
    return array.nbytes / min(seconds) / 1e9


def frame_bound_ms(bytes_a_frame: float, bandwidth: float) -> float:
    """The least milliseconds that reading so many bytes takes at `bandwidth` GB/s."""
    return bytes_a_frame / bandwidth / 1e6


def usable_bytes(memory: float) -> float:
    """About what macOS lets the GPU of a Mac with `memory` GB (2**30 bytes) use by default, for tables on paper.

    From users' reports: two thirds of 8 GB, 74% of 16 to 36 GB, 78% of more with macOS 26, up to a tenth less before.
    On the Mac itself `mlx.core.device_info()["max_recommended_working_set_size"]` is exact.
    """
    share = 2 / 3 if memory <= 8 else 0.74 if memory <= 36 else 0.78
    return memory * 2**30 * share


def least_memory(chip: Chip, needed_bytes: float) -> int | None:
    """The smallest memory (GB) with which this chip was sold that holds so many bytes; None where none does."""
    return min((size for size in chip.memory if usable_bytes(size) >= needed_bytes), default=None)
