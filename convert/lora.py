"""Low-rank adapters in Kyutai's layout, merged into the weights that they were trained on: W + scaling * B A.

Names are module paths of Kyutai's newer PyTorch package with `.lora_A.weight` [rank, in] and `.lora_B.weight`
[out, rank]; a file may also hold whole tensors, as of embeddings that were trained along. (Mechanism: arXiv 2106.09685;
names: `moshi` 0.2.13, modules/lora.py.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from moshi_mlx import translation
from moshi_mlx.config import MoshiConfig
from moshi_mlx.errors import CheckpointError, InputError
from moshi_mlx.finding import CONFIG_NAME, read_json
from moshi_mlx.safetensors import Tensor, as_mx, as_stored, stored

A, B = ".lora_A.weight", ".lora_B.weight"


def settings(path: Path, of_source: Mapping[str, Any], scaling: float | None) -> tuple[float, int | None]:
    """(scaling, rank): from the config.json beside the adapters, else from the source's; the rank may be unsaid."""
    beside = read_json(path.parent / CONFIG_NAME) if (path.parent / CONFIG_NAME).is_file() else {}
    said = beside if "lora_scaling" in beside else of_source
    scaling = said.get("lora_scaling") if scaling is None else scaling
    rank = said.get("lora_rank")
    if isinstance(scaling, bool) or not isinstance(scaling, (int, float)):
        raise InputError(
            f"{path}: no config.json beside it or in the source says lora_scaling; give the factor by --lora-scaling"
        )
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise InputError(f"{path.parent / CONFIG_NAME}: key 'lora_rank' is {rank!r}, expected a whole number")
    return float(scaling), rank


def merged(
    weights: Mapping[str, Tensor], config: MoshiConfig, path: Path, scaling: float, rank: int | None
) -> dict[str, Tensor]:
    """The weights (MLX names) with the adapters of a file in them, each merged in float32 when it is read.

    Raises CheckpointError, naming the tensor, where the adapters are of another rank or another base.
    """
    adapters = stored(path)
    base = {piece.theirs[0]: piece.mlx for piece in translation.kyutai_pytorch(config, generation=2)}
    result, used = dict(weights), set[str]()
    for theirs, names in base.items():
        stem = theirs.removesuffix(".weight")
        pair = [name for name in (stem + A, stem + B) if name in adapters]
        used |= {*pair, theirs} & set(adapters)
        if theirs in adapters:
            whole = adapters[theirs]
            _expect(
                path, theirs, whole, translation.expected_shapes([_piece(config, theirs)], _shapes(weights))[theirs]
            )
            result |= {name: _cast_like(whole, weights[name]) for name in names}
        if pair:
            if len(pair) == 1:
                raise CheckpointError(
                    f"{path}: tensor {pair[0]!r} has no partner {stem + (B if A in pair[0] else A)!r}"
                )
            down, up = (adapters[name] for name in pair)
            _check_pair(path, stem, down, up, weights[names[0]].info.shape, rank)
            result |= {name: _sum(result[name], down, up, scaling) for name in names}
    left = sorted(set(adapters) - used)
    if left:
        raise CheckpointError(f"{path}: tensor {left[0]!r} belongs to no layer of this model; is it another base's?")
    return result


def _piece(config: MoshiConfig, theirs: str) -> translation.Piece:
    return next(piece for piece in translation.kyutai_pytorch(config, generation=2) if piece.theirs[0] == theirs)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.info.shape for name, tensor in weights.items()}


def _expect(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.info.shape != shape:
        raise CheckpointError(
            f"{path}: tensor {name!r} has the shape {list(tensor.info.shape)}, but the base wants {list(shape)}"
        )


def _check_pair(path: Path, stem: str, down: Tensor, up: Tensor, base: tuple[int, ...], rank: int | None) -> None:
    found = rank or down.info.shape[0]
    _expect(path, stem + A, down, (found, base[1]))
    _expect(path, stem + B, up, (base[0], found))


def _sum(weight: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    def read() -> np.ndarray:
        w, a, b = (as_mx(t.read(), t.info.dtype).astype(mx.float32) for t in (weight, down, up))
        whole = w + scaling * (b @ a)
        return as_stored(whole.astype(as_mx(weight.read()[:1], weight.info.dtype).dtype))

    return Tensor(weight.info, read)


def _cast_like(whole: Tensor, weight: Tensor) -> Tensor:
    def read() -> np.ndarray:
        kind = as_mx(weight.read()[:1], weight.info.dtype).dtype
        return as_stored(as_mx(whole.read(), whole.info.dtype).astype(kind)).reshape(weight.info.shape)

    return Tensor(weight.info, read)
