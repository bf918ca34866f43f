"""Split residual vector quantizer (Moshi paper, section 3.3.2): one semantic codebook beside a residual acoustic stack.

Both halves see the same latent through 1x1 projections of their own; those two are one matrix product here, each way.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..config import MimiConfig
from .linear import Linear
from .sequence import stacked


class SplitResidualVectorQuantizer(nn.Module):
    """embedding [codebooks, entries, dim]; half_norms [codebooks, entries], half of each entry's squared length, kept
    beside it because every frame needs it; input_proj [hidden, 2 * dim]; output_proj [2 * dim, hidden].
    """

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        dim = config.codebook_dim
        self.embedding = mx.zeros((config.num_quantizers, config.codebook_size, dim))
        self.half_norms = mx.zeros((config.num_quantizers, config.codebook_size))
        self.input_proj = Linear(config.hidden_size, 2 * dim)
        self.output_proj = Linear(2 * dim, config.hidden_size)
        self.num_semantic = config.num_semantic_quantizers

    def encode(self, latent: mx.array, num_codebooks: int) -> mx.array:
        """latent [B, T, hidden] -> codes int32 [B, num_codebooks, T], nearest entry by nearest entry."""
        semantic, acoustic = mx.split(self.input_proj(latent), 2, axis=-1)
        codes = self._residual_codes(semantic, range(min(self.num_semantic, num_codebooks)))
        codes += self._residual_codes(acoustic, range(self.num_semantic, num_codebooks))
        return stacked(codes, axis=1).astype(mx.int32)

    def _residual_codes(self, residual: mx.array, codebooks: range) -> list[mx.array]:
        codes = []
        for k in codebooks:
            entries = self.embedding[k : k + 1].squeeze(0)  # a view; to index with a number would copy
            # half of |r - e|^2, less the part that all entries share
            distance = mx.addmm(self.half_norms[k : k + 1], residual, entries.T, alpha=-1)
            code = mx.argmin(distance, axis=-1)
            codes.append(code)
            if k != codebooks[-1]:
                residual = residual - entries[code]
        return codes

    def decode(self, codes: mx.array) -> mx.array:
        """codes int [B, K, T], K up to all codebooks -> latent [B, T, hidden]."""
        batch, num_codebooks, length = codes.shape
        which = range(num_codebooks)
        halves = [[k < self.num_semantic for k in which], [k >= self.num_semantic for k in which]]
        entries = self.embedding[mx.array(list(which)), codes.swapaxes(1, 2)]  # [B, T, K, dim]
        sums = mx.array(halves, entries.dtype) @ entries  # [B, T, 2, dim]
        return self.output_proj(sums.reshape(batch, length, -1))
