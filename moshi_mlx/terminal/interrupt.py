"""Ctrl-C and `kill`: they end a conversation in order, and a program that cannot end in order all the same.

Python runs a signal's handler only when the main thread is between two of its steps, and loading weights or computing
a frame is one step. So a thread of its own learns of the signal at once, gives the main thread a while, and then ends
the program.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

GRACE_SECONDS = 0.7  # for the main thread to end by itself
STATUS = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context on the main thread; on another one, where signals never arrive, it does nothing.

    Before `handle` a signal raises KeyboardInterrupt. After it, the first calls what `handle` was given and the second
    raises. `last_acts` are called, in reverse order, before the program is ended by force.
    """

    def __init__(self) -> None:
        self.last_acts: list[Callable[[], None]] = []
        self._handler: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}
        self._finished = threading.Event()

    def handle(self, handler: Callable[[], None]) -> None:
        self._handler = handler

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
            self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
            self._thread.start()
        return self

    def _on_signal(self, number: int, stack: FrameType | None) -> None:
        handler, self._handler = self._handler, None
        if handler is None:
            raise KeyboardInterrupt
        handler()

    def _watch(self) -> None:
        os.read(self._read, 1)
        if self._finished.wait(GRACE_SECONDS):
            return
        for act in reversed(self.last_acts):
            with contextlib.suppress(Exception):
                act()
        os._exit(STATUS)

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        self._finished.set()
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._write, b"x")  # ends the thread
        self._thread.join()
        os.close(self._read)
        os.close(self._write)
