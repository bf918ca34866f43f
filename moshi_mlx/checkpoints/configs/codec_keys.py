"""The codec's part of Kyutai's configuration files as the fields of our config, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .keys import Keys


def mimi_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """From the file that `mimi_config_name` names in Kyutai's checkpoints."""
    top = Keys(values, where)
    seanet = Keys(top.take("seanet", dict), f"{where}: seanet")
    quantizer = Keys(top.take("quantizer", dict), f"{where}: quantizer")
    transformer = Keys(top.take("transformer", dict), f"{where}: transformer")
    top.expect(channels=1)
    dimension = seanet.take("dimension", int)
    fields = {
        "sampling_rate": top.take("sample_rate", int),
        "frame_rate": top.take("frame_rate", float),
        "hidden_size": dimension,
        "num_filters": seanet.take("n_filters", int),
        "num_residual_layers": seanet.take("n_residual_layers", int, 1),
        "upsampling_ratios": seanet.numbers("ratios"),
        "kernel_size": seanet.take("kernel_size", int),
        "last_kernel_size": seanet.take("last_kernel_size", int),
        "residual_kernel_size": seanet.take("residual_kernel_size", int),
        "dilation_growth_rate": seanet.take("dilation_base", int, 2),
        "compress": seanet.take("compress", int, 2),
        "codebook_size": quantizer.take("bins", int),
        "codebook_dim": quantizer.take("dimension", int),
        "num_quantizers": quantizer.take("n_q", int),
        "num_semantic_quantizers": quantizer.take("n_q_semantic", int, 1),
        "num_hidden_layers": transformer.take("num_layers", int),
        "num_attention_heads": transformer.take("num_heads", int),
        "intermediate_size": transformer.take("dim_feedforward", int),
        "rope_theta": transformer.take("max_period", float, 10000.0),
        "sliding_window": transformer.take("context", int),
    }
    seanet.expect(
        channels=1, causal=True, activation="ELU", norm="none", pad_mode="constant", true_skip=True,
        disable_norm_outer_blocks=0,
    )  # fmt: skip
    quantizer.expect(input_dimension=dimension, output_dimension=dimension)
    transformer.expect(
        d_model=dimension, causal=True, gating="none", norm="layer_norm", positional_embedding="rope",
        conv_layout=True, input_dimension=dimension, output_dimensions=[dimension],
    )  # fmt: skip
    transformer.ignore("layer_scale")  # only the value that training started from
    for keys in (top, seanet, quantizer, transformer):
        keys.finish()
    return fields


def mimi_dict(config: Any) -> dict[str, Any]:
    """The file that `mimi_config_name` names, of a MimiConfig."""
    dim = config.hidden_size
    quantizer = {
        "dimension": config.codebook_dim, "n_q": config.num_quantizers, "bins": config.codebook_size,
        "input_dimension": dim, "output_dimension": dim,
    }  # fmt: skip
    if config.num_semantic_quantizers != 1:
        quantizer["n_q_semantic"] = config.num_semantic_quantizers
    return {
        "sample_rate": config.sampling_rate, "channels": 1, "frame_rate": config.frame_rate,
        "seanet": {
            "channels": 1, "dimension": dim, "causal": True, "n_filters": config.num_filters,
            "n_residual_layers": config.num_residual_layers, "activation": "ELU", "compress": config.compress,
            "dilation_base": config.dilation_growth_rate, "disable_norm_outer_blocks": 0,
            "kernel_size": config.kernel_size, "residual_kernel_size": config.residual_kernel_size,
            "last_kernel_size": config.last_kernel_size, "norm": "none", "pad_mode": "constant",
            "ratios": list(config.upsampling_ratios), "true_skip": True,
        },
        "quantizer": quantizer,
        "transformer": {
            "d_model": dim, "num_heads": config.num_attention_heads, "num_layers": config.num_hidden_layers,
            "causal": True, "layer_scale": 0.01, "context": config.sliding_window, "conv_layout": True,
            "max_period": whole(config.rope_theta), "gating": "none", "norm": "layer_norm",
            "positional_embedding": "rope",
            "dim_feedforward": config.intermediate_size, "input_dimension": dim, "output_dimensions": [dim],
        },
    }  # fmt: skip


def whole(value: float) -> float:
    """A whole number as Kyutai writes it."""
    return int(value) if value == int(value) else value
