"""A bundle: the folder of graphs, text and sizes that `embed/` loads beside the published weights. Below 1 MB."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..checkpoints.disk.folders import Kind, new_folder, refuse_existing, write_small
from ..checkpoints.hub import local_folder
from ..checkpoints.reading import Checkpoint, build, open_checkpoint
from ..checkpoints.safetensors import load_lazily
from ..conversation.duplex import delays_of
from ..conversation.text import bytes_of
from ..conversation.told import conversation_guidance
from ..errors import CheckpointError
from ..models.layers.cache import FUSED_HEADS
from ..models.moshi import Moshi
from ..models.roles import BOTH_SIDES, check_role
from ..models.sampling import MOSHI
from ..terminal.version import VERSION
from .functions import Functions, Told, prepare
from .tracing import FORMAT

MANIFEST, TEXT = "manifest.txt", "text.bin"
SAMPLES, SAMPLE = 64, 4096  # of a file of weights: blocks, and bytes of each
BUNDLE = Kind("a bundle", lambda folder: (folder / MANIFEST).is_file())


class Exported(NamedTuple):
    """What was written."""

    folder: Path
    files: dict[str, int]  # bytes of each


def export(
    path_or_hub_id: str | Path, folder: str | Path, dtype: mx.Dtype | None = None, kv_bits: int | None = None,
    overwrite: bool = False, conditions: Mapping[str, Any] | None = None, guidance: float | None = None,
) -> Exported:  # fmt: skip
    """Write the bundle of a checkpoint (a folder or hub id, any layout) to `folder`; nothing of the weights is in it.

    `dtype` is the type that the language model is run in (None: the stored one), `kv_bits` 8 or 4 keeps the attention
    cache in these. `conditions` and `guidance`, those of `Session`, hold for all conversations of the bundle. The same
    checkpoint gives the same bytes. Raises CheckpointError, ConfigError or InputError.
    """
    folder = Path(folder)
    refuse_existing(folder, overwrite, BUNDLE)
    checkpoint = open_checkpoint(local_folder(path_or_hub_id))
    files = files_of(checkpoint, dtype, kv_bits, conditions, guidance)
    with new_folder(folder, overwrite, BUNDLE) as partial:
        for name, data in files.items():
            write_small(partial / name, data)
    return Exported(folder, {name: len(data) for name, data in files.items()})


def files_of(
    checkpoint: Checkpoint, dtype: mx.Dtype | None, kv_bits: int | None, conditions: Mapping[str, Any] | None = None,
    guidance: float | None = None,
) -> dict[str, bytes]:  # fmt: skip
    """The files of a bundle by name."""
    check_role(checkpoint.config, *BOTH_SIDES)
    model = build(checkpoint, dtype, Moshi)
    told = Told(model.conditions.check(conditions), conversation_guidance(model, guidance))
    functions = Functions(model, kv_bits, told)
    tensors = _published(checkpoint)
    graphs = functions.graphs() | {"prepare": prepare(checkpoint, dtype, [value for *_, value in tensors])}
    files = {f"{name}.graph": text.encode() for name, text in sorted(graphs.items())}
    files[TEXT] = text_table(model.tokenizer, model.config.vocab_size, model.config.silent_text_tokens)
    lines = [*_head(functions, kv_bits, checkpoint), *_settings(model)]
    lines += [f"file {zlib.crc32(data):08x} {len(data)} {name}" for name, data in files.items()]
    weights = list(dict.fromkeys(file for file, *_ in tensors))
    lines.append(f"fingerprints {' '.join(map(fingerprint, weights))}")
    lines += [f"weights {file.name}" for file in weights]
    for file, name, value in tensors:
        shape = ",".join(map(str, value.shape))
        lines.append(f"tensor {weights.index(file)} {str(value.dtype).removeprefix('mlx.core.')} [{shape}] {name}")
    body = "\n".join(lines) + "\n"
    return files | {MANIFEST: f"{body}end {zlib.crc32(body.encode()):08x}\n".encode()}


def fingerprint(path: Path) -> str:
    """Length of a file, and a checksum of blocks spread over it: tells checkpoints apart without reading them whole."""
    size, crc = path.stat().st_size, 0
    with path.open("rb") as file:
        for k in range(SAMPLES):
            file.seek(k * max(size - SAMPLE, 0) // (SAMPLES - 1))
            crc = zlib.crc32(file.read(SAMPLE), crc)
    return f"{size}:{crc:08x}"


def _published(checkpoint: Checkpoint) -> list[tuple[Path, str, mx.array]]:
    """File, name and lazy value of every published tensor, in the order that `prepare` takes them."""
    found: list[tuple[Path, str, mx.array]] = []
    loaded: dict[Path, dict[str, mx.array]] = {}
    for part in (checkpoint.language, checkpoint.mimi):
        for name in sorted(part.tensors):
            file = part.files[name]
            if file not in loaded:
                loaded[file] = load_lazily(file)
            found.append((file, name, loaded[file][name]))
    _check_names(list(loaded))
    return found


def _check_names(files: list[Path]) -> None:
    names = [file.name for file in files]
    for file in files:
        if names.count(file.name) > 1:
            raise CheckpointError(f"{file}: two files of this name; put the checkpoint's files in one folder")


def _head(functions: Functions, kv_bits: int | None, checkpoint: Checkpoint) -> list[str]:
    config, codec, names = functions.config, functions.config.audio_encoder_config, functions.names
    values: dict[str, Any] = {
        "moshi_bundle": FORMAT,
        "made_by": f"moshi_mlx {VERSION}, MLX {version('mlx')}",
        "licence": _licence(checkpoint.folder),
        "sample_rate": codec.sampling_rate,
        "frame_size": codec.frame_size,
        "codebooks": config.num_codebooks,
        "user_codebooks": config.user_codebooks,
        "text_tokens": config.vocab_size,
        "audio_tokens": config.audio_vocab_size,
        "user_tokens": config.most_user_code + 1,  # with the end of a translator's source
        "delay": max(delays_of(config)[0]),
        "context": config.sliding_window,
        "kv_bits": kv_bits or 0,
        "one_ring_on_gpu": int(kv_bits is None and config.head_width in FUSED_HEADS),
        "capacities": " ".join(map(str, functions.capacities)),
        "parameters": len(functions.places),
        "small": len(names.small),
        "temporal": len(names.temporal),
        "encoder": len(names.encoder),
        "decoder": len(names.decoder),
    }
    return [f"{key} {value}" for key, value in values.items()]


def _settings(model: Moshi) -> list[str]:
    return [f"{key} {value!r}" for key, value in {**MOSHI, **model.sampling_defaults}.items() if key in MOSHI]


def _licence(folder: Path) -> str:
    """What the checkpoint's card says of its licence."""
    card = folder / "README.md"
    lines = card.read_text(errors="replace").splitlines() if card.exists() else []
    if lines[:1] == ["---"]:
        for line in lines[1:]:
            key, _, value = line.partition(":")
            if key in ("license", "licence") and value.strip():
                return value.strip()
            if line == "---":
                break
    return "not said; see where the weights come from"


def text_table(tokenizer: Any, vocabulary: int, silent: tuple[int, ...]) -> bytes:
    """What each token prints: two bytes of length, then UTF-8, perhaps of a part of a character."""
    pieces = [bytes_of(tokenizer, token, silent) for token in range(vocabulary)]
    return b"".join(len(piece).to_bytes(2, "little") + piece for piece in pieces)
