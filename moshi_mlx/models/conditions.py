"""Conditions: what a conversation is told once and for all, as one vector and as what cross-attention looks at.

They are Kyutai's `condition_provider` and `fuser` (moshi 0.2.13): a text among a few, which a table stands for, or a
sequence of vectors with a mask. What is not given, and what the mask hides, is a learnt vector in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .. import inputs
from ..errors import InputError, brief
from .conditions_config import ConditionConfig
from .layers.linear import Linear

USUAL = {"description": "very_good", "control": "ok", "cfg": "2.0"}
"""What the published programs say of a condition unless they are told otherwise."""
PERIOD = 10000.0  # of the positions of what cross-attention looks at


class Condition(nn.Module):
    """One condition: a table's row or vectors of a sequence, projected to the model's width; float32 throughout."""

    def __init__(self, config: ConditionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        if not config.is_sequence:
            self.embed = nn.Embedding(config.bins + 1, config.dim)  # the last row is nothing
        self.output_proj = Linear(config.dim, hidden_size)
        self.learnt_padding = mx.zeros((1, 1, hidden_size))

    def __call__(self, value: Any) -> mx.array:
        """The vectors [S, hidden] of a value: a text or None of a table (S 1), (vectors [S, dim], mask [S]) else."""
        padding = self.learnt_padding.reshape(1, -1).astype(mx.float32)
        if value is None:
            return padding
        if not self.config.is_sequence:
            row = self.embed.weight[self._index(value)][None]
            return self.output_proj(row.astype(mx.float32))
        vectors, mask = self._sequence(value)
        return mx.where(mask[:, None], self.output_proj(vectors), padding)

    def _index(self, value: Any) -> int:
        values = self.config.values
        if not isinstance(value, str) or value not in values:
            raise InputError(
                f"conditions: {self.config.name!r} got {brief(value)}, expected one of {', '.join(values)}, or None"
            )
        return values.index(value)

    def _sequence(self, value: Any) -> tuple[mx.array, mx.array]:
        name, dim = f"conditions: {self.config.name!r}", self.config.dim
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise InputError(f"{name} got a {type(value).__name__}, expected (vectors [S, {dim}], mask [S])")
        vectors = inputs.floats(name, value[0], (None, dim)).astype(mx.float32)
        try:
            mask = np.array(value[1], bool)
        except ValueError as error:
            raise InputError(f"{name}: its mask is {brief(value[1])}, expected true or false of each vector") from error
        if mask.shape != (len(vectors),) or not len(mask):
            raise InputError(f"{name} got a mask of shape {list(mask.shape)} for {len(vectors)} vectors, expected one")
        return vectors, mx.array(mask)


class Conditions(nn.Module):
    """All conditions of a model, by their names; most models have none."""

    def __init__(self, configs: tuple[ConditionConfig, ...], hidden_size: int, position_scale: float = 0.0) -> None:
        super().__init__()
        self.conditioners = {config.name: Condition(config, hidden_size) for config in configs}
        self._position_scale = position_scale

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.conditioners)

    def values_of(self, name: str) -> tuple[str, ...]:
        """The texts that a condition may be."""
        return self.conditioners[name].config.values

    def check(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """A value for every condition: given, the usual one, or None. Raises InputError for a name there is not."""
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"conditions: got a {type(given).__name__}, expected values by name")
        for name in given or {}:
            if name not in self.conditioners:
                known = ", ".join(self.names) or "none: this model takes no conditions"
                raise InputError(f"conditions: got {name!r}, expected one of {known}")
        usual = {name: USUAL.get(name) if USUAL.get(name) in self.values_of(name) else None for name in self.names}
        return {**usual, **(given or {})}

    def vector(self, given: Mapping[str, Any] | None = None) -> mx.array | None:
        """What is added to the input of every position, float32 [hidden]; None where nothing is."""
        parts = [self._of(name, value) for name, value in self.check(given).items() if not self._crosses(name)]
        return sum(part[0] for part in parts) if parts else None  # type: ignore[return-value]

    def source(self, given: Mapping[str, Any] | None = None) -> mx.array | None:
        """What cross-attention looks at, float32 [S, hidden]; None where there is none."""
        parts = [self._of(name, value) for name, value in self.check(given).items() if self._crosses(name)]
        if not parts:
            return None
        joined = mx.concatenate(parts)
        return joined + self._position_scale * _positions(*joined.shape) if self._position_scale else joined

    def _of(self, name: str, value: Any) -> mx.array:
        vectors: mx.array = self.conditioners[name](value)
        return vectors

    def _crosses(self, name: str) -> bool:
        return bool(self.conditioners[name].config.cross)


def _positions(length: int, dim: int) -> mx.array:
    """Cosines, then sines, of every position: [S, dim]."""
    half = dim // 2
    phases = mx.arange(length)[:, None] / PERIOD ** (mx.arange(half) / (half - 1))
    return mx.concatenate([mx.cos(phases), mx.sin(phases)], axis=-1)
