"""Matrices and tables that may be quantized: the layers whose weights a frame spends its time reading."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class Linear(nn.Module):
    """x @ weight, no bias. weight [in, out]: the transposed view of the published [out, in], taken once.

    How it lies in memory is the loader's choice (`resting`); a product reads either order as it is.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = mx.zeros((in_features, out_features))

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight


def add_product(residual: mx.array, x: mx.array, layer: nn.Module) -> mx.array:
    """residual + layer(x), as one operation where the layer's weight is a plain matrix."""
    return mx.addmm(residual, x, layer.weight) if isinstance(layer, Linear) else residual + layer(x)


def resting(weight: mx.array) -> mx.array:
    """A published [out, in] matrix as a `Linear` keeps it.

    BLAS reads a matrix of few rows' product about twice as fast when a row holds all outputs of one input; Metal's
    matrix-vector kernels want the published order, and there it stays a view.
    """
    return mx.contiguous(weight.T) if mx.default_device() == mx.Device(mx.cpu) else weight.T


class Embedding(nn.Module):
    """A table of rows, some of them projected from `low_rank` wide ones. Id -1 means "no input": exactly zero."""

    def __init__(self, rows: int, dim: int, low_rank: int | None = None) -> None:
        super().__init__()
        self.weight = mx.zeros((rows, low_rank or dim))
        if low_rank:
            self.low_rank = Linear(low_rank, dim)

    def rows(self, ids: mx.array) -> mx.array:
        return self.weight[ids]

    def __call__(self, ids: mx.array) -> mx.array:
        """ids int [...] -> [..., dim]."""
        return self._projected(mx.where((ids < 0)[..., None], 0, self.rows(mx.maximum(ids, 0))))

    def lookup(self, ids: mx.array) -> mx.array:
        """The same for ids that are known to be tokens, as sampled ones are: none of them -1."""
        return self._projected(self.rows(ids))

    def _projected(self, rows: mx.array) -> mx.array:
        return self.low_rank(rows) if "low_rank" in self else rows


class QuantizedEmbedding(Embedding):
    """The same with quantized rows: a row is dequantized when it is read."""

    def __init__(
        self, weight: mx.array, scales: mx.array, biases: mx.array | None, bits: int, group_size: int, mode: str
    ) -> None:
        nn.Module.__init__(self)
        self.weight, self.scales = weight, scales
        if biases is not None:
            self.biases = biases
        self.bits, self.group_size, self.mode = bits, group_size, mode

    def rows(self, ids: mx.array) -> mx.array:
        biases = self.biases[ids] if "biases" in self else None
        return mx.dequantize(
            self.weight[ids], self.scales[ids], biases, group_size=self.group_size, bits=self.bits, mode=self.mode
        )
