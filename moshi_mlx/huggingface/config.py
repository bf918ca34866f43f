"""The configs under the names that Hugging Face's have: read from a folder or the hub, written as `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..checkpoints import huggingface_config, kyutai_config
from ..checkpoints.finding import kind_of
from ..checkpoints.keys import Keys
from ..models import config as plain
from . import pretrained

C = TypeVar("C", bound="_Written")


class _Written:
    """What the three configs have beside their fields."""

    @classmethod
    def of(cls: type[C], config: Any) -> C:
        """The same config as one of this class."""
        if isinstance(config, cls):
            return config
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
        return cls(**kyutai_config.mimi_fields(values, where))

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> MimiConfig:
        """The codec's config of a folder or hub id: its own, or that of a whole Moshi."""
        return cls.of(pretrained.mimi_config_of(path_or_hub_id))

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
    def from_pretrained(cls, path_or_hub_id: str | Path) -> MoshiDepthConfig:
        """The depth decoder's config of a folder or hub id."""
        return cls.of(pretrained.depth_config_of(path_or_hub_id))

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
        keys = Keys(values, where)
        kind_of(keys)
        return cls(**kyutai_config.moshi_fields(keys.rest(), where), audio_encoder_config=mimi or MimiConfig())

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> MoshiConfig:
        """The config of a folder or hub id, in any layout."""
        return cls.of(pretrained.config_of(path_or_hub_id))

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any], where: str) -> MoshiConfig:
        """From a `config.json` of model_type "moshi"."""
        return cls(**huggingface_config.moshi_fields(values, where))

    def to_dict(self) -> dict[str, Any]:
        """The content of Hugging Face's `config.json`."""
        return huggingface_config.moshi_dict(self)
