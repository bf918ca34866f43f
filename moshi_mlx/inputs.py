"""What people hand in: arrays of any kind, checked for type, shape and range before anything is computed."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .errors import InputError

Samples = npt.NDArray[np.float32]
"""Mono sound, nominally in [-1, 1]."""

Number = float | np.floating[Any] | np.integer[Any]
"""A number as people hand it in, NumPy's too."""
Whole = int | np.integer[Any]

LOUDEST = 1e6
"""Sound is nominally in [-1, 1]; what is so much louder is damage, and could fill the codec's state with infinities."""

FLOAT32_LEAST, FLOAT32_MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

F = TypeVar("F", bound=Callable[..., Any])


# --- settings -------------------------------------------------------------------------------------------------------


def spelled_out(kind: type, defaults: Mapping[str, Any] | None = None) -> Callable[[F], F]:
    """For a function whose last parameter is `**settings: Unpack[kind]`, kind a TypedDict.

    Names that are not among the kind's are refused as Python refuses them; what is None is as if it was not given, and
    the function gets its default; `help` shows every name with its default.
    """
    usual = dict(defaults or {})

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        parameters = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        names = kind.__annotations__
        known = {*names, *(p.name for p in parameters)}

        @functools.wraps(function)
        def checked(*arguments: Any, **given: Any) -> Any:
            check_names(function.__qualname__, given, known)
            said = {name: value for name, value in given.items() if name not in names or value is not None}
            return function(*arguments, **{**usual, **said})

        shown = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=usual.get(name), annotation=_written(hint))
            for name, hint in names.items()
        ]
        checked.__signature__ = own.replace(parameters=[*parameters, *shown])  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate


def check_names(function: str, given: Collection[str], known: Collection[str]) -> None:
    """Raises TypeError for a name that a function does not know, in Python's own words, and since 3.13 its advice."""
    for name in given:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, n=1)
            advice = f". Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{advice}")


def _written(hint: Any) -> str:
    return str(getattr(hint, "__forward_arg__", hint))


# --- numbers --------------------------------------------------------------------------------------------------------


def number(name: str, value: Any, low: float = 0.0, high: float = FLOAT32_MOST) -> float:
    """A number from low to high, of Python, NumPy or MLX. Raises InputError, naming the argument."""
    given = scalar(value)
    if not isinstance(given, numbers.Real) or isinstance(given, bool) or not low <= float(given) <= high:
        raise InputError(f"{name}: got {_said(value)}, expected a number from {low:.4g} to {high:.4g}")
    return float(given)


def whole(name: str, value: Any, low: int | None = 0, high: int | None = None) -> int:
    """A whole number from low to high (None: no bound). Raises InputError, naming the argument."""
    given = scalar(value)
    good = isinstance(given, numbers.Integral) and not isinstance(given, bool)
    if not good or not (-math.inf if low is None else low) <= given <= (math.inf if high is None else high):
        bounds = "" if low is None else f" of {low} or more" if high is None else f" from {low} to {high}"
        raise InputError(f"{name}: got {_said(value)}, expected a whole number{bounds}")
    return int(given)


def seed(value: Any, name: str = "seed") -> int:
    """A seed of `mx.random.key` from any whole number: its last 64 bits. Raises InputError for what is none."""
    return whole(name, value, None) % 2**64


def scalar(value: Any) -> Any:
    """The number in an array of NumPy or MLX that holds one alone; else the value itself."""
    return value.item() if isinstance(value, (np.ndarray, np.generic, mx.array)) and value.ndim == 0 else value


def plain(value: Any) -> Any:
    """Arrays and lists of numbers as tuples, numbers as Python's; anything else as it is."""
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic, mx.array)) else value
    return tuple(scalar(item) for item in value) if isinstance(value, list) else value


def _said(value: Any) -> str:
    """A value as it stands in a message: one line, and not a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


# --- arrays ---------------------------------------------------------------------------------------------------------


def tokens(name: str, value: Any, shape: tuple[int | None, ...], low: int, high: int) -> mx.array:
    """Whole numbers from low to high as int32; None in `shape` is any size. Raises InputError, naming the argument.

    Values are checked where they are known. An argument of a function that is being traced (mx.compile, mx.grad,
    mx.vmap) has none yet: there a number outside the range becomes the nearest one inside, so that no table is read
    beyond its end.
    """
    array = _array(name, value)
    if not mx.issubdtype(array.dtype, mx.integer):
        raise InputError(f"{name}: got {_kind(array)}, expected whole numbers of shape {_wanted(shape)}")
    check_shape(name, array, shape)
    if isinstance(value, mx.array) and is_traced(value):
        return mx.clip(array, low, high).astype(mx.int32)
    known = np.array(array)
    least, most = int(known.min()), int(known.max())
    if least < low or most > high:
        raise InputError(f"{name}: got values from {least} to {most}, expected {low} to {high}")
    return array.astype(mx.int32)


def floats(name: str, value: Any, shape: tuple[int | None, ...] | None = None) -> mx.array:
    """Sound, embeddings, hidden states: of any shape where none is given. Raises InputError, naming the argument."""
    array = _array(name, value)
    if not mx.issubdtype(array.dtype, mx.floating):
        raise InputError(f"{name}: got {_kind(array)}, expected floats{f' of shape {_wanted(shape)}' if shape else ''}")
    if shape is not None:
        check_shape(name, array, shape)
    return array


def _array(name: str, value: Any) -> mx.array:
    """MLX's array of what may be one of NumPy's, of others', or a list."""
    return value if isinstance(value, mx.array) else mx.array(on_host(name, value))


def on_host(name: str, value: Any) -> npt.NDArray[Any]:
    """NumPy's array of numbers, none of them wider than MLX takes. Raises InputError where there is none in it."""
    if isinstance(value, mx.array):
        return np.array(value.astype(mx.float32) if value.dtype == mx.bfloat16 else value)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise InputError(f"{name}: got {_said(value)}, expected an array of numbers ({error})") from error
    if array.dtype.kind not in "biufc":
        raise InputError(f"{name}: got {_said(value)}, expected an array of numbers")
    if array.dtype.kind != "f" or array.dtype.itemsize <= 4:
        return array
    with np.errstate(over="ignore"):  # beyond float32's range is infinite, and is looked for as such
        return array.astype(np.float32)


# --- sound ----------------------------------------------------------------------------------------------------------


SIXTEEN_BITS = " (divide 16-bit samples by 32768)"


def sound(name: str, value: Any, shape: tuple[int | None, ...]) -> Samples:
    """Samples on the host, float32. Raises InputError for another shape, and for whole numbers, which are no sound."""
    samples = on_host(name, value)
    fits = samples.ndim == len(shape) and all(
        size in (None, got) for size, got in zip(shape, samples.shape, strict=True)
    )
    if not fits or (samples.size and samples.dtype.kind != "f"):
        got = f"{samples.dtype} of shape {list(samples.shape)}"
        raise InputError(f"{name}: got {got}, expected float32 of shape {_wanted(shape)} in [-1, 1]{SIXTEEN_BITS}")
    return samples.astype(np.float32)


def silenced(samples: Samples) -> tuple[Samples, int]:
    """The samples with silence for those that are none (NaN, infinite, beyond LOUDEST), and how many those are."""
    good = np.abs(samples) <= LOUDEST
    return (samples, 0) if good.all() else (np.where(good, samples, np.float32(0)), int(good.size - good.sum()))


def audible(samples: mx.array) -> mx.array:
    """The same inside a graph."""
    return mx.where(mx.abs(samples) <= LOUDEST, samples, 0)


def batch_of_sound(name: str, value: Any) -> mx.array:
    """Sound [B, T] from [B, T] or [B, 1, T]. Raises InputError, also where rows and samples are mistaken."""
    samples = _array(name, value)
    flat = samples.squeeze(1) if samples.ndim == 3 and samples.shape[1] == 1 else samples
    if not mx.issubdtype(samples.dtype, mx.floating):
        raise InputError(f"{name}: got {_kind(samples)}, expected float32 in [-1, 1]{SIXTEEN_BITS}")
    if flat.ndim != 2 or flat.size == 0 or flat.shape[0] > flat.shape[1]:
        more = "" if flat.ndim != 2 or flat.size == 0 else f": {flat.shape[0]} rows of {flat.shape[1]} samples"
        raise InputError(
            f"{name}: got shape {list(samples.shape)}{more}, expected [B, T] or [B, 1, T] with T > 0, a row each sound"
        )
    return flat


# --- tracing --------------------------------------------------------------------------------------------------------


class _Runs(threading.local):
    """How often the Python code of `_watched` ran on this thread."""

    count = 0


_runs = _Runs()


@mx.compile
def _watched(x: mx.array) -> mx.array:
    _runs.count += 1
    return x


def compiles() -> bool:
    """Whether mx.compile does anything: it can be switched off, and on Linux it is without g++."""
    _watched(mx.zeros((1,), mx.int32))  # seen now, on this thread
    before = _runs.count
    _watched(mx.zeros((1,), mx.int32))
    return _runs.count == before


def is_traced(array: mx.array) -> bool:
    """Whether an array is an argument of a function that MLX is tracing, or computed from one: it has no values yet.

    Nothing is evaluated where MLX compiles, so nothing can fail: an exception caught inside a traced function corrupted
    Python in MLX below 0.32.4. MLX runs the Python code of a compiled function again for arrays that are being traced,
    and for others only if it has not seen their shape before.
    """
    if not compiles():
        return _refuses_to_be_known(array)
    before = _runs.count
    _watched(array.reshape(-1)[:1].astype(mx.int32))
    return _runs.count > before


def _refuses_to_be_known(array: mx.array) -> bool:
    """Whether MLX will not evaluate an array now: mx.vmap and mx.export_function trace without compiling, too."""
    try:
        mx.eval(array)
    except ValueError:
        return True
    return False


# --- shapes and masks -----------------------------------------------------------------------------------------------


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


def attention_mask(value: Any, batch: int, length: int, name: str = "attention_mask") -> mx.array:
    """The last `length` columns of a mask [B, T], T at least that: 1 or true where a position is no padding."""
    array = _array(name, value)
    if array.ndim != 2 or array.shape[0] != batch or array.shape[1] < length:
        raise InputError(f"{name}: got shape {list(array.shape)}, expected [{batch}, {length}]")
    if (
        not (isinstance(value, mx.array) and is_traced(array))
        and not mx.logical_or(array == 0, array == 1).all().item()
    ):
        raise InputError(f"{name}: got other values than 0 (padding) and 1")
    return array[:, array.shape[1] - length :] != 0


def _kind(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def _wanted(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


# --- turns ----------------------------------------------------------------------------------------------------------


class Turns:
    """Lets one call in at a time. Another one meanwhile is refused and harms nothing."""

    def __init__(self) -> None:
        self._free = threading.Lock()

    @contextmanager
    def taken(self, name: str) -> Iterator[None]:
        """For the time of a call. Raises InputError where another one runs, on whatever thread."""
        if not self._free.acquire(blocking=False):
            raise InputError(
                f"{name}: called while another call runs, from its hook or on another thread; wait until that returns"
            )
        try:
            yield
        finally:
            self._free.release()
