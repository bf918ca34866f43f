"""Keys, on a pseudo-terminal."""

import os
import pty
import sys
import termios
import threading

import pytest

from moshi_mlx.local.keyboard import Keys


@pytest.fixture
def terminal(monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield ours
    os.close(ours)


def test_keys_call_their_actions_and_the_terminal_is_given_back(terminal):
    before = termios.tcgetattr(sys.stdin)
    pressed, done = [], threading.Event()
    actions = {"m": lambda: pressed.append("m"), "q": done.set}
    with Keys(actions) as keys:
        assert keys.active
        assert not termios.tcgetattr(sys.stdin)[3] & termios.ICANON
        os.write(terminal, b"xMmq")
        assert done.wait(10)
        thread = keys._thread
    assert pressed == ["m", "m"]
    assert not thread.is_alive()
    assert termios.tcgetattr(sys.stdin) == before
    assert not keys.active


def test_terminal_is_given_back_after_an_error_and_by_close(terminal):
    before = termios.tcgetattr(sys.stdin)
    with pytest.raises(ZeroDivisionError), Keys({}):
        raise ZeroDivisionError
    assert termios.tcgetattr(sys.stdin) == before
    with Keys({}) as keys:
        keys.close()
        keys.close()
        assert termios.tcgetattr(sys.stdin) == before


def test_no_terminal_no_keys(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with Keys({}) as keys:
        assert not keys.active
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with Keys({}) as keys:
            assert not keys.active
