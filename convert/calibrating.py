"""`--quant-predicate auto`: each layer gets the bits that it needs, by what rounding it does to a conversation.

One layer after the other is rounded alone, coarsely, and the model is asked over the same tokens how far it is then
from itself: KL divergence, as `compare` tells it. What a rounding costs grows with the square of its error (the first
term of that divergence in the weights that is not zero), so the cost of other bits follows from the error that they
leave. Bytes are then spent where they buy most, up to the budget. What was chosen by the first two thirds of the
conversation is measured over the last one, and so is one quantization for all of the same bytes; the better one is
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from moshi_mlx import MoshiForConditionalGeneration
from moshi_mlx.checkpoints import layouts
from moshi_mlx.checkpoints.filling import language_shapes, module_at, tensors_of
from moshi_mlx.checkpoints.layouts import Row
from moshi_mlx.checkpoints.quantization import Quantization
from moshi_mlx.checkpoints.reading import Checkpoint, build
from moshi_mlx.checkpoints.safetensors import Tensor, TensorInfo, as_mx
from moshi_mlx.conversation.session import BUFFER_CACHE_BYTES
from moshi_mlx.errors import InputError
from moshi_mlx.machine import preflight
from moshi_mlx.models.config import MoshiConfig
from moshi_mlx.models.roles import check_role
from moshi_mlx.terminal.progress import steps

from . import comparing
from .comparing import Talk

Rounding = Callable[[str], "Quantization | None"]
ENOUGH = 375  # positions, half a minute: the miniature's bits of 6 s were no better than one width in other speech


class Layer(NamedTuple):
    """Matrices that get the same bits: attention or gating of a layer, a depth slice, a table, a head."""

    rows: list[Row]
    paths: list[str]  # of all its matrices in a file, those that repeat others included


class Choice(NamedTuple):
    """How a layer may be quantized: what it takes, and what it is expected to cost."""

    kind: Quantization
    nbytes: int
    nats: float


class Calibration(NamedTuple):
    """What was chosen, path by path, and in words what was measured."""

    kinds: dict[str, Quantization]
    measured: str


def layers_of(config: MoshiConfig) -> list[Layer]:
    """All matrices that can be quantized, by layer. A table's streams and steps that share weights are one."""
    whole, shapes = layouts.kept_whole(config), language_shapes(config)
    repeats = layouts.kyutai_mlx_repeats(config)
    rows: dict[str, dict[tuple[str, ...], Row]] = {}
    for row in layouts.kyutai_mlx(config):
        first = row.theirs[0].removesuffix(".weight")
        if first not in whole and len(shapes[row.theirs[0]]) == 2:
            rows.setdefault(_layer_of(row), {}).setdefault(row.theirs, row)
    return [
        Layer(list(own.values()), [name.removesuffix(".weight") for theirs in own for name in _stored(theirs, repeats)])
        for own in rows.values()
    ]


def _stored(names: Iterable[str], repeats: Mapping[str, str]) -> Iterator[str]:
    """Tensors, and those that repeat them."""
    for name in names:
        yield name
        yield from (prefix + name[len(of) :] for prefix, of in repeats.items() if name.startswith(of))


def _layer_of(row: Row) -> str:
    """The name of the layer that a matrix belongs to."""
    parts = row.theirs[0].split(".")
    if len(row.theirs) > 1:
        return f"{parts[0]}.{parts[-2]}" if parts[0] == "depformer" else parts[0]
    return ".".join(parts[: {"transformer": 4, "depformer": 3}.get(parts[0], -1)])


@contextmanager
def rounded(model: nn.Module, rows: Iterable[Row], kind: Rounding) -> Iterator[None]:
    """Within, these matrices have the values that their quantization leaves of them."""
    before = []
    for row in rows:
        module, leaf = module_at(model, row.ours)
        value = module[leaf]
        before.append((module, leaf, value))
        parts = tensors_of(model, [row]).values()
        module[leaf] = row.build([_left_of(part, kind(row.theirs[0].removesuffix(".weight"))) for part in parts])
    try:
        yield
    finally:
        for module, leaf, value in before:
            module[leaf] = value


def _left_of(matrix: mx.array, kind: Quantization | None) -> mx.array:
    """What a quantization leaves of a matrix [out, in]; all of it where rows are no whole groups."""
    if kind is None or not kind.fits(matrix.shape[1]):
        return matrix
    how: Any = {"group_size": kind.group_size, "bits": kind.bits, "mode": kind.mode}
    return mx.dequantize(*mx.quantize(matrix, **how), **how).astype(matrix.dtype)


def error_of(model: nn.Module, layer: Layer, kind: Quantization) -> float:
    """The squared error that a quantization leaves, as a share of the matrix's square, added up over a layer's."""
    total = mx.array(0.0)
    for matrix in tensors_of(model, layer.rows).values():
        exact = matrix.astype(mx.float32)
        lost = exact - _left_of(matrix, kind).astype(mx.float32)
        total = total + lost.square().sum() / mx.maximum(exact.square().sum(), 1e-30)
        mx.eval(total)
    return float(total)


def bytes_of(paths: Iterable[str], kind: Quantization | None, infos: Mapping[str, TensorInfo]) -> int:
    """What matrices take in a file when they are quantized so, and as they are where that does not fit."""
    total = 0
    for path in paths:
        info = infos[f"{path}.weight"]
        fits = kind is not None and kind.fits(info.shape[1])
        parts = kind.infos((info.shape[0], info.shape[1]), info.dtype).values() if kind and fits else [info]
        total += sum(part.nbytes for part in parts)
    return total


def least_bytes(kinds: Sequence[Quantization], weights: Mapping[str, Tensor], config: MoshiConfig) -> int:
    """What a language model takes in a file when each layer is quantized in that of these ways which takes least."""
    infos = {name: tensor.info for name, tensor in weights.items()}
    total = sum(info.nbytes for info in infos.values())
    for layer in layers_of(config):
        total += min(bytes_of(layer.paths, kind, infos) for kind in kinds) - bytes_of(layer.paths, None, infos)
    return total


def spend(layers: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """One choice a layer, within `budget` bytes: the smallest, then what saves most nats a byte, again and again."""
    chosen = [min(choices, key=lambda choice: (choice.nbytes, choice.nats)) for choices in layers]
    left = budget - sum(choice.nbytes for choice in chosen)
    while True:
        better = [
            ((now.nats - choice.nats) / (choice.nbytes - now.nbytes), n, choice)
            for n, now in enumerate(chosen)
            for choice in layers[n]
            if now.nbytes < choice.nbytes <= now.nbytes + left and choice.nats < now.nats
        ]
        if not better:
            return chosen
        _, n, choice = max(better, key=lambda one: one[0])
        left -= choice.nbytes - chosen[n].nbytes
        chosen[n] = choice


def of_checkpoint(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor], sound: Path, kinds: Sequence[Quantization],
    usual: Quantization, budget: int,
) -> Calibration:  # fmt: skip
    """`calibrate` with the model that has these weights, in a conversation about what is in a sound file.

    Raises InputError for a model of another role, for a budget that is too small, and where the whole of the model does
    not fit into this machine.
    """
    check_role(checkpoint.config, "dialogue")
    least = least_bytes(kinds, weights, checkpoint.config)
    if budget < least:
        raise InputError(
            f"--q-budget: got {budget / 1e9:.4g}, expected {1.001 * least / 1e9:.4g} GB or more for this model"
        )
    whole = sum(tensor.info.nbytes for part in (weights, checkpoint.mimi.tensors) for tensor in part.values())
    preflight.check_memory(
        whole + BUFFER_CACHE_BYTES, "the whole model, which --calibrate listens with,",
        "calibrate on a larger machine: what is written there runs here",
    )  # fmt: skip
    speech = comparing.heard(sound, checkpoint.config.audio_encoder_config)
    arrays = {name: as_mx(tensor.read(), tensor.info.dtype) for name, tensor in weights.items()}
    model = build(checkpoint._replace(lora={}), None, MoshiForConditionalGeneration, arrays)
    said = comparing.talk(model, speech, seed=0)
    infos = {name: tensor.info for name, tensor in weights.items()}
    return calibrate(model, said, kinds, usual, infos, budget)


def calibrate(
    model: MoshiForConditionalGeneration, said: Talk, kinds: Sequence[Quantization], usual: Quantization,
    infos: Mapping[str, TensorInfo], budget: int,
) -> Calibration:  # fmt: skip
    """Bits for every layer of a model, `kinds` to choose from, over the tokens that were `said`.

    `infos` are of the language model's tensors, `budget` bytes of them all afterwards. What is chosen is held against
    `usual` throughout, where that is within the budget.
    """
    layers = layers_of(model.config)
    paths = [path for layer in layers for path in layer.paths]
    rest = sum(info.nbytes for info in infos.values()) - bytes_of(paths, None, infos)
    exact = comparing.distributions(model, said, lambda count: None)
    asked, kept_back = apart(said)

    def cost(rows: Iterable[Row], kind: Rounding, over: Talk = asked) -> float:
        count = int(np.flatnonzero(over.valid.any(axis=0))[-1]) + 1
        part = over.first(count)
        with rounded(model, rows, kind):
            theirs = comparing.distributions(model, part, lambda done: None)
        streams = comparing.figures([head[:count] for head in exact], theirs, part)
        return float(np.mean([stream.divergence for stream in streams]))

    table = []
    with steps("calibrating", len(layers)) as done:
        for layer in layers:
            table.append(_choices(model, layer, kinds, infos, cost))
            done(1)
    spent = zip(layers, spend(table, budget - rest), strict=True)
    auto = {path: choice.kind for layer, choice in spent for path in layer.paths}
    rows = [row for layer in layers for row in layer.rows]
    nats, count = cost(rows, auto.get, kept_back), said.inputs.shape[1]
    words = f"by {count} positions: {nats:.3g} nats a token on average with these bits"
    if rest + bytes_of(paths, usual, infos) <= budget:
        plain = cost(rows, lambda path: usual, kept_back)
        words += f", {plain:.3g} with {usual} throughout"
        if plain < nats:
            auto, words = dict.fromkeys(auto, usual), words + ", which is taken"
    if count < ENOUGH:
        words += "; half a minute of speech or more tells better what other speech needs"
    return Calibration(auto, words)


def apart(said: Talk) -> tuple[Talk, Talk]:
    """What bits are chosen by, and the last third, by which they are judged."""
    first = np.arange(said.inputs.shape[1]) < said.inputs.shape[1] * 2 // 3
    return said._replace(valid=said.valid & first), said._replace(valid=said.valid & ~first)


def _choices(
    model: nn.Module, layer: Layer, kinds: Sequence[Quantization], infos: Mapping[str, TensorInfo],
    cost: Callable[[Iterable[Row], Rounding], float],
) -> list[Choice]:  # fmt: skip
    """What a layer may be, its cost measured where it is rounded most, and elsewhere in the ratio of squared errors."""
    errors = [error_of(model, layer, kind) for kind in kinds]
    most = max(range(len(kinds)), key=errors.__getitem__)
    nats = cost(layer.rows, lambda path: kinds[most])
    return [
        Choice(kind, bytes_of(layer.paths, kind, infos), nats * error / errors[most] if errors[most] else 0.0)
        for kind, error in zip(kinds, errors, strict=True)
    ]
