"""Which weights a run trains, and how they get into the model.

They are a plain dict, name -> float32 array: the optimizer's own copy. A step puts them into the model in the type that
the model is run in. Names are those of the model's parameters; what several steps of the depth decoder share is there
once.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from ..checkpoints import adapters
from ..checkpoints.filling import module_at
from ..errors import ConfigError
from ..models.layers.linear import Embedding
from ..models.moshi import Moshi

Weights = dict[str, mx.array]


def choose(model: Moshi, kind: str, num_layers: int, rank: int, scale: float, seed: int) -> Weights:
    """The weights that a run trains; for "lora" the layers get adapters, whose update is zero to begin with.

    Raises ConfigError where the model has fewer layers, or is quantized and all weights were to be trained.
    """
    most = model.config.num_hidden_layers
    if num_layers > most:
        raise ConfigError(f"num_layers is {num_layers}, but the model has {most} temporal layers")
    frozen = 0 if num_layers == -1 else most - num_layers
    if kind == "lora":
        return _adapters(model, frozen, rank, scale, seed)
    chosen: Weights = {}
    for name in (row.ours for row in adapters.parameters(model.config)):
        if not _is_frozen(name, frozen):
            module, leaf = module_at(model, name)
            if "scales" in module:
                raise ConfigError("a quantized model takes adapters only: use --fine-tune-type lora, or its bf16 files")
            chosen[name] = module[leaf].astype(mx.float32)
    return chosen


class OrderedEmbedding(Embedding):
    """A table whose gradient is summed in a fixed order: as a product with the tokens as rows of ones and zeros.

    Metal adds the rows of a plain lookup's gradient as they come, so that the last digits differ from run to run.
    """

    def rows(self, ids: mx.array) -> mx.array:
        return cast(mx.array, _rows(self.weight, ids))


@mx.custom_function
def _rows(table: mx.array, ids: mx.array) -> mx.array:
    return table[ids]


@_rows.vjp
def _rows_gradient(primals: tuple[mx.array, ...], gradient: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    table, ids = primals
    said = mx.arange(len(table))[:, None] == ids.reshape(1, -1)  # [rows, ids]
    return (said.astype(gradient.dtype) @ gradient.reshape(ids.size, -1)).astype(table.dtype), mx.zeros_like(ids)


def order_gradients(model: Moshi) -> None:
    """Give every plain table of the language model a gradient that is summed in a fixed order."""
    for row in adapters.parameters(model.config):
        parent, name = module_at(model, row.ours.removesuffix(".weight"))
        old = parent[name]
        if type(old) is Embedding:
            table = OrderedEmbedding(1, 1)
            table.weight = old.weight
            if "low_rank" in old:
                table.low_rank = old.low_rank
            parent[name] = table


def _is_frozen(name: str, frozen: int) -> bool:
    """Whether it lies in one of the first `frozen` layers of the temporal transformer."""
    layer = re.match(r"decoder\.model\.transformer\.layers\.(\d+)\.", name)
    return layer is not None and int(layer[1]) < frozen


def _adapters(model: Moshi, frozen: int, rank: int, scale: float, seed: int) -> Weights:
    """As Kyutai initialises them: A uniform within 1 / sqrt(in), B zero."""
    chosen: Weights = {}
    key, dtype = mx.random.key(seed), model.decoder.model.dtype
    for path, theirs in adapters.layers(model.config).items():
        if _is_frozen(path, frozen):
            continue
        key, now = mx.random.split(key)
        width, out = adapters.shape_of(adapters.layer_at(model, path))
        bound = 1 / math.sqrt(width)
        a = mx.random.uniform(-bound, bound, (width, rank * len(theirs)), key=now)
        b = mx.zeros((rank * len(theirs), out // len(theirs)))
        adapters.attach(model, path, a.astype(dtype), b.astype(dtype), scale)
        chosen |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
    return chosen


def of_adapter(model: Moshi, adapter: adapters.Adapter, rank: int) -> Weights:
    """The weights of an adapter's file. Raises CheckpointError or ConfigError where it does not fit the model."""
    found: Weights = {}
    for path, (a, b) in adapters.updates(model, adapter).items():
        parts = adapters.layer_at(model, path).parts
        if a.shape[1] != rank * parts:
            raise ConfigError(f"{adapter.path}: has rank {a.shape[1] // parts}, not {rank}")
        found |= {f"{path}.lora_a": a.astype(mx.float32), f"{path}.lora_b": b.astype(mx.float32)}
    return found


@contextlib.contextmanager
def placed(model: nn.Module, weights: Weights) -> Iterator[None]:
    """The model, or a layer of it, with these weights in its own type; afterwards it has again what it had."""
    before = {}
    for name, value in weights.items():
        module, leaf = module_at(model, name)
        before[name] = module[leaf]
        module[leaf] = value.astype(before[name].dtype)
    try:
        yield
    finally:
        for name, value in before.items():
            module, leaf = module_at(model, name)
            module[leaf] = value
