"""Weights of a model that nothing was loaded into, and which of them training may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...inputs import seed as checked
from ..state import flatten

_later = ContextVar("later", default=False)


@contextmanager
def left_at_zero() -> Iterator[None]:
    """Models made within get no random weights: parts of a whole that does it for all, or what is filled at once."""
    token = _later.set(True)
    try:
        yield
    finally:
        _later.reset(token)


def initialize(model: nn.Module, scale: float, seed: int) -> None:
    """Matrices and tables get normal values of standard deviation `scale`; vectors (norms, biases) stay as they are.

    Nothing is computed before it is used, so that a model whose weights are loaded next pays nothing for these.
    """
    key = mx.random.key(checked(seed))
    if _later.get():
        return
    leaves = [(name, leaf) for name, leaf in flatten(model.parameters()) if leaf.ndim > 1]
    if not leaves:
        return
    keys = mx.random.split(key, len(leaves))
    parts = mx.split(keys, len(leaves))
    model.load_weights(
        [
            (name, mx.random.normal(leaf.shape, scale=scale, key=key.squeeze(0)))
            for (name, leaf), key in zip(leaves, parts, strict=True)
        ],
        strict=False,
    )


class Freezable(nn.Module):
    """A module that can be frozen although some of its parts keep their weights in plain lists of arrays.

    mlx.nn.Module marks the arrays of such a list one by one, and can then no longer be updated around them (0.32).
    """

    def freeze(self, *, recurse: bool = True, keys: Any = None, strict: bool = False) -> nn.Module:
        super().freeze(recurse=recurse, keys=keys, strict=strict)
        if recurse and keys is None:
            self.apply_to_modules(lambda _, module: module._no_grad.update(_array_lists(module)))
        return self

    def unfreeze(self, *, recurse: bool = True, keys: Any = None, strict: bool = False) -> nn.Module:
        super().unfreeze(recurse=recurse, keys=keys, strict=strict)
        if recurse and keys is None:
            self.apply_to_modules(lambda _, module: module._no_grad.difference_update(_array_lists(module)))
        return self


def _array_lists(module: nn.Module) -> list[str]:
    lists = ((name, value) for name, value in module.items() if isinstance(value, list))
    return [name for name, value in lists if value and isinstance(value[0], mx.array)]
