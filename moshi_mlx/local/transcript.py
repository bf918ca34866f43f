"""Moshi's words as lines with times: what it says without a long pause is one line, an answer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..audio.recorder import Words
from ..conversation.loop import Moment
from ..errors import AudioError
from ..terminal.outputs import Output

PAUSE_SECONDS = 1.5  # without a word, after which the next one begins a new line
CUE_SECONDS = 6.0  # a subtitle that long ends with the word at hand
WRITE_SECONDS = 1.0  # between two versions of the file


class Turns:
    """What each frame adds to the text -> the same as it is shown: a line for each answer, without a leading space."""

    def __init__(self, frame_seconds: float) -> None:
        self._pause = round(PAUSE_SECONDS / frame_seconds)
        self._last: int | None = None  # the frame of the last word
        self._inside = False

    def __call__(self, moment: Moment) -> str:
        text = moment.frame.text
        if moment.reset or (self._last is not None and moment.number - self._last > self._pause):
            self._inside = False  # a space that waits for its word ends no line either
        if not self._inside:
            text = text.lstrip(" ")
        if not text:
            return ""
        started, self._inside = not self._inside, True
        begins_line = started and self._last is not None
        self._last = moment.number
        return f"\n{text}" if begins_line else text


class Word(NamedTuple):
    """A word, and the seconds at which it begins and ends."""

    word: str
    start: float
    end: float


Line = list[Word]


class Transcript:
    """An observer that writes Moshi's words to a .txt, .srt or .json file, which is whole at any moment.

    An earlier file stays and a free number is taken, unless `overwrite` is given. Raises AudioError where it cannot be
    written, as far as can be known beforehand.
    """

    def __init__(self, path: str | os.PathLike[str], frame_seconds: float, overwrite: bool = False) -> None:
        suffix = Path(path).suffix.lower()
        if suffix not in FORMATS:
            raise AudioError(f"{os.fspath(path)}: a transcript is .txt, .srt or .json; give it such a name")
        self._format = FORMATS[suffix]
        self._output = Output(path, overwrite)
        self._words, self._resets, self._lines = Words(frame_seconds), set[int](), list[Line]()
        self._seen, self._heard, self._changed, self._written = 0, False, False, -WRITE_SECONDS

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        return self._output.path

    def __call__(self, moment: Moment) -> None:
        self._heard = True
        if moment.reset:
            self._words.finish()
            self._take()
            self._resets.add(len(self._words.done))
        self._words.add(moment.number, moment.frame.text)
        self._take()
        self._changed = self._changed or bool(moment.frame.text)
        if self._changed and time.monotonic() - self._written >= WRITE_SECONDS:
            self._write()

    def _take(self) -> None:
        """Words that are done go to the line at hand, or begin one."""
        for n, text in enumerate(self._words.done[self._seen :], self._seen):
            self._lines = _with_word(self._lines, Word(**json.loads(text)), n in self._resets)
        self._seen = len(self._words.done)

    def _write(self) -> None:
        lines = self._lines
        for text in self._words.at_hand():
            lines = _with_word([*lines[:-1], list(lines[-1])] if lines else [], Word(**json.loads(text)),
                               self._seen in self._resets)  # fmt: skip
        self._output.rewrite(self._format(lines))
        self._changed, self._written = False, time.monotonic()

    def close(self) -> None:
        """Writes the last words; an empty file where nothing was said. May be called twice."""
        try:
            if self._heard:
                self._heard = False
                self._write()
        finally:
            self._output.abort()  # what was written is in its place


def _with_word(lines: list[Line], word: Word, begins: bool) -> list[Line]:
    if begins or not lines or word.start - lines[-1][-1].end > PAUSE_SECONDS:
        lines.append([])
    lines[-1].append(word)
    return lines


def _text(line: Line) -> str:
    return " ".join(word.word for word in line)


def _as_txt(lines: list[Line]) -> str:
    return "".join(f"[{_clock(line[0].start, '.')}] {_text(line)}\n" for line in lines)


def _as_srt(lines: list[Line]) -> str:
    cues = [cue for line in lines for cue in _cues(line)]
    return "".join(
        f"{n}\n{_clock(cue[0].start, ',')} --> {_clock(cue[-1].end, ',')}\n{_text(cue)}\n\n"
        for n, cue in enumerate(cues, 1)
    )


def _cues(line: Line) -> list[Line]:
    """Short enough to be read as a subtitle."""
    cues: list[Line] = []
    for word in line:
        if not cues or word.end - cues[-1][0].start > CUE_SECONDS:
            cues.append([])
        cues[-1].append(word)
    return cues


def _as_json(lines: list[Line]) -> str:
    content = [
        {"start": line[0].start, "end": line[-1].end, "text": _text(line), "words": [word._asdict() for word in line]}
        for line in lines
    ]
    return json.dumps({"speaker": "moshi", "lines": content}, ensure_ascii=False, indent=1) + "\n"


def _clock(seconds: float, point: str) -> str:
    """00:01:02,345"""
    milliseconds = round(1e3 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


FORMATS: dict[str, Callable[[list[Line]], str]] = {".txt": _as_txt, ".srt": _as_srt, ".json": _as_json}
