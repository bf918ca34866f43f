"""Finding and reading checkpoints: a local folder or the hub, in any layout of `layouts`.

Loading is strict both ways: every parameter must be in the file, every tensor of the file must have a place. It is
lazy too: tensors go from the file to where they are used, one by one, and never through Python's memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from . import layouts
from .config import PRESETS, MimiConfig, MoshiConfig
from .errors import CheckpointError, ConfigError
from .filling import fill
from .hub import local_file, local_folder
from .layouts import Row
from .moshi import MoshiForConditionalGeneration
from .safetensors import FLOATS, TensorInfo, load_lazily, read_header

MODEL_NAMES = ("model.safetensors", "model.q8.safetensors", "model.q4.safetensors")
MIMI_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_NAME = "tokenizer_spm_32k_3.model"
CONFIG_NAME = "config.json"


class Checkpoint(NamedTuple):
    """What a folder holds: its files, and what its config.json says besides the sizes of the language model."""

    weights: Path
    mimi: Path
    tokenizer: Path
    lm_config: dict[str, Any] | None
    mimi_config: MimiConfig
    sampling_defaults: dict[str, float]


def load(
    path_or_hub_id: str | Path, dtype: mx.Dtype | None = None, adapter: str | Path | None = None
) -> MoshiForConditionalGeneration:
    """A model, ready for `model.session()`, from a local folder or a hub id such as "kyutai/moshiko-mlx-q4".

    `dtype` is the type that the language model is run in (of the scales, where it is quantized); None keeps the
    stored one. The codec always runs in float32. `adapter` is put on the model: see `lora.load`.
    Raises CheckpointError or ConfigError, naming file and tensor or key.
    """
    if dtype is not None and not mx.issubdtype(dtype, mx.floating):
        raise ConfigError(f"dtype: got {dtype}, expected a floating type such as mlx.core.bfloat16")
    checkpoint = find(local_folder(path_or_hub_id))
    header = read_header(checkpoint.weights)
    config = _config(checkpoint, header)
    model = MoshiForConditionalGeneration(config)
    tensors, rows, unused = _language_tensors(checkpoint, header, config)
    fill(model, rows, tensors, unused, checkpoint.weights, dtype)
    _fill_mimi(model, checkpoint)
    model.tokenizer = _tokenizer(checkpoint.tokenizer, config)
    model.sampling_defaults = checkpoint.sampling_defaults
    if adapter is not None:
        from . import lora

        lora.load(model, adapter)
    mx.eval(model.parameters())
    model.eval()
    return model


def find(folder: Path) -> Checkpoint:
    """The parts of the checkpoint in a folder. Raises CheckpointError or ConfigError where one is missing or odd."""
    path = folder / CONFIG_NAME
    if not path.exists():
        weights, mimi, tokenizer = (
            _existing(folder, name) for name in (_only(folder, MODEL_NAMES), MIMI_NAME, TOKENIZER_NAME)
        )
        return Checkpoint(weights, mimi, tokenizer, None, MimiConfig(), {})
    config = read_json(path)
    _refuse_other_models(config, str(path))
    weights = _existing(folder, config.pop("moshi_name", None) or _only(folder, MODEL_NAMES))
    mimi = _existing(folder, config.pop("mimi_name", MIMI_NAME))
    tokenizer = _existing(folder, config.pop("tokenizer_name", TOKENIZER_NAME))
    defaults = _sampling_defaults(config.pop("lm_gen_config", None) or {}, f"{path}: lm_gen_config")
    mimi_config, name = MimiConfig(), config.pop("mimi_config_name", None)
    if name is not None:
        file = _existing(folder, name)
        mimi_config = MimiConfig.from_kyutai(read_json(file), str(file))
    return Checkpoint(weights, mimi, tokenizer, config, mimi_config, defaults)


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises ConfigError."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got a JSON {type(values).__name__}, expected an object")
    return values


def _existing(folder: Path, name: str) -> Path:
    path = local_file(folder, name)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the checkpoint needs it")
    return path


def _only(folder: Path, names: Iterable[str]) -> str:
    found = [name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        got = f"has {' and '.join(found)}" if found else "has none of them"
        raise CheckpointError(f"{folder}: expected exactly one of {', '.join(names)}; it {got}")
    return found[0]


def _refuse_other_models(config: dict[str, Any], where: str) -> None:
    """Take out Kyutai's keys that describe the checkpoint; what this package cannot honour is refused by name."""
    model_type = config.pop("model_type", "moshi")
    if model_type != "moshi":
        raise ConfigError(f"{where}: key 'model_type' is {model_type!r}; only 'moshi' is supported")
    for key in ("lora_name", "stt_config", "tts_config"):
        value = config.pop(key, None)
        if value:
            hint = "; merge the LoRA into its base first" if key == "lora_name" else ""
            raise ConfigError(f"{where}: key {key!r} is {value!r}, which is not supported{hint}")
    config.pop("model_id", None)  # where the weights came from


def _sampling_defaults(values: dict[str, Any], where: str) -> dict[str, float]:
    names = {"temp": "temperature", "temp_text": "text_temperature", "top_k": "top_k", "top_k_text": "text_top_k"}
    values = dict(values)
    defaults = {ours: values.pop(theirs) for theirs, ours in names.items() if theirs in values}
    if not values.pop("use_sampling", True):
        defaults |= {"temperature": 0, "text_temperature": 0}
    values = {k: v for k, v in values.items() if (k, v) != ("cfg_coef", 1.0)}
    if values:
        key = sorted(values)[0]
        raise ConfigError(f"{where}: key {key!r} is {values[key]!r}, which is not supported")
    return defaults


def _config(checkpoint: Checkpoint, header: dict[str, TensorInfo]) -> MoshiConfig:
    if checkpoint.lm_config is not None:
        where = str(checkpoint.weights.parent / CONFIG_NAME)
        return MoshiConfig.from_kyutai(checkpoint.lm_config, where, checkpoint.mimi_config)
    if "emb.0.weight" in header:  # by Kyutai's own rule, a PyTorch folder without config.json is Moshi 7B
        return PRESETS["moshi-7b"]
    return _preset(header, checkpoint.weights)


def _preset(header: dict[str, TensorInfo], path: Path) -> MoshiConfig:
    """The preset whose sizes are those of the tensors (MLX layout)."""
    sizes = _sizes(header)
    for preset in PRESETS.values():
        if _preset_sizes(preset) == sizes:
            return preset
    listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
    raise ConfigError(
        f"{path}: no known model has these sizes ({listed}), so its heads, delays and context cannot be told; "
        f"put a {CONFIG_NAME} beside it"
    )


def _sizes(header: dict[str, TensorInfo]) -> dict[str, int]:
    """What the tensors of the MLX layout tell, quantized or not: rows are never packed."""

    def rows(name: str) -> int:
        return header[name].shape[0] if name in header else 0

    def count(prefix: str) -> int:
        heads = (name[len(prefix) :].split(".")[0] for name in header if name.startswith(prefix))
        return 1 + max((int(head) for head in heads if head.isdigit()), default=-1)

    depth = "depformer.slices.0.transformer.layers."
    return {
        "hidden_size": rows("out_norm.weight"),
        "num_hidden_layers": count("transformer.layers."),
        "vocab_size": rows("text_linear.weight"),
        "audio_vocab_size": rows("depformer.slices.0.linear_out.weight"),
        "audio_streams": count("audio_embs."),
        "ffn_dim": rows("transformer.layers.0.gating.linear_in.weight"),
        "num_codebooks": count("depformer.slices."),
        "depth_hidden_size": rows(f"{depth}0.norm1.weight"),
        "depth_num_hidden_layers": count(depth),
        "depth_ffn_dim": rows(f"{depth}0.gating.linear_in.weight"),
    }


def _preset_sizes(config: MoshiConfig) -> dict[str, int]:
    depth = config.depth_decoder_config
    names = ("hidden_size", "num_hidden_layers", "vocab_size", "audio_vocab_size", "ffn_dim", "num_codebooks")
    sizes = {name: getattr(config, name) for name in names} | {"audio_streams": len(config.audio_delays)}
    return sizes | {f"depth_{n}": getattr(depth, n) for n in ("hidden_size", "num_hidden_layers", "ffn_dim")}


def _language_tensors(
    checkpoint: Checkpoint, header: dict[str, TensorInfo], config: MoshiConfig
) -> tuple[dict[str, mx.array], list[Row], set[str]]:
    """The tensors of the language model, the rows that place them, and the names that have no place by right."""
    for name, info in header.items():
        quantized = name.endswith((".weight", ".scales")) and info.dtype in ("U32", "U8")
        if info.dtype not in FLOATS and not quantized:
            raise CheckpointError(f"{checkpoint.weights}: tensor {name!r} has the type {info.dtype}, expected a float")
    tensors = load_lazily(checkpoint.weights)
    if "audio_embs.0.weight" in tensors:
        repeats = tuple(layouts.kyutai_mlx_repeats(config))
        unused = {name for name in tensors if repeats and name.startswith(repeats)}
        return tensors, list(layouts.kyutai_mlx(config)), unused
    if "emb.0.weight" in tensors:
        return layouts.split_fused_projections(tensors, config), list(layouts.kyutai_pytorch(config)), set()
    raise CheckpointError(
        f"{checkpoint.weights}: tensors of an unknown layout (the first is {min(tensors, default='missing')!r}); "
        "expected Kyutai's PyTorch layout (emb.0.weight, ...) or MLX layout (audio_embs.0.weight, ...)"
    )


def _fill_mimi(model: MoshiForConditionalGeneration, checkpoint: Checkpoint) -> None:
    config = model.config.audio_encoder_config
    for name, info in read_header(checkpoint.mimi).items():
        if info.dtype not in FLOATS:
            raise CheckpointError(f"{checkpoint.mimi}: tensor {name!r} has the type {info.dtype}, expected a float")
    tensors = layouts.split_fused_projections(load_lazily(checkpoint.mimi), model.config)
    unused = layouts.mimi_unused(config)
    # Published files are float32, and half the precision would be other codes: smaller files are widened once, here.
    fill(model.audio_encoder, list(layouts.mimi(config)), tensors, unused, checkpoint.mimi, mx.float32)


def _tokenizer(path: Path, config: MoshiConfig) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        tokenizer = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError, TypeError) as error:
        raise CheckpointError(f"{path}: not a sentencepiece model") from error
    if tokenizer.vocab_size() != config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size()} pieces, but the model's text vocabulary has "
            f"{config.vocab_size}"
        )
    return tokenizer
