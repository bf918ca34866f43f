"""What a person sees of a conversation: a terminal view, plain words, or one JSON object a frame.

Each is an observer of `loop.run`. The terminal view is drawn on a thread of its own, so that the model never waits
for a terminal.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from typing import Any, Protocol

import numpy as np

from ..audio.pacing import level_db
from ..conversation.loop import Controls, Moment

BARS = " ▁▂▃▄▅▆▇█"
GRAPH = 40  # frames: some three seconds
RECENT = 750  # frames that the percentiles are of: a minute
FLOOR_DB = -60.0


class View(Protocol):
    """An observer that can also say a line, such as that a device is gone."""

    def __call__(self, moment: Moment) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


class Plain:
    """The words on standard output as they come, all else as lines on standard error, unless `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._spoke = False

    def __call__(self, moment: Moment) -> None:
        if moment.frame.text:
            write_out(moment.frame.text)
            self._spoke = True

    def say(self, line: str) -> None:
        if not self._quiet:
            say(line)

    def close(self) -> None:
        """Ends the line of words."""
        if self._spoke or not self._quiet:
            write_out("\n")


class Json:
    """One object a frame on standard output, for programs; all else as lines on standard error, unless `quiet`."""

    def __init__(self, controls: Controls, frame_seconds: float, quiet: bool = False) -> None:
        self._controls, self._frame_seconds, self._quiet = controls, frame_seconds, quiet

    def __call__(self, moment: Moment) -> None:
        write_out(json.dumps(self._row(moment)) + "\n")

    def _row(self, moment: Moment) -> dict[str, Any]:
        codes = moment.frame.audio_codes
        return {
            "frame": moment.number,
            "time": round(moment.number * self._frame_seconds, 3),
            "text": moment.frame.text,
            "text_token": moment.frame.text_token,
            "speaking": moment.frame.speaking,
            "audio_codes": None if codes is None else np.asarray(codes).tolist(),
            "step_ms": round(1e3 * moment.seconds, 2),
            "heard_db": round(level_db(moment.heard), 1),
            "said_db": round(level_db(moment.said), 1),
            "backlog_ms": round(1e3 * moment.backlog, 1),
            "drops": list(moment.drops),
            "lost_ms": [round(1e3 * lost, 1) for lost in moment.lost],
            "muted": self._controls.muted,
            "reset": moment.reset,
        }

    def say(self, line: str) -> None:
        if not self._quiet:
            say(line)

    def close(self) -> None:
        """Every object has ended its line."""


class Terminal:
    """Moshi's words, and below them levels, frame times, what waits and what was dropped.

    `console` is a rich.console.Console (default: standard output). `keys` says whether keys are read.
    """

    def __init__(self, controls: Controls, frame_seconds: float, keys: bool = True, console: Any = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = console or Console(highlight=False)
        self._controls, self._frame_seconds, self._keys = controls, frame_seconds, keys
        self._times: deque[float] = deque(maxlen=RECENT)
        self._line, self._notices = "", list[str]()
        self._moment: Moment | None = None
        self._lock, self._changed, self._ended = threading.Lock(), threading.Event(), False
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._live.start()
        self._thread = threading.Thread(target=self._draw, name="view", daemon=True)
        self._thread.start()

    def __call__(self, moment: Moment) -> None:
        with self._lock:
            self._times.append(moment.seconds)
            self._line += moment.frame.text
            self._moment = moment
        self._changed.set()

    def say(self, line: str) -> None:
        """Shown among the words, where it stays."""
        with self._lock:
            self._notices.append(line)
        self._changed.set()

    def _draw(self) -> None:
        while not self._ended:
            self._changed.wait()
            self._changed.clear()
            self._live.update(self.picture(), refresh=True)

    def picture(self) -> Any:
        """The view of this moment; full lines of words, and what was said meanwhile, move up and out of it."""
        from rich.console import Group
        from rich.text import Text

        with self._lock:
            full, self._line = _split_line(self._line, self.console.width)
            line, moment, times = self._line, self._moment, list(self._times)
            notices, self._notices = self._notices, []
        for done in full:
            self.console.print(done, markup=False)
        for notice in notices:
            self.console.print(notice, style="yellow", markup=False)
        words = Text(line.lstrip() or " ", style="bold", no_wrap=True, overflow="crop")
        if moment is None:
            return words
        return Group(words, Text(""), self._status(moment, times), self._help())

    def _status(self, moment: Moment, times: list[float]) -> Any:
        from rich.table import Table

        p50, p95 = np.percentile(times, [50, 95]) * 1e3
        limit = 1e3 * self._frame_seconds
        style = "green" if p95 < limit else "yellow" if p50 < limit else "red"
        table = Table.grid(padding=(0, 2))
        table.add_row("you", _level(moment.heard, "cyan"), f"waiting {1e3 * moment.backlog:.0f} ms")
        table.add_row("Moshi", _level(moment.said, "magenta"), _dropped(moment))
        seconds = int((moment.number + 1) * self._frame_seconds)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        graph = _graph(times[-GRAPH:], self._frame_seconds)
        table.add_row("frame", f"[{style}]{graph}[/]", f"p50 {p50:.0f} ms, p95 {p95:.0f} ms of {limit:.0f}   {clock}")
        return table

    def _help(self) -> Any:
        from rich.text import Text

        muted = "MUTED  " if self._controls.muted else ""
        keys = "m mute   r new conversation   q quit" if self._keys else "Ctrl-C ends"
        return Text.assemble((muted, "bold red"), (keys, "dim"))

    def close(self) -> None:
        """Takes the view away and leaves the words."""
        if self._ended:
            return
        self._ended = True
        self._changed.set()
        self._thread.join()
        self._live.stop()
        self.console.print(self._line.lstrip(), markup=False)


def _split_line(text: str, width: int) -> tuple[list[str], str]:
    """Full lines of `text`, broken at spaces, and the rest."""
    full = []
    while len(text.lstrip()) > width - 1:
        text = text.lstrip()
        end = text.rfind(" ", 0, width)
        end = end if end > 0 else width - 1
        full.append(text[:end])
        text = text[end:]
    return full, text


def _level(sound: np.ndarray, color: str) -> str:
    """A bar of the level, from FLOOR_DB to full scale."""
    level = level_db(sound)
    filled = round(GRAPH * min(1.0, max(0.0, 1 - level / FLOOR_DB)))
    return f"[{color}]{'━' * filled}[/][dim]{'─' * (GRAPH - filled)}[/]"


def _graph(times: list[float], full: float) -> str:
    """The frame times as bars; a frame's whole duration is the highest."""
    return "".join(BARS[min(len(BARS) - 1, 1 + int(t / full * (len(BARS) - 2)))] for t in times).ljust(GRAPH)


def _dropped(moment: Moment) -> str:
    (drops_in, drops_out), (lost_in, lost_out) = moment.drops, moment.lost
    return f"dropped {drops_in} in ({lost_in:.1f} s), {drops_out} out ({lost_out:.1f} s)"


def write_out(text: str) -> None:
    """To standard output at once, in its encoding; nobody may be reading it any more."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)
    except BrokenPipeError:  # the conversation goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """A line to standard error."""
    print(line, file=sys.stderr, flush=True)
