"""Graphs in which sizes are symbols: one text for any number of candidates, from traces at a few of them.

A whole number that changes with the sizes becomes a sum such as `V-K` or `T+8*A`; that it is one is checked at a
further point.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from ..errors import ConfigError

_NUMBER = re.compile(r"(?<![\w.\-])-?\d+(?![\w.])")


def with_symbols(name: str, names: str, points: list[tuple[int, ...]], trace: Callable[..., str]) -> str:
    """The text that trace(*point) gives at every point, with the symbols `names`; the last point is the check.

    Raises ConfigError where no sum of the symbols is right for all points.
    """
    texts = [trace(*point) for point in points]
    shapes = {_NUMBER.sub("#", text) for text in texts}
    if len(shapes) > 1:
        raise ConfigError(f"{name}: its operations change with the sizes {', '.join(names)}")
    columns = np.array([[int(number) for number in _NUMBER.findall(text)] for text in texts]).T
    known = np.array([[1, *point] for point in points])
    sums = iter([_sum(name, names, column, known) for column in columns])
    return _NUMBER.sub(lambda _: next(sums), texts[0])


def _sum(name: str, names: str, values: np.ndarray, known: np.ndarray) -> str:
    factors = np.rint(np.linalg.lstsq(known, values, rcond=None)[0]).astype(int)
    if (known @ factors != values).any():
        raise ConfigError(
            f"{name}: got {values.tolist()} for the sizes {known[:, 1:].tolist()}, which is no sum of them"
        )
    terms = [f"{factor:+d}*{symbol}" for symbol, factor in zip(names, factors[1:], strict=True) if factor]
    terms = [re.sub(r"([+-])1\*", r"\1", term) for term in terms]
    constant = f"{factors[0]:+d}" if factors[0] or not terms else ""
    return "".join([*terms, constant]).removeprefix("+")
