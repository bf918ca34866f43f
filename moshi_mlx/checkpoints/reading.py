"""Finding and reading checkpoints: a local folder or the hub, in any layout of `layouts` and `translation`.

Reading is strict both ways: every tensor that the sizes ask for must be in the files, every tensor of the files must
have a place, and its shape must fit. It is lazy too: tensors go from the file to where they are used, one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from ..errors import CheckpointError, ConfigError, brief, clipped
from ..models.config import PRESETS, MimiConfig, MoshiConfig
from ..models.layers.initial import left_at_zero
from ..models.moshi import Moshi
from . import layouts, quantization, translation
from .configs import huggingface_config, kyutai_config
from .configs.keys import made
from .disk.files import read_bytes
from .filling import fill, language_shapes, mimi_shapes
from .finding import PERSONAPLEX, Found, config_of, find_huggingface, find_kyutai, sampling_defaults, stored_in
from .hub import local_file
from .names import CONFIG_NAME
from .personas.slices import Slices, slices_of
from .personas.voices import Voices
from .pieces import Piece
from .quantization import Quantization
from .safetensors import FLOATS, Tensor, load_lazily, stored
from .sizes import check_codec_sizes, check_sizes, sizes_of, sizes_of_preset

M = TypeVar("M", bound=Moshi)
MOSHI_TOKENIZER = "hf://kyutai/moshiko-pytorch-bf16/tokenizer_spm_32k_3.model"
MOSHI_PIECES = 32000
FLOAT_TYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
LAYOUTS = {"mlx": "Kyutai MLX", "kyutai": "Kyutai PyTorch", "huggingface": "Hugging Face"}


class Part(NamedTuple):
    """The language model's tensors, or the codec's: as they are stored, and how they become those of MLX."""

    tensors: dict[str, Tensor]
    pieces: list[Piece]
    files: dict[str, Path]  # of every tensor

    def read(self) -> dict[str, Tensor]:
        """The tensors under their MLX names, each read when it is wanted."""
        return translation.read_as_mlx(self.pieces, self.tensors) if self.pieces else dict(self.tensors)

    def load(self) -> dict[str, mx.array]:
        """The same as lazy MLX arrays."""
        loaded: dict[str, mx.array] = {}
        for file in dict.fromkeys(self.files.values()):
            loaded |= {name: value for name, value in load_lazily(file).items() if name in self.tensors}
        return translation.to_mlx(self.pieces, loaded) if self.pieces else loaded


class Checkpoint(NamedTuple):
    """What a folder holds, checked: its sizes, its tensors, and what its config.json says besides."""

    folder: Path
    layout: str  # a key of LAYOUTS
    config: MoshiConfig
    language: Part
    mimi: Part
    quantized: dict[str, Quantization | None]  # every matrix by its MLX path
    tokenizer: Path | None
    sampling_defaults: dict[str, float]
    lora: dict[str, Any]  # Kyutai's keys lora_name, lora_rank, lora_scaling, where there are any
    model_id: dict[str, Any]
    depth_steps: int  # of the file; those beyond the config's codebooks are the user's, and not read
    personas: bool  # whether it takes a voice and a persona


def build(
    checkpoint: Checkpoint, dtype: mx.Dtype | None, kind: type[M], weights: dict[str, mx.array] | None = None
) -> M:
    """The model of a checkpoint; a parameter is read from its file only when it is evaluated. Raises ConfigError.

    `weights` take the place of the language model's in the files, under their MLX names.
    """
    kind_of_floats = check_dtype(dtype)
    if checkpoint.lora.get("lora_name"):
        raise ConfigError(
            f"{checkpoint.folder / CONFIG_NAME}: key 'lora_name' is {brief(checkpoint.lora['lora_name'])}, which is "
            "not supported; merge the LoRA into its base first: python -m moshi_mlx.convert"
        )
    with left_at_zero():
        model = kind(checkpoint.config)
    tensors = checkpoint.language.load() if weights is None else weights
    rows = list(layouts.kyutai_mlx(checkpoint.config))
    told = set(layouts.conditions(checkpoint.config))
    fill(model, [row for row in rows if row not in told], tensors, kind_of_floats)
    fill(model, list(told), tensors, mx.float32)
    mx.eval(model.refresh())  # else every step that is compiled would compute them anew
    # Published files are float32, and half the precision would be other codes: smaller files are widened once, here.
    codec = list(layouts.mimi(checkpoint.config.audio_encoder_config))
    fill(model.audio_encoder, codec, checkpoint.mimi.load(), mx.float32)
    if checkpoint.tokenizer:
        model.tokenizer = read_tokenizer(checkpoint.tokenizer, checkpoint.config)
    model.sampling_defaults = checkpoint.sampling_defaults
    model.folder, model.model_id = checkpoint.folder, checkpoint.model_id
    model.voices = Voices(checkpoint.folder) if checkpoint.personas else None
    model.eval()
    return model


def check_dtype(dtype: Any) -> mx.Dtype | None:
    """The type that is asked for, by MLX's, NumPy's or PyTorch's type or by its name; None for "auto".

    Raises ConfigError for what is no type that a model can be run in.
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return None
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    for prefix in ("mlx.core.", "torch."):
        name = name.removeprefix(prefix)
    if name not in FLOAT_TYPES:
        names = ", ".join(FLOAT_TYPES)
        raise ConfigError(f"dtype: got {brief(dtype)}, expected a floating type such as mlx.core.bfloat16: {names}")
    return FLOAT_TYPES[name]


def open_checkpoint(folder: Path, sizes: MoshiConfig | None = None) -> Checkpoint:
    """The checkpoint in a folder; of its tensors only names, types and shapes are looked at.

    `sizes` are taken where no file of the folder says any, in the place of a preset's.
    Raises CheckpointError or ConfigError where a part is missing, odd or contradicts another.
    """
    values, path = config_of(folder)
    hugging = values is not None and values.get("depth_decoder_config") is not None
    found = find_huggingface(folder) if hugging else find_kyutai(folder, values, path)
    tensors, files = stored_in(found.weights)
    if hugging:
        fields = huggingface_config.moshi_fields(values or {}, str(path))
        layout, config = "huggingface", made(MoshiConfig, fields, str(path))
        check_sizes(config, tensors, str(path))
        language, mimi = _huggingface_parts(tensors, files, config)
        slices = Slices(config.num_codebooks, 0, frozenset())
    else:
        layout = _layout(tensors, folder)
        config = sizes if sizes and not found.lm_config else _config(found, layout, tensors, folder, str(path))
        check_sizes(config, tensors, str(path))
        slices, language = _language(layout, config, tensors, files, folder)
        mimi = _kyutai_mimi(found.mimi, config.audio_encoder_config)
    quantized = check_language(language, config)
    check_mimi(mimi, config.audio_encoder_config)
    if found.rest.get("quantization"):
        quantization.check_block(found.rest["quantization"], quantized, str(path))
    return Checkpoint(
        folder, layout, config, language, mimi, quantized, found.tokenizer,
        sampling_defaults(found.rest.get("lm_gen_config") or {}, f"{path}: lm_gen_config"),
        found.rest.get("lora") or {}, found.rest.get("model_id") or {}, slices.steps,
        _takes_personas(found.rest.get("kind"), slices, config, Voices(folder)),
    )  # fmt: skip


def _language(
    layout: str, config: MoshiConfig, tensors: dict[str, Tensor], files: dict[str, Path], folder: Path
) -> tuple[Slices, Part]:
    """The language model in one of Kyutai's layouts, without the depth slices that do not speak."""
    generation = _generation(tensors)
    slices = slices_of(tensors, config, layout, generation, str(folder))
    spare = slices.sets - config.depth_decoder_config.weight_sets
    pieces = translation.kyutai_pytorch(config, generation, spare) if layout == "kyutai" else ()
    read = {name: tensor for name, tensor in tensors.items() if name not in slices.unread}
    return slices, Part(read, list(pieces), {name: files[name] for name in read})


def _takes_personas(kind: str | None, slices: Slices, config: MoshiConfig, voices: Voices) -> bool:
    """Whether this is a PersonaPlex: it says so; or it says nothing, or has voices, and predicts both sides."""
    both = slices.steps > config.num_codebooks
    return kind == PERSONAPLEX or (both and not kind) or ((both or kind is None) and voices.there)


def _layout(tensors: Mapping[str, Tensor], where: Path) -> str:
    marks = {"mlx": "audio_embs.0.weight", "kyutai": "emb.0.weight"}
    for layout, mark in marks.items():
        if mark in tensors:
            return layout
    raise CheckpointError(
        f"{where}: tensors of an unknown layout (the first is {brief(min(tensors, default='missing'))}); expected "
        "Kyutai's PyTorch layout (emb.0.weight, ...) or MLX layout (audio_embs.0.weight, ...), or Hugging Face's "
        "config.json"
    )


def _generation(tensors: Iterable[str]) -> int:
    """Of Kyutai's attention names: 2 where newer versions of `moshi` saved them."""
    return 2 if any("in_projs." in name for name in tensors) else 1


def _kyutai_mimi(path: Path | None, config: MimiConfig) -> Part:
    assert path is not None
    tensors = stored(path)
    check_codec_sizes(config, tensors, str(path))
    return Part(tensors, list(translation.mimi_kyutai(config, _generation(tensors))), dict.fromkeys(tensors, path))


def _huggingface_parts(tensors: dict[str, Tensor], files: dict[str, Path], config: MoshiConfig) -> tuple[Part, Part]:
    """The language model's tensors and the codec's, which lie in the same files."""
    codec = {name for name in tensors if name.startswith(translation.HF_MIMI_PREFIX)}
    tables = (translation.hugging_face(config), translation.mimi_hugging_face(config.audio_encoder_config))
    language, mimi = (
        Part({k: v for k, v in tensors.items() if k in names}, list(pieces), {k: files[k] for k in names})
        for names, pieces in zip((tensors.keys() - codec, codec), tables, strict=True)
    )
    return language, mimi


def check_mimi(part: Part, config: MimiConfig) -> None:
    """Every tensor of the codec is there, of its shape; what says something of its training alone may be absent."""
    shapes = mimi_shapes(config)
    optional = layouts.mimi_unused(config)
    absent = {name for piece in part.pieces if piece.mlx[0] in optional for name in piece.theirs} - set(part.tensors)
    expected = translation.expected_shapes(part.pieces, shapes)
    check(part, {name: shape for name, shape in expected.items() if name not in absent})


def check_language(part: Part, config: MoshiConfig) -> dict[str, Quantization | None]:
    """Every tensor is there, of its shape and a type that it may have; how each matrix is quantized, by its path."""
    shapes = language_shapes(config)
    if part.pieces:
        check(part, translation.expected_shapes(part.pieces, shapes))
        return {name.removesuffix(".weight"): None for name, shape in shapes.items() if len(shape) == 2}
    infos = {name: tensor.info for name, tensor in part.tensors.items()}
    repeats = tuple(layouts.kyutai_mlx_repeats(config))
    quantized = quantization.of_all(infos, shapes, str(next(iter(part.files.values()))))
    # Of shared weights, what repeats the first may be left out.
    expected = {k: v for k, v in shapes.items() if k in infos or not (repeats and k.startswith(repeats))}
    types: dict[str, tuple[str, ...]] = {}
    for stem, kind in quantized.items():
        if kind:
            parts = kind.infos(shapes[f"{stem}.weight"], "")
            expected |= {f"{stem}.{leaf}": info.shape for leaf, info in parts.items()}
            types |= {f"{stem}.{leaf}": (info.dtype,) for leaf, info in parts.items() if info.dtype}
    check(part, expected, types)
    _check_joined(part, config, quantized)
    return quantized


def _check_joined(part: Part, config: MoshiConfig, quantized: dict[str, Quantization | None]) -> None:
    """Tables that one step reads together, and the depth decoder's inputs, are one array here: they must be alike."""
    for row in layouts.kyutai_mlx(config):
        first, *others = (name.removesuffix(".weight") for name in row.theirs)
        for other in others:
            if quantized.get(other) != quantized.get(first):
                kinds = " and ".join(f"{path!r} is {quantized.get(path) or 'not quantized'}" for path in (first, other))
                raise CheckpointError(f"{part.files[other + '.weight']}: {kinds}; expected both alike")


def check(
    part: Part, expected: Mapping[str, tuple[int, ...]], types: Mapping[str, tuple[str, ...]] | None = None
) -> None:
    """The tensors are exactly the expected ones: floats, or of the types said for a name.

    Raises CheckpointError that names the first which is not.
    """
    anywhere = next(iter(part.files.values()), Path("."))
    for name in expected:
        if name not in part.tensors:
            where = anywhere if len(set(part.files.values())) == 1 else anywhere.parent
            raise CheckpointError(f"{where}: tensor {name!r} is missing")
    for name, tensor in part.tensors.items():
        what, info = f"{part.files[name]}: tensor {brief(name)}", tensor.info
        if name not in expected:
            raise CheckpointError(f"{what} has no place in a model of these sizes")
        wanted = (types or {}).get(name, FLOATS)
        if info.dtype not in wanted:
            kinds = "a float" if wanted == FLOATS else " or ".join(wanted)
            raise CheckpointError(f"{what} has the type {info.dtype}, expected {kinds}")
        if info.shape != expected[name]:
            raise CheckpointError(
                f"{what} has the shape {clipped(str(list(info.shape)))}, but the config wants {list(expected[name])}"
            )


def _config(found: Found, layout: str, tensors: Mapping[str, Tensor], folder: Path, where: str) -> MoshiConfig:
    if found.lm_config is not None:
        fields = kyutai_config.moshi_fields(found.lm_config, where, found.rest.get("kind", ""))
        return made(MoshiConfig, {**fields, "audio_encoder_config": found.mimi_config}, where)
    # By Kyutai's own rule, a PyTorch folder without config.json is Moshi 7B; so is NVIDIA's with one that says nothing.
    if layout == "kyutai" or found.rest.get("kind") == PERSONAPLEX:
        return replace(PRESETS["moshi-7b"], audio_encoder_config=found.mimi_config)
    sizes = sizes_of(tensors)
    if sizes["num_codebooks"] == sizes["audio_streams"]:  # the depth slices of both sides
        sizes["num_codebooks"] //= 2
    for preset in PRESETS.values():
        if sizes_of_preset(preset) == sizes:
            return preset
    listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
    raise ConfigError(
        f"{folder}: no known model has these sizes ({listed}), so its heads, delays and context cannot be told; "
        f"put a {CONFIG_NAME} there"
    )


def moshi_tokenizer(checkpoint: Checkpoint) -> Path | None:
    """Kyutai's own tokenizer for a model of Moshi's vocabulary that has none. Raises CheckpointError."""
    if checkpoint.tokenizer is None and checkpoint.config.vocab_size == MOSHI_PIECES:
        return local_file(checkpoint.folder, MOSHI_TOKENIZER)
    return None


def read_tokenizer(path: Path, config: MoshiConfig) -> Any:
    """The sentencepiece model in a file. Raises CheckpointError where it is none, or of another vocabulary."""
    from sentencepiece import SentencePieceProcessor

    content = read_bytes(path)
    try:
        tokenizer = SentencePieceProcessor(model_proto=content)
        pieces = tokenizer.vocab_size()
        tokenizer.id_to_piece(list(range(pieces)))  # what is no text is found now, not in a conversation
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a sentencepiece model") from error
    if pieces != config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {pieces} pieces, but the model's text vocabulary has {config.vocab_size}"
        )
    return tokenizer
