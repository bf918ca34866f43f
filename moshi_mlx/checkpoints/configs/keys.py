"""The keys of somebody else's configuration file, ticked off as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from ...errors import ConfigError, brief, clipped

T = TypeVar("T")

_MISSING = object()
_WORDS: dict[type, str] = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "an object",
}  # fmt: skip


class Keys:
    """The keys of one foreign configuration, ticked off as they are read; whatever is left is an error.

    Null says nothing: a key that is null counts as one that is not there.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._left = {key: value for key, value in values.items() if value is not None}

    def take(self, key: str, kind: type[T], default: Any = _MISSING) -> Any:
        """The value of a key, of a kind. Raises ConfigError where it is of another, or missing without a default."""
        value = self._left.pop(key, default)
        if value is _MISSING:
            raise ConfigError(f"{self.where}: key {key!r} is missing")
        if value is default:
            return value
        accepted = {float: (int, float), list: (list, tuple)}.get(kind, (kind,))
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
            raise ConfigError(f"{self.where}: key {key!r} is {brief(value)}, expected {_WORDS[kind]}")
        return self._as_float(key, cast(float, value)) if kind is float else value

    def _as_float(self, key: str, value: float) -> float:
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{self.where}: key {key!r} is {brief(value)}, which is too large a number") from error

    def numbers(self, key: str, default: Any = _MISSING) -> Any:
        """A list of whole numbers, as a tuple."""
        values = self.take(key, list, default)
        if values is default:
            return default
        if not all(type(value) is int for value in values):
            raise ConfigError(f"{self.where}: key {key!r} is {brief(values)}, expected a list of whole numbers")
        return tuple(values)

    def expect(self, **values: Any) -> None:
        """Keys that may be absent, but where present must have the one value that this package honours."""
        for key, wanted in values.items():
            got = self._left.pop(key, wanted)
            empty = not got and not wanted  # None, False, {} and [] all say "without"
            if got != wanted and not empty:
                raise ConfigError(f"{self.where}: key {key!r} is {brief(got)}; only {brief(wanted)} is supported")

    def expect_present(self, **values: Any) -> None:
        for key in values:
            if key not in self._left:
                raise ConfigError(f"{self.where}: key {key!r} is missing; only {values[key]!r} is supported")
        self.expect(**values)

    def ignore(self, *names: str) -> None:
        for name in names:
            self._left.pop(name, None)

    def rest(self) -> dict[str, Any]:
        """What is left, for another reader."""
        left, self._left = self._left, {}
        return left

    def finish(self) -> None:
        """Raises ConfigError where a key is left that says something; false and what is empty say nothing."""
        left = sorted(key for key, value in self._left.items() if value is not False and value not in ("", [], {}))
        if left:
            value = brief(self._left[left[0]])
            raise ConfigError(f"{self.where}: unknown key {clipped(repr(left[0]))} (its value: {value})")


def made(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """A config of these fields. Raises ConfigError, naming the file, where they contradict."""
    try:
        return kind(**fields)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
