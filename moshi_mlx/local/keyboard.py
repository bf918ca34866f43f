"""Single keys from a terminal, read on a thread of their own that waits for them."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

Actions = Mapping[str, Callable[[], None]]


class Keys:
    """Calls `actions[key]` for each key that is pressed, while it is open as a context.

    Does nothing where standard input is no terminal, or where there is no termios. `close` gives the terminal back as
    it was; it may be called twice, and from any thread.
    """

    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self._before: list[Any] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Keys:
        try:
            import termios
            import tty
        except ImportError:  # Windows
            return self
        try:
            self._input = sys.stdin.fileno()
            before = termios.tcgetattr(self._input)
            tty.setcbreak(self._input)
        except (OSError, ValueError, AttributeError, termios.error):  # no terminal, or no standard input at all
            return self
        self._before = before
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._read, name="keys", daemon=True)
        self._thread.start()
        return self

    @property
    def active(self) -> bool:
        """Whether keys are read at all."""
        return self._before is not None

    def _read(self) -> None:
        while True:
            ready, _, _ = select.select([self._input, self._wake], [], [])
            if self._wake in ready:
                return
            pressed = os.read(self._input, 1).decode(errors="replace").lower()
            if not pressed:  # the terminal is gone
                return
            if pressed in self._actions:
                self._actions[pressed]()

    def close(self) -> None:
        if self._before is None:
            return
        import termios

        before, self._before = self._before, None
        termios.tcsetattr(self._input, termios.TCSADRAIN, before)
        os.write(self._woken, b"x")

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._thread:
            self._thread.join()
            os.close(self._wake)
            os.close(self._woken)
            self._thread = None
