"""Write a checkpoint of random weights in Kyutai's MLX layout, with codec and tokenizer: for benchmarks.

    python -m bench.random_checkpoint 7b moshi-random-q4 --bits 4

Sizes: small (3 MB, codec included), tiny, mid (1.57 GB of float32), 7b (Moshi), and those of `published`. Seeded: the
same bytes every time.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from moshi_mlx import MimiConfig, MimiModel, MoshiConfig, MoshiForConditionalGeneration
from moshi_mlx.checkpoints.filling import module_at
from moshi_mlx.checkpoints.layouts import Row, conditions, kept_whole, kyutai_mlx, linear, mimi
from moshi_mlx.checkpoints.quantization import Quantization
from moshi_mlx.models.layers.conv import StridedConv, TransposedConv

from .published import PUBLISHED

Bits = int | str | None  # a key of QUANTIZED, or None
QUANTIZED: dict[Any, Quantization] = {
    4: Quantization(4, 32), 8: Quantization(8, 64), "mxfp4": Quantization(4, 32, "mxfp4")
}  # fmt: skip
MIMI_NAME, TOKENIZER_NAME = "mimi.safetensors", "tokenizer.model"


def lm_config(dim: int, layers: int, depth_dim: int, depth_layers: int, text_card: int, card: int) -> dict[str, Any]:
    """Kyutai's config.json of a Moshi of these sizes, heads of 64 (7B: 128)."""
    return {
        "dim": dim, "text_card": text_card, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": card,
        "num_heads": max(1, dim // (128 if dim >= 4096 else 64)), "num_layers": layers, "hidden_scale": 4.125,
        "causal": True, "layer_scale": None, "context": 3000, "max_period": 10000, "gating": "silu",
        "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_dim": depth_dim,
        "depformer_dim_feedforward": int(4.125 * depth_dim), "depformer_num_heads": max(1, depth_dim // 64),
        "depformer_num_layers": depth_layers, "depformer_layer_scale": None, "depformer_multi_linear": True,
        "depformer_context": 8, "depformer_max_period": 10000, "depformer_gating": "silu",
        "depformer_pos_emb": "none", "depformer_weights_per_step": True, "delays": [0] + ([0] + [1] * 7) * 2,
    }  # fmt: skip


def mimi_config(filters: int, dim: int, layers: int, hidden: int, entries: int, entry_dim: int, codebooks: int) -> dict:
    """Kyutai's configuration of a codec of these sizes; frames stay 80 ms."""
    return {
        "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
        "seanet": {
            "channels": 1, "dimension": dim, "causal": True, "n_filters": filters, "n_residual_layers": 1,
            "activation": "ELU", "compress": 2, "dilation_base": 2, "kernel_size": 7, "residual_kernel_size": 3,
            "last_kernel_size": 3, "norm": "none", "pad_mode": "constant", "ratios": [8, 6, 5, 4], "true_skip": True,
        },
        "quantizer": {
            "dimension": entry_dim, "n_q": codebooks, "bins": entries, "input_dimension": dim, "output_dimension": dim,
        },
        "transformer": {
            "d_model": dim, "num_heads": dim // 64 or 1, "num_layers": layers, "causal": True, "layer_scale": 0.01,
            "context": 250, "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm",
            "positional_embedding": "rope", "dim_feedforward": hidden, "input_dimension": dim,
            "output_dimensions": [dim],
        },
    }  # fmt: skip


FULL_MIMI = mimi_config(64, 512, 8, 2048, 2048, 256, 32)
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (lm_config(64, 2, 64, 2, 256, 64), mimi_config(4, 64, 2, 128, 64, 32, 8)),
    "tiny": (lm_config(64, 2, 64, 6, 512, 2048), FULL_MIMI),
    "mid": (lm_config(1024, 8, 512, 6, 32000, 2048), FULL_MIMI),
    "7b": (lm_config(4096, 32, 1024, 6, 32000, 2048), FULL_MIMI),
    **{name: (keys, FULL_MIMI) for name, keys in PUBLISHED.items()},
}


def bits_of(flag: str) -> Bits:
    """What `--bits` says: "none", "4", "8", "mxfp4"."""
    return {"none": None, **{str(bits): bits for bits in QUANTIZED}}[flag]


def language_tensors(config: MoshiConfig, bits: Bits, dtype: mx.Dtype) -> Iterator[tuple[str, mx.array]]:
    """(name, tensor) of a language model in the MLX layout; with `bits` all matrices in QUANTIZED[bits]."""
    shared: dict[str, mx.array] = {}  # the steps of a depth decoder have the same norms
    model = MoshiForConditionalGeneration(config)  # zeros that are never evaluated: only their shapes are read
    whole, told = kept_whole(config), {name for row in conditions(config) for name in row.theirs}
    for row in kyutai_mlx(config):
        shape = _shape_of(model, row)
        rows = row.rows or (shape[0] // len(row.theirs),) * len(row.theirs)
        for name, count in zip(row.theirs, rows, strict=True):
            kept = name.removesuffix(".weight") in whole
            kind = mx.float32 if name in told else dtype
            for made, value in _tensor(name, (count, *shape[1:]), None if kept else bits, kind):
                norm = "depformer" in made and "transformer." in made and ".norm" in made
                yield made, shared.setdefault(made.split("transformer.")[1], value) if norm else value


def _shape_of(model: nn.Module, row: Row) -> tuple[int, ...]:
    """The shape of a row's tensors, joined, in the file's order of axes."""
    module, leaf = module_at(model, row.ours)
    shape = tuple(module[leaf].shape)
    return shape[::-1] if row.build is linear else shape


def _tensor(name: str, shape: tuple[int, ...], bits: Bits, dtype: mx.Dtype) -> Iterator[tuple[str, mx.array]]:
    if len(shape) == 1:
        yield name, (1 + 0.1 * mx.random.normal(shape)).astype(dtype)
        return
    spread = 0.5 if "emb" in name else 1 / math.sqrt(shape[-1])
    if bits is None:
        yield name, (spread * mx.random.normal(shape)).astype(dtype)
        return
    width, group_size, mode = QUANTIZED[bits]
    groups = (shape[0], shape[1] // group_size)
    yield name, mx.random.randint(0, 2**32 - 1, (shape[0], shape[1] * width // 32), mx.uint32)
    if mode != "affine":  # a power of two for a group: all 4-bit floats together deviate by some 2.8
        yield name.replace("weight", "scales"), mx.full(groups, 127 + round(math.log2(spread / 2.8)), mx.uint8)
        return
    scales = mx.full(groups, spread * math.sqrt(12) / 2**width, dtype)  # evenly spread levels of that deviation
    yield name.replace("weight", "scales"), scales
    yield name.replace("weight", "biases"), (-(2 ** (width - 1)) * scales).astype(dtype)


def mimi_tensors(config: MimiConfig) -> Iterator[tuple[str, mx.array]]:
    """(name, tensor) of a codec in Kyutai's PyTorch layout whose activations neither die nor blow up."""
    model = MimiModel(config)
    rows = {row.theirs: row for row in mimi(config)}  # of several rows of one tensor the last
    for row in rows.values():
        shape = _shape_of(model, row)
        if row.theirs[0].endswith("embedding_sum"):
            yield from _codebook_tensors(row, config)
        elif "layer_scale" in row.ours:
            yield row.theirs[0], mx.full(shape, 0.3)
        elif len(shape) == 1:
            yield (
                row.theirs[0],
                float(row.ours.endswith(("norm1.weight", "norm2.weight"))) + 0.05 * mx.random.normal(shape),
            )
        else:
            for name in row.theirs:
                shape = _convolution_shape(model, row)
                around = 0.5 if row.ours.startswith("upsample") else 0.0
                spread = 0.1 if around else 1 / math.sqrt(math.prod(shape[1:]))
                yield name, around + spread * mx.random.normal(shape)


def _codebook_tensors(row: Row, config: MimiConfig) -> Iterator[tuple[str, mx.array]]:
    for total, usage in zip(row.theirs[::2], row.theirs[1::2], strict=True):
        yield total, 0.5 * mx.random.normal((config.codebook_size, config.codebook_dim))
        yield usage, 0.5 + mx.random.uniform(shape=(config.codebook_size,))
        yield total.replace("embedding_sum", "_initialized"), mx.ones((1,))


def _convolution_shape(model: MimiModel, row: Row) -> tuple[int, ...]:
    """The shape of the tensor that one of our matrices is made of."""
    path = row.ours.split(".")
    layer, leaf = module_at(model, row.ours)
    shape = tuple(layer[leaf].shape)
    if row.build is linear:
        return shape[::-1]
    if path[0] == "quantizer":
        dim, hidden = model.config.codebook_dim, model.config.hidden_size
        return (dim, hidden, 1) if "input" in row.ours else (hidden, dim, 1)
    if "halves" in path:
        return (shape[1], 1, 2 * shape[0])
    if isinstance(layer, TransposedConv):
        return (shape[0] // 2, shape[1] // layer.stride, 2 * layer.stride)
    kernel = 2 * layer.stride if isinstance(layer, StridedConv) else layer.kernel_size
    return (shape[1], shape[0] // kernel, kernel)


def tokenizer_bytes(pieces: int) -> bytes:
    """A sentencepiece model (a protocol buffer) of so many made-up pieces, padding and the like at Moshi's ids."""

    def field(number: int, kind: int, payload: bytes) -> bytes:
        return bytes([number << 3 | kind]) + payload

    def sized(payload: bytes) -> bytes:
        length, head = len(payload), b""
        while length > 127:
            head, length = head + bytes([length & 127 | 128]), length >> 7
        return head + bytes([length]) + payload

    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<pad>", 3)]
    words = [(f"\u2581{_word(n)}", 1) for n in range(pieces - len(special))]
    proto = b""
    for n, (piece, kind) in enumerate(special + words):
        text = field(1, 2, sized(piece.encode()))
        proto += field(1, 2, sized(text + field(2, 5, struct.pack("<f", -float(n))) + field(3, 0, bytes([kind]))))
    return proto


def _word(n: int) -> str:
    """The n-th word of consonants and vowels: ba, be, bi, ..., then longer ones."""
    consonants, vowels, word, n = "bdfgklmnprst", "aeiou", "", n + 1
    while n:
        n, syllable = divmod(n - 1, len(consonants) * len(vowels))
        word = consonants[syllable // len(vowels)] + vowels[syllable % len(vowels)] + word
    return word


def write(folder: Path, size: str, bits: Bits, dtype: mx.Dtype, mimi_dtype: mx.Dtype, seed: int = 0) -> None:
    """The whole checkpoint of a size in `folder`."""
    language, codec = SIZES[size]
    mimi_sizes = MimiConfig.from_kyutai(codec, size)
    config = MoshiConfig.from_kyutai(language, size, mimi_sizes)
    folder.mkdir(parents=True, exist_ok=True)
    mx.random.seed(seed)
    files = {"mimi_name": MIMI_NAME, "tokenizer_name": TOKENIZER_NAME, "mimi_config_name": "mimi_config.json"}
    (folder / "config.json").write_text(json.dumps({**language, **files}, indent=1) + "\n")
    (folder / "mimi_config.json").write_text(json.dumps(codec, indent=1) + "\n")
    (folder / TOKENIZER_NAME).write_bytes(tokenizer_bytes(config.vocab_size))
    tensors = {name: value.astype(mimi_dtype) for name, value in mimi_tensors(mimi_sizes)}
    mx.save_safetensors(str(folder / MIMI_NAME), tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(language_tensors(config, bits, dtype)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights.")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", choices=[str(bits) for bits in QUANTIZED], help="4 and 8 as Kyutai's q4 and q8 files")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    mimi_dtype = mx.bfloat16 if arguments.size == "small" else mx.float32
    dtype = getattr(mx, arguments.dtype)
    if arguments.bits and arguments.size in ("small", "tiny"):
        parser.error(f"--bits: the matrices of {arguments.size} are no whole groups of quantization; take mid or 7b")
    write(arguments.folder, arguments.size, bits_of(arguments.bits or "none"), dtype, mimi_dtype, arguments.seed)
    total = sum(file.stat().st_size for file in arguments.folder.iterdir())
    print(f"{arguments.folder}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
