"""Depth slices of the user's side, which PersonaPlex and some fine-tunes have trained and no conversation reads.

Such a file has a step of the depth decoder for every codebook that the model reads. What the steps of the user's side
draw is always replaced by what the user says, and each step sees those before it alone: without them Moshi's own
codes are the same. They are told from the tensors, held to the shapes that they must have, and left in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import NamedTuple

from ...errors import CheckpointError
from ...models.config import MoshiConfig
from ..safetensors import Tensor


class Slices(NamedTuple):
    """What a file has of the depth decoder, by its own account."""

    steps: int
    sets: int
    unread: frozenset[str]  # tensors of the user's steps


def slices_of(tensors: Mapping[str, Tensor], config: MoshiConfig, layout: str, generation: int, where: str) -> Slices:
    """The depth slices of a file. Raises CheckpointError where one of the user's is not as it must be."""
    step, part = ("depformer.slices.{}.linear_out", "depformer.slices.{}.linear_in") if layout == "mlx" else (
        "linears.{}", "depformer_in.{}",
    )  # fmt: skip
    steps, sets = _count(step, tensors), _count(part, tensors)
    own, own_sets = config.num_codebooks, config.depth_decoder_config.weight_sets
    if steps != own + config.user_codebooks or layout not in ("mlx", "kyutai"):
        return Slices(steps, own_sets, frozenset())
    like = dict(_mlx(tensors, own, steps) if layout == "mlx" else _kyutai(config, generation, steps, sets))
    for name, model in like.items():
        if name not in tensors:
            raise CheckpointError(f"{where}: tensor {name!r} is missing; others of the user's depth slices are there")
        if model in tensors and tensors[name].info != tensors[model].info:
            got, wanted = tensors[name].info, tensors[model].info
            raise CheckpointError(
                f"{where}: tensor {name!r} is {got.dtype} of the shape {list(got.shape)}, expected {wanted.dtype} of "
                f"{list(wanted.shape)} as {model!r} is"
            )
    return Slices(steps, max(sets, own_sets), frozenset(like))


def _count(pattern: str, tensors: Mapping[str, Tensor]) -> int:
    return next(n for n in count() if f"{pattern.format(n)}.weight" not in tensors)


def _mlx(tensors: Mapping[str, Tensor], own: int, steps: int) -> Iterator[tuple[str, str]]:
    """The tensors of the user's slices in the MLX layout, and those of Moshi's last that each is like."""
    for name in tensors:
        head, _, rest = name.removeprefix("depformer.slices.").partition(".")
        if name.startswith("depformer.slices.") and head.isdecimal() and own <= int(head) < steps:
            yield name, f"depformer.slices.{own - 1}.{rest}" if own > 1 else name


def _kyutai(config: MoshiConfig, generation: int, steps: int, sets: int) -> Iterator[tuple[str, str]]:
    """The same of Kyutai's PyTorch layout. Attention that all sets share in one tensor is not among them."""
    depth = config.depth_decoder_config
    for s in range(depth.weight_sets, sets):
        yield f"depformer_in.{s}.weight", "depformer_in.0.weight"
        for n in range(depth.num_hidden_layers):
            layer = f"depformer.layers.{n}"
            for part in ("linear_in", "linear_out"):
                yield f"{layer}.gating.{s}.{part}.weight", f"{layer}.gating.0.{part}.weight"
            for proj in ("in_projs", "out_projs") if generation == 2 else ():
                yield f"{layer}.self_attn.{proj}.{s}.weight", f"{layer}.self_attn.{proj}.0.weight"
    for step in range(config.num_codebooks, steps):
        yield f"linears.{step}.weight", "linears.0.weight"
        for leaf in ("weight", "low_rank.weight") if depth.low_rank_embeddings else ("weight",):
            yield f"depformer_emb.{step - 1}.{leaf}", f"depformer_emb.0.{leaf}"
