"""A table for tokens that stand for two at once: the word that is spoken, and a word that will be."""

from __future__ import annotations

import mlx.core as mx

from .linear import Embedding, Linear


class DemuxedEmbedding(Embedding):
    """Token (second + 1) * rows + first: out1 of the first one's row, and out2 of the second's, where there is one.

    second is -1 for none; token -1 is exactly zero, both of them. (Kyutai's `demux_second_stream`.) The two products
    are taken of the whole table once, by `refresh`, so that a token costs two rows to read. `low_rank` is in published
    files beside `low_rank` wide rows, and nothing reads it.
    """

    def __init__(self, rows: int, dim: int, low_rank: int | None = None) -> None:
        super().__init__(rows, dim, low_rank)
        self.out1, self.out2 = (Linear(low_rank or dim, dim) for _ in range(2))
        self._count = rows
        self.refresh()

    def refresh(self) -> None:
        """Multiply the table out; after weights were loaded."""
        whole = self.rows(mx.arange(self._count))
        self._tables = mx.concatenate([self.out1(whole), self.out2(whole)])

    def __call__(self, ids: mx.array) -> mx.array:
        """ids int [...] -> [..., dim]."""
        second = mx.where(ids < 0, -1, ids // self._count - 1)
        first = mx.where(ids < 0, -1, ids % self._count)
        places = mx.stack([first, mx.where(second < 0, -1, second + self._count)], axis=-1)
        return mx.where((places < 0)[..., None], 0, self._tables[mx.maximum(places, 0)]).sum(axis=-2)

    def lookup(self, ids: mx.array) -> mx.array:
        return self(ids)
