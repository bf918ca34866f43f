"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): their layers, and the files that hold them.

There is one kind of file, under the names that Kyutai's PyTorch package gives the same tensors: `LAYER.lora_A.weight`
[rank, in] and `LAYER.lora_B.weight` [out, rank], LAYER as in its own checkpoints, every linear layer of the language
model a possible LAYER. So what Kyutai's trainer writes loads here, and what is trained here loads there. The factor
of the product stands beside the tensors: `scale` of adapter_config.json, or `lora_scaling` of Kyutai's config.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..errors import CheckpointError, brief, clipped, require
from ..models.config import MoshiConfig
from ..models.layers.linear import Embedding, Linear, QuantizedEmbedding, resting
from ..models.moshi import Moshi
from . import translation
from .configs.keys import Keys
from .disk.files import read_json
from .filling import module_at
from .hub import local_folder
from .layouts import Row, join, kyutai_mlx, linear
from .names import ADAPTER_CONFIG_NAME, ADAPTER_NAME, KYUTAI_ADAPTER_NAME
from .names import CONFIG_NAME as MODEL_CONFIG_NAME
from .safetensors import FLOATS, load_lazily, read_header

FILE_NAME, KYUTAI_FILE_NAME = ADAPTER_NAME, KYUTAI_ADAPTER_NAME
CONFIG_NAME, KYUTAI_CONFIG_NAME = ADAPTER_CONFIG_NAME, MODEL_CONFIG_NAME
MAX_SCALE = 1e6
DEFAULT_SCALE = 2.0  # Kyutai's, where nothing says otherwise (moshi/models/loaders.py)
A, B = ".lora_A.weight", ".lora_B.weight"
Tensors = dict[str, mx.array]


class LoRALinear(nn.Module):
    """base(x) + scale * (x A) B.

    A layer that the published layout keeps as several, side by side, has as many updates: lora_a [in, parts * rank],
    lora_b [parts * rank, out / parts], each part of the one meeting its part of the other.
    """

    def __init__(self, base: nn.Module, a: mx.array, b: mx.array, parts: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.lora_a, self.lora_b = a, b
        self.parts, self.scale = parts, scale

    def __call__(self, x: mx.array) -> mx.array:
        low = x @ self.lora_a
        if self.parts == 1:
            return self.base(x) + self.scale * (low @ self.lora_b)
        low = low.reshape(*x.shape[:-1], self.parts, 1, -1)
        update = low @ self._parts_of_b()  # [..., parts, 1, out / parts]
        return self.base(x) + self.scale * update.reshape(*x.shape[:-1], -1)

    def _parts_of_b(self) -> mx.array:
        return self.lora_b.reshape(self.parts, -1, self.lora_b.shape[-1])

    def merged(self) -> nn.Module:
        """The base with the update added to its matrix; a quantized one has none, so this layer itself."""
        if not isinstance(self.base, Linear):
            return self
        a = self.lora_a.astype(mx.float32).reshape(len(self.lora_a), self.parts, -1).swapaxes(0, 1)
        update = a @ self._parts_of_b().astype(mx.float32)  # [parts, in, out / parts]
        update = update.swapaxes(0, 1).reshape(self.base.weight.shape)
        weight = self.base.weight
        # Computed from the published order of axes, so that it rests in memory as a loaded matrix does.
        self.base.weight = resting((weight.astype(mx.float32) + self.scale * update).astype(weight.dtype).T)
        return self.base


def parameters(config: MoshiConfig) -> Iterator[Row]:
    """Every parameter of the language model with its names in Kyutai's PyTorch layout; what steps share comes once."""
    pieces = translation.kyutai_pytorch(config, generation=2)
    published = {mlx: piece.theirs[0] for piece in pieces for mlx in piece.mlx}
    seen: set[str] = set()
    for row in kyutai_mlx(config):
        names = tuple(published[name] for name in row.theirs)
        if names[0] not in seen:
            seen.update(names)
            yield row._replace(theirs=names)


def layers(config: MoshiConfig) -> dict[str, tuple[str, ...]]:
    """Every linear layer of the language model: our path -> its names in Kyutai's PyTorch layout, one for each part."""
    return {
        row.ours.removesuffix(".weight"): tuple(name.removesuffix(".weight") for name in row.theirs)
        for row in parameters(config)
        if row.build is linear
    }


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer, plain, quantized or adapted."""
    if isinstance(layer, LoRALinear):
        return shape_of(layer.base)
    if isinstance(layer, nn.QuantizedLinear):
        return layer.scales.shape[1] * layer.group_size, layer.scales.shape[0]
    rows, columns = layer.weight.shape
    return rows, columns


def layer_at(model: nn.Module, path: str) -> Any:
    """The layer of a dotted path."""
    parent, name = module_at(model, path)
    return parent[name]


def attach(model: nn.Module, path: str, a: mx.array, b: mx.array, scale: float) -> LoRALinear:
    """Give the layer at `path` an update; the number of its parts is read off b."""
    parent, name = module_at(model, path)
    base = parent[name]
    parent[name] = LoRALinear(base, a, b, shape_of(base)[1] // b.shape[1], scale)
    return parent[name]


def to_kyutai(updates: Tensors, config: MoshiConfig) -> Tensors:
    """Kyutai's tensors of `PATH.lora_a` and `PATH.lora_b`, as `LoRALinear` has them."""
    tensors: Tensors = {}
    for ours, theirs in layers(config).items():
        if f"{ours}.lora_a" not in updates:
            continue
        down = mx.split(updates[f"{ours}.lora_a"].T, len(theirs))
        up = mx.split(updates[f"{ours}.lora_b"], len(theirs))
        tensors |= {name + A: mx.contiguous(part) for name, part in zip(theirs, down, strict=True)}
        tensors |= {name + B: mx.contiguous(part.T) for name, part in zip(theirs, up, strict=True)}
    return tensors


class Adapter(NamedTuple):
    """What an adapter's files hold."""

    path: Path
    tensors: Tensors  # under Kyutai's names
    scale: float


def read(path_or_hub_id: str | Path, config: MoshiConfig) -> Adapter:
    """An adapter from a folder (or a hub id of one), or from a safetensors file with its configuration beside it.

    Raises CheckpointError or ConfigError, naming the file.
    """
    path = Path(os.path.expanduser(path_or_hub_id) if isinstance(path_or_hub_id, (str, os.PathLike)) else "")
    if not os.path.lexists(path) or os.path.isdir(path):
        folder = local_folder(path_or_hub_id, only="adapter")
        found = [folder / name for name in (FILE_NAME, KYUTAI_FILE_NAME) if os.path.lexists(folder / name)]
        if not found:
            raise CheckpointError(f"{folder}: holds no adapter, expected {FILE_NAME} or Kyutai's {KYUTAI_FILE_NAME}")
        path = found[0]
    for name, info in read_header(path).items():
        what = f"{path}: tensor {brief(name)}"
        if info.dtype not in FLOATS:
            raise CheckpointError(f"{what} has the type {info.dtype}, expected a float")
        if len(info.shape) != 2 or 0 in info.shape:
            raise CheckpointError(f"{what} has the shape {clipped(str(list(info.shape)))}, expected a matrix")
    tensors = load_lazily(path)
    for name, tensor in tensors.items():
        if not mx.isfinite(tensor).all().item():
            raise CheckpointError(f"{path}: is damaged: tensor {brief(name)} holds values that are no numbers")
    return Adapter(path, _split_fused(tensors, config), _scale(path.parent))


def _scale(folder: Path) -> float:
    for name, key in ((CONFIG_NAME, "scale"), (KYUTAI_CONFIG_NAME, "lora_scaling")):
        keys = Keys(read_json(folder / name) if os.path.lexists(folder / name) else {}, str(folder / name))
        if name == CONFIG_NAME:
            keys = Keys(keys.take("lora_parameters", dict, {}), f"{folder / name}: lora_parameters")
        scale = keys.take(key, float, None)
        if scale is not None:
            require(abs(scale) < MAX_SCALE, f"{keys.where}: key {key!r} is {scale}, expected a factor of common size")
            return scale
    return DEFAULT_SCALE


def _split_fused(tensors: Tensors, config: MoshiConfig) -> Tensors:
    """Kyutai's earlier files name attention projections in_proj and out_proj: all weight sets of a layer as one."""
    renamed: Tensors = {}
    sets = config.depth_decoder_config.weight_sets
    for name, tensor in tensors.items():
        path, _, rest = name.partition(".self_attn.")
        stem, _, leaf = rest.partition(".")
        if stem not in ("in_proj", "out_proj"):
            renamed[name] = tensor
            continue
        fused = path.startswith("depformer.") and len(tensor) % sets == 0
        parts = mx.split(tensor, sets) if fused else [tensor]
        renamed |= {f"{path}.self_attn.{stem}s.{i}.{leaf}": part for i, part in enumerate(parts)}
    return renamed


def load(model: Moshi, path_or_hub_id: str | Path) -> None:
    """Put an adapter on a model, in place.

    Plain matrices take the update in, at no cost to a frame; quantized layers keep it beside them. Embedding tables,
    which Kyutai's trainer can tune as a whole, replace the model's. Raises CheckpointError or ConfigError, naming file
    and tensor, where the adapter does not fit; the model is then unchanged.
    """
    adapter = read(path_or_hub_id, model.config)
    left = dict(adapter.tensors)
    tables = [(row, _table(model, row, left, adapter.path)) for row in parameters(model.config)]
    for path, update in updates(model, adapter._replace(tensors=left)).items():
        merged = attach(model, path, *update, adapter.scale).merged()
        parent, name = module_at(model, path)
        parent[name] = merged
    for row, table in tables:
        if table is not None:
            _replace_table(model, row, table)
    mx.eval(model.parameters())


def updates(model: Moshi, adapter: Adapter) -> dict[str, tuple[mx.array, mx.array]]:
    """Our path -> (lora_a, lora_b) of every layer that an adapter changes, in the type that the model is run in.

    Raises CheckpointError, naming the tensor, where one is missing, does not fit or has no place.
    """
    left, found = dict(adapter.tensors), {}
    for path, theirs in layers(model.config).items():
        names = [name + leaf for leaf in (A, B) for name in theirs]
        if any(name in left for name in names):
            missing = [name for name in names if name not in left]
            if missing:
                raise CheckpointError(f"{adapter.path}: tensor {missing[0]!r} is missing")
            found[path] = _update(model, path, theirs, {name: left.pop(name) for name in names}, adapter.path)
    if left or not found:
        what = f"tensor {brief(min(left))} has no place in this model" if left else "holds no adapter's tensors"
        raise CheckpointError(f"{adapter.path}: {what}; an adapter belongs to the base that it was trained on")
    return found


def _update(
    model: Moshi, path: str, theirs: tuple[str, ...], tensors: Tensors, file: Path
) -> tuple[mx.array, mx.array]:
    width, out = shape_of(layer_at(model, path))
    rank = len(tensors[theirs[0] + A])
    for name, tensor in tensors.items():
        wanted = (rank, width) if name.endswith(A) else (out // len(theirs), rank)
        if tensor.shape != wanted:
            shapes = f"has the shape {list(tensor.shape)}, expected {list(wanted)}"
            raise CheckpointError(f"{file}: tensor {name!r} {shapes}")
    dtype = model.decoder.model.dtype
    a, b = join([tensors[name + A] for name in theirs]).T, join([tensors[name + B].T for name in theirs])
    return mx.contiguous(a).astype(dtype), mx.contiguous(b).astype(dtype)


def _table(model: Moshi, row: Row, left: Tensors, path: Path) -> mx.array | None:
    """The whole of an embedding table that an adapter brings, taken out of `left`."""
    present = [name for name in row.theirs if name in left]
    if row.build is not join or not present:
        return None
    missing = sorted(set(row.theirs) - set(present))
    if missing:
        raise CheckpointError(f"{path}: has the tensor {present[0]!r} but not {missing[0]!r} of the same table")
    table = join([left.pop(name) for name in row.theirs])
    module = module_at(model, row.ours)[0]
    width = module.scales.shape[1] * module.group_size if isinstance(module, QuantizedEmbedding) else None
    wanted = (len(module.weight), width or module.weight.shape[1])
    if table.shape != wanted:
        raise CheckpointError(f"{path}: tensor {present[0]!r} gives the shape {list(table.shape)}, expected {wanted}")
    return table.astype(model.decoder.model.dtype)


def _replace_table(model: Moshi, row: Row, table: mx.array) -> None:
    parent, name = module_at(model, row.ours.removesuffix(".weight"))
    old, new = parent[name], Embedding(1, 1)
    new.weight = table
    if "low_rank" in old:
        new.low_rank = old.low_rank
    parent[name] = new
