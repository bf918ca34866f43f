"""Sampling inside the graph: (logits, noise) -> tokens, with random keys that belong to the conversations.

A temperature of 0 takes the likeliest token. Otherwise logits are divided by the temperature, cut to the `top_k`
likeliest, to the smallest set that holds `top_p` of their probability, and to those at least `min_p` times as likely
as the likeliest; the draw is the largest of logit + Gumbel noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import mlx.core as mx

from ..inputs import FLOAT32_LEAST, FLOAT32_MOST, Number, Whole, number, whole


class StreamSettings(TypedDict, total=False):
    """How one stream is drawn, by name: `f(**settings: Unpack[StreamSettings])`. None is not given. See `Sampling`."""

    temperature: Number | None
    top_k: Whole | None
    top_p: Number | None
    min_p: Number | None


class SamplingSettings(StreamSettings, total=False):
    """How a conversation is drawn: its sound, and with `text_` before the names its text."""

    text_temperature: Number | None
    text_top_k: Whole | None
    text_top_p: Number | None
    text_min_p: Number | None


MOSHI: SamplingSettings = {
    "temperature": 0.8, "top_k": 250, "top_p": 1.0, "min_p": 0.0,
    "text_temperature": 0.7, "text_top_k": 25, "text_top_p": 1.0, "text_min_p": 0.0,
}  # fmt: skip
"""Moshi's own settings, which the reference talks with."""

# Below it, logits divided by the temperature may leave float32's range; their differences still say who is likeliest.
COLD = 1e-30

NAMES = tuple(StreamSettings.__annotations__)


def _checked(field: str, value: Any, name: str) -> float:
    """The value of a field, as Python's own number. Raises InputError under the name that it was given by."""
    if field == "top_k":
        return whole(name, value)
    high = FLOAT32_MOST if field == "temperature" else 1.0
    if field != "top_p" and number(name, value, 0, high) == 0:
        return 0.0
    return number(name, value, 0 if field == "min_p" else FLOAT32_LEAST, high)


@dataclass(frozen=True)
class Sampling:
    """Settings of one stream. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 mean no cut.

    temperature and top_k from 0, top_p over 0 and at most 1, min_p from 0 to 1, all within float32's range. Raises
    InputError, naming the setting.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name in NAMES:
            object.__setattr__(self, name, _checked(name, getattr(self, name), name))

    @classmethod
    def of(cls, settings: Mapping[str, Any], prefix: str = "") -> Sampling:
        """Of settings by name, each with `prefix` before it; errors name them so."""
        return cls(**{name: _checked(name, settings[prefix + name], prefix + name) for name in NAMES})  # type: ignore[arg-type]

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def candidates(self, vocabulary: int) -> int:
        """How many tokens a draw is among, and so how much noise it takes; none where greedy."""
        return 0 if self.greedy else min(self.top_k or vocabulary, vocabulary)

    def choose(self, logits: mx.array, noise: mx.array) -> mx.array:
        """logits [B, V], noise [B, candidates(V)] -> tokens uint32 [B]."""
        return sample(logits, noise, self)


def noise(keys: mx.array, counts: list[int]) -> tuple[list[mx.array], mx.array]:
    """Gumbel noise [B, count] for each draw of a frame, and the keys of the next frame. keys uint32 [B, 2]."""
    if not sum(counts):
        return [mx.zeros((len(keys), 0))] * len(counts), keys
    split = mx.vmap(mx.random.split)(keys)  # [B, 2, 2]
    drawn = mx.vmap(lambda key: mx.random.gumbel((sum(counts),), key=key))(split[:, 0])
    ends = [sum(counts[: i + 1]) for i in range(len(counts) - 1)]
    return list(mx.split(drawn, ends, axis=-1)), split[:, 1]


def sample(logits: mx.array, noise: mx.array, settings: Sampling) -> mx.array:
    """logits [B, V], noise [B, settings.candidates(V)] -> tokens uint32 [B]."""
    if settings.greedy:
        return mx.argmax(logits, axis=-1)
    top_p = settings.top_p if settings.top_p < 1 else None
    log_min_p = math.log(settings.min_p) if settings.min_p > 0 else None
    return draw(logits, noise, settings.temperature, top_p, log_min_p, settings.temperature < COLD)


def draw(
    logits: mx.array,
    noise: mx.array,
    temperature: float | mx.array,
    top_p: float | mx.array | None = None,
    log_min_p: float | mx.array | None = None,
    cold: bool = False,
) -> mx.array:
    """The sampled case of `sample`: among as many of the likeliest as there is noise; numbers may be arrays."""
    logits = logits.astype(mx.float32)
    if cold:
        logits = logits - logits.max(axis=-1, keepdims=True)
    logits = logits / temperature
    others = logits.shape[-1] - noise.shape[-1]
    chosen = None
    if others:
        chosen = mx.argpartition(logits, others, axis=-1)[:, others:]
        logits = mx.take_along_axis(logits, chosen, axis=-1)
    if top_p is not None:
        logits = _cut_top_p(logits, top_p)
    if log_min_p is not None:
        floor = logits.max(axis=-1, keepdims=True) + log_min_p
        logits = mx.where(logits < floor, -mx.inf, logits)
    token = mx.argmax(logits + noise, axis=-1, keepdims=True)
    if chosen is not None:
        token = mx.take_along_axis(chosen, token, axis=-1)
    return token.squeeze(-1)


def _cut_top_p(logits: mx.array, top_p: float | mx.array) -> mx.array:
    """-inf for what is not in the smallest set of likeliest tokens whose probability reaches top_p."""
    order = mx.argsort(-logits, axis=-1)
    probabilities = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    keep = mx.put_along_axis(mx.zeros(logits.shape, mx.bool_), order, before < top_p, axis=-1)
    return mx.where(keep, logits, -mx.inf)
