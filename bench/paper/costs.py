"""What a frame reads, computes and launches, counted on its own graph."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from moshi_mlx import MoshiConfig
from moshi_mlx.conversation.session import BUFFER_CACHE_BYTES
from moshi_mlx.models.state import flatten

from .. import cases, measure
from ..random_checkpoint import Bits
from . import dispatches
from .dispatches import weightless, weightless_tree

# What one more small kernel costs on a GPU of Apple's that runs them one after the other: 832 of them took 4.30 ms on
# an M2 Pro (github.com/antonellof/ferrox, issue 149). An assumption for all chips; --kernel-us sets another.
KERNEL_US = 5.2


class Cost(NamedTuple):
    """Of one duplex frame, in bytes, operations and kernels; `held`: weights, caches, MLX's freed buffers."""

    weights: int
    state: int
    operations: int
    kernels: int
    held: int


def cost(
    config: MoshiConfig, bits: Bits, context: str = "full", dtype: mx.Dtype = mx.bfloat16, kv_bits: int | None = None
) -> Cost:
    """Counted on the graph of one duplex frame (see `measure.Traffic`)."""
    model = weightless(config, bits, dtype)
    work = cases.work(model, cases.Spec("duplex-frame", context=context, frames=1, kv_bits=kv_bits))
    state = weightless_tree(work.state())
    work = work._replace(state=lambda: state)
    traffic = measure.traffic(model, work)
    kernels = dispatches.of_work(work).total()
    held = sum(leaf.nbytes for tree in (model.parameters(), state) for _, leaf in flatten(tree))
    return Cost(traffic.weights, traffic.state, traffic.operations, kernels, held + BUFFER_CACHE_BYTES)
