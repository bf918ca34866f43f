"""How many people a chip holds at once, on paper, from what a frame of one of them reads and launches.

"paper": weights once a frame and every person's cache, at the whole bandwidth, in 72 ms less what starting the kernels
takes. "likely": at 80% of it, in 74 ms, and with what users measured of MLX's products of 4-bit weights with several
rows (mlx issue 3839, on an M4 Pro; PR 3863, on an M3 Max): they cost more than a product with one. M1 and M2 have no
such product for affine weights (PR 3764) and read them anew for each row; those of mxfp4 they read once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moshi_mlx.machine.chips import Chip, reads_anew

from ..random_checkpoint import QUANTIZED, Bits
from .costs import KERNEL_US, Cost

PAPER_SECONDS, LIKELY_SECONDS, LIKELY_SHARE = 0.072, 0.074, 0.8
# (rows, what a product of 4-bit weights with so many rows costs of one with a single row)
ROWS = ((1, 1.0), (4, 1.35), (8, 2.2), (10, 4.0), (32, 4.0))
MOST = 200


class Needs(NamedTuple):
    """Of a frame: bytes of weights, bytes of one conversation's cache, seconds to start the kernels."""

    weights: float
    cache: float
    kernels: float
    bits: Bits = 4  # that the weights have


def needs_of(frame: Cost, bits: Bits, kernel_us: float = KERNEL_US) -> Needs:
    return Needs(frame.weights, frame.state, frame.kernels * kernel_us / 1e6, bits)


def paper(chip: Chip, needs: Needs) -> int:
    """How many fit into the time."""
    room = (PAPER_SECONDS - needs.kernels) * chip.bandwidth * 1e9
    return max(0, int((room - needs.weights) // needs.cache))


def likely(chip: Chip, needs: Needs) -> int:
    """The same, with what is known of products of several rows."""
    room = (LIKELY_SECONDS - needs.kernels) * LIKELY_SHARE * chip.bandwidth * 1e9
    fits = [n for n in range(1, MOST) if _times(chip, needs.bits, n) * needs.weights + n * needs.cache <= room]
    return max(fits, default=0)


def _times(chip: Chip, bits: Bits, rows: int) -> float:
    """What reading the weights for so many rows costs, of reading them for one."""
    if bits is None:
        return 1.0
    if reads_anew(chip.name, QUANTIZED[bits].mode):
        return rows
    known, factors = zip(*ROWS, strict=True)
    return float(np.interp(rows, known, factors))


def both(chip: Chip, needs: Needs) -> str:
    """ "13 / 7": paper / likely."""
    return f"{paper(chip, needs)} / {likely(chip, needs)}"
