"""What may be said next: the rules of `generate` over the text's logits, and where it ends.

They are those of transformers' logits processors of the same names, in its order, before the temperature. Every rule
is one of two arrays that the host prepares for each token: which tokens were there already, and what is added to each
logit (-inf for what must not come), so that they go through a compiled step as data.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import mlx.core as mx
import numpy as np

from .. import inputs
from ..errors import InputError
from ..inputs import Number, Whole
from ..models.sampling import Sampling


class RuleSettings(TypedDict, total=False):
    """Rules of the text, by name. None is not given."""

    eos_token_id: Whole | list[int] | None
    pad_token_id: Whole | None
    min_new_tokens: Whole | None
    repetition_penalty: Number | None
    suppress_tokens: list[int] | None
    bad_words_ids: list[list[int]] | None
    output_scores: bool | None
    output_logits: bool | None


class Rules(NamedTuple):
    """Checked: every token is of a vocabulary of `size`."""

    size: int
    ends: tuple[int, ...]  # tokens that end a row
    filler: int  # what follows in a row that has ended
    least: int  # new tokens before a row may end
    penalty: float
    suppressed: tuple[int, ...]
    words: tuple[tuple[int, ...], ...]  # sequences that must not come
    scores: bool
    logits: bool

    @classmethod
    def of(cls, settings: Any, size: int) -> Rules:
        """Raises InputError, naming the setting."""
        penalty = settings.get("repetition_penalty")
        ends = _tokens("eos_token_id", settings.get("eos_token_id"), size)
        filler = settings.get("pad_token_id")
        words = settings.get("bad_words_ids")
        if words is not None and (isinstance(words, str) or not hasattr(words, "__len__")):
            raise InputError(f"bad_words_ids: got {words!r}, expected a list of lists of tokens")
        return cls(
            size=size,
            ends=ends,
            filler=(ends[0] if ends else 0) if filler is None else inputs.whole("pad_token_id", filler, 0, size),
            least=inputs.whole("min_new_tokens", settings.get("min_new_tokens", 0)),
            penalty=1.0 if penalty is None else inputs.number("repetition_penalty", penalty, inputs.FLOAT32_LEAST),
            suppressed=_tokens("suppress_tokens", settings.get("suppress_tokens"), size),
            words=tuple(_tokens("bad_words_ids", word, size, empty=False) for word in words or ()),
            scores=bool(settings.get("output_scores")),
            logits=bool(settings.get("output_logits")),
        )

    @property
    def change(self) -> bool:
        """Whether any of them touches the logits."""
        return self.penalty != 1 or bool(self.suppressed or self.words or (self.least and self.ends))

    def masks(self, rows: list[np.ndarray], new: int) -> tuple[mx.array, mx.array]:
        """For what each row says so far, of it `new` tokens new: bool and float [B, size], to give to `applied`."""
        seen = np.zeros((len(rows), self.size), bool)
        added = np.zeros((len(rows), self.size), np.float32)
        added[:, list(self.suppressed)] = -np.inf
        if new < self.least:
            added[:, list(self.ends)] = -np.inf
        for row, said in enumerate(rows):
            seen[row, said[(said >= 0) & (said < self.size)]] = True
            for *before, last in self.words:
                if len(said) >= len(before) and list(said[len(said) - len(before) :]) == before:
                    added[row, last] = -np.inf
        return mx.array(seen), mx.array(added)

    def applied(self, logits: mx.array, seen: mx.array, added: mx.array) -> mx.array:
        """logits [B, size] by the rules, in float32."""
        logits = logits.astype(mx.float32)
        if self.penalty != 1:
            punished = mx.where(logits < 0, logits * self.penalty, logits / self.penalty)
            logits = mx.where(seen, punished, logits)
        return logits + added


class Record:
    """The text of a generation as it comes: ended rows are filled, what is asked for of the logits is kept."""

    def __init__(self, rules: Rules, prompt: list[np.ndarray], settings: Sampling) -> None:
        self.rules, self._settings = rules, settings
        self._rows = prompt
        self._ended = np.zeros(len(prompt), bool)
        self.new: list[np.ndarray] = []
        self._scores: list[mx.array] = []
        self._logits: list[mx.array] = []

    def masks(self) -> tuple[mx.array, ...]:
        """Of the next token; none where no rule touches the logits."""
        return self.rules.masks(self._rows, len(self.new)) if self.rules.change else ()

    def adjusted(self, logits: mx.array, *masks: mx.array) -> mx.array:
        return self.rules.applied(logits, *masks) if masks else logits

    def add(self, tokens: np.ndarray, logits: mx.array, masks: tuple[mx.array, ...]) -> np.ndarray:
        """tokens int [B], drawn from logits [B, size] with these masks -> what the rows say: int32 [B]."""
        tokens = np.where(self._ended, self.rules.filler, tokens).astype(np.int32)
        self._ended |= np.isin(tokens, self.rules.ends)
        self.new.append(tokens)
        if self.rules.change:
            self._rows = [np.append(row, token) for row, token in zip(self._rows, tokens, strict=True)]
        if self.rules.logits:
            self._logits.append(logits.astype(mx.float32))
        if self.rules.scores:
            drawn = np.array(self.adjusted(logits, *masks).astype(mx.float32))
            self._scores.append(mx.array(drawn_from(drawn, self._settings)))
        return tokens

    @property
    def ended(self) -> bool:
        return bool(self._ended.all())

    def kept(self) -> dict[str, Any]:
        """The scores and logits that were asked for, an array [B, size] for each new token."""
        return {
            "scores": tuple(self._scores) if self.rules.scores else None,
            "logits": tuple(self._logits) if self.rules.logits else None,
        }


def drawn_from(logits: np.ndarray, settings: Sampling) -> np.ndarray:
    """logits float [B, V] divided by the temperature, -inf for what the cuts leave out: what a token is drawn from."""
    if settings.greedy:
        return logits
    scaled = logits / np.float32(settings.temperature)
    ranked = -np.sort(-scaled, axis=-1)
    kept = min(settings.top_k or ranked.shape[-1], ranked.shape[-1])
    ranked[:, kept:] = -np.inf
    floor = ranked[:, kept - 1 : kept]
    if settings.top_p < 1:
        weights = np.exp(ranked - ranked[:, :1])
        weights /= weights.sum(axis=-1, keepdims=True)
        inside = np.cumsum(weights, axis=-1) - weights < settings.top_p
        floor = np.where(inside, ranked, np.inf).min(axis=-1, keepdims=True)
    if settings.min_p > 0:
        floor = np.maximum(floor, ranked[:, :1] + np.log(settings.min_p))
    return np.where(scaled < floor, -np.inf, scaled).astype(np.float32)


def _tokens(name: str, value: Any, size: int, empty: bool = True) -> tuple[int, ...]:
    """Tokens of the vocabulary from a number, a list or an array."""
    if value is None:
        return ()
    array = inputs.on_host(name, value)
    if array.size == 0 and empty:
        return ()
    return tuple(int(n) for n in np.array(inputs.tokens(name, np.atleast_1d(array), (None,), 0, size - 1)))
