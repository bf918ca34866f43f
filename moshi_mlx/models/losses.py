"""Cross-entropy over the targets that count."""

from __future__ import annotations

import mlx.core as mx


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Mean over targets of 0 or more; others do not count. logits [..., V], targets int [...] -> scalar, float32.

    Without any target that counts it is 0, and so are its gradients.
    """
    logits = logits.astype(mx.float32)
    valid = targets >= 0
    chosen = mx.take_along_axis(logits, mx.maximum(targets, 0)[..., None], axis=-1).squeeze(-1)
    losses = mx.where(valid, mx.logsumexp(logits, axis=-1) - chosen, 0)
    return losses.sum() / mx.maximum(valid.sum(), 1)
