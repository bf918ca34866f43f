"""`from_pretrained` and `save_pretrained`: Hugging Face's names for reading and writing checkpoints.

A part of Moshi is read from the folder of the whole; parts that are not asked for are never read. Helium-1, Kyutai's
model of text alone, is read in the MLX layout that the earlier port runs (`kyutai/helium-1-preview-2b-mlx`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..checkpoints import finding, huggingface_config, layouts, translation, writing
from ..checkpoints.disk.files import read_json
from ..checkpoints.filling import fill, language_shapes, mimi_shapes
from ..checkpoints.finding import stored_in, weights_of
from ..checkpoints.hub import local_folder
from ..checkpoints.keys import made
from ..checkpoints.kyutai_config import text_fields
from ..checkpoints.names import CONFIG_NAME, HELIUM_NAMES
from ..checkpoints.reading import (
    Checkpoint,
    Part,
    build,
    check_dtype,
    check_language,
    check_mimi,
    open_checkpoint,
    read_tokenizer,
)
from ..checkpoints.safetensors import load_lazily, stored
from ..checkpoints.sizes import check_codec_sizes, check_sizes, sizes_of
from ..errors import CheckpointError, ConfigError
from ..models.config import MimiConfig, MoshiConfig, MoshiDepthConfig
from ..models.depth import DepthDecoder
from ..models.helium import LanguageModel
from ..models.mimi import Mimi
from ..models.moshi import Moshi

M = TypeVar("M", bound=Moshi)
L = TypeVar("L", bound=LanguageModel)
D = TypeVar("D", bound=DepthDecoder)
C = TypeVar("C", bound=Mimi)

# Sizes by which a model of text alone is recognised without config.json.
TEXT_PRESETS: dict[str, MoshiConfig] = {
    "helium-1-preview-2b": MoshiConfig(
        vocab_size=48000, hidden_size=2560, num_hidden_layers=24, num_attention_heads=20, rope_theta=100000.0,
        sliding_window=4096, max_position_embeddings=4096, ffn_dim=14080, audio_delays=(), silent_text_tokens=(),
    )
}  # fmt: skip


def moshi(
    kind: type[M], path_or_hub_id: str | Path, config: MoshiConfig | None = None, dtype: mx.Dtype | None = None
) -> M:
    """`config` replaces the checkpoint's: the same sizes, another window, say. Raises as `moshi_mlx.load` does."""
    model = build(_opened(local_folder(path_or_hub_id), config), dtype, kind)
    mx.eval(model.parameters())
    return model


def _opened(folder: Path, config: MoshiConfig | None) -> Checkpoint:
    checkpoint = open_checkpoint(folder, config)
    if config is None:
        return checkpoint
    ours, theirs = ({**language_shapes(c), **mimi_shapes(c.audio_encoder_config)} for c in (config, checkpoint.config))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"config: wants {name!r} in the shape {ours.get(name)}, but {folder} has it in {theirs.get(name)}; "
                "expected a config of the checkpoint's sizes"
            )
    return checkpoint._replace(config=config)


def _whole(**parts: type[nn.Module]) -> type[Moshi]:
    """A Moshi one of whose parts is of another class."""
    return type("Whole", (Moshi,), parts)


def causal_lm(
    kind: type[L], path_or_hub_id: str | Path, config: MoshiConfig | None = None, dtype: mx.Dtype | None = None
) -> L:
    """The temporal transformer of a whole Moshi, or a model of text alone (Helium-1)."""
    folder = local_folder(path_or_hub_id)
    helium = _helium_file(folder)
    if helium is not None:
        model: Any = _helium(kind, helium, config, dtype)
    else:
        whole = build(_opened(folder, config), dtype, _whole(decoder_class=kind))
        model = whole.decoder
        model.tokenizer = whole.tokenizer
    mx.eval(model.parameters())
    return model


def depth_decoder(kind: type[D], path_or_hub_id: str | Path, dtype: mx.Dtype | None = None) -> D:
    """The depth decoder of a whole Moshi."""
    checkpoint = open_checkpoint(local_folder(path_or_hub_id))
    model: Any = build(checkpoint, dtype, _whole(depth_class=kind)).depth_decoder
    mx.eval(model.parameters())
    return model


def mimi(kind: type[C], path_or_hub_id: str | Path) -> C:
    """The codec of a whole Moshi, or alone as Hugging Face has it (`kyutai/mimi`)."""
    folder = local_folder(path_or_hub_id)
    path = folder / CONFIG_NAME
    values = read_json(path) if path.is_file() else {}
    if values.get("model_type") == "mimi":
        model: Any = _mimi_alone(
            kind, folder, made(MimiConfig, huggingface_config.mimi_fields(values, str(path)), str(path))
        )
    else:
        model = build(open_checkpoint(folder), None, _whole(codec_class=kind)).audio_encoder
    mx.eval(model.parameters())
    return model


def _mimi_alone(kind: type[C], folder: Path, config: MimiConfig) -> C:
    prefix, (tensors, files) = translation.HF_MIMI_PREFIX, stored_in(weights_of(folder, None))
    part = Part(
        {prefix + name: tensor for name, tensor in tensors.items()},
        list(translation.mimi_hugging_face(config)),
        {prefix + name: file for name, file in files.items()},
    )
    check_codec_sizes(config, tensors, str(folder))
    check_mimi(part, config)
    loaded = {prefix + k: v for file in dict.fromkeys(files.values()) for k, v in load_lazily(file).items()}
    model = kind(config)
    fill(model, list(layouts.mimi(config)), translation.to_mlx(part.pieces, loaded), mx.float32)
    model.eval()
    return model


# --- Helium-1 -------------------------------------------------------------------------------------------------------


def _helium_file(folder: Path) -> Path | None:
    """The weights of a model of text alone, where the folder holds one."""
    found = sorted(folder.glob(HELIUM_NAMES))
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise CheckpointError(f"{folder}: expected one file {HELIUM_NAMES}, found {names}; keep one of them")
    return found[0] if found else None


def _helium(kind: type[L], path: Path, config: MoshiConfig | None, dtype: mx.Dtype | None) -> L:
    dtype = check_dtype(dtype)
    tensors = stored(path)
    config = config or _helium_config(path)
    part = Part(tensors, [], dict.fromkeys(tensors, path))
    check_sizes(config, tensors, str(path))
    check_language(part, config)
    model = kind(config)
    fill(model, layouts.kyutai_mlx_text(config), part.load(), dtype)
    tokenizers = sorted(path.parent.glob("*.model"))
    if len(tokenizers) == 1:
        model.tokenizer = read_tokenizer(tokenizers[0], config)
    model.eval()
    return model


def _helium_config(path: Path) -> MoshiConfig:
    """By config.json in Kyutai's keys, or by the sizes of the tensors."""
    file, sizes = path.parent / CONFIG_NAME, sizes_of(stored(path))
    if file.is_file():
        return made(MoshiConfig, {**text_fields(read_json(file), str(file)), "ffn_dim": sizes["ffn_dim"]}, str(file))
    names = ("hidden_size", "num_hidden_layers", "vocab_size", "ffn_dim")
    for preset in TEXT_PRESETS.values():
        if all(getattr(preset, name) == sizes[name] for name in names):
            return preset
    listed = ", ".join(f"{name} {sizes[name]}" for name in names)
    raise ConfigError(f"{path}: no known model of text has these sizes ({listed}); put a {CONFIG_NAME} beside it")


# --- configs and writing --------------------------------------------------------------------------------------------


def config_of(path_or_hub_id: str | Path) -> MoshiConfig:
    """The config of a folder or hub id, in any layout; the weights are fetched only where nothing else says it."""
    values, where, folder = _config_json(path_or_hub_id)
    if values.get("depth_decoder_config") is not None:
        return made(MoshiConfig, huggingface_config.moshi_fields(values, where), where)
    if (values.get("dep_q") and "n_q" in values) or values.get("model_type") == finding.PERSONAPLEX:
        return finding.config_of_keys(folder, values, Path(where))
    folder = local_folder(path_or_hub_id)
    helium = _helium_file(folder)
    return _helium_config(helium) if helium else open_checkpoint(folder).config


def depth_config_of(path_or_hub_id: str | Path) -> MoshiDepthConfig:
    """A depth decoder's config: its own file, or that of a whole Moshi."""
    values, where, _ = _config_json(path_or_hub_id)
    if values.get("model_type") == "moshi_depth":
        return made(MoshiDepthConfig, huggingface_config.depth_fields(values, where), where)
    return config_of(path_or_hub_id).depth_decoder_config


def mimi_config_of(path_or_hub_id: str | Path) -> MimiConfig:
    """A codec's config: its own file, or that of a whole Moshi."""
    values, where, _ = _config_json(path_or_hub_id)
    if values.get("model_type") == "mimi":
        return made(MimiConfig, huggingface_config.mimi_fields(values, where), where)
    return config_of(path_or_hub_id).audio_encoder_config


def _config_json(path_or_hub_id: str | Path) -> tuple[dict[str, Any], str, Path]:
    """The content of config.json, and where it and its folder lie; nothing where a folder has none."""
    folder = local_folder(path_or_hub_id, only="config")
    values, path = finding.config_of(folder)
    return values or {}, str(path), folder


def save(model: Moshi, folder: str | Path, overwrite: bool = False) -> None:
    """Write layout 3: config.json, shards of at most 5 GB with their index, generation_config.json.

    The folder is there whole or not at all; one that exists is refused unless `overwrite`. Raises InputError, and
    ConfigError for a model that transformers could not run as it is (other delays, say).
    """
    writing.save(model, folder, "huggingface", overwrite)
