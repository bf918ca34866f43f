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

from moshi_mlx.checkpoints import translation
from moshi_mlx.checkpoints.disk.files import read_json
from moshi_mlx.checkpoints.names import CONFIG_NAME
from moshi_mlx.checkpoints.safetensors import Tensor, TensorInfo, as_mx, as_stored, code_of, mx_type, stored
from moshi_mlx.errors import CheckpointError, ConfigError, InputError, brief
from moshi_mlx.models.config import MoshiConfig

A, B = ".lora_A.weight", ".lora_B.weight"
MAX_SCALING = 1e30  # beyond it float32, in which adapters are merged, overflows


def settings(path: Path, source: Path, of_source: Mapping[str, Any], scaling: float | None) -> tuple[float, int | None]:
    """(scaling, rank): from the config.json beside the adapters, else from the source's; the rank may be unsaid."""
    where = path.parent / CONFIG_NAME
    said: Mapping[str, Any] = read_json(where) if where.is_file() else {}
    if said.get("lora_scaling") is None:
        where, said = source / CONFIG_NAME, of_source
    scaling = said.get("lora_scaling") if scaling is None else scaling
    rank = said.get("lora_rank")
    if scaling is not None and not _finite(scaling):
        raise ConfigError(f"{where}: key 'lora_scaling' is {brief(scaling)}, expected a number")
    if scaling is None:
        raise InputError(
            f"{path}: no config.json beside it or in the source says lora_scaling; give the factor by --lora-scaling"
        )
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ConfigError(f"{where}: key 'lora_rank' is {brief(rank)}, expected a whole number")
    return float(scaling), rank


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_SCALING


def merged(
    weights: Mapping[str, Tensor], config: MoshiConfig, path: Path, scaling: float, rank: int | None,
    dtype: mx.Dtype | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The weights (MLX names) with the adapters of a file in them, each merged in float32 when it is read.

    What is merged has the type `dtype`, or the weight's.

    Raises CheckpointError, naming the tensor, where the adapters are of another rank or another base.
    """
    adapters, pieces = stored(path), list(translation.kyutai_pytorch(config, generation=2))
    shapes = translation.expected_shapes(pieces, {name: tensor.info.shape for name, tensor in weights.items()})
    result, used = dict(weights), set[str]()
    for piece in pieces:
        theirs = piece.theirs[0]
        pair = [theirs.removesuffix(".weight") + leaf for leaf in (A, B)]
        found = [name for name in (theirs, *pair) if name in adapters]
        used |= {*found}
        if found == [theirs]:
            _expect(path, theirs, adapters[theirs], shapes[theirs])
            result |= {name: _cast(adapters[theirs], weights[name], dtype) for name in piece.mlx}
        elif found:
            _check_pair(path, pair, found, adapters, shapes[theirs], rank)
            down, up = (adapters[name] for name in pair)
            what = f"{path}: tensor {pair[0]!r}"
            result |= {name: _sum(what, weights[name], down, up, scaling, dtype) for name in piece.mlx}
    left = sorted(set(adapters) - used)
    if left:
        raise CheckpointError(
            f"{path}: tensor {brief(left[0])} belongs to no layer of this model; is it another base's?"
        )
    return result


def _expect(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.info.shape != shape:
        raise CheckpointError(
            f"{path}: tensor {name!r} has the shape {list(tensor.info.shape)}, but the base wants {list(shape)}"
        )


def _check_pair(
    path: Path, pair: list[str], found: list[str], adapters: Mapping[str, Tensor], base: tuple[int, ...],
    rank: int | None,
) -> None:  # fmt: skip
    """Both adapters of a layer are there, alone, and of the shapes that its base and the rank ask for."""
    if len(found) == 1:
        partner = next(name for name in pair if name not in found)
        raise CheckpointError(f"{path}: tensor {found[0]!r} has no partner {partner!r}")
    if found != pair:
        raise CheckpointError(f"{path}: tensor {found[0]!r} is there whole and as adapters; expected one of them")
    rank = rank or max(1, next(iter(adapters[pair[0]].info.shape), 1))
    _expect(path, pair[0], adapters[pair[0]], (rank, base[1]))
    _expect(path, pair[1], adapters[pair[1]], (base[0], rank))


def _sum(what: str, weight: Tensor, down: Tensor, up: Tensor, scaling: float, dtype: mx.Dtype | None) -> Tensor:
    info = TensorInfo(code_of(dtype) if dtype else weight.info.dtype, weight.info.shape)

    def read() -> np.ndarray:
        w, a, b = (as_mx(t.read(), t.info.dtype).astype(mx.float32) for t in (weight, down, up))
        result = (w + scaling * (b @ a)).astype(mx_type(info.dtype))
        if not mx.isfinite(result).all():
            raise CheckpointError(f"{what}: merged with the factor {scaling} it gives NaN or infinite weights")
        return as_stored(result)

    return Tensor(info, read)


def _cast(whole: Tensor, weight: Tensor, dtype: mx.Dtype | None) -> Tensor:
    info = TensorInfo(code_of(dtype) if dtype else weight.info.dtype, weight.info.shape)

    def read() -> np.ndarray:
        return as_stored(as_mx(whole.read(), whole.info.dtype).astype(mx_type(info.dtype))).reshape(info.shape)

    return Tensor(info, read)
