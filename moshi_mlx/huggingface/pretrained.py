"""`from_pretrained` and `save_pretrained`: Hugging Face's names for reading and writing checkpoints.

A part of Moshi is read from the folder of the whole; parts that are not asked for are never read. Helium-1, Kyutai's
model of text alone, is read in the MLX layout that the earlier port runs (`kyutai/helium-1-preview-2b-mlx`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..checkpoints import finding, layouts, translation, writing
from ..checkpoints.configs import huggingface_config
from ..checkpoints.configs.keys import made
from ..checkpoints.disk.files import read_json
from ..checkpoints.filling import fill, language_shapes, mimi_shapes, mimi_tensors_of, tensors_of
from ..checkpoints.finding import stored_in, weights_of
from ..checkpoints.hub import local_folder
from ..checkpoints.names import CONFIG_NAME
from ..checkpoints.reading import (
    Checkpoint,
    Part,
    build,
    check,
    check_dtype,
    check_language,
    check_mimi,
    open_checkpoint,
    read_tokenizer,
)
from ..checkpoints.safetensors import load_lazily, stored
from ..checkpoints.sizes import check_codec_sizes, check_sizes
from ..errors import ConfigError, InputError
from ..models.config import MimiConfig, MoshiConfig, MoshiDepthConfig
from ..models.depth import DepthDecoder
from ..models.helium import LanguageModel
from ..models.mimi import Mimi
from ..models.moshi import Moshi
from .config import helium_config, helium_file

M = TypeVar("M", bound=Moshi)
L = TypeVar("L", bound=LanguageModel)
D = TypeVar("D", bound=DepthDecoder)
C = TypeVar("C", bound=Mimi)


class ConfigSettings(TypedDict, total=False):
    """What every `from_pretrained` takes beside the folder or hub id."""

    revision: str | None


class LoadSettings(ConfigSettings, total=False):
    """`torch_dtype` is another name for `dtype`, as in transformers."""

    dtype: Any
    torch_dtype: Any


class ModelSettings(LoadSettings, total=False):
    """`config` replaces the checkpoint's: the same sizes, another window, say."""

    config: MoshiConfig | None


def _dtype(settings: Any) -> mx.Dtype | None:
    """The type by either of its names. Raises ConfigError where they contradict."""
    kinds = {name: check_dtype(settings[name]) for name in ("dtype", "torch_dtype") if settings.get(name) is not None}
    if len({str(kind) for kind in kinds.values()}) > 1:
        raise ConfigError(f"dtype: got {settings['dtype']}, and {settings['torch_dtype']} as torch_dtype; give one")
    return next(iter(kinds.values()), None)


def moshi(kind: type[M], path_or_hub_id: str | Path, settings: ModelSettings) -> M:
    """Raises as `moshi_mlx.load` does."""
    dtype = _dtype(settings)
    folder = local_folder(path_or_hub_id, settings.get("revision"))
    model = build(_opened(folder, settings.get("config")), dtype, kind)
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


def causal_lm(kind: type[L], path_or_hub_id: str | Path, settings: ModelSettings) -> L:
    """The temporal transformer of a whole Moshi, one that was saved alone, or a model of text alone (Helium-1)."""
    dtype, config = _dtype(settings), settings.get("config")
    folder = local_folder(path_or_hub_id, settings.get("revision"))
    helium = helium_file(folder)
    prefix = None if helium else _part_prefix(folder)
    if helium is not None:
        model: Any = _helium(kind, helium, config, dtype)
    elif prefix is not None:
        model = _causal_lm_alone(kind, folder, prefix, config, dtype)
    else:
        whole = build(_opened(folder, config), dtype, _whole(decoder_class=kind))
        model = whole.decoder
        model.tokenizer = whole.tokenizer
    mx.eval(model.parameters())
    return model


def depth_decoder(kind: type[D], path_or_hub_id: str | Path, settings: LoadSettings) -> D:
    """The depth decoder of a whole Moshi, or one that was saved alone."""
    dtype = _dtype(settings)
    folder = local_folder(path_or_hub_id, settings.get("revision"))
    values, path = finding.config_of(folder)
    if values and values.get("model_type") == "moshi_depth":
        config = made(MoshiDepthConfig, huggingface_config.depth_fields(values, str(path)), str(path))
        model: Any = kind(config)
        rows = _rows(_around(config), "depth_decoder.")
        _fill_alone(model, folder, _around(config), rows, lambda name: "depth_decoder." + name, dtype)
    else:
        model = build(open_checkpoint(folder), dtype, _whole(depth_class=kind)).depth_decoder
    mx.eval(model.parameters())
    return model


def mimi(kind: type[C], path_or_hub_id: str | Path, settings: LoadSettings) -> C:
    """The codec of a whole Moshi, or alone as Hugging Face has it (`kyutai/mimi`)."""
    if (_dtype(settings) or mx.float32) != mx.float32:
        raise ConfigError("dtype: the codec runs in float32 alone, for in less its codes are others; leave it out")
    folder = local_folder(path_or_hub_id, settings.get("revision"))
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


# --- parts that were saved alone ------------------------------------------------------------------------------------


def _part_prefix(folder: Path) -> str | None:
    """What stands in a whole Moshi before the names of a text model or transformer alone; None for any other folder."""
    values, _ = finding.config_of(folder)
    if not values or values.get("model_type") != "moshi":
        return None
    names, _ = stored_in(weights_of(folder, None))
    if "model.embed_tokens.weight" in names:
        return "decoder."
    return "decoder.model." if "embed_tokens.weight" in names else None


def _causal_lm_alone(kind: type[L], folder: Path, prefix: str, given: MoshiConfig | None, dtype: Any) -> L:
    """transformers saves no audio tables with it: where there are none, audio says nothing."""
    values, path = finding.config_of(folder)
    config = given or made(MoshiConfig, huggingface_config.moshi_fields(values or {}, str(path)), str(path))
    model = kind(config)
    absent = {f"audio_embs.{i}.weight": mx.zeros((config.audio_vocab_size + 1, config.hidden_size))
              for i in range(len(config.audio_delays))}  # fmt: skip
    if prefix != "decoder.":
        absent["text_linear.weight"] = mx.zeros((config.vocab_size, config.hidden_size))

    def name_in_whole(name: str) -> str:
        return name if name.startswith("embed_tokens.") and name != "embed_tokens.weight" else prefix + name

    rows = [row for row in layouts.kyutai_mlx_text(config) if not row.ours.startswith("depth_decoder.")]
    _fill_alone(model, folder, config, rows, name_in_whole, dtype, absent)
    tokenizers = sorted(folder.glob("*.model"))
    if len(tokenizers) == 1:
        model.tokenizer = read_tokenizer(tokenizers[0], config)
    return model


def _fill_alone(
    model: nn.Module, folder: Path, config: MoshiConfig, rows: list[layouts.Row], name_in_whole: Callable[[str], str],
    dtype: Any, absent: dict[str, mx.array] | None = None,
) -> None:  # fmt: skip
    """Load a part's own files into it. `absent`: MLX tensors that may be missing. Raises CheckpointError."""
    stored_tensors, files = stored_in(weights_of(folder, None))
    tensors = {name_in_whole(name): tensor for name, tensor in stored_tensors.items()}
    part = Part(tensors, list(translation.hugging_face(config)), {name_in_whole(n): f for n, f in files.items()})
    ours = {name for row in rows for name in row.theirs}
    pieces = [piece for piece in part.pieces if set(piece.mlx) <= ours]
    missing = [p for p in pieces if set(p.mlx) <= set(absent or {}) and not set(p.theirs) & set(tensors)]
    shapes = language_shapes(config)
    expected = translation.expected_shapes([piece for piece in pieces if piece not in missing], shapes)
    check(part, expected)
    back = {name_in_whole(name): name for name in stored_tensors}
    loaded = {k: v for file in dict.fromkeys(files.values()) for k, v in load_lazily(file).items()}
    arrays = translation.to_mlx(pieces, {whole: loaded[name] for whole, name in back.items()})
    kind = next(iter(arrays.values())).dtype
    arrays |= {name: (absent or {})[name].astype(kind) for piece in missing for name in piece.mlx}
    fill(model, rows, arrays, dtype)
    model.eval()


def _rows(config: MoshiConfig, prefix: str) -> list[layouts.Row]:
    """The parameters of a part of the whole, by the part's own paths."""
    rows = [row for row in layouts.kyutai_mlx(config) if row.ours.startswith(prefix)]
    return [row._replace(ours=row.ours.removeprefix(prefix)) for row in rows]


def _around(depth: MoshiDepthConfig) -> MoshiConfig:
    """A small Moshi that this depth decoder could be part of: the tables of names are of whole ones."""
    count = depth.num_codebooks
    return MoshiConfig(
        vocab_size=depth.vocab_size, hidden_size=depth.input_size, num_hidden_layers=1, num_attention_heads=1,
        head_dim=2, ffn_dim=2, audio_vocab_size=depth.audio_vocab_size, num_codebooks=count,
        depth_decoder_config=depth,
        audio_encoder_config=MimiConfig(codebook_size=depth.audio_vocab_size, num_quantizers=max(2, count)),
    )  # fmt: skip


# --- Helium-1 -------------------------------------------------------------------------------------------------------


def _helium(kind: type[L], path: Path, config: MoshiConfig | None, dtype: mx.Dtype | None) -> L:
    dtype = check_dtype(dtype)
    tensors = stored(path)
    config = config or helium_config(path)
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


# --- writing --------------------------------------------------------------------------------------------------------


def save(model: Any, folder: str | Path, overwrite: bool = False) -> None:
    """Write layout 3, of a whole Moshi or of a part alone: config.json, shards of at most 5 GB with their index.

    The folder is there whole or not at all; one that holds something is refused unless `overwrite`. Raises InputError,
    and ConfigError for a model that transformers could not run as it is (other delays, say).
    """
    path = Path(folder)
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not overwrite:
        raise InputError(
            f"{path}: exists already and is not empty; choose another folder, or replace it: overwrite=True"
        )
    if isinstance(model, Moshi):
        writing.save(model, path, "huggingface", overwrite or empty)
    else:
        writing.carry_out(_part_plan(model), path, overwrite or empty)


def _part_plan(model: Any) -> writing.Plan:
    """The files of a part alone, under the names that transformers gives its tensors."""
    kind = type(model).__name__
    if isinstance(model, Mimi):
        pieces, arrays = translation.mimi_hugging_face(model.config), mimi_tensors_of(model)
        values, prefix = huggingface_config.mimi_dict(model.config), translation.HF_MIMI_PREFIX
    else:
        depth = isinstance(model, DepthDecoder)
        config = _around(model.config) if depth else model.config
        lost = huggingface_config.inexpressible(config) if config.audio_delays else []
        if lost:
            raise ConfigError(
                f"Hugging Face's layout has no {' and no '.join(lost)}; this model cannot be written in it"
            )
        prefix = "depth_decoder." if depth else "decoder." if isinstance(model, LanguageModel) else "decoder.model."
        rows = _rows(config, prefix)
        pieces, arrays = translation.hugging_face(config), _with_repeats(tensors_of(model, rows), config)
        values = (
            huggingface_config.depth_dict(config.depth_decoder_config)
            if depth
            else huggingface_config.moshi_dict(config)
        )
    if any(name.endswith(".scales") for name in arrays):
        raise InputError(
            f"{kind}: is quantized, and Hugging Face's layout has no quantized tensors; dequantize it first"
        )
    tensors = translation.from_mlx(pieces, writing.tensors(arrays))
    tokenizer = getattr(model, "tokenizer", None)
    return writing.plan_part(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items()},
        values | {"architectures": [kind]},
        tokenizer.serialized_model_proto() if tokenizer is not None else None,
    )


def _with_repeats(tensors: dict[str, mx.array], config: MoshiConfig) -> dict[str, mx.array]:
    """With the shared weights of the depth decoder for every step, as that layout has them."""
    for prefix, of in layouts.kyutai_mlx_repeats(config).items():
        tensors |= {prefix + name[len(of) :]: value for name, value in tensors.items() if name.startswith(of)}
    return tensors
