"""What Apple publishes of its chips, and the least time that a frame can take on one of them.

A frame of a conversation reads every weight once, so its bound is bytes / memory bandwidth. These are figures on
paper, no measurements: no chip reaches its published bandwidth in full.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import InputError

FRAME_MS = 80.0


class Chip(NamedTuple):
    """`bandwidth` in GB/s (1e9 bytes), `memory`: sizes that were sold, in GB, `teraflops` of float32 on the GPU."""

    name: str
    bandwidth: float
    memory: tuple[int, ...]
    teraflops: float | None


# Bandwidth and memory: as announced by Apple for the Macs with the chip, taken from reports of the announcements:
#   M1 2020-11-10 (its bandwidth, 68.25 GB/s, follows from LPDDR4X-4266 on 128 bits; "almost 6x" of it is M1 Max's 400),
#   M1 Pro and Max 2021-10-18, M1 Ultra 2022-03-08, M2 2022-06-06, M2 Pro and Max 2023-01-17, M2 Ultra 2023-06-05,
#   M3, Pro and Max 2023-10-30, M3 Ultra 2025-03-05 (819 GB/s: Mac Studio's specifications), M4 2024-05-07,
#   M4 Pro and Max 2024-10-30, M5 2025-10-15, M5 Pro and Max 2026-03-03.
# Teraflops: Apple's own up to M2, except M2 Pro, Max and Ultra; those and all later ones are not published and are
# taken from huggingface.js, packages/tasks/src/hardware.ts, which has them from cores x clock. They decide nothing
# here: at one conversation the bandwidth bounds every chip several times sooner.
CHIPS = (
    Chip("M1", 68.25, (8, 16), 2.6),
    Chip("M1 Pro", 200, (16, 32), 5.2),
    Chip("M1 Max", 400, (32, 64), 10.4),
    Chip("M1 Ultra", 800, (64, 128), 21),
    Chip("M2", 100, (8, 16, 24), 3.6),
    Chip("M2 Pro", 200, (16, 32), 6.8),
    Chip("M2 Max", 400, (32, 64, 96), 13.5),
    Chip("M2 Ultra", 800, (64, 128, 192), 27.2),
    Chip("M3", 100, (8, 16, 24), 4.1),
    Chip("M3 Pro", 150, (18, 36), 7.4),
    Chip("M3 Max (30-core GPU)", 300, (36, 96), None),
    Chip("M3 Max (40-core GPU)", 400, (48, 64, 128), 14.2),
    Chip("M3 Ultra", 819, (96, 256, 512), 28.4),
    Chip("M4", 120, (16, 24, 32), 4.6),
    Chip("M4 Pro", 273, (24, 48, 64), 9.2),
    Chip("M4 Max (32-core GPU)", 410, (36,), None),
    Chip("M4 Max (40-core GPU)", 546, (48, 64, 128), 18.4),
    Chip("M5", 153, (16, 24, 32), 5.7),
    Chip("M5 Pro", 307, (24, 48, 64), 11.4),
    Chip("M5 Max (32-core GPU)", 460, (36,), None),
    Chip("M5 Max (40-core GPU)", 614, (48, 64, 128), 22.8),
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


def frame_bound_ms(bytes_a_frame: float, bandwidth: float) -> float:
    """The least milliseconds that reading so many bytes takes at `bandwidth` GB/s."""
    return bytes_a_frame / bandwidth / 1e6


def usable_bytes(memory: float) -> float:
    """What macOS lets the GPU of a Mac with `memory` GB (2**30 bytes) use by default.

    Two thirds up to 36 GB, three quarters above: what users report of recommendedMaxWorkingSetSize; on a Mac itself
    `mlx.core.device_info()["max_recommended_working_set_size"]` is exact.
    """
    return memory * 2**30 * (2 / 3 if memory <= 36 else 3 / 4)


def least_memory(chip: Chip, needed_bytes: float) -> int | None:
    """The smallest memory (GB) with which this chip was sold that holds so many bytes; None where none does."""
    return min((size for size in chip.memory if usable_bytes(size) >= needed_bytes), default=None)
