"""Ctrl-C, `kill` and a terminal that is closed: they end a conversation in order, and whatever cannot end in order too.

Python runs a signal's handler only when the main thread is between two of its steps, and loading weights or computing
a frame is one step. So a thread of its own learns of the signal at once, gives the main thread a while, and then ends
the program, unless its files are being closed.
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
HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))


class Interrupts:
    """A context on the main thread; on another one, where signals never arrive, it does nothing.

    Before `handle` a signal raises KeyboardInterrupt. After it, the first calls what `handle` was given and the second
    raises. From `closing` on signals do nothing; after `kept` one ends the program at once, since nothing can be lost.
    `last_acts` are called, in reverse order, before the program is ended by force.
    """

    def __init__(self) -> None:
        self.last_acts: list[Callable[[], None]] = []
        self.patience = 0.0
        """Seconds more than usual that the main thread may take to end in order."""
        self._handler: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}
        self._finished, self._closing, self._kept = threading.Event(), threading.Event(), threading.Event()
        self._ending = threading.Lock()  # whoever holds it, the main thread or the watching one, closes the files
        self._handled = 0  # signals that the main thread has seen
        self._received = 0  # and the thread of its own

    def handle(self, handler: Callable[[], None]) -> None:
        self._handler = handler

    def closing(self) -> None:
        """Files are being closed: however long that takes, nothing ends the program meanwhile."""
        if not self._closing.is_set():
            self._ending.acquire()  # the watching thread lets go of it never: it ends the program
            self._closing.set()
            self._ending.release()

    def kept(self) -> None:
        """All files are closed; devices may still take their time."""
        self._closed_after = self._handled
        self._kept.set()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._before = {
                number: signal.signal(number, self._on_signal) for number in SIGNALS if not _ignored(number)
            }
            self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
            self._thread.start()
        return self

    def _on_signal(self, number: int, stack: FrameType | None) -> None:
        self._handled += 1
        if self._closing.is_set():
            return
        handler, self._handler = self._handler, None
        if handler is None:
            raise KeyboardInterrupt
        handler()

    def _watch(self) -> None:
        while not self._finished.is_set():
            number = os.read(self._read, 1)
            if self._finished.is_set() or not self._ends(number):
                continue
            self._received += 1
            if self._kept.is_set():
                if self._received > self._closed_after:
                    os._exit(STATUS)
            elif not self._closing.is_set() and not self._is_done_in_time():
                self._end_by_force()

    def _ends(self, number: bytes) -> bool:
        """Python tells the number of each signal that it has a handler for: a window's new size is one."""
        return number[0] in self._before

    def _is_done_in_time(self) -> bool:
        self._closing.wait(GRACE_SECONDS + self.patience)
        return self._closing.is_set() or self._finished.is_set()

    def _end_by_force(self) -> None:
        with self._ending:
            if self._closing.is_set():
                return
            for act in reversed(self.last_acts):
                with contextlib.suppress(Exception):
                    act()
            os._exit(STATUS)

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        self._finished.set()
        self._closing.set()
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._write, b"x")  # ends the thread
        self._thread.join()
        os.close(self._read)
        os.close(self._write)


def _ignored(number: int) -> bool:
    """As `nohup` does: the program is to outlive its terminal."""
    return number == HANGUP and signal.getsignal(number) is signal.SIG_IGN
