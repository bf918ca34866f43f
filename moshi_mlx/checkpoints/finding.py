"""Which files of a folder hold which part of a checkpoint, and which of its shards each tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, ConfigError
from ..models.config import MimiConfig
from . import kyutai_config
from .hub import local_file
from .safetensors import Tensor, stored

MODEL_NAMES = ("model.safetensors", "model.q8.safetensors", "model.q4.safetensors")
INDEX_NAME = "model.safetensors.index.json"
MIMI_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_NAME = "tokenizer_spm_32k_3.model"
CONFIG_NAME = "config.json"
SAMPLING_NAMES = {"temp": "temperature", "temp_text": "text_temperature", "top_k": "top_k", "top_k_text": "text_top_k"}
LORA_KEYS = ("lora", "lora_name", "lora_rank", "lora_scaling")


class Found(NamedTuple):
    """The parts of a folder before they are looked into."""

    weights: dict[str, Path]
    mimi: Path | None  # None where it lies in the same files
    tokenizer: Path | None
    lm_config: dict[str, Any] | None
    mimi_config: MimiConfig
    rest: dict[str, Any]  # other keys of config.json


def find_kyutai(folder: Path, config: dict[str, Any] | None) -> Found:
    """The files of a folder in one of Kyutai's layouts."""
    if config is None:
        weights = weights_of(folder, None)
        mimi, tokenizer = (_existing(folder, name) for name in (MIMI_NAME, TOKENIZER_NAME))
        return Found(weights, mimi, tokenizer, None, MimiConfig(), {})
    where = str(folder / CONFIG_NAME)
    _refuse_other_models(config, where)
    weights = weights_of(folder, config.pop("moshi_name", None))
    mimi = _existing(folder, config.pop("mimi_name", MIMI_NAME))
    tokenizer = _existing(folder, config.pop("tokenizer_name", TOKENIZER_NAME))
    rest = {key: config.pop(key) for key in ("lm_gen_config", "model_id", "quantization", *LORA_KEYS) if key in config}
    mimi_config, name = MimiConfig(), config.pop("mimi_config_name", None)
    if name is not None:
        file = _existing(folder, name)
        mimi_config = MimiConfig(**kyutai_config.mimi_fields(read_json(file), str(file)))
    return Found(weights, mimi, tokenizer, config, mimi_config, rest)


def find_huggingface(folder: Path) -> Found:
    """The files of a folder in Hugging Face's layout; the tokenizer that this package reads may be missing there."""
    tokenizers = sorted(folder.glob("*.model"))
    if len(tokenizers) > 1:
        raise CheckpointError(f"{folder}: expected one tokenizer, found {' and '.join(p.name for p in tokenizers)}")
    rest = {"lm_gen_config": _huggingface_sampling(folder / "generation_config.json")}
    return Found(weights_of(folder, None), None, tokenizers[0] if tokenizers else None, None, MimiConfig(), rest)


def _huggingface_sampling(path: Path) -> dict[str, Any]:
    """What a generation_config.json says of Moshi's sampling other than the defaults, by Kyutai's keys."""
    text = read_json(path) if path.is_file() else {}
    depth = text.get("depth_decoder_config")
    if not isinstance(depth, dict):
        return {}
    said: dict[str, Any] = {}
    for values, suffix, usual in ((depth, "", (0.8, 250)), (text, "_text", (0.7, 25))):
        greedy = not values.get("do_sample", True)
        chosen = (0 if greedy else values.get("temperature", usual[0]), values.get("top_k", usual[1]))
        pairs = zip((f"temp{suffix}", f"top_k{suffix}"), chosen, usual, strict=True)
        said |= {name: value for name, value, default in pairs if value != default}
    return said


def weights_of(folder: Path, name: str | None) -> dict[str, Path]:
    """The file of every tensor, by an index where there is one; of a single file under the name ''."""
    if name is None and (folder / INDEX_NAME).is_file():
        name = INDEX_NAME
    path = _existing(folder, name or _only(folder, MODEL_NAMES))
    if not path.name.endswith(".index.json"):
        return {"": path}
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
        raise CheckpointError(f"{path}: not an index: it has no 'weight_map' of tensors to files")
    for file in dict.fromkeys(shards.values()):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / file}: no such file; {path.name} names it: download the checkpoint again")
    return {tensor: folder / file for tensor, file in shards.items()}


def stored_in(weights: dict[str, Path]) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """The tensors of all shards and the file of each, which must be what the index says."""
    if "" in weights:
        tensors = stored(weights[""])
        return tensors, dict.fromkeys(tensors, weights[""])
    tensors = {}
    files: dict[str, Path] = {}
    for file in dict.fromkeys(weights.values()):
        shard = stored(file)
        tensors |= shard
        files |= dict.fromkeys(shard, file)
    for name, file in weights.items():
        if files.get(name) != file:
            raise CheckpointError(f"{file}: tensor {name!r} is missing; the index says that it is there")
    if len(files) > len(weights):
        extra = min(set(files) - set(weights))
        raise CheckpointError(f"{files[extra]}: tensor {extra!r} is not in the index")
    return tensors, files


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
    for key in ("stt_config", "tts_config"):
        value = config.pop(key, None)
        if value:
            raise ConfigError(f"{where}: key {key!r} is {value!r}, which is not supported")


def sampling_defaults(values: dict[str, Any], where: str) -> dict[str, float]:
    values = dict(values)
    defaults = {ours: values.pop(theirs) for theirs, ours in SAMPLING_NAMES.items() if theirs in values}
    if not values.pop("use_sampling", True):
        defaults |= {"temperature": 0, "text_temperature": 0}
    values = {k: v for k, v in values.items() if (k, v) != ("cfg_coef", 1.0)}
    if values:
        key = sorted(values)[0]
        raise ConfigError(f"{where}: key {key!r} is {values[key]!r}, which is not supported")
    return defaults
