"""Threads that MLX has worked on, and their end."""

from __future__ import annotations

import os
import sys
import threading
import time

MOST_SECONDS = 1.0
TASKS = "/proc/self/task"
GRACE_SECONDS = 0.05  # where the system does not say which threads there are


def join(thread: threading.Thread) -> None:
    """Until a thread has ended for the system too.

    What MLX keeps for a thread is freed when it ends, and some of that belongs to Python: a process that ends meanwhile
    would be aborted. Before 3.13 Python's own `join` comes back when the thread's function has.
    """
    thread.join()
    if sys.version_info >= (3, 13):
        return
    if not os.path.isdir(TASKS):
        time.sleep(GRACE_SECONDS)
        return
    end = time.monotonic() + MOST_SECONDS
    while os.path.exists(f"{TASKS}/{thread.native_id}") and time.monotonic() < end:
        time.sleep(0.001)
