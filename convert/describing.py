"""What a model is by its config, in a few lines: sizes, role, what it hears and speaks, and what it can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moshi_mlx.models.conditions_config import ConditionConfig
from moshi_mlx.models.config import MoshiConfig
from moshi_mlx.models.roles import KINDS


def lines(config: MoshiConfig, model_id: Mapping[str, Any]) -> list[str]:
    """All of it."""
    return [*role_lines(config, model_id), temporal_line(config), depth_line(config), streams_line(config)]


def role_lines(config: MoshiConfig, model_id: Mapping[str, Any]) -> list[str]:
    """The role and what goes with it; of a dialogue model that is one line."""
    lines = [f"role: {KINDS[config.role][0]}, {_sides(config)}"]
    if config.role == "dialogue" and not config.conditions:
        return lines
    told = "; ".join(_condition(one) for one in config.conditions)
    lines.append(f"conditions: {told or 'none'}")
    if config.role == "transcriber":
        heads = f"{config.extra_heads} extra heads of {config.extra_head_classes} classes"
        lines.append(heads if config.extra_heads else "extra heads: none, so it hears no pauses")
    if {"sig", "epoch"} <= model_id.keys():
        lines.append(f"id: {model_id['sig']}@{model_id['epoch']}")
    return lines


def _sides(config: MoshiConfig) -> str:
    own, user, apart = config.num_codebooks, config.user_codebooks, config.audio_delay_seconds
    if config.role == "transcriber":
        silence = f", after {config.silence_prefix_seconds:g} s of silence" if config.silence_prefix_seconds else ""
        return f"hears {user} codebooks, {apart:g} s ahead of the text{silence}"
    if config.role == "speaker":
        ahead = f", two texts in one, {config.second_stream_ahead} words ahead" if config.demuxed_text else ""
        return f"speaks {own} codebooks, {apart:g} s behind the text{ahead}"
    return f"hears {user} codebooks and speaks {own}"


def _condition(one: ConditionConfig) -> str:
    kind = f"vectors of {one.dim}" if one.is_sequence else ", ".join(one.values)
    return f"{one.name} ({kind}{', by cross-attention' if one.cross else ''})"


def temporal_line(config: MoshiConfig) -> str:
    """The sizes of the temporal transformer."""
    keys = config.key_value_heads
    fewer = f" ({keys} of keys and values)" if keys != config.num_attention_heads else ""
    halves = "" if config.rope_interleaved else ", rotary halves"
    return (
        f"temporal transformer: {config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.num_attention_heads} heads{fewer}, context {config.sliding_window}{halves}"
    )


def depth_line(config: MoshiConfig, steps: str | None = None) -> str:
    """The sizes of the depth decoder; `steps` where more is to be said of them."""
    if not config.num_codebooks:
        return "depth decoder: none"
    depth = config.depth_decoder_config
    steps = steps or f"{config.num_codebooks} steps"
    return f"depth decoder: {steps}, {depth.num_hidden_layers} layers of {depth.hidden_size}"


def streams_line(config: MoshiConfig) -> str:
    """The streams and how late each is."""
    asked = f", of which {config.text_vocab_out} are asked for" if config.text_vocab_out else ""
    return (
        f"streams: text of {config.vocab_size}{asked}, {len(config.audio_delays)} of sound of "
        f"{config.audio_vocab_size}, delays {list(config.audio_delays)}"
    )
