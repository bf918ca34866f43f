"""Ctrl-C at any moment."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from moshi_mlx.terminal import interrupt
from moshi_mlx.terminal.interrupt import Interrupts

CHILD = """
import hashlib
from moshi_mlx.terminal.interrupt import Interrupts
with Interrupts() as interrupts:
    interrupts.last_acts.append(lambda: print("recording closed", flush=True))
    interrupts.handle(lambda: None)
    print("go", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in one step of Python's, as a model's load may be
"""


def test_a_main_thread_that_computes_is_ended_within_its_grace():
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "go\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=20) == ("recording closed\n", "")
    assert child.returncode == 130


def test_first_signal_calls_the_handler_and_the_second_raises():
    calls = []
    with Interrupts() as interrupts:
        interrupts.handle(lambda: calls.append(1))
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == [1]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert calls == [1]


def test_handlers_thread_and_pipe_are_gone_afterwards():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), threading.active_count()
    files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(3):
        with Interrupts():
            assert threading.active_count() == before[2] + 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), threading.active_count()) == before
    assert not files or len(os.listdir("/proc/self/fd")) == files
    assert signal.set_wakeup_fd(-1) == -1


def test_signal_that_is_answered_in_time_ends_nothing(monkeypatch):
    monkeypatch.setattr(interrupt, "GRACE_SECONDS", 30)
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("ended by force"))
    with Interrupts() as interrupts:
        interrupts.handle(lambda: None)
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_while_the_command_starts_leaves_no_traceback(tmp_path):
    """To the package, `-c code moshi_mlx.local` looks as `-m moshi_mlx.local` does."""
    code = "import moshi_mlx, time; print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, "moshi_mlx.local"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert child.stdout.readline() == "1\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=20) == ("", "")
    assert child.returncode == -signal.SIGINT


def test_programs_keep_their_own_way_with_signals():
    code = "import signal; before = signal.getsignal(2); import moshi_mlx; print(signal.getsignal(2) is before)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
