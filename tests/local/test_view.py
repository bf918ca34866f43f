"""What a person or a program sees of a conversation."""

import io
import json
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from stand_ins import moment

from moshi_mlx.conversation.loop import Controls
from moshi_mlx.local.screen import Terminal, _split_line
from moshi_mlx.local.view import Json, Plain


def shown(number, text="", **more):
    frame = SimpleNamespace(text=text, text_token=3, speaking=True, audio_codes=np.arange(8, dtype=np.int32))
    return moment(number, **more)._replace(frame=frame, drops=(2, 1), backlog=0.08)


def test_plain_words_and_lines(capsys):
    plain = Plain()
    plain(shown(0, " Hello"))
    plain(shown(1))
    plain.say("a line")
    plain.close()
    assert capsys.readouterr() == ("Hello\n", "a line\n")


def test_quiet_is_words_only(capsys):
    plain = Plain(quiet=True)
    plain.say("a line")
    plain.close()
    assert capsys.readouterr() == ("", "")
    plain(shown(0, " Hello"))
    plain.close()
    assert capsys.readouterr() == ("Hello\n", "")


def test_json_has_one_object_a_frame(capsys):
    controls = Controls()
    controls.muted = True
    rows = Json(controls, 0.08)
    rows(shown(25, ' "He\n', lost=(0.16, 0.04), reset=True)._replace(latency=0.19))
    rows.say("a line")
    rows(shown(26)._replace(frame=SimpleNamespace(text="", text_token=0, speaking=False, audio_codes=None)))
    rows.close()
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert first == {
        "frame": 25, "time": 2.0, "text": ' "He\n', "text_token": 3, "speaking": True,
        "audio_codes": list(range(8)), "step_ms": 50.0,
        "heard_db": pytest.approx(-16.8, abs=0.1), "said_db": pytest.approx(-10.8, abs=0.1), "backlog_ms": 80.0,
        "drops": [2, 1], "lost_ms": [160.0, 40.0], "muted": True, "reset": True, "latency_ms": 190.0,
        "notices": [],
    }  # fmt: skip
    assert (second["audio_codes"], second["latency_ms"], second["notices"]) == (None, None, ["a line"])
    assert err == "a line\n"


def screen(controls=None, **settings):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=90, height=20, color_system=None)
    return Terminal(controls or Controls(), 0.08, console=console, **settings), file


def drawn(terminal):
    terminal.pause()  # its own thread draws no more
    with terminal.console.capture() as capture:
        terminal.console.print(terminal.picture())
    return capture.get()


def test_terminal_shows_what_matters():
    controls = Controls()
    terminal, file = screen(controls)
    for n in range(50):
        terminal(shown(n, " word" if n % 10 == 0 else "", lost=(0.16, 0.04)))
    terminal.say("the microphone is gone")
    picture = drawn(terminal) + file.getvalue()  # its own thread may have shown the line already
    for said in ("word word word", "you", "Moshi", "50 ms a frame, 95% within 50 (of 80)", "waiting 80 ms", "0:00:04",
                 "dropped 2 in (0.2 s), 1 out (0.0 s)", "the microphone is gone", "m mute"):  # fmt: skip
        assert said in picture
    assert "MUTED" not in drawn(terminal)
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
    terminal, file = screen()
    terminal.say("talk now")
    assert "talk now" in drawn(terminal) + file.getvalue()
    terminal.close()


def test_lines_break_at_spaces():
    assert _split_line("one two three", 8) == (["one two"], " three")
    assert _split_line("short", 8) == ([], "short")
    assert _split_line("unbreakable", 8) == (["unbreak"], "able")


@pytest.mark.parametrize("width", [30, 40, 50, 66, 80, 120, 200])
def test_any_width_shows_the_newest_frames_in_lines_that_do_not_break(width):
    terminal, _ = screen()
    terminal.console.size = (width, 20)
    for n in range(200):
        terminal(shown(n)._replace(seconds=0.079 if n == 199 else 0.001))
    lines = drawn(terminal).splitlines()
    terminal.close()
    assert all(len(line) < width for line in lines)
    (graph,) = [line for line in lines if line.startswith("frame")]
    bars = graph.split("  ")[1].rstrip()
    assert bars.endswith("▇")  # the newest, which took longest
    assert set(bars[:-1]) == {"▁"}
    assert "80 ms" in graph or "1 ms" in graph


def test_a_resize_begins_with_an_empty_screen_and_the_words():
    terminal, file = screen()
    terminal.say("a line that stays")
    terminal(shown(0, " word"))
    drawn(terminal)
    with terminal._drawing:
        file.truncate(0)
        terminal.console.size = (60, 20)
        terminal._redraw()
        after = file.getvalue()
    terminal.close()
    assert "\x1b[2J" in after
    assert after.index("\x1b[2J") < after.index("a line that stays") < after.rindex("word")


def test_answers_are_lines_of_their_own():
    terminal, file = screen()
    terminal(shown(0, " It is five."))
    terminal(shown(50, " And nine."))
    terminal.close()
    left = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).splitlines()
    assert "It is five." in left
    assert "And nine." in left


def test_what_is_set_is_shown():
    controls = Controls()
    terminal, _ = screen(controls, volume=lambda: 0.5, total=lambda: 100.0)
    terminal(shown(24)._replace(latency=0.19))
    picture = drawn(terminal)
    for said in ("reply after 190 ms", "volume 50%", "0:00:02 of 0:01:40, 0:01:01 left"):
        assert said in picture
    controls.push_to_talk = True
    assert "HOLD SPACE TO TALK" in drawn(terminal)
    terminal.close()


def test_a_terminal_that_is_gone_ends_nothing():
    class Gone(io.StringIO):
        gone = False

        def write(self, text):
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    file = Gone()
    terminal = Terminal(Controls(), 0.08, console=Console(file=file, force_terminal=True, width=90, height=20))
    terminal(shown(0, " word"))
    file.gone = True
    for n in range(1, 5):
        terminal(shown(n, " word"))
        terminal.say("a line")
    terminal.close()
