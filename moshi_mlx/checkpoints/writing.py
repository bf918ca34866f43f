"""Writing checkpoints: what the files of each layout hold, and a folder that is there whole or not at all.

Nothing larger than one block of tensors is in memory while a plan is carried out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, ConfigError, InputError
from ..models.config import MimiConfig, MoshiConfig
from ..models.moshi import Moshi
from ..terminal.sizes import size
from . import quantization, translation
from .configs import codec_keys, huggingface_config, kyutai_config, roles
from .disk.folders import new_folder, write_small
from .filling import language_shapes, language_tensors_of, mimi_tensors_of
from .finding import SAMPLING_NAMES
from .names import CONFIG_NAME, INDEX_NAME, MIMI_CONFIG_NAME, MIMI_NAME, SAMPLING_NAME, TOKENIZER_NAME
from .personas.voices import Voices
from .quantization import Quantization
from .reading import Checkpoint
from .safetensors import Block, Tensor, as_stored, info_of, mx_type, write_file

MAX_SHARD_BYTES = 5 * 10**9
# By these names the earlier port and the Swift app know how a file is quantized.
NAMED_QUANTIZATIONS = {Quantization(4, 32): "model.q4.safetensors", Quantization(8, 64): "model.q8.safetensors"}


class Contents(NamedTuple):
    """What a checkpoint is besides the tensors of its language model."""

    config: MoshiConfig
    mimi: dict[str, Tensor]  # under the names of Kyutai's codec files
    tokenizer: bytes | None
    sampling_defaults: dict[str, float]
    model_id: dict[str, Any]
    personas: bool = False
    voices: Mapping[str, bytes] = MappingProxyType({})  # by their paths in the folder

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Contents:
        """All but the tokenizer, which the caller may have from elsewhere."""
        mimi = checkpoint.mimi.read()
        voices = Voices(checkpoint.folder).files() if checkpoint.personas else {}
        return cls(
            checkpoint.config, mimi, None, checkpoint.sampling_defaults, checkpoint.model_id,
            checkpoint.personas, voices,
        )  # fmt: skip


class Plan(NamedTuple):
    """The files of a folder: those of tensors, and the small ones, config.json last."""

    weights: dict[str, list[Block]]
    small: dict[str, bytes]
    metadata: dict[str, str]

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, but for the headers of the large ones."""
        large = {name: sum(block.nbytes for block in blocks) for name, blocks in self.weights.items()}
        return large | {name: len(content) for name, content in self.small.items()}


def _one(tensor: Tensor) -> list[np.ndarray]:
    return [tensor.read()]


def plain_blocks(tensors: Mapping[str, Tensor]) -> list[Block]:
    """A block for each tensor."""
    return [Block({name: tensor.info}, partial(_one, tensor)) for name, tensor in tensors.items()]


def plan_mlx(
    contents: Contents,
    blocks: list[Block],
    quantized: Mapping[str, Quantization | None],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Plan:
    """Kyutai's MLX layout; `blocks` hold tensors under its names, quantized as `quantized` says of each matrix."""
    uniform = [kind for kind in NAMED_QUANTIZATIONS if set(quantized.values()) == {kind}]
    name = NAMED_QUANTIZATIONS[uniform[0]] if uniform else "model.safetensors"
    weights, small = _shards(blocks, name, max_shard_bytes)
    block = quantization.block_of(quantized)
    return _kyutai_plan(contents, weights, small, {"quantization": block} if block else {}, "mlx")


def plan_kyutai(contents: Contents, language: Mapping[str, Tensor], generation: int = 1) -> Plan:
    """Kyutai's PyTorch layout, in one file, as its loader reads it. `language`: unquantized, under the MLX names."""
    pieces = translation.kyutai_pytorch(contents.config, generation)
    blocks = plain_blocks(translation.from_mlx(pieces, language))
    return _kyutai_plan(contents, {"model.safetensors": blocks}, {}, {}, "pt")


def plan_huggingface(
    contents: Contents, language: Mapping[str, Tensor], max_shard_bytes: int = MAX_SHARD_BYTES
) -> Plan:
    """Hugging Face's layout, codec included. `language`: unquantized, under the MLX names.

    Raises ConfigError for delays or tables that transformers cannot express.
    """
    config = contents.config
    lost = huggingface_config.inexpressible(config)
    if lost:
        raise ConfigError(f"Hugging Face's layout has no {' and no '.join(lost)}; this model cannot be written in it")
    mimi = translation.from_mlx(translation.mimi_hugging_face(config.audio_encoder_config), contents.mimi)
    tensors = mimi | translation.from_mlx(translation.hugging_face(config), language)
    weights, small = _shards(plain_blocks(tensors), "model.safetensors", max_shard_bytes)
    small |= contents.voices
    if contents.tokenizer:
        small[TOKENIZER_NAME] = contents.tokenizer
    small[SAMPLING_NAME] = _json(_generation_config(contents))
    kind = mx_type(language["out_norm.weight"].info.dtype)
    small[CONFIG_NAME] = _json(
        {**huggingface_config.moshi_dict(config), "torch_dtype": str(kind).removeprefix("mlx.core.")}
    )
    return Plan(weights, small, {"format": "pt"})


def plan_part(tensors: Mapping[str, Tensor], values: dict[str, Any], tokenizer: bytes | None) -> Plan:
    """A part alone in Hugging Face's layout: its tensors under its own names, and the content of its config.json."""
    weights, small = _shards(plain_blocks(tensors), "model.safetensors", MAX_SHARD_BYTES)
    if tokenizer:
        small[TOKENIZER_NAME] = tokenizer
    kind = mx_type(next(iter(tensors.values())).info.dtype)
    small[CONFIG_NAME] = _json({**values, "torch_dtype": str(kind).removeprefix("mlx.core.")})
    return Plan(weights, small, {"format": "pt"})


def _kyutai_plan(
    contents: Contents, weights: dict[str, list[Block]], small: dict[str, bytes], more: dict[str, Any], form: str,
    ) -> Plan:  # fmt: skip
    """What both of Kyutai's layouts have around the language model: a codec, a tokenizer and a config of its keys."""
    config, mimi_config = contents.config, contents.config.audio_encoder_config
    if contents.tokenizer is None:
        raise CheckpointError(f"the source has no {TOKENIZER_NAME}; put Moshi's tokenizer into its folder")
    values = kyutai_config.moshi_dict(config) | {"mimi_name": MIMI_NAME, "tokenizer_name": TOKENIZER_NAME}
    if len(weights) == 1:
        values["moshi_name"] = next(iter(weights))
    if codec_keys.mimi_dict(mimi_config) != codec_keys.mimi_dict(MimiConfig()):
        values["mimi_config_name"] = MIMI_CONFIG_NAME
        small = {**small, MIMI_CONFIG_NAME: _json(codec_keys.mimi_dict(mimi_config))}
    _check_config(config, values, roles.model_type(config, contents.personas) or "")
    said = contents.sampling_defaults
    sampling = {theirs: said[ours] for theirs, ours in SAMPLING_NAMES.items() if ours in said}
    extra = {"lm_gen_config": sampling, "model_id": contents.model_id}
    kind = roles.model_type(config, contents.personas)
    values |= ({"model_type": kind} if kind else {}) | {key: value for key, value in extra.items() if value} | more
    mimi = translation.from_mlx(translation.mimi_kyutai(mimi_config), contents.mimi)
    small = {**small, **contents.voices, TOKENIZER_NAME: contents.tokenizer, CONFIG_NAME: _json(values)}
    return Plan({**weights, MIMI_NAME: plain_blocks(mimi)}, small, {"format": form})


def _check_config(config: MoshiConfig, values: dict[str, Any], kind: str) -> None:
    """What is written must say the same sizes when it is read."""
    names = ("mimi_name", "tokenizer_name", "moshi_name", "mimi_config_name")
    mimi = MimiConfig(**codec_keys.mimi_fields(codec_keys.mimi_dict(config.audio_encoder_config), "mimi_config.json"))
    fields = kyutai_config.moshi_fields({k: v for k, v in values.items() if k not in names}, CONFIG_NAME, kind)
    read = MoshiConfig(**fields, audio_encoder_config=mimi)
    for path, ours, theirs in (
        ("", config, read),
        ("depth_decoder_config.", config.depth_decoder_config, read.depth_decoder_config),
        ("audio_encoder_config.", config.audio_encoder_config, mimi),
    ):
        for name, value in _comparable(ours).items():
            if value != _comparable(theirs)[name]:
                raise ConfigError(f"Kyutai's config.json cannot say {path}{name} {value!r}")


def _comparable(config: Any) -> dict[str, Any]:
    """The fields that Kyutai's files speak of, with what may stay unsaid said."""
    said = replace(config, num_key_value_heads=config.key_value_heads, head_dim=config.head_width)
    unsaid = (
        "max_position_embeddings", "initializer_range", "use_cache", "depth_decoder_config", "audio_encoder_config",
    )  # fmt: skip
    depth = ("sliding_window",) if hasattr(config, "input_size") else ()
    return {name: value for name, value in vars(said).items() if name not in (*unsaid, *depth)}


def _generation_config(contents: Contents) -> dict[str, Any]:
    """How transformers samples, text and, apart from it, the codes of a frame."""
    chosen = {"temperature": 0.8, "top_k": 250, "text_temperature": 0.7, "text_top_k": 25} | contents.sampling_defaults
    steps = contents.config.num_codebooks + 1
    start = contents.config.vocab_size

    def sampling(prefix: str) -> dict[str, Any]:
        if not chosen[f"{prefix}temperature"]:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": chosen[f"{prefix}temperature"], "top_k": chosen[f"{prefix}top_k"]}

    depth = {**sampling(""), "min_length": steps, "max_length": steps}
    # No pad_token_id: transformers would take the first column, whose text is the initial token, for padding.
    return {**sampling("text_"), "bos_token_id": start, "depth_decoder_config": depth}


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _shards(blocks: list[Block], name: str, limit: int) -> tuple[dict[str, list[Block]], dict[str, bytes]]:
    """The blocks in files of at most `limit` bytes (a larger one alone), and an index where there are several."""
    shards: list[list[Block]] = [[]]
    room = limit
    for block in blocks:
        if shards[-1] and block.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(block)
        room -= block.nbytes
    if len(shards) == 1:
        return {name: shards[0]}, {}
    files = {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, 1)}
    places = {tensor: file for file, shard in files.items() for block in shard for tensor in block.infos}
    total = sum(block.nbytes for block in blocks)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return files, {INDEX_NAME: _json(index)}


def carry_out(
    plan: Plan, path: Path, overwrite: bool = False, progress: Callable[[int], object] = lambda count: None
) -> None:
    """Write the folder. `progress` is told the bytes of tensors as they are written.

    Raises InputError where `path` exists and is not to be overwritten, CheckpointError where it cannot be written;
    then nothing is left of it.
    """
    import shutil

    with new_folder(path, overwrite) as folder:
        needed, free = sum(plan.sizes().values()), shutil.disk_usage(folder).free
        if needed > free:
            raise CheckpointError(f"{path}: no room: {size(needed)} are needed, {size(free)} are free")
        for name, blocks in plan.weights.items():
            write_file(folder / name, blocks, plan.metadata, progress)
        for name, content in plan.small.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_small(folder / name, content)


def save(
    model: Moshi, path: str | Path, layout: str = "mlx", overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:  # fmt: skip
    """Write a model as a checkpoint: `layout` "mlx", "kyutai" or "huggingface".

    Raises InputError for a quantized model where the layout has no quantized tensors, and as `carry_out` and the plans.
    """
    language = tensors(language_tensors_of(model))
    tokenizer = model.tokenizer.serialized_model_proto() if model.tokenizer is not None else None
    mimi = tensors(mimi_tensors_of(model.audio_encoder))
    voices = model.voices.files() if model.voices is not None else {}
    of = model.voices is not None
    contents = Contents(model.config, mimi, tokenizer, model.sampling_defaults, model.model_id, of, voices)
    if layout == "mlx":
        infos = {name: tensor.info for name, tensor in language.items()}
        kinds = quantization.of_all(infos, language_shapes(model.config), str(path))
        plan = plan_mlx(contents, plain_blocks(language), kinds, max_shard_bytes)
    elif any(name.endswith(".scales") for name in language):
        raise InputError(f"layout: {layout!r} has no quantized tensors; dequantize the model first, or write 'mlx'")
    elif layout == "kyutai":
        plan = plan_kyutai(contents, language)
    elif layout == "huggingface":
        plan = plan_huggingface(contents, language, max_shard_bytes)
    else:
        raise InputError(f"layout: got {layout!r}, expected 'mlx', 'kyutai' or 'huggingface'")
    carry_out(plan, Path(path), overwrite)


def tensors(arrays: dict[str, mx.array]) -> dict[str, Tensor]:
    return {name: Tensor(info_of(value), partial(as_stored, value)) for name, value in arrays.items()}
