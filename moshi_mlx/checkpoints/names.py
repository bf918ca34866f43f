"""What the files of a checkpoint are called, and which of a repository's loading needs."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

MINIATURE = "miniature"  # the model in the package, wherever a model is named; ./miniature is a folder
MINIATURE_FOLDER = Path(__file__).parents[1] / "assets" / MINIATURE
MODEL_NAMES = ("model.safetensors", "model.q8.safetensors", "model.q4.safetensors")
CONSOLIDATED_NAME = "consolidated.safetensors"  # what Kyutai's trainer writes of a whole model
INDEX_NAME = "model.safetensors.index.json"
MIMI_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"
MIMI_CONFIG_NAME = "mimi_config.json"
TOKENIZER_NAME = "tokenizer_spm_32k_3.model"
CONFIG_NAME = "config.json"
SIZES_NAME = "moshi_lm_kwargs.json"  # the language model's keys alone, as some fine-tunes have them
SAMPLING_NAME = "generation_config.json"
HELIUM_NAMES = "helium*.safetensors"
ADAPTER_NAME, ADAPTER_CONFIG_NAME = "adapters.safetensors", "adapter_config.json"
KYUTAI_ADAPTER_NAME = "lora.safetensors"
VOICES_FOLDER_NAME, VOICES_ARCHIVE_NAME = "voices", "voices.tgz"  # of a PersonaPlex

SMALL = (CONFIG_NAME, SIZES_NAME, MIMI_CONFIG_NAME, SAMPLING_NAME, ADAPTER_CONFIG_NAME, INDEX_NAME)
"""Files that say which others are needed; read first."""


def needed(names: Collection[str], config: dict[str, Any], shards: Collection[str]) -> list[str]:
    """Of the files of a repository those that loading reads, besides the small ones.

    `config` is the content of its config.json, `shards` the files that its index names. A file that the config names
    is asked for even where it is not listed, so that whoever fetches it says that it is missing.
    """
    tokenizers = [name for name in names if name.endswith(".model") and "/" not in name]
    helium = [name for name in names if fnmatchcase(name, HELIUM_NAMES) and "/" not in name]
    if helium:
        return helium + tokenizers
    weights = [_text(config.get("moshi_name"))] if _text(config.get("moshi_name")) else []
    if not weights or weights[0] not in names:
        found = [name for name in (*MODEL_NAMES, CONSOLIDATED_NAME) if name in names]
        weights = list(shards) or found or weights
    if "depth_decoder_config" in config or config.get("model_type") == "mimi":
        return weights + tokenizers
    parts = [(config.get("mimi_name"), MIMI_NAME), (config.get("tokenizer_name"), TOKENIZER_NAME)]
    own = [_text(said) or usual for said, usual in parts if _text(said) or usual in names]
    own += [name for name in (_text(config.get("mimi_config_name")), _text(config.get("lora_name"))) if name]
    if config.get("lora") and KYUTAI_ADAPTER_NAME in names:
        own.append(KYUTAI_ADAPTER_NAME)
    voices = [name for name in names if name == VOICES_ARCHIVE_NAME or name.startswith(f"{VOICES_FOLDER_NAME}/")]
    return [name for name in (*weights, *dict.fromkeys(own), *voices) if "://" not in name]


def needed_of_adapter(names: Collection[str]) -> list[str]:
    """The file of a repository that holds an adapter, besides the small ones."""
    return [name for name in (ADAPTER_NAME, KYUTAI_ADAPTER_NAME) if name in names][:1]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
