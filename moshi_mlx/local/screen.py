"""The terminal view: Moshi's words, and below them levels, frame times, what waits and what was dropped.

It is drawn on a thread of its own, so that the model never waits for a terminal.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from ..audio.pacing import level_db
from ..conversation.loop import Controls, Moment
from ..terminal.streams import printable
from .transcript import Turns

BARS = " ▁▂▃▄▅▆▇█"
GRAPH = 40  # frames at most: some three seconds
LEAST_GRAPH = 16  # below which words make room for it
RECENT = 750  # frames that the percentiles are of: a minute
FLOOR_DB = -60.0
ROWS = 5  # of the view, below the line of words
KEPT = 200  # lines that are drawn again when the terminal gets another size
KEYS = "m mute   p push to talk   + - volume   r new conversation   q quit"
FEW_KEYS = "m  p  + -  r  q"


class Terminal:
    """`console` is a rich.console.Console (default: standard output). `keys` says whether keys are read.

    `volume` gives what the speaker's sound is multiplied by, `total` the seconds of a file, 0 where there is no end.
    """

    def __init__(
        self,
        controls: Controls,
        frame_seconds: float,
        keys: bool = True,
        console: Any = None,
        volume: Callable[[], float] = lambda: 1.0,
        total: Callable[[], float] = lambda: 0.0,
    ) -> None:
        from rich.console import Console

        self.console = console or Console(highlight=False)
        self._controls, self._frame_seconds, self._keys = controls, frame_seconds, keys
        self._volume, self._total, self._turns = volume, total, Turns(frame_seconds)
        self._times: deque[float] = deque(maxlen=RECENT)
        self._line, self._notices = "", list[str]()
        self._printed: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self._moment: Moment | None = None
        self._lock, self._changed, self._ended = threading.Lock(), threading.Event(), False
        self._drawing = threading.RLock()  # held by whoever writes to the terminal
        self._live: Any = None
        self._size = self.console.size
        self.resume()
        self._thread = threading.Thread(target=self._draw, name="view", daemon=True)
        self._thread.start()

    def __call__(self, moment: Moment) -> None:
        text = self._turns(moment)
        with self._lock:
            self._times.append(moment.seconds)
            self._line += text
            self._moment = moment
        self._changed.set()

    def say(self, line: str) -> None:
        """Shown among the words, where it stays."""
        with self._lock:
            self._notices.append(printable(line))
        self._changed.set()

    # Drawing

    def _draw(self) -> None:
        while not self._ended:
            self._changed.wait()
            self._changed.clear()
            with self._drawing, contextlib.suppress(OSError, ValueError):  # a terminal may be closed
                if self._live:
                    self._redraw()

    def _redraw(self) -> None:
        if self.console.size != self._size:
            self._start_afresh()
        self._live.update(self.picture(), refresh=True)

    def _start_afresh(self) -> None:
        """The terminal has another size, and has broken the lines of the view anew: nobody knows where they are now."""
        self.pause()
        self._size = self.console.size
        self.console.clear()
        for text, style in list(self._printed)[-max(1, self._size.height - ROWS - 2) :]:
            self.console.print(text, style=style, markup=False)
        self.resume()

    def pause(self) -> None:
        """Takes the view away, as while the program is stopped."""
        with self._drawing, contextlib.suppress(OSError, ValueError):
            live, self._live = self._live, None
            if live:
                live.stop()

    def resume(self) -> None:
        """Shows it again."""
        from rich.live import Live

        with self._drawing, contextlib.suppress(OSError, ValueError):
            if not self._live and not self._ended:
                self._live = Live(
                    console=self.console, auto_refresh=False, transient=True, redirect_stdout=False,
                    redirect_stderr=False,
                )  # fmt: skip
                self._live.start()

    def picture(self) -> Any:
        """The view of this moment; full lines of words, and what was said meanwhile, move up and out of it."""
        from rich.console import Group
        from rich.text import Text

        width = self.console.width
        with self._lock:
            full, self._line = _split_line(self._line, width)
            line, moment, times = self._line, self._moment, list(self._times)
            notices, self._notices = self._notices, []
        for done in full:
            self._print(done, "")
        for notice in notices:
            self._print(notice, "yellow")
        words = Text(line.lstrip() or " ", style="bold", no_wrap=True, overflow="crop")
        if moment is None:
            return words
        return Group(words, Text(""), *self._status(moment, times, width - 1), self._help(width - 1))

    def _print(self, text: str, style: str) -> None:
        self._printed.append((text, style))
        self.console.print(text, style=style, markup=False)

    def _status(self, moment: Moment, times: list[float], width: int) -> list[Any]:
        from rich.text import Text

        p50, p95 = np.percentile(times, [50, 95]) * 1e3
        limit = 1e3 * self._frame_seconds
        style = "green" if p95 < limit else "yellow" if p50 < limit else "red"
        beside, frame = [self._latency(moment), self._dropped(moment)], f"{p50:.0f} ms a frame"
        for says in (
            [*beside, f"{frame}, 95% within {p95:.0f} (of {limit:.0f})   {self._clock(moment)}"],
            [*beside, f"{frame}   {self._clock(moment)}"],
            ["", "", f"{p50:.0f} ms"],
        ):
            graph = max(1, min(GRAPH, width - len("Moshi") - 4 - max(map(len, says))))
            if graph >= LEAST_GRAPH:
                break
        bars = [_level(moment.heard, "cyan", graph), _level(moment.said, "magenta", graph),
                [(_graph(times, graph, self._frame_seconds), style)]]  # fmt: skip
        return [
            Text.assemble(f"{name:5}  ", *bar, f"  {said}", no_wrap=True, overflow="crop")
            for name, bar, said in zip(("you", "Moshi", "frame"), bars, says, strict=True)
        ]

    def _latency(self, moment: Moment) -> str:
        late = "" if moment.latency is None else f"reply after {1e3 * moment.latency:.0f} ms, "
        return f"{late}waiting {1e3 * moment.backlog:.0f} ms"

    def _dropped(self, moment: Moment) -> str:
        (drops_in, drops_out), (lost_in, lost_out) = moment.drops, moment.lost
        if not drops_in + drops_out:
            return "nothing dropped"
        return f"dropped {drops_in} in ({lost_in:.1f} s), {drops_out} out ({lost_out:.1f} s)"

    def _clock(self, moment: Moment) -> str:
        done, total = (moment.number + 1) * self._frame_seconds, self._total()
        if total <= done:
            return _clock(done)
        left = (total - done) * float(np.mean(self._times)) / self._frame_seconds
        return f"{_clock(done)} of {_clock(total)}, {_clock(left)} left"

    def _help(self, width: int) -> Any:
        from rich.text import Text

        controls, volume = self._controls, self._volume()
        muted = "MUTED  " if controls.muted else "HOLD SPACE TO TALK  " if controls.push_to_talk else ""
        loud = "" if volume == 1.0 else f"volume {100 * volume:.0f}%  "
        keys = KEYS if self._keys else "Ctrl-C ends"
        if len(muted + loud + keys) > width and self._keys:
            keys = FEW_KEYS
        return Text.assemble((muted, "bold red"), (loud, "bold"), (keys, "dim"), no_wrap=True, overflow="crop")

    def close(self) -> None:
        """Takes the view away and leaves the words. May be called twice, and from any thread."""
        if self._ended:
            return
        self._ended = True
        self._changed.set()
        self._thread.join(1.0)  # a terminal that is gone may take for ever
        with contextlib.suppress(OSError, ValueError):
            self.picture()  # what was still to be said
            self.pause()
            self.console.print(self._line.lstrip(), markup=False)


def _split_line(text: str, width: int) -> tuple[list[str], str]:
    """Full lines of `text`, broken at spaces and between answers, and the rest."""
    full = []
    *done, text = text.split("\n")
    for line in done:
        more, rest = _split_line(line, width)
        full += [*more, rest.lstrip()] if rest.strip() else more
    while len(text.lstrip()) > width - 1:
        text = text.lstrip()
        end = text.rfind(" ", 0, width)
        end = end if end > 0 else max(1, width - 1)
        full.append(text[:end])
        text = text[end:]
    return full, text


def _level(sound: np.ndarray, color: str, width: int) -> list[tuple[str, str]]:
    """A bar of the level, from FLOOR_DB to full scale."""
    level = level_db(sound)
    filled = round(width * min(1.0, max(0.0, 1 - level / FLOOR_DB)))
    return [("━" * filled, color), ("─" * (width - filled), "dim")]


def _graph(times: list[float], width: int, full: float) -> str:
    """The newest frame times as bars; a frame's whole duration is the highest."""
    return "".join(BARS[min(len(BARS) - 1, 1 + int(t / full * (len(BARS) - 2)))] for t in times[-width:]).ljust(width)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
