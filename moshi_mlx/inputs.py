"""What people hand in: arrays of any kind, checked for type, shape and range before anything is computed."""

from __future__ import annotations

import threading
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .errors import InputError

Samples = npt.NDArray[np.float32]
"""Mono sound, nominally in [-1, 1]."""


def tokens(name: str, value: Any, shape: tuple[int | None, ...], low: int, high: int) -> mx.array:
    """Whole numbers from low to high as int32; None in `shape` is any size. Raises InputError, naming the argument.

    Values are checked where they are known. An argument of a function that is being traced (mx.compile, mx.grad,
    mx.vmap) has none yet: there a number outside the range becomes the nearest one inside, so that no table is read
    beyond its end.
    """
    array = value if isinstance(value, mx.array) else mx.array(np.asarray(value))
    if not mx.issubdtype(array.dtype, mx.integer):
        raise InputError(f"{name}: got {_kind(array)}, expected whole numbers of shape {_wanted(shape)}")
    check_shape(name, array, shape)
    if is_traced(array):
        return mx.clip(array.astype(mx.int32), low, high)
    least, most = int(np.array(array.min())), int(np.array(array.max()))
    if least < low or most > high:
        raise InputError(f"{name}: got values from {least} to {most}, expected {low} to {high}")
    return array.astype(mx.int32)


class _Runs(threading.local):
    """How often the Python code of `_watched` ran on this thread."""

    count = 0


_runs = _Runs()


@mx.compile
def _watched(x: mx.array) -> mx.array:
    _runs.count += 1
    return x


def is_traced(array: mx.array) -> bool:
    """Whether an array is an argument of a function that MLX is tracing, or computed from one: it has no values yet.

    Nothing is evaluated, so nothing can fail: an exception caught inside a traced function corrupted Python in MLX
    below 0.32.4. MLX runs the Python code of a compiled function again for arrays that are being traced, and for others
    only if it has not seen their shape before.
    """
    _watched(mx.zeros((1,), mx.int32))  # seen now, on this thread
    before = _runs.count
    _watched(mx.zeros((1,), mx.int32))
    if _runs.count > before:  # compiling is switched off
        return False
    _watched(array.reshape(-1)[:1].astype(mx.int32))
    return _runs.count > before


def check_shape(name: str, array: mx.array, shape: tuple[int | None, ...]) -> None:
    """Raises InputError where the array has another rank or size, or no element."""
    fits = array.ndim == len(shape) and all(
        got > 0 and wanted in (None, got) for got, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name}: got shape {list(array.shape)}, expected {_wanted(shape)}")


def one_of(**values: Any) -> None:
    """Raises InputError where not exactly one of the arguments is given."""
    given = [name for name, value in values.items() if value is not None]
    if len(given) != 1:
        got = "none of them" if not given else "all of them"
        raise InputError(f"{' and '.join(values)}: got {got}, expected one")


def check_repeats(num_return_sequences: Any) -> None:
    """Raises InputError where it is no number of rows."""
    if not isinstance(num_return_sequences, int) or num_return_sequences < 1:
        raise InputError(f"num_return_sequences: got {num_return_sequences!r}, expected 1 or more")


def attention_mask(value: Any, batch: int, length: int) -> mx.array:
    """The last `length` columns of a mask [B, T], T at least that: 1 or true where a position is no padding."""
    array = value if isinstance(value, mx.array) else mx.array(np.asarray(value))
    if array.ndim != 2 or array.shape[0] != batch or array.shape[1] < length:
        raise InputError(f"attention_mask: got shape {list(array.shape)}, expected [{batch}, {length}]")
    return array[:, array.shape[1] - length :]


def _kind(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def _wanted(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
