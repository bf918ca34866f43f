"""Which files of a folder hold which part of a checkpoint, and which of its shards each tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, ConfigError, InputError, brief
from ..models.config import PRESETS, MimiConfig, MoshiConfig
from ..models.sampling import Sampling
from .configs import roles
from .configs.codec_keys import mimi_fields
from .configs.keys import Keys, made
from .configs.kyutai_config import moshi_fields
from .disk.files import inside, read_json, regular
from .hub import local_file
from .names import (
    CONFIG_NAME,
    CONSOLIDATED_NAME,
    INDEX_NAME,
    KYUTAI_ADAPTER_NAME,
    MIMI_CONFIG_NAME,
    MIMI_NAME,
    MODEL_NAMES,
    SAMPLING_NAME,
    SIZES_NAME,
    TOKENIZER_NAME,
)
from .safetensors import Tensor, stored

SAMPLING_NAMES = {"temp": "temperature", "temp_text": "text_temperature", "top_k": "top_k", "top_k_text": "text_top_k"}
OTHER_SAMPLING_NAMES = {"text_temp": "temp_text", "text_top_k": "top_k_text"}  # of some published files
PERSONAPLEX = "personaplex"
KIND_KEYS = ("model_type", "version")
LORA_KEYS = ("lora", "lora_name", "lora_rank", "lora_scaling")


class Found(NamedTuple):
    """The parts of a folder before they are looked into."""

    weights: dict[str, Path]
    mimi: Path | None  # None where it lies in the same files
    tokenizer: Path | None
    lm_config: dict[str, Any] | None
    mimi_config: MimiConfig
    rest: dict[str, Any]  # other keys of config.json


def config_of(folder: Path) -> tuple[dict[str, Any] | None, Path]:
    """The content of config.json and its path; the language model's keys may lie in a file of their own."""
    path, sizes = folder / CONFIG_NAME, folder / SIZES_NAME
    values = read_json(path) if os.path.lexists(path) else None
    if not os.path.lexists(sizes) or (values and not values.keys().isdisjoint({"dim", "depth_decoder_config"})):
        return values, path
    return {**read_json(sizes), **(values or {})}, path if values else sizes


def find_kyutai(folder: Path, config: dict[str, Any] | None, path: Path) -> Found:
    """The files of a folder in one of Kyutai's layouts; `path`: where its config was read."""
    if config is None:
        weights = weights_of(folder, None)
        mimi, tokenizer = (_existing(folder, name) for name in (MIMI_NAME, TOKENIZER_NAME))
        return Found(weights, mimi, tokenizer, None, MimiConfig(), {})
    keys = Keys(config, str(path))
    kind = kind_of(keys)
    weights = weights_of(folder, keys.take("moshi_name", str, None), str(path))
    mimi = _existing(folder, keys.take("mimi_name", str, "") or MIMI_NAME, str(path))
    tokenizer = _existing(folder, keys.take("tokenizer_name", str, "") or TOKENIZER_NAME, str(path))
    mimi_config = _mimi_config(folder, keys, unnamed=kind == PERSONAPLEX)
    rest = {
        "kind": kind,
        "lm_gen_config": keys.take("lm_gen_config", dict, {}),
        "model_id": keys.take("model_id", dict, {}),
        "quantization": _quantization(keys),
        "lora": _lora(folder, keys, weights),
    }
    said = keys.rest()
    return Found(weights, mimi, tokenizer, said if said or kind != PERSONAPLEX else None, mimi_config, rest)


def config_of_keys(folder: Path, config: dict[str, Any], path: Path) -> MoshiConfig:
    """The config that the keys of a folder in one of Kyutai's layouts say; no other file of it is needed."""
    keys = Keys(config, str(path))
    kind = kind_of(keys)
    mimi = _mimi_config(folder, keys, unnamed=kind == PERSONAPLEX)
    keys.ignore("moshi_name", "mimi_name", "tokenizer_name", "lm_gen_config", "model_id", "quantization")
    keys.ignore("quantization_config", *LORA_KEYS)
    said = keys.rest()
    if kind == PERSONAPLEX and not said:
        return replace(PRESETS["moshi-7b"], audio_encoder_config=mimi)
    fields = moshi_fields(said, str(path), kind)
    return made(MoshiConfig, {**fields, "audio_encoder_config": mimi}, str(path))


def _mimi_config(folder: Path, keys: Keys, unnamed: bool) -> MimiConfig:
    """The codec's config in the file that the keys name, or, beside a file of sizes, in that of the usual name.

    `unnamed`: the config is of a kind that names no files.
    """
    name = keys.take("mimi_config_name", str, None)
    unnamed = unnamed or os.path.lexists(folder / SIZES_NAME)
    if not name and unnamed and os.path.lexists(folder / MIMI_CONFIG_NAME):
        name = MIMI_CONFIG_NAME
    if not name:
        return MimiConfig()
    file = _existing(folder, name, keys.where)
    return made(MimiConfig, mimi_fields(read_json(file), str(file)), str(file))


def _quantization(keys: Keys) -> dict[str, Any] | None:
    """The block that says how the weights are quantized; MLX's tools write it under two names."""
    block, again = (keys.take(name, dict, None) for name in ("quantization", "quantization_config"))
    if block and again and block != again:
        raise ConfigError(
            f"{keys.where}: keys 'quantization' and 'quantization_config' contradict: {brief(block)} and {brief(again)}"
        )
    return block or again


def _lora(folder: Path, keys: Keys, weights: dict[str, Path]) -> dict[str, Any]:
    """Kyutai's keys of an adapter; without its name where there is none, or it is merged into the weights already."""
    lora, name = keys.take("lora", bool, False), keys.take("lora_name", str, None)
    if lora and not name and (folder / KYUTAI_ADAPTER_NAME).is_file():
        name = KYUTAI_ADAPTER_NAME
    whole = all(path.name == CONSOLIDATED_NAME for path in weights.values())
    if name and whole and "://" not in name and not os.path.lexists(folder / name):
        name = None
    numbers = {"lora_rank": keys.take("lora_rank", int, None), "lora_scaling": keys.take("lora_scaling", float, None)}
    return {key: value for key, value in {"lora_name": name, **numbers}.items() if value is not None}


def find_huggingface(folder: Path) -> Found:
    """The files of a folder in Hugging Face's layout; the tokenizer that this package reads may be missing there."""
    tokenizers = sorted(folder.glob("*.model"))
    if len(tokenizers) > 1:
        raise CheckpointError(f"{folder}: expected one tokenizer, found {' and '.join(p.name for p in tokenizers)}")
    rest = {"lm_gen_config": _huggingface_sampling(folder / SAMPLING_NAME)}
    return Found(weights_of(folder, None), None, tokenizers[0] if tokenizers else None, None, MimiConfig(), rest)


def _huggingface_sampling(path: Path) -> dict[str, Any]:
    """What a generation_config.json says of Moshi's sampling other than the defaults, by Kyutai's keys."""
    values = read_json(path) if os.path.lexists(path) else {}
    text = Keys(values, str(path))
    depth = Keys(text.take("depth_decoder_config", dict, None) or {}, f"{path}: depth_decoder_config")
    if not values.get("depth_decoder_config"):
        return {}
    said: dict[str, Any] = {}
    for keys, suffix, usual in ((depth, "", (0.8, 250)), (text, "_text", (0.7, 25))):
        temperature, top_k = keys.take("temperature", float, usual[0]), keys.take("top_k", int, usual[1])
        chosen = (temperature if keys.take("do_sample", bool, True) else 0, top_k)
        pairs = zip((f"temp{suffix}", f"top_k{suffix}"), chosen, usual, strict=True)
        said |= {name: value for name, value, default in pairs if value != default}
    return said


def weights_of(folder: Path, name: str | None, where: str = "") -> dict[str, Path]:
    """The file of every tensor, by an index where there is one; of a single file under the name ''."""
    index, whole = folder / INDEX_NAME, folder / CONSOLIDATED_NAME
    if not name and os.path.lexists(index):
        name = INDEX_NAME
    if name and "://" not in name and not os.path.lexists(folder / name) and os.path.lexists(whole):
        name = CONSOLIDATED_NAME
    path = _existing(folder, name or _only(folder, MODEL_NAMES), where or str(folder))
    if not path.name.endswith(".index.json"):
        return {"": path}
    shards = read_json(path, CheckpointError).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
        raise CheckpointError(f"{path}: not an index: it has no 'weight_map' of tensors to files")
    files = {file: inside(folder, file, str(path)) for file in dict.fromkeys(shards.values())}
    for file in files.values():
        if not os.path.lexists(file):
            raise CheckpointError(f"{file}: no such file; {path.name} names it: download the checkpoint again")
    return {tensor: files[file] for tensor, file in shards.items()}


def stored_in(weights: dict[str, Path]) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """The tensors of all shards and the file of each, which must be what the index says."""
    if "" in weights:
        tensors = stored(weights[""])
        return tensors, dict.fromkeys(tensors, weights[""])
    tensors = {}
    files: dict[str, Path] = {}
    for file in dict.fromkeys(weights.values()):
        shard = stored(file)
        twice = sorted(shard.keys() & files.keys())
        if twice:
            raise CheckpointError(f"{file}: tensor {brief(twice[0])} is in {files[twice[0]].name} too")
        tensors |= shard
        files |= dict.fromkeys(shard, file)
    for name, file in weights.items():
        if files.get(name) != file:
            raise CheckpointError(f"{file}: tensor {brief(name)} is missing; the index says that it is there")
    if len(files) > len(weights):
        extra = min(set(files) - set(weights))
        raise CheckpointError(f"{files[extra]}: tensor {brief(extra)} is not in the index")
    return tensors, files


def _existing(folder: Path, name: str, where: str = "") -> Path:
    """The path of a file of the folder, or of one elsewhere that a config may name by hf:// or file://."""
    path = local_file(folder, name, where)
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: no such file; the checkpoint needs it")
    return regular(path)


def _only(folder: Path, names: Iterable[str]) -> str:
    found = [name for name in names if os.path.lexists(folder / name)]
    if not found and os.path.lexists(folder / CONSOLIDATED_NAME):
        return CONSOLIDATED_NAME
    if len(found) != 1:
        got = f"has {' and '.join(found)}" if found else "has none of them"
        raise CheckpointError(f"{folder}: expected exactly one of {', '.join(names)}; it {got}")
    return found[0]


def kind_of(keys: Keys) -> str:
    """What kind of model the keys say that this is, "" for none; what cannot be honoured is refused by name.

    A PersonaPlex of NVIDIA's says its kind and no more: its sizes are Moshi's.
    """
    kind = keys.take("model_type", str, "")
    kinds = ("moshi", PERSONAPLEX, *roles.KINDS)
    if kind and kind not in kinds:
        raise ConfigError(f"{keys.where}: key 'model_type' is {brief(kind)}; only {', '.join(kinds)} are supported")
    keys.ignore("version")
    return str(kind)


def sampling_defaults(values: dict[str, Any], where: str) -> dict[str, float]:
    """What `lm_gen_config` says of sampling, under our names. Raises ConfigError for what is not honoured."""
    keys = Keys({OTHER_SAMPLING_NAMES.get(name, name): value for name, value in values.items()}, where)
    said = {ours: keys.take(key, int if "top_k" in key else float, None) for key, ours in SAMPLING_NAMES.items()}
    defaults = {name: value for name, value in said.items() if value is not None}
    if not keys.take("use_sampling", bool, True):
        defaults |= {"temperature": 0, "text_temperature": 0}
    keys.expect(cfg_coef=1.0)
    keys.finish()
    for name, value in defaults.items():
        try:
            Sampling(**{name.removeprefix("text_"): value})
        except InputError as error:
            raise ConfigError(f"{where}: {name}: {error}") from error
    return defaults
