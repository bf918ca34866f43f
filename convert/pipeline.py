"""From an opened checkpoint to the plan of a folder: merge, cast, dequantize, quantize, lay out. Nothing is read yet.

Every step takes tensors that are read when they are wanted and gives such tensors, so that a layer at a time is in
memory when the plan is carried out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from moshi_mlx.checkpoints import layouts, quantization, writing
from moshi_mlx.checkpoints.disk.files import read_bytes
from moshi_mlx.checkpoints.filling import language_shapes
from moshi_mlx.checkpoints.quantization import PARTS, Quantization
from moshi_mlx.checkpoints.reading import Checkpoint, read_tokenizer
from moshi_mlx.checkpoints.safetensors import (
    FLOATS,
    Block,
    Tensor,
    TensorInfo,
    as_mx,
    as_stored,
    code_of,
    info_of,
    mx_type,
)
from moshi_mlx.checkpoints.writing import Contents, Plan, plain_blocks
from moshi_mlx.errors import CheckpointError, InputError

from . import calibrating, lora, recipes
from .calibrating import Calibration

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
PROCESSORS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json")
# What MLX may keep of freed buffers while it converts.
BUFFER_CACHE_BYTES = 2**28


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    to: str = "mlx"
    quantize: bool = False
    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    predicate: str | None = None
    calibrate: Path | None = None  # with the predicate `auto`: what is listened to
    budget: int | None = None  # with it: bytes of the language model
    dequantize: bool = False
    dtype: str | None = None
    lora: Path | None = None
    lora_scaling: float | None = None
    generation: int = 1
    max_shard_bytes: int = writing.MAX_SHARD_BYTES
    tokenizer: Path | None = None


class Outcome(NamedTuple):
    """A plan and what there is to say about it."""

    plan: Plan
    quantized: dict[str, Quantization | None]
    kept: list[str]  # matrices that were to be quantized, but are no whole groups
    measured: str = ""  # what calibrating said


def prepare(checkpoint: Checkpoint, options: Options) -> Outcome:
    """The plan of the converted folder. Raises InputError, ConfigError or CheckpointError for what cannot be."""
    mx.set_cache_limit(BUFFER_CACHE_BYTES)
    _check_options(checkpoint, options)
    weights = _transformed(checkpoint, options)
    contents = Contents.of(checkpoint)
    tokenizer = options.tokenizer or checkpoint.tokenizer
    if tokenizer:
        read_tokenizer(tokenizer, checkpoint.config)
        contents = contents._replace(tokenizer=read_bytes(tokenizer))
    if options.to == "huggingface":
        plan = writing.plan_huggingface(contents, weights, options.max_shard_bytes)
        return Outcome(plan._replace(small={**_processors(checkpoint), **plan.small}), {}, [])
    if options.to == "kyutai":
        return Outcome(writing.plan_kyutai(contents, weights, options.generation), {}, [])
    shapes = language_shapes(checkpoint.config)
    weights, kept, measured = _ordered(weights, shapes), list[str](), ""
    if options.quantize:
        usual = recipes.general(options.bits, options.group_size, options.mode)
        rule = recipes.rule_of(options.predicate, usual, options.bits is not None)
        if options.calibrate:
            found = _calibrated(checkpoint, weights, usual, options)
            rule, measured = found.kinds.get, found.measured
        kinds, kept = recipes.assign(shapes, rule, checkpoint.config)
        blocks = quantized_blocks(weights, kinds)
    else:
        kinds = quantization.of_all(_infos(weights), shapes, str(checkpoint.folder))
        blocks = plain_blocks(weights)
    return Outcome(writing.plan_mlx(contents, blocks, kinds, options.max_shard_bytes), kinds, kept, measured)


def _calibrated(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor], usual: Quantization, options: Options
) -> Calibration:
    """Bits by measuring, within the budget: without one the bytes of -q's own bits, or of 4 in groups of 32."""
    assert options.calibrate is not None
    budget = options.budget
    if budget is None:
        size = usual if usual.mode == "affine" else recipes.general(None, None, "affine")
        budget = calibrating.least_bytes([size], weights, checkpoint.config)
    kinds = recipes.choices(usual, options.group_size)
    return calibrating.of_checkpoint(checkpoint, weights, options.calibrate, kinds, usual, budget)


def _processors(checkpoint: Checkpoint) -> dict[str, bytes]:
    """What a folder in Hugging Face's layout has for its users besides the model."""
    if checkpoint.layout != "huggingface":
        return {}
    return {path.name: read_bytes(path) for name in PROCESSORS if (path := checkpoint.folder / name).is_file()}


def _transformed(checkpoint: Checkpoint, options: Options) -> dict[str, Tensor]:
    """The source's tensors under their MLX names, merged, cast and dequantized as asked for."""
    weights, dtype = _with_repeats(checkpoint), DTYPES[options.dtype] if options.dtype else None
    if options.lora:
        scaling, rank = lora.settings(options.lora, checkpoint.folder, checkpoint.lora, options.lora_scaling)
        weights = lora.merged(weights, checkpoint.config, options.lora, scaling, rank, dtype)
    if dtype:
        weights = {name: cast(name, tensor, dtype) for name, tensor in weights.items()}
    if options.dequantize:
        shapes = language_shapes(checkpoint.config)
        weights = dequantized(weights, quantization.of_all(_infos(weights), shapes, str(checkpoint.folder)))
    return weights


def _check_options(checkpoint: Checkpoint, options: Options) -> None:
    """What contradicts the source or another option."""
    now = any(checkpoint.quantized.values())
    if options.quantize and options.to != "mlx":
        raise InputError(f"-q: the layout {options.to!r} has no quantized tensors; leave out -q or write --to mlx")
    if now and options.quantize:
        raise InputError(
            f"-q: {checkpoint.folder} is quantized already; convert the original, or dequantize (-d) to a folder first"
        )
    if now and options.lora:
        raise InputError(f"--lora: {checkpoint.folder} is quantized; merge into the original, or dequantize (-d) first")
    if now and options.to != "mlx" and not options.dequantize:
        raise InputError(f"--to {options.to}: {checkpoint.folder} is quantized, and that layout is not; add -d")
    if options.dequantize and not now:
        raise InputError(f"-d: {checkpoint.folder} is not quantized")


def _infos(weights: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    return {name: tensor.info for name, tensor in weights.items()}


def _with_repeats(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of the language model, those included that MLX files may leave out because they repeat others."""
    weights = checkpoint.language.read()
    for prefix, of in layouts.kyutai_mlx_repeats(checkpoint.config).items():
        weights |= {
            prefix + name[len(of) :]: tensor
            for name, tensor in list(weights.items())
            if name.startswith(of) and prefix + name[len(of) :] not in weights
        }
    return weights


def _ordered(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors in the order of the layout's table, so that the same weights give the same files."""
    parts = {name: [name] for name in shapes}
    parts |= {
        name: [name.removesuffix("weight") + part for part in PARTS] for name in shapes if name.endswith(".weight")
    }
    return {part: weights[part] for name in shapes for part in parts[name] if part in weights}


def cast(name: str, tensor: Tensor, dtype: mx.Dtype) -> Tensor:
    """A tensor of floats as another type; of other types as it is.

    Reading it raises InputError where a value is beyond the type's range.
    """
    info = tensor.info
    if info.dtype not in FLOATS or info.dtype == code_of(dtype):
        return tensor

    def read() -> np.ndarray:
        value = as_mx(tensor.read(), info.dtype)
        result = value.astype(dtype)
        if not mx.array_equal(mx.isfinite(value), mx.isfinite(result)):
            raise InputError(f"--dtype: tensor {name!r} has values beyond the range of {info_of(result).dtype}")
        return as_stored(result)

    return Tensor(TensorInfo(code_of(dtype), info.shape), read)


def dequantized(weights: Mapping[str, Tensor], kinds: Mapping[str, Quantization | None]) -> dict[str, Tensor]:
    """Every quantized matrix as a plain one, of its scales' type, or of the norms' where scales are no floats."""
    result = dict(weights)
    for path, kind in kinds.items():
        if kind:
            parts = [result.pop(f"{path}.{part}") for part in PARTS if f"{path}.{part}" in result]
            dtype = parts[1].info.dtype if parts[1].info.dtype in FLOATS else weights["out_norm.weight"].info.dtype
            result[f"{path}.weight"] = _dequantized(f"{path}.weight", parts, kind, dtype)
    return result


def _dequantized(name: str, parts: list[Tensor], kind: Quantization, dtype: str) -> Tensor:
    rows, words = parts[0].info.shape

    def read() -> np.ndarray:
        arrays = [as_mx(part.read(), part.info.dtype) for part in parts]
        biases = arrays[2] if len(arrays) > 2 else None
        plain = mx.dequantize(arrays[0], arrays[1], biases, group_size=kind.group_size, bits=kind.bits, mode=kind.mode)
        plain = plain.astype(mx_type(dtype))
        _check_finite(name, plain, "dequantized")
        return as_stored(plain)

    return Tensor(TensorInfo(dtype, (rows, words * 32 // kind.bits)), read)


def quantized_blocks(weights: Mapping[str, Tensor], kinds: Mapping[str, Quantization | None]) -> list[Block]:
    """The blocks of a quantized model: a matrix's packed values, scales and biases are made in one go."""
    blocks = []
    for name, tensor in weights.items():
        kind = kinds.get(name.removesuffix(".weight"))
        blocks += [_quantized(name, tensor, kind)] if kind else plain_blocks({name: tensor})
    return blocks


def _check_finite(name: str, value: mx.array, done: str) -> None:
    """Raises CheckpointError where a tensor has come out with values that no model can be run with."""
    if not mx.isfinite(value).all():
        raise CheckpointError(f"tensor {name!r}: {done} it has NaN or infinite values; is the source damaged?")


def _quantized(name: str, tensor: Tensor, kind: Quantization) -> Block:
    stem = name.removesuffix("weight")
    rows, width = tensor.info.shape
    infos = {stem + part: info for part, info in kind.infos((rows, width), tensor.info.dtype).items()}

    def make() -> Sequence[np.ndarray]:
        value = as_mx(tensor.read(), tensor.info.dtype)
        _check_finite(name, value, "unquantized")
        parts = mx.quantize(value, group_size=kind.group_size, bits=kind.bits, mode=kind.mode)
        mx.eval(parts)
        for part in parts[1:]:
            if mx.issubdtype(part.dtype, mx.floating):
                _check_finite(name, part, f"quantized ({kind})")
        return [as_stored(part) for part in parts]

    return Block(infos, make)
