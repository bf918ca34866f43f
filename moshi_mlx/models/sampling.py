"""Sampling inside the graph: (logits, noise) -> tokens, with random keys that belong to the conversations.

A temperature of 0 takes the likeliest token. Otherwise logits are divided by the temperature, cut to the `top_k`
likeliest, to the smallest set that holds `top_p` of their probability, and to those at least `min_p` times as likely
as the likeliest; the draw is the largest of logit + Gumbel noise. Tokens as likely as the last one kept are kept too.

Noise belongs to a token, not to its rank: a draw is the same whatever else a cut leaves, and the same whether the
settings are numbers of a compiled step (`Sampling`) or arrays, a value for each row of a batch (`RowSampling`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import mlx.core as mx
import numpy as np

from ..inputs import FLOAT32_LEAST, FLOAT32_MOST, Number, Whole, number, whole
from .layers.activations import on_cpu


class StreamSettings(TypedDict, total=False):
    """How one stream is drawn, by name: `f(**settings: Unpack[StreamSettings])`. None is not given. See `Sampling`."""

    temperature: Number | None
    top_k: Whole | None
    top_p: Number | None
    min_p: Number | None


class SamplingSettings(StreamSettings, total=False):
    """How a conversation is drawn: its sound, and with `text_` before the names its text. See `Sampling`.

    Of the sound: `temperature`, `top_k`, `top_p`, `min_p`; of the text: `text_temperature`, `text_top_k`, `text_top_p`,
    `text_min_p`. None is as if not given.

    >>> settings: moshi_mlx.SamplingSettings = {"temperature": 0.8, "text_top_k": 25}
    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> talk = model.session(seed=0, **settings)
    """

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

# Metal sorts so many in one kernel; more of them are merged, two kernels for each doubling.
SORTED_AT_ONCE = 2048

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

    >>> moshi_mlx.Sampling(temperature=0.8, top_k=250)
    Sampling(temperature=0.8, top_k=250, top_p=1.0, min_p=0.0)
    >>> moshi_mlx.Sampling(temperature=0).greedy
    True
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
        """How much noise a draw takes: a value for every token; none where greedy."""
        return 0 if self.greedy else vocabulary

    def choose(self, logits: mx.array, noise: mx.array) -> mx.array:
        """logits [B, V], noise [B, candidates(V)] -> tokens uint32 [B]."""
        return sample(logits, noise, self)


# A batch looks for each row's cut among so many of the likeliest tokens, unless a row has a larger top_k or none.
MOST = 512


@dataclass(frozen=True)
class RowSampling:
    """Settings of one stream for each row of a batch: data, so that a change compiles nothing anew."""

    values: mx.array  # float32 [B, 4]: temperature, top_k, top_p, log of min_p
    most: int = 0  # no row's top_k is larger; 0 where a row has none

    @classmethod
    def of(cls, settings: Sequence[Sampling]) -> RowSampling:
        return cls(mx.array(cls.rows(settings)), cls.most_of(settings))

    @staticmethod
    def rows(settings: Sequence[Sampling]) -> np.ndarray:
        """The values of each row."""
        floors = [math.log(s.min_p) if s.min_p else -math.inf for s in settings]
        columns = [
            [s.temperature for s in settings],
            [s.top_k or math.inf for s in settings],
            [s.top_p for s in settings],
            floors,
        ]
        return np.array(columns, np.float32).T

    @staticmethod
    def most_of(settings: Sequence[Sampling]) -> int:
        """MOST, or 0 where a row draws among more."""
        return MOST if all(s.greedy or 0 < s.top_k <= MOST for s in settings) else 0

    @property
    def greedy(self) -> bool:
        return False

    def candidates(self, vocabulary: int) -> int:
        return vocabulary

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


def sample(logits: mx.array, noise: mx.array, settings: Sampling | RowSampling) -> mx.array:
    """logits [B, V], noise [B, settings.candidates(V)] or [B, V] -> tokens uint32 [B]."""
    if isinstance(settings, RowSampling):
        return _sample_rows(logits, noise, settings)
    if settings.greedy:
        return mx.argmax(logits, axis=-1)
    kept = min(settings.top_k or logits.shape[-1], logits.shape[-1])
    top_p = settings.top_p if settings.top_p < 1 else None
    log_min_p = math.log(settings.min_p) if settings.min_p > 0 else None
    return draw(logits, noise, kept, settings.temperature, top_p, log_min_p, settings.temperature < COLD)


def draw(
    logits: mx.array,
    noise: mx.array,
    kept: int,
    temperature: float | mx.array,
    top_p: float | mx.array | None = None,
    log_min_p: float | mx.array | None = None,
    cold: bool = False,
) -> mx.array:
    """The sampled case of `sample`, among the `kept` likeliest; numbers may be arrays."""
    largest = logits.max(axis=-1, keepdims=True) if cold else None

    def heated(logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32)
        return (logits if largest is None else logits - largest) / temperature

    floor = None
    if top_p is not None:
        floor = _top_p_floor(_ranked(heated(logits), kept), top_p)
    elif kept < logits.shape[-1]:  # heat keeps the order, so that the last one kept is the same before it
        floor = heated(_last_kept(logits, kept))
    logits = heated(logits)
    if log_min_p is not None:
        least = logits.max(axis=-1, keepdims=True) + log_min_p
        floor = least if floor is None else mx.maximum(floor, least)
    drawn = logits + noise
    return mx.argmax(drawn if floor is None else mx.where(logits < floor, -mx.inf, drawn), axis=-1)


def _sample_rows(logits: mx.array, noise: mx.array, settings: RowSampling) -> mx.array:
    temperature, top_k, top_p, least = mx.split(settings.values, 4, axis=-1)  # [B, 1] each
    greedy = temperature == 0
    logits = logits.astype(mx.float32)
    cold = logits - logits.max(axis=-1, keepdims=True)
    logits = mx.where(temperature < COLD, cold, logits) / mx.where(greedy, 1, temperature)
    ranked = _ranked(logits, min(settings.most or logits.shape[-1], logits.shape[-1]))
    ranked = mx.where(mx.arange(ranked.shape[-1]) < top_k, ranked, -mx.inf)
    whole = mx.where(ranked > -mx.inf, ranked, mx.inf).min(axis=-1, keepdims=True)
    floor = mx.where(top_p < 1, _top_p_floor(ranked, top_p), whole)
    floor = mx.maximum(floor, ranked[:, :1] + least)
    drawn = mx.where(logits < floor, -mx.inf, logits + noise)
    return mx.argmax(mx.where(greedy, logits, drawn), axis=-1)


def _ranked(logits: mx.array, count: int) -> mx.array:
    """The `count` largest logits [B, count], largest first."""
    largest = logits if count == logits.shape[-1] else mx.topk(logits, count, axis=-1)
    return -mx.sort(-largest, axis=-1)


def _last_kept(logits: mx.array, count: int) -> mx.array:
    """The least [B, 1] of the `count` largest logits."""
    rows, size = logits.shape
    parts = next((n for n in range(2, size // count) if size % n == 0 and size <= n * SORTED_AT_ONCE), 0)
    if size > SORTED_AT_ONCE and parts and not on_cpu():
        largest = mx.partition(logits.reshape(rows, parts, -1), size // parts - count, axis=-1)[..., -count:]
        return _last_kept(largest.reshape(rows, -1), count)
    place = size - count
    return mx.partition(logits, place, axis=-1)[..., place : place + 1]


def _top_p_floor(ranked: mx.array, top_p: float | mx.array) -> mx.array:
    """The least logit [B, 1] of the smallest set of likeliest tokens whose probability reaches top_p."""
    probabilities = mx.softmax(ranked, axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    return mx.where(before < top_p, ranked, mx.inf).min(axis=-1, keepdims=True)
