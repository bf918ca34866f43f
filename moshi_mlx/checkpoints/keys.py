"""The keys of somebody else's configuration file, ticked off as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from ..errors import ConfigError

T = TypeVar("T")


_MISSING = object()


class Keys:
    """The keys of one foreign configuration, ticked off as they are read; whatever is left is an error."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._left = dict(values)

    def take(self, key: str, kind: type[T], default: Any = _MISSING) -> Any:
        value = self._left.pop(key, default)
        if value is _MISSING:
            raise ConfigError(f"{self.where}: key {key!r} is missing")
        if value is default and default is not _MISSING:
            return value
        if value is None and default is None:
            return None
        accepted = (int, float) if kind is float else (kind,)
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
            raise ConfigError(f"{self.where}: key {key!r} is {value!r}, expected {kind.__name__}")
        return float(cast(float, value)) if kind is float else value

    def expect(self, **values: Any) -> None:
        """Keys that may be absent, but where present must have the one value that this package honours."""
        for key, wanted in values.items():
            got = self._left.pop(key, wanted)
            empty = not got and not wanted  # None, False, {} and [] all say "without"
            if got != wanted and not empty:
                raise ConfigError(f"{self.where}: key {key!r} is {got!r}; only {wanted!r} is supported")

    def expect_present(self, **values: Any) -> None:
        for key in values:
            if key not in self._left:
                raise ConfigError(f"{self.where}: key {key!r} is missing; only {values[key]!r} is supported")
        self.expect(**values)

    def ignore(self, *names: str) -> None:
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        if self._left:
            key = sorted(self._left)[0]
            raise ConfigError(f"{self.where}: unknown key {key!r} (its value: {self._left[key]!r})")
