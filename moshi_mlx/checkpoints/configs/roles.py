"""Which role a model has, and what goes with it, in the keys of Kyutai's `config.json`."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError, brief, require
from ...models.conditions_config import ConditionConfig
from .keys import Keys, made

KINDS = {"hibiki": "translator", "stt": "transcriber", "tts": "speaker"}
"""The roles of model types; any other has dialogue, or says by its streams what it is."""
TRANSLATES = "description"  # the condition by which Hibiki is known where no model_type is
ROTARY = {"rope": True, "rope_concat": False}


def fields(keys: Keys, kind: str, own: int, streams: int, text: int) -> dict[str, Any]:
    """The fields of a MoshiConfig that say its role, of `own` codebooks among all its `streams` and `text` tokens."""
    out = keys.take("text_card_out", int, None)
    conditions = _conditions(keys)
    names = {one.name for one in conditions}
    role = KINDS.get(kind) or _by_streams(own, streams, names)
    said = {
        "role": role,
        "conditions": conditions,
        "cross_attention": keys.take("cross_attention", bool, False),
        "rope_interleaved": _rotary(keys),
        "text_vocab_out": out if out != text else None,
        "demuxed_text": keys.take("demux_second_stream", bool, False),
        "extra_heads": keys.take("extra_heads_num_heads", int, 0),
        "extra_head_classes": keys.take("extra_heads_dim", int, 6),
        "end_reads_as_padding": kind == "hibiki",  # as Kyutai's loader has it
    }
    fuser = Keys(keys.take("fuser", dict, {}), f"{keys.where}: fuser")
    return said | _fused(fuser, said, keys.where) | _times(keys, role)


def _by_streams(own: int, streams: int, conditions: set[str]) -> str:
    if own == 0:
        return "transcriber"
    if own == streams:
        return "speaker"
    return "translator" if TRANSLATES in conditions else "dialogue"


def _rotary(keys: Keys) -> bool:
    kind = keys.take("positional_embedding", str, "rope")
    require(
        kind in ROTARY,
        f"{keys.where}: key 'positional_embedding' is {brief(kind)}; only {' and '.join(ROTARY)} are supported",
    )
    return ROTARY[kind]


def _conditions(keys: Keys) -> tuple[ConditionConfig, ...]:
    found = []
    for name, value in keys.take("conditioners", dict, {}).items():
        where = f"{keys.where}: conditioners: {brief(name)}"
        require(isinstance(value, dict), f"{where} is {brief(value)}, expected an object")
        one = Keys(value, where)
        kind = one.take("type", str)
        require(kind in ("lut", "tensor"), f"{where}: key 'type' is {brief(kind)}; only lut and tensor are supported")
        inner = Keys(one.take(kind, dict), f"{where}: {kind}")
        one.finish()
        dim = inner.take("dim", int)
        bins, values = 0, ()
        if kind == "lut":
            bins = inner.take("n_bins", int)
            require(bins > 0, f"{where}: key 'n_bins' is {brief(bins)}, expected 1 or more")
            values = tuple(inner.take("possible_values", list))
            inner.expect(tokenizer="noop")
        inner.ignore("init_scale")
        inner.finish()
        found.append(made(ConditionConfig, {"name": name, "dim": dim, "values": values, "bins": bins}, keys.where))
    return tuple(found)


def _fused(fuser: Keys, said: dict[str, Any], where: str) -> dict[str, Any]:
    """Where each condition goes in. A fuser that lists none changes nothing."""
    summed, crossing = (fuser.take(name, list, []) for name in ("sum", "cross"))
    scale = fuser.take("cross_attention_pos_emb_scale", float, 1.0)
    positions = fuser.take("cross_attention_pos_emb", bool, False)
    fuser.finish()
    placed = [*summed, *crossing]
    names = [one.name for one in said["conditions"]]
    for name in placed:
        if name not in names or placed.count(name) > 1:
            raise ConfigError(f"{where}: key 'fuser' has {brief(name)}, expected each of {brief(names)} once")
    for name in names:
        require(name in placed, f"{where}: key 'fuser' says nothing of the condition {brief(name)}")
    conditions = tuple(
        ConditionConfig(one.name, one.dim, one.values, one.bins, one.name in crossing) for one in said["conditions"]
    )
    return {"conditions": conditions, "cross_position_scale": scale if positions and crossing else 0.0}


def _times(keys: Keys, role: str) -> dict[str, Any]:
    """How far sound and text lie apart, in `stt_config` or `tts_config`."""
    stt, tts = (keys.take(name, dict, None) for name in ("stt_config", "tts_config"))
    for name, value, of in (("stt_config", stt, "transcriber"), ("tts_config", tts, "speaker")):
        require(not value or role == of, f"{keys.where}: key {name!r} is there, but the model is no {of}: a {role}")
    if stt:
        said = Keys(stt, f"{keys.where}: stt_config")
        times = {
            "audio_delay_seconds": said.take("audio_delay_seconds", float, 0.0),
            "silence_prefix_seconds": said.take("audio_silence_prefix_seconds", float, 0.0),
        }
    elif tts:
        said = Keys(tts, f"{keys.where}: tts_config")
        times = {
            "audio_delay_seconds": said.take("audio_delay", float, 0.0),
            "second_stream_ahead": said.take("second_stream_ahead", int, 0),
        }
    else:
        return {}
    said.finish()
    return times


def keys_of(config: Any) -> dict[str, Any]:
    """The keys that say all this again; of a plain Moshi none."""
    optional = {
        "cross_attention": (config.cross_attention, False),
        "text_card_out": (config.text_vocab_out, None),
        "demux_second_stream": (config.demuxed_text, False),
        "extra_heads_num_heads": (config.extra_heads, 0),
        "extra_heads_dim": (config.extra_head_classes, 6),
    }
    values: dict[str, Any] = {name: value for name, (value, usual) in optional.items() if value != usual}
    if config.conditions:
        values["conditioners"] = {one.name: _conditioner(one) for one in config.conditions}
        values["fuser"] = {
            "cross_attention_pos_emb": config.cross_position_scale > 0,
            "cross_attention_pos_emb_scale": config.cross_position_scale or 1,
            "sum": [one.name for one in config.conditions if not one.cross],
            "prepend": [],
            "cross": [one.name for one in config.conditions if one.cross],
        }
    if config.role == "transcriber":
        values["stt_config"] = {
            "audio_delay_seconds": config.audio_delay_seconds,
            "audio_silence_prefix_seconds": config.silence_prefix_seconds,
        }
    if config.role == "speaker":
        values["tts_config"] = {
            "audio_delay": config.audio_delay_seconds,
            "second_stream_ahead": config.second_stream_ahead,
        }
    return values


def _conditioner(one: ConditionConfig) -> dict[str, Any]:
    if one.is_sequence:
        return {"type": "tensor", "tensor": {"dim": one.dim}}
    table = {"n_bins": one.bins, "dim": one.dim, "tokenizer": "noop", "possible_values": list(one.values)}
    return {"type": "lut", "lut": table}


def model_type(config: Any, personas: bool) -> str | None:
    """What `model_type` says of a model. A translator whose end is no padding has none, as Kyutai's MLX files."""
    if config.role == "translator":
        return "hibiki" if config.end_reads_as_padding else None
    kinds = {role: kind for kind, role in KINDS.items()}
    return kinds.get(config.role) or ("personaplex" if personas else "moshi")
