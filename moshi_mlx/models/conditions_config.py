"""What a conversation may be told once and for all, and what the roles of a model ask of its streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import brief, require
from .checks import MOST_OF_A_SIZE
from .roles import KINDS

MOST_CONDITIONS = 64
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class ConditionConfig:
    """A condition: one of the texts `values`, which a table of `bins` rows stands for, or without them a sequence.

    `dim` is the width of the table's rows, or of the sequence's vectors. A condition is summed into the input of every
    position, or with `cross` is what cross-attention looks at.
    """

    name: str
    dim: int
    values: tuple[str, ...] = ()
    bins: int = 0
    cross: bool = False

    def __post_init__(self) -> None:
        where = f"ConditionConfig {self.name!r}"
        for name, value, least in (("dim", self.dim, 1), ("bins", self.bins, 0)):
            good = type(value) is int and least <= value <= MOST_OF_A_SIZE
            require(good, f"{where}: {name} is {brief(value)}, expected a whole number of at least {least}")
        texts = isinstance(self.values, tuple) and all(isinstance(value, str) for value in self.values)
        require(
            texts and len(set(self.values)) == len(self.values) <= self.bins,
            f"{where}: values {brief(self.values)}, expected at most {self.bins} texts, each once",
        )

    @property
    def is_sequence(self) -> bool:
        return self.bins == 0


def check_streams(config: Any) -> None:
    """Raises ConfigError where a MoshiConfig's streams, conditions or times do not go with its role."""
    role, own, streams = config.role, config.num_codebooks, len(config.audio_delays)
    require(role in KINDS, f"MoshiConfig.role: got {brief(role)}, expected one of {', '.join(KINDS)}")
    fits = {"transcriber": own == 0, "speaker": 0 < own == streams}.get(role, 0 < own < streams)
    wanted = {
        "transcriber": "num_codebooks 0 and a delay for each of the user's codebooks",
        "speaker": f"a delay for each of its {own} codebooks and none for a user",
    }.get(role, f"a delay of 0 or more frames for each of Moshi's {own} codebooks and the user's")
    require(fits, f"MoshiConfig.audio_delays: expected {wanted}, got {brief(config.audio_delays)}")
    require(role == "speaker" or not config.demuxed_text, "MoshiConfig.demuxed_text: only a speaker's text is given")
    out = config.text_vocab_out
    require(
        out is None or (type(out) is int and 0 < out <= config.vocab_size),
        f"MoshiConfig.text_vocab_out: got {brief(out)}, expected 1 to {config.vocab_size}, or None",
    )
    for name, least, most in (("extra_heads", 0, 64), ("extra_head_classes", 1, 1024), ("second_stream_ahead", 0, 64)):
        value = getattr(config, name)
        good = type(value) is int and least <= value <= most
        require(good, f"MoshiConfig.{name}: got {brief(value)}, expected {least} to {most}")
    for name in ("audio_delay_seconds", "silence_prefix_seconds", "cross_position_scale"):
        value = getattr(config, name)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS
        require(good, f"MoshiConfig.{name}: got {brief(value)}, expected 0 to {MOST_SECONDS:g}")
    _check_conditions(config)


def _check_conditions(config: Any) -> None:
    conditions = config.conditions
    good = isinstance(conditions, tuple) and all(isinstance(one, ConditionConfig) for one in conditions)
    require(
        good and len(conditions) <= MOST_CONDITIONS,
        f"MoshiConfig.conditions: got {brief(conditions)}, expected at most {MOST_CONDITIONS} ConditionConfig",
    )
    names = [one.name for one in conditions]
    require(len(set(names)) == len(names), f"MoshiConfig.conditions: got {brief(names)}, expected each name once")
    for one in conditions:
        where = f"MoshiConfig.conditions: {one.name!r}"
        require(one.cross or not one.is_sequence, f"{where} is a sequence, which only cross-attention can look at")
    crossing = any(one.cross for one in conditions)
    require(
        config.cross_attention == crossing,
        f"MoshiConfig.cross_attention is {config.cross_attention}, but "
        f"{'a condition' if crossing else 'no condition'} is one to look at",
    )
    require(
        not crossing or config.key_value_heads == config.num_attention_heads,
        "MoshiConfig.cross_attention: expected as many key and value heads as heads",
    )
