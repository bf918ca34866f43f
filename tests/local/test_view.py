"""What a person or a program sees of a conversation."""

import io
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from stand_ins import moment

from moshi_mlx.conversation.loop import Controls
from moshi_mlx.local.view import Json, Plain, Terminal, _split_line


def shown(number, text="", **more):
    frame = SimpleNamespace(text=text, text_token=3, speaking=True, audio_codes=np.arange(8, dtype=np.int32))
    return moment(number, **more)._replace(frame=frame, drops=(2, 1), backlog=0.08)


def test_plain_words_and_lines(capsys):
    plain = Plain()
    plain(shown(0, " Hello"))
    plain(shown(1))
    plain.say("a line")
    plain.close()
    assert capsys.readouterr() == (" Hello\n", "a line\n")


def test_quiet_is_words_only(capsys):
    plain = Plain(quiet=True)
    plain.say("a line")
    plain.close()
    assert capsys.readouterr() == ("", "")
    plain(shown(0, " Hello"))
    plain.close()
    assert capsys.readouterr() == (" Hello\n", "")


def test_json_has_one_object_a_frame(capsys):
    controls = Controls()
    controls.muted = True
    rows = Json(controls, 0.08)
    rows(shown(25, ' "He\n', lost=(0.16, 0.04), reset=True))
    rows(shown(26)._replace(frame=SimpleNamespace(text="", text_token=0, speaking=False, audio_codes=None)))
    rows.say("a line")
    rows.close()
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert first == {
        "frame": 25, "time": 2.0, "text": ' "He\n', "text_token": 3, "speaking": True,
        "audio_codes": list(range(8)), "step_ms": 50.0,
        "heard_db": pytest.approx(-16.8, abs=0.1), "said_db": pytest.approx(-10.8, abs=0.1), "backlog_ms": 80.0,
        "drops": [2, 1], "lost_ms": [160.0, 40.0], "muted": True, "reset": True,
    }  # fmt: skip
    assert second["audio_codes"] is None
    assert err == "a line\n"


def screen(controls=None, **settings):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=90, height=20, color_system=None)
    return Terminal(controls or Controls(), 0.08, console=console, **settings), file


def drawn(terminal):
    with terminal.console.capture() as capture:
        terminal.console.print(terminal.picture())
    return capture.get()


def test_terminal_shows_what_matters():
    controls = Controls()
    terminal, _ = screen(controls)
    for n in range(50):
        terminal(shown(n, " word" if n % 10 == 0 else "", lost=(0.16, 0.04)))
    terminal.say("the microphone is gone")
    picture = drawn(terminal)
    for said in ("word word word", "you", "Moshi", "p50 50 ms, p95 50 ms of 80", "waiting 80 ms", "0:00:04",
                 "dropped 2 in (0.2 s), 1 out (0.0 s)", "the microphone is gone", "m mute"):  # fmt: skip
        assert said in picture
    assert "MUTED" not in picture
    controls.muted = True
    assert "MUTED" in drawn(terminal)
    terminal.close()
    terminal.close()


def test_terminal_leaves_the_words_and_no_thread():
    before = threading.active_count()
    terminal, file = screen(keys=False)
    for n in range(40):
        terminal(shown(n, f" word{n}"))
    terminal.close()
    assert "Ctrl-C ends" in drawn(terminal)
    assert threading.active_count() == before
    left = file.getvalue()
    assert all(f"word{n}" in left for n in range(40))


def test_terminal_before_the_first_frame():
    terminal, _ = screen()
    terminal.say("talk now")
    assert "talk now" in drawn(terminal)
    terminal.close()


def test_lines_break_at_spaces():
    assert _split_line("one two three", 8) == (["one two"], " three")
    assert _split_line("short", 8) == ([], "short")
    assert _split_line("unbreakable", 8) == (["unbreak"], "able")
