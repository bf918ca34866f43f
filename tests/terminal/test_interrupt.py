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


ENDING = """
import hashlib, sys, time
from moshi_mlx.terminal import interrupt
interrupt.GRACE_SECONDS = 0.2
interrupts = interrupt.Interrupts()
with interrupts:
    interrupts.last_acts.append(lambda: print("by force", flush=True))
    interrupts.handle(lambda: None)
    print("go", flush=True)
    sys.stdin.readline()
    interrupts.closing()
    print("closing", flush=True)
    sys.stdin.readline()
    interrupts.kept()
    print("kept", flush=True)
    sys.stdin.readline()
print("end", flush=True)
"""


@pytest.fixture
def ending():
    child = subprocess.Popen(
        [sys.executable, "-c", ENDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield child
    child.kill()
    child.communicate()


def until(child, line):
    assert child.stdout.readline() == line + "\n"


def go_on(child):
    child.stdin.write("\n")
    child.stdin.flush()


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_while_files_are_closed_no_signal_ends_anything(ending, number):
    until(ending, "go")
    go_on(ending)
    until(ending, "closing")
    for _ in range(3):
        ending.send_signal(number)
        threading.Event().wait(0.2)  # longer than the grace
    go_on(ending)
    until(ending, "kept")
    go_on(ending)
    assert ending.communicate(timeout=20) == ("end\n", "")
    assert ending.returncode == 0


def test_a_signal_before_files_are_closed_does_not_end_what_comes_after_them(ending):
    until(ending, "go")
    ending.send_signal(signal.SIGINT)
    go_on(ending)
    until(ending, "closing")
    go_on(ending)
    until(ending, "kept")
    threading.Event().wait(0.5)
    go_on(ending)
    assert ending.communicate(timeout=20) == ("end\n", "")


def test_when_all_is_kept_a_signal_ends_at_once(ending):
    until(ending, "go")
    for line in ("closing", "kept"):
        go_on(ending)
        until(ending, line)
    ending.send_signal(signal.SIGINT)
    assert ending.wait(20) == interrupt.STATUS
    assert ending.stdout.read() == ""


@pytest.mark.skipif(interrupt.HANGUP is None, reason="there is no such signal")
def test_what_is_to_outlive_its_terminal_does():
    """As `nohup` sets it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_signals_that_python_handles_end_nothing(monkeypatch):
    monkeypatch.setattr(interrupt, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("ended by force"))
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGWINCH)
            threading.Event().wait(0.2)
    finally:
        signal.signal(signal.SIGWINCH, before)
