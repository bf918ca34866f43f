"""The arrays that a model computes with, by where they lie; a function of the model as one of these arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Place = tuple[Any, Any]
"""What an array lies in (a module, dict or list), and its key there."""


def places(module: Any) -> dict[str, Place]:
    """Every array of a module by its dotted path, also those that are no parameters; what is shared stands once."""
    return dict(_walk(module, "", set()))


def _walk(container: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Place]]:
    if id(container) in seen:
        return
    seen.add(id(container))
    items = enumerate(container) if isinstance(container, (list, tuple)) else container.items()
    for key, value in items:
        if isinstance(value, mx.array):
            yield f"{path}{key}", (container, key)
        elif isinstance(value, (nn.Module, dict, list)):
            yield from _walk(value, f"{path}{key}.", seen)


def values(found: dict[str, Place]) -> list[mx.array]:
    return [container[key] for container, key in found.values()]


def of_parameters(found: dict[str, Place], function: Callable[..., Sequence[mx.array]]) -> Callable[..., Any]:
    """function(*inputs) as one of (*parameters, *inputs)."""

    def given(*arrays: mx.array) -> Sequence[mx.array]:
        before = values(found)
        _put(found, arrays[: len(found)])
        try:
            return function(*arrays[len(found) :])
        finally:
            _put(found, before)

    return given


def _put(found: dict[str, Place], arrays: Sequence[mx.array]) -> None:
    for (container, key), array in zip(found.values(), arrays, strict=True):
        container[key] = array
