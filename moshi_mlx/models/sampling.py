"""Sampling inside the graph: (logits, noise) -> tokens, with random keys that belong to the conversations.

A temperature of 0 takes the likeliest token. Otherwise logits are divided by the temperature, cut to the `top_k`
likeliest, to the smallest set that holds `top_p` of their probability, and to those at least `min_p` times as likely
as the likeliest; the draw is the largest of logit + Gumbel noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import mlx.core as mx

from ..errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Settings of one stream. top_k 0, top_p 1 and min_p 0 mean no cut."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        ranges = {"temperature": (0, math.inf), "top_k": (0, math.inf), "top_p": (0, 1), "min_p": (0, 1)}
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), ranges[field.name]
            whole = field.name == "top_k"
            good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not good or not low <= value <= high or value == math.inf or (field.name == "top_p" and value == 0):
                expected = f"a{' whole' if whole else ''} number from {low} to {high}"
                raise InputError(f"{field.name}: got {value!r}, expected {expected}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def candidates(self, vocabulary: int) -> int:
        """How many tokens a draw is among, and so how much noise it takes; none where greedy."""
        return 0 if self.greedy else min(self.top_k or vocabulary, vocabulary)


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
    logits = logits.astype(mx.float32) / settings.temperature
    others = logits.shape[-1] - noise.shape[-1]
    chosen = None
    if others:
        chosen = mx.argpartition(logits, others, axis=-1)[:, others:]
        logits = mx.take_along_axis(logits, chosen, axis=-1)
    if settings.top_p < 1:
        logits = _cut_top_p(logits, settings.top_p)
    if settings.min_p > 0:
        floor = logits.max(axis=-1, keepdims=True) + math.log(settings.min_p)
        logits = mx.where(logits < floor, -mx.inf, logits)
    token = mx.argmax(logits + noise, axis=-1, keepdims=True)
    if chosen is not None:
        token = mx.take_along_axis(chosen, token, axis=-1)
    return token.squeeze(-1)


def _cut_top_p(logits: mx.array, top_p: float) -> mx.array:
    """-inf for what is not in the smallest set of likeliest tokens whose probability reaches top_p."""
    order = mx.argsort(-logits, axis=-1)
    probabilities = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    keep = mx.put_along_axis(mx.zeros(logits.shape, mx.bool_), order, before < top_p, axis=-1)
    return mx.where(keep, logits, -mx.inf)
