"""Hugging Face's `config.json` as the fields of our configs, and back (transformers 4.45 to 5.x).

A key is a field here, or has the one value that this package honours, or is listed as of no meaning here: what torch,
classifiers or text generators of other models would read. Any other is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from ...errors import require
from ...models.config import MoshiConfig
from .keys import Keys

# Fields of the same name and meaning, by type.
TRANSFORMER = {
    "hidden_size": int, "num_hidden_layers": int, "num_attention_heads": int, "num_key_value_heads": int,
    "head_dim": int, "sliding_window": int, "initializer_range": float,
}  # fmt: skip
DECODER = TRANSFORMER | {
    "vocab_size": int, "audio_vocab_size": int, "max_position_embeddings": int, "ffn_dim": int, "rms_norm_eps": float,
    "num_codebooks": int, "use_cache": bool, "hidden_act": str, "attention_dropout": float,
    "tie_word_embeddings": bool,
}  # fmt: skip
DEPTH = DECODER | {
    "input_size": int, "weights_per_step_schedule": list, "low_rank_embeddings": int, "output_norm": bool,
    "demuxed_text": bool,
}  # fmt: skip
MOSHI = DECODER | {"audio_delays": list, "silent_text_tokens": list}
MIMI = TRANSFORMER | {
    "sampling_rate": int, "num_filters": int, "num_residual_layers": int, "upsampling_ratios": list,
    "kernel_size": int, "last_kernel_size": int, "residual_kernel_size": int, "dilation_growth_rate": int,
    "compress": int, "codebook_size": int, "codebook_dim": int, "num_quantizers": int,
    "num_semantic_quantizers": int, "intermediate_size": int, "norm_eps": float,
}  # fmt: skip

# What this codec is; written as it is, and nothing else is read.
MIMI_CONSTANTS = {
    "audio_channels": 1, "use_causal_conv": True, "pad_mode": "constant", "trim_right_ratio": 1.0,
    "use_conv_shortcut": False, "hidden_act": "gelu", "attention_bias": False, "attention_dropout": 0.0,
}  # fmt: skip

# Fields of ours that transformers has not: written only where they say something else than it takes for granted.
OURS = {
    "audio_delays": None, "silent_text_tokens": (0, 3), "weights_per_step_schedule": None, "low_rank_embeddings": None,
    "output_norm": False, "demuxed_text": False,
}  # fmt: skip

# Fields that no config of transformers has, nor its model.
UNKNOWN = (
    "role", "conditions", "cross_attention", "rope_interleaved", "text_vocab_out", "extra_heads", "demuxed_text",
    "end_reads_as_padding",
)  # fmt: skip

# Keys that every transformers config may carry and that mean nothing here.
IGNORED = (
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_name_or_path", "add_cross_attention", "architectures", "attn_implementation", "auto_map",
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "label2id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix",
    "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16",
)  # fmt: skip
# Of the codec's: it has neither tables of positions nor a cache that could be left out, and the last is where training
# started from.
MIMI_IGNORED = (
    "max_position_embeddings", "use_cache", "use_streaming", "tie_word_embeddings", "layer_scale_initial_scale",
)  # fmt: skip


def moshi_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """From a `config.json` whose model_type is "moshi"; both sub-configs as dicts of fields."""
    keys = Keys(values, where)
    keys.expect(model_type="moshi", eos_token_id=None)
    fields = _same_names(keys, MOSHI) | _rope_theta(keys)
    depth = keys.take("depth_decoder_config", dict, {})
    mimi = keys.take("audio_encoder_config", dict, {})
    _finish(keys)
    fields["depth_decoder_config"] = depth_fields(depth, f"{where}: depth_decoder_config")
    fields["audio_encoder_config"] = mimi_fields(mimi, f"{where}: audio_encoder_config")
    return fields


def depth_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """From a depth decoder's config (model_type "moshi_depth")."""
    keys = Keys(values, where)
    keys.expect(model_type="moshi_depth", eos_token_id=None)
    fields = _same_names(keys, DEPTH)
    _finish(keys)
    return fields


def mimi_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """From a codec's config (model_type "mimi")."""
    keys = Keys(values, where)
    keys.expect(model_type="mimi", eos_token_id=None, **MIMI_CONSTANTS)
    fields = _same_names(keys, MIMI) | _rope_theta(keys)
    dim = fields.get("codebook_dim", 256)
    keys.expect(vector_quantization_hidden_dimension=dim, upsample_groups=fields.get("hidden_size", 512))
    newer, rate = (keys.take(name, float, None) for name in ("_frame_rate", "frame_rate"))
    rate = newer if rate is None else rate
    keys.ignore(*MIMI_IGNORED)
    _finish(keys)
    return fields | {"frame_rate": _derived_rate(fields) if rate is None else rate}


def _derived_rate(fields: Mapping[str, Any]) -> float:
    """What transformers makes of a frame rate that is not said: two positions of the transformers to a frame."""
    rate, ratios = fields.get("sampling_rate", 24000), fields.get("upsampling_ratios", (8, 6, 5, 4))
    hop = prod(ratios)
    return (
        rate / (2 * hop) if hop > 0 and 0 < rate < 2**31 else 12.5
    )  # the codec's own config says what is wrong with them


def _same_names(keys: Keys, table: dict[str, type]) -> dict[str, Any]:
    taken = {
        name: keys.numbers(name, None) if kind is list else keys.take(name, kind, None) for name, kind in table.items()
    }
    return {name: value for name, value in taken.items() if value is not None}


def _rope_theta(keys: Keys) -> dict[str, float]:
    """transformers 5 has it in `rope_parameters`, earlier ones as a key of its own."""
    theta = keys.take("rope_theta", float, None)
    rope = Keys(keys.take("rope_parameters", dict, None) or {}, f"{keys.where}: rope_parameters")
    keys.expect(rope_scaling=None)
    rope.expect(rope_type="default")
    newer = rope.take("rope_theta", float, None)
    rope.finish()
    require(
        theta is None or newer is None or theta == newer,
        f"{keys.where}: keys 'rope_theta' and 'rope_parameters' contradict: {theta} and {newer}",
    )
    theta = theta if newer is None else newer
    return {} if theta is None else {"rope_theta": theta}


def _finish(keys: Keys) -> None:
    keys.ignore(*IGNORED)
    keys.finish()


def moshi_dict(config: Any) -> dict[str, Any]:
    """A MoshiConfig as transformers writes it."""
    usual = OURS | {"audio_delays": (0, *[1] * (config.num_codebooks - 1)) * 2}
    return {
        "architectures": ["MoshiForConditionalGeneration"],
        "model_type": "moshi",
        **_written(config, MOSHI, usual),
        **_rope_dict(config),
        "depth_decoder_config": depth_dict(config.depth_decoder_config),
        "audio_encoder_config": mimi_dict(config.audio_encoder_config),
    }


def depth_dict(config: Any) -> dict[str, Any]:
    """A MoshiDepthConfig as transformers writes it."""
    return {"model_type": "moshi_depth", **_written(config, DEPTH, OURS)}


def mimi_dict(config: Any) -> dict[str, Any]:
    """A MimiConfig as transformers writes it."""
    derived = {
        "vector_quantization_hidden_dimension": config.codebook_dim,
        "upsample_groups": config.hidden_size,
        "frame_rate": config.frame_rate,
    }
    return {"model_type": "mimi", **_written(config, MIMI, {}), **MIMI_CONSTANTS, **derived, **_rope_dict(config)}


def _written(config: Any, table: dict[str, type], usual: dict[str, Any]) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in table}
    values |= {"num_key_value_heads": config.key_value_heads, "head_dim": config.head_width}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name not in usual or value != usual[name]
    }


def _rope_dict(config: Any) -> dict[str, Any]:
    """For transformers 4 and for 5."""
    return {
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
    }


def inexpressible(config: Any) -> list[str]:
    """Fields of a MoshiConfig whose value transformers could not honour, were it written for it."""
    # Steps that share weights are written out one by one, and which tokens are silent concerns who prints them.
    plain = MoshiConfig()
    lost = {name for name in UNKNOWN if getattr(config, name) != getattr(plain, name)}
    depth = config.depth_decoder_config
    names = ("low_rank_embeddings", "output_norm", "demuxed_text")
    lost |= {f"depth_decoder_config.{name}" for name in names if getattr(depth, name)}
    return sorted(lost | ({"audio_delays"} & set(moshi_dict(config))))
