"""Matrices and tables that may be quantized: the layers whose weights a frame spends its time reading."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .activations import on_cpu

FEW_ROWS = 256  # up to which the rows of a quantized table are read by a product


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
    return mx.contiguous(weight.T) if on_cpu() else weight.T


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
        return self._projected(mx.where(ids[..., None] < 0, 0, self.rows(mx.maximum(ids, 0))))

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
        kind: dict[str, Any] = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        if not on_cpu() and ids.size <= FEW_ROWS:
            return self._multiplied(ids, kind)
        biases = self.biases[ids] if "biases" in self else None
        return mx.dequantize(self.weight[ids], self.scales[ids], biases, **kind)

    def _multiplied(self, ids: mx.array, kind: dict[str, Any]) -> mx.array:
        """The rows in one call, where a GPU would take three gathers and one to dequantize: 1 times each, as a matrix
        of one row that lies in the table."""
        one = mx.array([[1]], self.scales.dtype if self.mode == "affine" else mx.bfloat16)  # as `dequantize` gives it
        weight, scales = self.weight[:, None], self.scales[:, None]
        biases = self.biases[:, None] if "biases" in self else None
        first = mx.array(np.zeros(ids.shape, np.uint32))  # a constant, which no call has to make anew
        y = mx.gather_qmm(one, weight, scales, biases, first, ids.astype(mx.uint32), transpose=False, **kind)
        return y.squeeze(-2)
