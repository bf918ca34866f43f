"""The configs under the names that Hugging Face's have: read from a folder or the hub, written as `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..checkpoints import finding
from ..checkpoints.configs import codec_keys, huggingface_config, kyutai_config
from ..checkpoints.configs.keys import Keys, made
from ..checkpoints.configs.kyutai_config import text_fields
from ..checkpoints.disk.files import read_json
from ..checkpoints.finding import KIND_KEYS, kind_of
from ..checkpoints.hub import local_folder
from ..checkpoints.names import CONFIG_NAME, HELIUM_NAMES
from ..checkpoints.reading import open_checkpoint
from ..checkpoints.safetensors import stored
from ..checkpoints.sizes import sizes_of
from ..errors import CheckpointError, ConfigError
from ..models import config as plain

# Sizes by which a model of text alone is recognised without config.json.
TEXT_PRESETS: dict[str, plain.MoshiConfig] = {
    "helium-1-preview-2b": plain.MoshiConfig(
        vocab_size=48000, hidden_size=2560, num_hidden_layers=24, num_attention_heads=20, rope_theta=100000.0,
        sliding_window=4096, max_position_embeddings=4096, ffn_dim=14080, audio_delays=(), silent_text_tokens=(),
    )
}  # fmt: skip


def helium_file(folder: Path) -> Path | None:
    """The weights of a model of text alone, where the folder holds one."""
    found = sorted(folder.glob(HELIUM_NAMES))
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise CheckpointError(f"{folder}: expected one file {HELIUM_NAMES}, found {names}; keep one of them")
    return found[0] if found else None


def helium_config(path: Path) -> plain.MoshiConfig:
    """By config.json in Kyutai's keys, or by the sizes of the tensors."""
    file, sizes = path.parent / CONFIG_NAME, sizes_of(stored(path))
    if file.is_file():
        return made(
            plain.MoshiConfig, {**text_fields(read_json(file), str(file)), "ffn_dim": sizes["ffn_dim"]}, str(file)
        )
    names = ("hidden_size", "num_hidden_layers", "vocab_size", "ffn_dim")
    for preset in TEXT_PRESETS.values():
        if all(getattr(preset, name) == sizes[name] for name in names):
            return preset
    listed = ", ".join(f"{name} {sizes[name]}" for name in names)
    raise ConfigError(f"{path}: no known model of text has these sizes ({listed}); put a {CONFIG_NAME} beside it")


def config_of(path_or_hub_id: str | Path, revision: str | None = None) -> plain.MoshiConfig:
    """The config of a folder or hub id, in any layout; the weights are fetched only where nothing else says it."""
    values, where, folder = _config_json(path_or_hub_id, revision)
    if values.get("depth_decoder_config") is not None:
        return made(plain.MoshiConfig, huggingface_config.moshi_fields(values, where), where)
    if (values.get("dep_q") and "n_q" in values) or values.get("model_type") == finding.PERSONAPLEX:
        return finding.config_of_keys(folder, values, Path(where))
    folder = local_folder(path_or_hub_id, revision)
    helium = helium_file(folder)
    return helium_config(helium) if helium else open_checkpoint(folder).config


def depth_config_of(path_or_hub_id: str | Path, revision: str | None = None) -> plain.MoshiDepthConfig:
    """A depth decoder's config: its own file, or that of a whole Moshi."""
    values, where, _ = _config_json(path_or_hub_id, revision)
    if values.get("model_type") == "moshi_depth":
        return made(plain.MoshiDepthConfig, huggingface_config.depth_fields(values, where), where)
    return config_of(path_or_hub_id, revision).depth_decoder_config


def mimi_config_of(path_or_hub_id: str | Path, revision: str | None = None) -> plain.MimiConfig:
    """A codec's config: its own file, or that of a whole Moshi."""
    values, where, _ = _config_json(path_or_hub_id, revision)
    if values.get("model_type") == "mimi":
        return made(plain.MimiConfig, huggingface_config.mimi_fields(values, where), where)
    return config_of(path_or_hub_id, revision).audio_encoder_config


def _config_json(path_or_hub_id: str | Path, revision: str | None) -> tuple[dict[str, Any], str, Path]:
    """The content of config.json, and where it and its folder lie; nothing where a folder has none."""
    folder = local_folder(path_or_hub_id, revision, only="config")
    values, path = finding.config_of(folder)
    return values or {}, str(path), folder


C = TypeVar("C", bound="_Written")


class _Written:
    """What the three configs have beside their fields.

    A model is built of its config, which therefore stays as it is; `use_cache` alone, a default of calls, may be set.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "use_cache" or not hasattr(self, name):
            kind = type(self).__name__
            raise FrozenInstanceError(f"{kind}.{name} cannot be set; make another config: dataclasses.replace(config, "
                                      f"{name}=...)")  # fmt: skip
        if not isinstance(value, (bool, np.bool_)):
            raise ConfigError(f"{type(self).__name__}.use_cache: got {value!r}, expected True or False")
        object.__setattr__(self, name, bool(value))

    @classmethod
    def of(cls: type[C], config: Any) -> C:
        """The same config as one of this class."""
        if isinstance(config, cls):
            return config
        if not issubclass(cls, type(config)):
            raise ConfigError(f"config: got a {type(config).__name__}, expected a {cls.__name__}")
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)})

    def to_dict(self) -> dict[str, Any]:
        """The content of Hugging Face's `config.json`."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` into a folder, which is made where it does not exist."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n")


class MimiConfig(_Written, plain.MimiConfig):
    __doc__ = plain.MimiConfig.__doc__

    @classmethod
    def from_kyutai(cls, values: Mapping[str, Any], where: str) -> MimiConfig:
        """From the file that `mimi_config_name` names in Kyutai's checkpoints."""
        return cls(**codec_keys.mimi_fields(values, where))

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, revision: str | None = None) -> MimiConfig:
        """The codec's config of a folder or hub id: its own, or that of a whole Moshi."""
        return cls.of(mimi_config_of(path_or_hub_id, revision))

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any], where: str) -> MimiConfig:
        """From a `config.json` of model_type "mimi"."""
        return cls(**huggingface_config.mimi_fields(values, where))

    def to_dict(self) -> dict[str, Any]:
        """The content of Hugging Face's `config.json`."""
        return huggingface_config.mimi_dict(self)


class MoshiDepthConfig(_Written, plain.MoshiDepthConfig):
    __doc__ = plain.MoshiDepthConfig.__doc__

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, revision: str | None = None) -> MoshiDepthConfig:
        """The depth decoder's config of a folder or hub id."""
        return cls.of(depth_config_of(path_or_hub_id, revision))

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any], where: str) -> MoshiDepthConfig:
        """From a configuration of model_type "moshi_depth"."""
        return cls(**huggingface_config.depth_fields(values, where))

    def to_dict(self) -> dict[str, Any]:
        """The content of Hugging Face's `config.json`."""
        return huggingface_config.depth_dict(self)


class MoshiConfig(_Written, plain.MoshiConfig):
    __doc__ = plain.MoshiConfig.__doc__

    mimi_class, depth_class = MimiConfig, MoshiDepthConfig

    def _fill_in(self) -> None:
        """A part's config may be given as transformers writes it: keys of Hugging Face's, model_type among them."""
        readers = {
            "audio_encoder_config": huggingface_config.mimi_fields,
            "depth_decoder_config": huggingface_config.depth_fields,
        }
        for name, read in readers.items():
            values = getattr(self, name)
            if isinstance(values, Mapping):
                object.__setattr__(self, name, read(values, f"MoshiConfig: {name}"))
        super()._fill_in()

    @classmethod
    def from_audio_encoder_config(cls, audio_encoder_config: plain.MimiConfig, **fields: Any) -> MoshiConfig:
        """The config around a codec's; `fields` are the other ones."""
        return cls(audio_encoder_config=audio_encoder_config, **fields)

    @classmethod
    def from_kyutai(cls, values: Mapping[str, Any], where: str, mimi: plain.MimiConfig | None = None) -> MoshiConfig:
        """From the language model's part of Kyutai's `config.json`."""
        kind = kind_of(Keys({name: values[name] for name in KIND_KEYS if name in values}, where))
        said = {name: value for name, value in values.items() if name not in KIND_KEYS}
        return cls(**kyutai_config.moshi_fields(said, where, kind), audio_encoder_config=mimi or MimiConfig())

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, revision: str | None = None) -> MoshiConfig:
        """The config of a folder or hub id, in any layout."""
        return cls.of(config_of(path_or_hub_id, revision))

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any], where: str) -> MoshiConfig:
        """From a `config.json` of model_type "moshi"."""
        return cls(**huggingface_config.moshi_fields(values, where))

    def to_dict(self) -> dict[str, Any]:
        """The content of Hugging Face's `config.json`."""
        return huggingface_config.moshi_dict(self)
