"""Kyutai's configuration files as the fields of our configs; every key is honoured or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import brief, require
from ...models.checks import MOST_OF_A_SIZE
from . import roles
from .codec_keys import whole
from .keys import Keys

MAX_HIDDEN_SCALE = 100  # Kyutai's largest is 6


def moshi_fields(values: Mapping[str, Any], where: str, kind: str = "") -> dict[str, Any]:
    """From the language model's part of Kyutai's `config.json`; `depth_decoder_config` is a dict of fields.

    `kind` is its model_type, "" where it has none.
    """
    keys = Keys(values, where)
    dim, dep_q, n_q = _width(keys, "dim"), keys.take("dep_q", int), keys.take("n_q", int)
    delays = keys.numbers("delays")
    require(
        0 <= dep_q <= n_q and n_q >= 1,
        f"{where}: key 'dep_q' is {brief(dep_q)}, expected 0 or more, and at most n_q = {brief(n_q)}",
    )
    require(
        len(delays) == n_q + 1,
        f"{where}: key 'delays' has {len(delays)} values, expected {brief(n_q + 1)} (text, then n_q = {brief(n_q)})",
    )
    require(delays[0] == 0, f"{where}: key 'delays' gives text a delay of {brief(delays[0])}, expected 0")
    speaking = dep_q if kind in roles.KINDS else _speaking(dep_q, delays)
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
        **roles.fields(keys, kind, speaking, n_q, common["vocab_size"]),
    }  # fmt: skip
    depth["demuxed_text"] = fields["demuxed_text"]
    keys.expect(
        causal=True, layer_scale=None, gating="silu", demux_second_text_stream=False, norm_emb=False, bias_proj=False,
        lora=False, quantize=False,
    )  # fmt: skip
    keys.ignore("lora_rank", "lora_scaling", "gradient_checkpointing")
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


def _width(keys: Keys, key: str) -> int:
    """A width that may be multiplied; what else is wrong with it the config says."""
    value: int = keys.take(key, int)
    good = abs(value) <= MOST_OF_A_SIZE
    require(good, f"{keys.where}: key {key!r} is {brief(value)}, expected 1 to {MOST_OF_A_SIZE}")
    return value


def _shared(keys: Keys, heads: int, repeat: int, key: str) -> int:
    """Key and value heads, each of which `repeat` query heads share."""
    require(
        repeat >= 1 and heads % repeat == 0,
        f"{keys.where}: key {key!r} is {brief(repeat)}, expected a divisor of the {brief(heads)} heads",
    )
    return heads // repeat


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
    dim = _width(keys, "depformer_dim")
    heads = keys.take("depformer_num_heads", int)
    feedforward = keys.take("depformer_dim_feedforward", int, None)
    schedule = keys.numbers("depformer_weights_per_step_schedule", None)
    if schedule is not None and len(schedule) == dep_q:
        schedule = schedule[: common["num_codebooks"]]
    keys.expect(
        depformer_causal=True, depformer_layer_scale=None, depformer_gating="silu", depformer_pos_emb="none",
    )  # fmt: skip
    norm = keys.take("depformer_norm", str, None)
    require(
        norm in (None, "layer_norm"),
        f"{keys.where}: key 'depformer_norm' is {brief(norm)}; only 'layer_norm' or none is supported",
    )
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
        "output_norm": norm is not None,
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
        "context": config.sliding_window, "max_period": whole(config.rope_theta), "gating": "silu",
        "norm": {1e-8: "rms_norm_f32", 1e-5: "rms_norm"}.get(config.rms_norm_eps),
        "positional_embedding": "rope" if config.rope_interleaved else "rope_concat",
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
        "depformer_norm": ("layer_norm" if depth.output_norm else None, None),
    }  # fmt: skip
    said = {name: value for name, (value, usual) in optional.items() if value != usual}
    return values | said | roles.keys_of(config)


def _dim_feedforward(config: Any) -> int:
    """A width that `_gated_ffn_dim` turns into this ffn_dim: the inverse of the 2/3, rounded up."""
    width = (3 * (config.ffn_dim // 2) + 1) // 2
    return 4 * config.hidden_size if config.ffn_dim == 2 * (21 * config.hidden_size // 8) else width
