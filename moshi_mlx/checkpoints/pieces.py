"""Pieces: tensors of two layouts that say the same, and how the arrays of one become those of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np


class Kind(Protocol):
    """How the arrays of a piece become each other."""

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        """The i-th MLX tensor of the piece."""

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        """The j-th of the other layout's."""


class Piece(NamedTuple):
    """Tensors of the MLX layout, and those of another layout that say the same."""

    mlx: tuple[str, ...]
    theirs: tuple[str, ...]
    kind: Kind


def _join(parts: Sequence[Any], axis: int = 0) -> Any:
    if len(parts) == 1:
        return parts[0]
    return (mx if isinstance(parts[0], mx.array) else np).concatenate(list(parts), axis=axis)


class Same:
    """The same tensor; where there are several MLX names, its repetitions."""

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        return theirs[0]

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        return mlx[0]


class Norm(Same):
    """[D], of which Kyutai's PyTorch layout makes [1, 1, D]."""

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        return theirs[0].reshape(-1)

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        return mlx[0].reshape(1, 1, -1)


class Sets:
    """One tensor that holds a matrix for every set of weights: joined along the rows, or stacked on a new axis.

    `schedule[i]` is the set that the i-th MLX tensor is; `spare` sets behind those are never read.
    """

    def __init__(self, schedule: tuple[int, ...], stacked: bool, spare: int = 0) -> None:
        self.schedule, self.stacked, self.spare = schedule, stacked, spare
        self.firsts = [schedule.index(s) for s in range(max(schedule) + 1)]

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        return self.split(theirs[0])[self.schedule[i]]

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        parts = [mlx[i] for i in self.firsts]
        parts += parts[-1:] * self.spare  # only ever for a shape
        return self.stack(parts) if self.stacked else _join(parts)

    def stack(self, parts: list[Any]) -> Any:
        return _join([part[None] for part in parts])

    def split(self, whole: Any) -> list[Any]:
        sets = len(self.firsts)
        rows = len(whole) // (sets + self.spare)
        return [whole[s] if self.stacked else whole[s * rows : (s + 1) * rows] for s in range(sets)]


class Heads:
    """Queries, keys and values apart, [q, in], [k, in], [v, in], which MLX has joined along the rows.

    Queries and keys turn by interleaved pairs there, by halves here: with `rotary`, the rows of each head change
    places. `schedule` is that of `Sets` where the tensors are stacked.
    """

    def __init__(self, queries: int, keys: int, head_dim: int, rotary: bool, schedule: tuple[int, ...] = ()) -> None:
        self.heads, self.head_dim, self.rotary = (queries, keys, keys), head_dim, rotary
        self.sets = Sets(schedule, stacked=True) if schedule else None

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        parts = [self.sets.gather([part], i) for part in theirs] if self.sets else theirs
        return _join([self._turned(part, j, (2, -1)) for j, part in enumerate(parts)])

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        start = sum(self.heads[:j]) * self.head_dim
        rows = [whole[start : start + self.heads[j] * self.head_dim] for whole in mlx]
        if self.sets:
            return self.sets.scatter(rows, 0)
        return self._turned(rows[0], j, (-1, 2))

    def _turned(self, rows: Any, j: int, order: tuple[int, int]) -> Any:
        """Rows [heads * head_dim, in] of queries (j 0) or keys (j 1), from pairs to halves or back by `order`."""
        if not self.rotary or j == 2:
            return rows
        return rows.reshape(self.heads[j], *order, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
