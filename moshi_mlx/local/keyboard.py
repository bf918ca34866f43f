"""Single keys from a terminal, read on a thread of their own that waits for them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

Actions = Mapping[str, Callable[[], None]]
BACKGROUND_SECONDS = 0.5  # between two looks whether the terminal is ours again


def _nothing() -> None:
    """What is not asked for."""


class Keys:
    """Calls `actions[key]` for each key that is pressed, while it is open as a context.

    Does nothing where standard input is no terminal, or where there is no termios. Ctrl-Z gives the terminal back,
    after `before_stop`; `fg` takes it again, before `after_stop`. `close` gives it back as it was; it may be called
    twice, and from any thread.
    """

    def __init__(
        self,
        actions: Actions,
        before_stop: Callable[[], None] = _nothing,
        after_stop: Callable[[], None] = _nothing,
    ) -> None:
        self._actions = actions
        self._before_stop, self._after_stop = before_stop, after_stop
        self._before: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
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
        self._handle_stops()
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._read, name="keys", daemon=True)
        self._thread.start()
        return self

    @property
    def active(self) -> bool:
        """Whether keys are read at all."""
        return self._before is not None

    # Ctrl-Z and fg

    def _handle_stops(self) -> None:
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGTSTP: self._stop, signal.SIGCONT: self._go_on}
            self._handlers = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def _stop(self, number: int, stack: FrameType | None) -> None:
        self._before_stop()
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _go_on(self, number: int, stack: FrameType | None) -> None:
        """A shell leaves the terminal in its own mode; in the background it is not ours to change."""
        if self._before is not None and self._is_ours():
            import termios
            import tty

            with contextlib.suppress(OSError, termios.error):
                tty.setcbreak(self._input)
            self._after_stop()

    def _is_ours(self) -> bool:
        try:
            return os.tcgetpgrp(self._input) == os.getpgrp()
        except OSError:  # the terminal is gone, or is not the one that controls this program
            return True

    def _read(self) -> None:
        while True:
            ready, _, _ = select.select([self._input, self._wake], [], [])
            if self._wake in ready:
                return
            if not self._is_ours():
                time.sleep(BACKGROUND_SECONDS)
                continue
            try:
                pressed = os.read(self._input, 1).decode(errors="replace").lower()
            except OSError:
                return
            if not pressed:  # the terminal is gone
                return
            if pressed in self._actions:
                self._actions[pressed]()

    def _give_back(self) -> None:
        import termios

        with contextlib.suppress(OSError, termios.error):  # it may be gone
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before or [])

    def close(self) -> None:
        if self._before is None:
            return
        if self._is_ours():
            self._give_back()
        self._before = None
        os.write(self._woken, b"x")

    def __exit__(self, *_: object) -> None:
        self.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._thread:
            self._thread.join()
            os.close(self._wake)
            os.close(self._woken)
            self._thread = None
