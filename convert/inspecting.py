"""`inspect FOLDER`: what a checkpoint is, without loading it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moshi_mlx.checkpoints import hub
from moshi_mlx.checkpoints.names import MIMI_NAME
from moshi_mlx.checkpoints.personas.voices import Voices
from moshi_mlx.checkpoints.quantization import PARTS, Quantization
from moshi_mlx.checkpoints.reading import LAYOUTS, Checkpoint, open_checkpoint, read_tokenizer
from moshi_mlx.checkpoints.safetensors import FLOATS
from moshi_mlx.checkpoints.writing import NAMED_QUANTIZATIONS, Plan
from moshi_mlx.terminal import streams
from moshi_mlx.terminal.arguments import Parser
from moshi_mlx.terminal.progress import progress
from moshi_mlx.terminal.sizes import size

from . import describing
from .card import run_line

READ_BYTES = 2**22


def collapsed(paths: Iterable[str]) -> list[str]:
    """Paths that differ in their layer numbers only, as one: transformer.layers.0-31.gating.linear_in."""
    numbers: dict[str, list[tuple[int, ...]]] = {}
    for path in paths:
        numbers.setdefault(re.sub(r"\d+", "#", path), []).append(tuple(int(n) for n in re.findall(r"\d+", path)))
    lines = []
    for pattern, found in numbers.items():
        for column in zip(*found, strict=True):
            low, high = min(column), max(column)
            pattern = pattern.replace("#", str(low) if low == high else f"{low}-{high}", 1)
        lines.append(pattern)
    return lines


def bits_lines(quantized: Mapping[str, Quantization | None]) -> list[str]:
    """How the matrices are quantized, those alike in one line."""
    kinds: dict[Quantization | None, list[str]] = {}
    for path, kind in quantized.items():
        kinds.setdefault(kind, []).append(path)
    if set(kinds) <= {None}:
        return []
    return [
        f"{kind or 'not quantized'}: {', '.join(collapsed(paths))}"
        for kind, paths in sorted(kinds.items(), key=lambda item: (item[0] is None, item[0] or ()))
    ]


def bits_per_weight(plan: Plan, quantized: Mapping[str, Quantization | None]) -> float:
    """What a weight of the language model takes in a plan, with its share of the scales."""
    bits = count = 0
    for file, blocks in plan.weights.items():
        for name, info in ((name, info) for block in blocks for name, info in block.infos.items()):
            if file == MIMI_NAME or name.startswith("audio_encoder."):
                continue
            stem, _, leaf = name.rpartition(".")
            kind = quantized.get(stem)
            bits += 8 * info.nbytes
            numbers = math.prod(info.shape)
            count += numbers if not kind else numbers * 32 // kind.bits if leaf == PARTS[0] else 0
    return bits / count if count else 0.0


def readers(checkpoint: Checkpoint) -> list[str]:
    """The programs that would load it, and those that would not, with the reason."""
    if checkpoint.lora.get("lora_name"):
        return ["moshi_mlx: no, the LoRA is not merged yet (python -m moshi_mlx.convert merges it)"]
    text = "" if checkpoint.tokenizer else " (without text: it has no sentencepiece tokenizer)"
    lines = [f"moshi_mlx: yes, {run_line(checkpoint.config.role, 'FOLDER')}{text}"]
    if checkpoint.layout == "huggingface":
        return [*lines, "transformers: yes, MoshiForConditionalGeneration.from_pretrained"]
    if checkpoint.layout == "kyutai":
        one = len(set(checkpoint.language.files.values())) == 1
        if checkpoint.depth_steps > checkpoint.config.num_codebooks:
            return [*lines, "moshi (PyTorch): no, it has depth slices of both sides; NVIDIA's fork of it knows those"]
        return [*lines, f"moshi (PyTorch): {'yes' if one else 'no, it reads one file, not shards'}{_plain(checkpoint)}"]
    return [*lines, f"moshi_mlx 0.3 and moshi-swift: {_earlier(checkpoint)}{_plain(checkpoint)}"]


def _plain(checkpoint: Checkpoint) -> str:
    return " (as a Moshi, without voice and persona)" if checkpoint.personas else ""


def _earlier(checkpoint: Checkpoint) -> str:
    files, kinds = set(checkpoint.language.files.values()), set(checkpoint.quantized.values())
    kind = next(iter(kinds))
    if len(kinds) > 1 or (kind and kind not in NAMED_QUANTIZATIONS):
        return "no, they know 4 bits in groups of 32 and 8 bits in groups of 64 for all matrices alike"
    if len(files) > 1:
        return "no, they read one file (convert with --max-shard-size 20)"
    name = next(iter(files)).name
    wanted = NAMED_QUANTIZATIONS[kind] if kind else "model.safetensors"
    ending = wanted.removeprefix("model")
    fits = name.endswith(ending) and (bool(kind) or not name.endswith((".q4.safetensors", ".q8.safetensors")))
    return "yes" if fits else f"no, its name {name} does not end in {ending}"


def describe(checkpoint: Checkpoint) -> list[str]:
    """Layout, sizes, types and bits, as lines."""
    config = checkpoint.config
    tensors = checkpoint.language.tensors
    types = sorted({t.info.dtype for n, t in tensors.items() if t.info.dtype in FLOATS})
    count = sum(_weights(checkpoint, name) for name in tensors)
    mimi = checkpoint.mimi.tensors.values()
    codec = config.audio_encoder_config
    return [
        f"layout: {LAYOUTS[checkpoint.layout]}",
        *_personas(checkpoint),
        *describing.role_lines(config, checkpoint.model_id),
        describing.temporal_line(config),
        describing.depth_line(config, _steps(checkpoint)),
        describing.streams_line(config),
        f"language model: {count:,} weights, {', '.join(types)}, {size(sum(t.info.nbytes for t in tensors.values()))}",
        f"codec: {codec.num_quantizers} codebooks of {codec.codebook_size}, {size(sum(t.info.nbytes for t in mimi))}",
        *(f"bits: {line}" for line in bits_lines(checkpoint.quantized) or ["not quantized"]),
    ]


def _steps(checkpoint: Checkpoint) -> str:
    own = checkpoint.config.num_codebooks
    if checkpoint.depth_steps <= own:
        return f"{own} steps"
    return f"{own} of {checkpoint.depth_steps} steps (the others are the user's side, and not read)"


def _personas(checkpoint: Checkpoint) -> list[str]:
    if not checkpoint.personas:
        return []
    names = Voices(checkpoint.folder).names()
    return [f"kind: PersonaPlex, a Moshi that takes a voice and a persona; voices: {', '.join(names) or 'none here'}"]


def _weights(checkpoint: Checkpoint, name: str) -> int:
    """How many weights a tensor stands for; the scales of a quantized matrix are none."""
    info = checkpoint.language.tensors[name].info
    stem, _, leaf = name.rpartition(".")
    kind = checkpoint.quantized.get(stem)
    count = 1
    for length in info.shape:
        count *= length
    if not kind:
        return count
    return count * 32 // kind.bits if leaf == PARTS[0] else 0


def checksums(files: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of every file, as the hub shows it of large ones."""
    sums = {}
    with progress("checksum", sum(file.stat().st_size for file in files)) as done:
        for file in files:
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while chunk := stream.read(READ_BYTES):
                    digest.update(chunk)
                    done(len(chunk))
            sums[file] = digest.hexdigest()
    return sums


def main(argv: Sequence[str]) -> int:
    """`inspect`: prints and returns the exit status."""
    parser = Parser("python -m moshi_mlx.convert inspect", description="What a checkpoint is.")
    parser.add_argument("folder", metavar="FOLDER_OR_HUB_ID")
    parser.add_argument("--no-checksum", action="store_true", help="do not read the files for their checksums")
    arguments = parser.parse_args(argv)
    checkpoint = open_checkpoint(hub.local_folder(arguments.folder))
    if checkpoint.tokenizer:
        read_tokenizer(checkpoint.tokenizer, checkpoint.config)
    streams.tell("\n".join([f"{checkpoint.folder}", *describe(checkpoint), *readers(checkpoint)]))
    parts = (checkpoint.language.files, checkpoint.mimi.files)
    files = list(dict.fromkeys(file for part in parts for file in part.values()))
    files += [checkpoint.tokenizer] if checkpoint.tokenizer else []
    sums = {} if arguments.no_checksum else checksums(files)
    for file in files:
        streams.tell(f"file: {file.name}  {size(file.stat().st_size)}" + (f"  sha256 {sums[file]}" if sums else ""))
    return 0
