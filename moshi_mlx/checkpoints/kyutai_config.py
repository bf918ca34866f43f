"""Kyutai's configuration files as the fields of our configs; every key is honoured or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import brief, require
from .keys import Keys

MAX_HIDDEN_SCALE = 100  # Kyutai's largest is 6


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


def moshi_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """From the language model's part of Kyutai's `config.json`; `depth_decoder_config` is a dict of fields."""
    keys = Keys(values, where)
    dim, dep_q, n_q = keys.take("dim", int), keys.take("dep_q", int), keys.take("n_q", int)
    delays = keys.numbers("delays")
    require(
        1 <= dep_q <= n_q,
        f"{where}: key 'dep_q' is {brief(dep_q)}, expected 1 or more, and at most n_q = {brief(n_q)}",
    )
    require(
        len(delays) == n_q + 1,
        f"{where}: key 'delays' has {len(delays)} values, expected {brief(n_q + 1)} (text, then n_q = {brief(n_q)})",
    )
    require(delays[0] == 0, f"{where}: key 'delays' gives text a delay of {brief(delays[0])}, expected 0")
    speaking = _speaking(dep_q, delays)
    common = {
        "vocab_size": keys.take("text_card", int),
        "audio_vocab_size": keys.take("card", int),
        "rms_norm_eps": _norm_eps(keys),
        "num_codebooks": speaking,
    }
    repeat = keys.take("kv_repeat", int, 1)
    hidden_scale = keys.take("hidden_scale", float, 4.0)
    require(
        0 < hidden_scale <= MAX_HIDDEN_SCALE,
        f"{where}: key 'hidden_scale' is {hidden_scale!r}, expected a number above 0 and at most {MAX_HIDDEN_SCALE}",
    )
    depth = _depth_fields(keys, dim, dep_q, common, hidden_scale, repeat)
    heads = keys.take("num_heads", int)
    fields = {
        "hidden_size": dim,
        "num_hidden_layers": keys.take("num_layers", int),
        "num_attention_heads": heads,
        "num_key_value_heads": _shared(keys, heads, repeat, "kv_repeat"),
        "rope_theta": keys.take("max_period", float, 10000.0),
        "sliding_window": keys.take("context", int),
        "ffn_dim": _gated_ffn_dim(dim, int(hidden_scale * dim)),
        "audio_delays": delays[1:],
        "silent_text_tokens": (
            keys.take("existing_text_end_padding_id", int, 0), keys.take("existing_text_padding_id", int, 3),
        ),
        "depth_decoder_config": depth,
        **common,
    }  # fmt: skip
    keys.expect(
        causal=True, layer_scale=None, gating="silu", positional_embedding="rope", cross_attention=False,
        demux_second_stream=False, demux_second_text_stream=False, extra_heads_num_heads=0, norm_emb=False,
        bias_proj=False, conditioners={}, lora=False, quantize=False,
        text_card_out=common["vocab_size"],
    )  # fmt: skip
    _expect_no_fuser(keys)
    keys.ignore("extra_heads_dim", "lora_rank", "lora_scaling", "gradient_checkpointing")
    keys.finish()
    return fields


def _speaking(dep_q: int, delays: tuple[int, ...]) -> int:
    """Moshi's own codebooks: the first half of a depth decoder with steps for both sides, which are alike in delays.

    PersonaPlex and fine-tunes that also predict the user have such a one.
    """
    half = dep_q // 2
    both = dep_q == len(delays) - 1 and dep_q % 2 == 0 and delays[1 : 1 + half] == delays[1 + half :]
    return half if both else dep_q


def text_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """From the `config.json` of a model of text alone, but for `ffn_dim`, on which Kyutai's packages do not agree."""
    keys = Keys(values, where)
    heads = keys.take("num_heads", int)
    fields = {
        "vocab_size": keys.take("text_card", int),
        "hidden_size": keys.take("dim", int),
        "num_hidden_layers": keys.take("num_layers", int),
        "num_attention_heads": heads,
        "num_key_value_heads": _shared(keys, heads, keys.take("kv_repeat", int, 1), "kv_repeat"),
        "rope_theta": keys.take("max_period", float, 10000.0),
        "sliding_window": keys.take("context", int),
        "rms_norm_eps": _norm_eps(keys),
        "audio_delays": (),
        "silent_text_tokens": (),
    }
    keys.expect(n_q=0, dep_q=0, delays=[0], causal=True, gating="silu", positional_embedding="rope")
    keys.ignore("hidden_scale", "card", "model_type", "moshi_name", "tokenizer_name")
    keys.finish()
    return fields


def _shared(keys: Keys, heads: int, repeat: int, key: str) -> int:
    """Key and value heads, each of which `repeat` query heads share."""
    require(
        repeat >= 1 and heads % repeat == 0,
        f"{keys.where}: key {key!r} is {brief(repeat)}, expected a divisor of the {brief(heads)} heads",
    )
    return heads // repeat


def _expect_no_fuser(keys: Keys) -> None:
    """A fuser says where conditions go in; one that lists none changes nothing."""
    fuser = keys.take("fuser", dict, {})
    said = [name for name, value in fuser.items() if isinstance(value, (list, dict, str)) and value]
    require(not said, f"{keys.where}: key 'fuser' has conditions ({brief(fuser)}), which are not supported")


def _norm_eps(keys: Keys) -> float:
    norms = {"rms_norm_f32": 1e-8, "rms_norm": 1e-5}
    norm = keys.take("norm", str)
    require(norm in norms, f"{keys.where}: key 'norm' is {brief(norm)}, expected one of {sorted(norms)}")
    return norms[norm]


def _gated_ffn_dim(dim: int, dim_feedforward: int) -> int:
    """Twice the hidden width of Kyutai's gated MLP: 2/3 of dim_feedforward, or 21/8 of dim where that is 4 x dim."""
    return 2 * ((21 * dim) // 8 if dim_feedforward == 4 * dim else (2 * dim_feedforward) // 3)


def _depth_fields(
    keys: Keys, input_size: int, dep_q: int, common: dict[str, Any], hidden_scale: float, repeat: int
) -> dict[str, Any]:
    dim = keys.take("depformer_dim", int)
    heads = keys.take("depformer_num_heads", int)
    feedforward = keys.take("depformer_dim_feedforward", int, None)
    schedule = keys.numbers("depformer_weights_per_step_schedule", None)
    if schedule is not None and len(schedule) == dep_q:
        schedule = schedule[: common["num_codebooks"]]
    keys.expect(
        depformer_causal=True, depformer_layer_scale=None, depformer_gating="silu", depformer_pos_emb="none",
        depformer_norm=None,
    )  # fmt: skip
    keys.expect_present(depformer_multi_linear=True, depformer_weights_per_step=True)
    # The reference gives its depth decoder neither: it sees all of its few steps and has no positions.
    keys.ignore("depformer_context", "depformer_max_period")
    return {
        "hidden_size": dim,
        "input_size": input_size,
        "num_hidden_layers": keys.take("depformer_num_layers", int),
        "num_attention_heads": heads,
        "num_key_value_heads": _shared(
            keys, heads, keys.take("depformer_kv_repeat", int, repeat), "depformer_kv_repeat"
        ),
        "ffn_dim": _gated_ffn_dim(dim, int(hidden_scale * dim) if feedforward is None else feedforward),
        "weights_per_step_schedule": schedule,
        "low_rank_embeddings": keys.take("depformer_low_rank_embeddings", int, None),
        "sliding_window": common["num_codebooks"],
        "max_position_embeddings": common["num_codebooks"] + 1,
        **common,
    }


def moshi_dict(config: Any) -> dict[str, Any]:
    """The language model's part of Kyutai's `config.json`, of a MoshiConfig that it can express."""
    depth = config.depth_decoder_config
    end_padding, padding = config.silent_text_tokens
    schedule = depth.weights_per_step_schedule
    values = {
        "dim": config.hidden_size, "text_card": config.vocab_size, "existing_text_padding_id": padding,
        "n_q": len(config.audio_delays), "dep_q": config.num_codebooks, "card": config.audio_vocab_size,
        "num_heads": config.num_attention_heads, "num_layers": config.num_hidden_layers,
        "hidden_scale": _dim_feedforward(config) / config.hidden_size, "causal": True, "layer_scale": None,
        "context": config.sliding_window, "max_period": _whole(config.rope_theta), "gating": "silu",
        "norm": {1e-8: "rms_norm_f32", 1e-5: "rms_norm"}.get(config.rms_norm_eps), "positional_embedding": "rope",
        "depformer_dim": depth.hidden_size, "depformer_dim_feedforward": _dim_feedforward(depth),
        "depformer_num_heads": depth.num_attention_heads, "depformer_num_layers": depth.num_hidden_layers,
        "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": config.num_codebooks,
        "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
        "depformer_weights_per_step": True, "delays": [0, *config.audio_delays],
    }  # fmt: skip
    optional = {
        "existing_text_end_padding_id": (end_padding, 0),
        "kv_repeat": (config.num_attention_heads // config.key_value_heads, 1),
        "depformer_kv_repeat": (
            depth.num_attention_heads // depth.key_value_heads, config.num_attention_heads // config.key_value_heads,
        ),
        "depformer_weights_per_step_schedule": (schedule and list(schedule), None),
        "depformer_low_rank_embeddings": (depth.low_rank_embeddings, None),
    }  # fmt: skip
    return values | {name: value for name, (value, usual) in optional.items() if value != usual}


def _whole(value: float) -> float:
    """A whole number as Kyutai writes it."""
    return int(value) if value == int(value) else value


def _dim_feedforward(config: Any) -> int:
    """A width that `_gated_ffn_dim` turns into this ffn_dim: the inverse of the 2/3, rounded up."""
    width = (3 * (config.ffn_dim // 2) + 1) // 2
    return 4 * config.hidden_size if config.ffn_dim == 2 * (21 * config.hidden_size // 8) else width


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
            "max_period": _whole(config.rope_theta), "gating": "none", "norm": "layer_norm",
            "positional_embedding": "rope",
            "dim_feedforward": config.intermediate_size, "input_dimension": dim, "output_dimensions": [dim],
        },
    }  # fmt: skip
