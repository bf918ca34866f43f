"""The loss that Kyutai's trainer trains with (moshi-finetune: train.py, finetune/loss.py), as sums with weights.

Cross-entropy of the text and of Moshi's own codebooks at every position against the index of the stream that it
predicts. The text's mean and the sound's are apart and are added. In the text's, padding counts `text_padding_weight`;
in the sound's, the first codebook, the semantic one, counts `first_codebook_weight_multiplier` times the others.
The factors 0.5 and 100 are those of moshi-finetune's example/moshi_7B.yaml and of the Moshi paper (section 4.4).

Every weight is divided by its sum over the whole iteration (all processes, all accumulated batches) before anything is
computed: so the parts of an iteration add up to the loss, and to the gradient, of one great batch.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..models.config import MoshiConfig
from ..models.moshi import Moshi
from .forward import logits
from .weights import Weights

KINDS = ("text", "semantic", "acoustic")


class Batch(NamedTuple):
    """Segments and what they are to teach."""

    tokens: mx.array  # int32 [B, 1 + streams, T], -1 for nothing
    targets: mx.array  # int32 [B, 1 + num_codebooks, T], what each position predicts; 0 where its weight is 0
    weights: mx.array  # float32 [B, 1 + num_codebooks, T]


class Factors(NamedTuple):
    """What counts more, and what less."""

    first_codebook: float
    text_padding: float


def batches(tokens: np.ndarray, config: MoshiConfig, factors: Factors, parts: int) -> tuple[list[Batch], np.ndarray]:
    """The batches of an iteration, of len(tokens) / parts segments each, and the summed weights of each kind."""
    targets = _targets(tokens, config)
    weights = (targets >= 0).astype(np.float32)
    weights[:, 1] *= factors.first_codebook
    weights[:, 0] *= np.where(np.isin(targets[:, 0], config.silent_text_tokens), factors.text_padding, 1)
    sums = np.array([weights[:, :1].sum(), weights[:, 1:2].sum(), weights[:, 2:].sum()])
    text, audio = max(sums[0], 1e-9), max(sums[1] + sums[2], 1e-9)
    weights[:, :1] /= text
    weights[:, 1:] /= audio
    split = [np.split(array, parts) for array in (tokens, np.maximum(targets, 0), weights)]
    return [Batch(*map(mx.array, part)) for part in zip(*split, strict=True)], sums / [text, audio, audio]


def _targets(tokens: np.ndarray, config: MoshiConfig) -> np.ndarray:
    """tokens [B, 1 + streams, T] -> what each position predicts: of a delayed codebook an earlier index."""
    targets = tokens[:, : 1 + config.num_codebooks].copy()
    for stream, delay in enumerate(config.audio_delays[: config.num_codebooks], 1):
        if delay:
            targets[:, stream, delay:] = tokens[:, stream, :-delay]
            targets[:, stream, :delay] = -1
    return targets


def loss(model: Moshi, batch: Batch, again: Weights | None = None) -> tuple[mx.array, mx.array]:
    """The batch's part of the loss, and its parts by kind [text, semantic, acoustic], weighted sums all of them.

    `again` as in `logits`.
    """
    text, audio = logits(model, batch.tokens, again)
    errors = [_errors(text[:, None], batch.targets[:, :1]), _errors(audio, batch.targets[:, 1:])]
    by_stream = (mx.concatenate(errors, axis=1) * batch.weights).sum(axis=(0, 2))
    kinds = mx.stack([part.sum() for part in mx.split(by_stream, [1, 2])])
    return kinds.sum(), kinds


def _errors(logits: mx.array, targets: mx.array) -> mx.array:
    return nn.losses.cross_entropy(logits.astype(mx.float32), targets, reduction="none")
