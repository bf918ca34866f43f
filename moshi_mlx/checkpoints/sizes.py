"""Sizes: what the tensors of a file tell of them, and whether those of a config can be theirs.

A config is held against its files before any module is built of it, so that a kilobyte of it never asks for gigabytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..models.config import MimiConfig, MoshiConfig
from ..terminal.sizes import size
from .safetensors import Tensor

WEIGHTS_OF_A_BYTE = 4  # at most: in 2 bits each


def check_sizes(config: MoshiConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ConfigError where files of these tensors cannot hold a language model of these sizes."""
    depth, streams = config.depth_decoder_config, len(config.audio_delays)
    layers, codebooks = config.num_hidden_layers, config.num_codebooks if streams else 0
    counts = {"num_hidden_layers": layers, "num_codebooks": codebooks, "audio_delays": streams}
    counts |= {"extra_heads": config.extra_heads, "conditions": len(config.conditions)}
    weights = layers * _layer(config, 3 * (config.ffn_dim // 2))
    weights += config.hidden_size * (sum(config.table_rows) + config.text_classes)
    weights += sum(one.bins * one.dim + config.hidden_size * one.dim for one in config.conditions)
    if codebooks:
        sets, width = depth.weight_sets, depth.low_rank_embeddings or depth.hidden_size
        weights += sets * depth.num_hidden_layers * _layer(depth, 3 * (depth.ffn_dim // 2))
        weights += depth.hidden_size * (sets * depth.input_size + codebooks * depth.audio_vocab_size)
        weights += width * (depth.vocab_size + (codebooks - 1) * depth.audio_vocab_size)
    _check(counts, weights, tensors, where)


def check_codec_sizes(config: MimiConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ConfigError where files of these tensors cannot hold a codec of these sizes."""
    counts = {"num_hidden_layers": config.num_hidden_layers, "num_quantizers": config.num_quantizers}
    widths = [config.num_filters * 2**n for n in range(len(config.upsampling_ratios) + 1)]
    weights = 2 * config.num_hidden_layers * _layer(config, 2 * config.intermediate_size)
    weights += config.num_quantizers * config.codebook_size * config.codebook_dim
    weights += 2 * widths[-1] * config.hidden_size * config.last_kernel_size + 2 * widths[0] * config.kernel_size
    stages = zip(reversed(config.upsampling_ratios), widths, widths[1:], strict=False)
    weights += sum(4 * ratio * narrow * wide for ratio, narrow, wide in stages)
    _check(counts, weights, tensors, where)


def _layer(config: Any, mlp: int) -> int:
    """Weights of a transformer's layer, with `mlp` rows in its MLP."""
    heads = 2 * (config.num_attention_heads + config.key_value_heads)
    return config.hidden_size * (heads * config.head_width + mlp)


def _check(counts: dict[str, int], weights: int, tensors: Mapping[str, Tensor], where: str) -> None:
    for name, count in counts.items():
        if count > len(tensors):
            raise ConfigError(f"{where}: {name} says {count}, but the file has {len(tensors)} tensors in all")
    held = sum(tensor.info.nbytes for tensor in tensors.values())
    if weights > WEIGHTS_OF_A_BYTE * held:
        raise ConfigError(f"{where}: asks for {weights:,} weights, but the file holds {size(held)} in all")


def sizes_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What the tensors of the MLX layout tell, quantized or not: rows are never packed."""

    def rows(name: str) -> int:
        return next(iter(tensors[name].info.shape), 0) if name in tensors else 0

    def count(prefix: str) -> int:
        heads = (name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix))
        return 1 + max((int(head) for head in heads if head.isdecimal() and len(head) < 10), default=-1)

    depth = "depformer.slices.0.transformer.layers."
    return {
        "hidden_size": rows("out_norm.weight"),
        "num_hidden_layers": count("transformer.layers."),
        "vocab_size": rows("text_linear.weight"),
        "audio_vocab_size": rows("depformer.slices.0.linear_out.weight"),
        "audio_streams": count("audio_embs."),
        "ffn_dim": rows("transformer.layers.0.gating.linear_in.weight"),
        "num_codebooks": count("depformer.slices."),
        "depth_hidden_size": rows(f"{depth}0.norm1.weight"),
        "depth_num_hidden_layers": count(depth),
        "depth_ffn_dim": rows(f"{depth}0.gating.linear_in.weight"),
    }


def sizes_of_preset(config: MoshiConfig) -> dict[str, int]:
    """The same of a config."""
    depth = config.depth_decoder_config
    names = ("hidden_size", "num_hidden_layers", "vocab_size", "audio_vocab_size", "ffn_dim", "num_codebooks")
    sizes = {name: getattr(config, name) for name in names} | {"audio_streams": len(config.audio_delays)}
    return sizes | {f"depth_{n}": getattr(depth, n) for n in ("hidden_size", "num_hidden_layers", "ffn_dim")}
