"""A transcript: words with times as lines of text, as subtitles and as JSON, in files that are whole at any moment."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import AudioError
from ..terminal.outputs import Output
from .hearing import EndWord, Word
from .listener import Step
from .pauses import EndPause, Pause

PAUSE_SECONDS = 1.5  # without a word, after which the next one begins a new line
LINE_LETTERS = 100  # from here on the end of a sentence ends the line too
SENTENCE_ENDS = (".", "?", "!", "\u2026", "\u3002")
WORD_SECONDS, LETTER_SECONDS = 1.0, 0.1  # a word that a pause follows is taken to last no longer
ROW_LETTERS, CUE_ROWS = 42, 2  # of a subtitle
CUE_SECONDS, SHORTEST_CUE = 6.0, 1.0  # for how long it is shown, at most and where there is time


class Said(NamedTuple):
    """A word, and the seconds at which it begins and ends."""

    word: str
    start: float
    end: float


Line = list[Said]


@dataclass
class Transcript:
    """What was said. Events of a transcriber come in by `add`; `str` of it is the text, a line for each utterance.

    `seconds` is how much sound there was, `pauses` when nobody spoke, as (start, end), and `probabilities` that of a
    pause, smoothed, for each frame, where the model has heads for it.

    >>> from moshi_mlx.roles.hearing import EndWord, Word
    >>> from moshi_mlx.roles.transcript import Transcript
    >>> transcript = Transcript()
    >>> for event in (Word("Hello,", 0.4), EndWord(0.8), Word("wor", 0.8), Word("ld!", 0.8, joined=True), EndWord(9.0)):
    ...     transcript.add(event)
    >>> transcript.words
    [Said(word='Hello,', start=0.4, end=0.8), Said(word='world!', start=0.8, end=1.8)]
    >>> str(transcript)
    'Hello, world!'
    """

    words: list[Said] = field(default_factory=list)
    pauses: list[tuple[float, float]] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._paused: float | None = None  # since when

    def add(self, event: Any) -> None:
        """The next event; of others than words and pauses nothing is kept."""
        if isinstance(event, Word):
            self._add_word(event)
        elif isinstance(event, EndWord) and self.words:
            last = self.words[-1]
            self.words[-1] = last._replace(end=min(event.stop, _latest_end(last)))
        elif isinstance(event, Step):
            if event.pauses and event.time > self.seconds:  # silence that was put between takes no time
                self.probabilities.append(event.pause)
            self.seconds = max(self.seconds, event.time)
        elif isinstance(event, Pause):
            self._paused = event.start
        elif isinstance(event, EndPause):
            self._end_pause(0.0 if self._paused is None else self._paused, event.stop)

    def _add_word(self, word: Word) -> None:
        if word.joined and self.words:
            last = self.words.pop()
            said = last._replace(word=last.word + word.text)
        else:
            said = Said(word.text, word.start, 0.0)
        self.words.append(said._replace(end=_latest_end(said)))

    def _end_pause(self, start: float, stop: float) -> None:
        """One within silence that was put between took no time, and is none."""
        self._paused = None
        if start < stop:
            self.pauses.append((start, stop))

    def finish(self, seconds: float) -> None:
        """The sound has ended, after so many seconds: so have its last word and its last pause."""
        self.seconds = round(seconds, 3)
        if self._paused is not None:
            self._end_pause(self._paused, self.seconds)
        if self.words:
            last = self.words[-1]
            self.words[-1] = last._replace(end=max(last.start, min(last.end, self.seconds)))

    @property
    def lines(self) -> list[Line]:
        """The words as utterances: a pause ends one, and so does the end of a sentence once it is long."""
        lines: list[Line] = []
        for said in self.words:
            if not lines or begins_line(lines[-1], said):
                lines.append([])
            lines[-1].append(said)
        return lines

    def __str__(self) -> str:
        return "\n".join(map(text_of, self.lines))

    def as_txt(self) -> str:
        """[00:01:02.345] what was said, a line for each utterance."""
        return "".join(f"[{clock(line[0].start)}] {text_of(line)}\n" for line in self.lines)

    def as_srt(self) -> str:
        """Subtitles of at most two rows of 42 letters and six seconds."""
        cues = [cue for line in self.lines for cue in _cues(line)]
        begins = [cue[0].start for cue in cues]
        shown = zip(cues, begins, [*begins[1:], float("inf")], strict=False)
        return "".join(
            f"{n}\n{clock(start, ',')} --> {clock(_end_of(cue, following), ',')}\n{_rows(text_of(cue))}\n\n"
            for n, (cue, start, following) in enumerate(shown, 1)
        )

    def as_json(self) -> str:
        """All of it: text, lines, words with times, pauses and their probabilities."""
        lines = [_line_as_json(line) for line in self.lines]
        content: dict[str, Any] = {"seconds": self.seconds, "text": str(self), "lines": lines}
        content["pauses"] = [{"start": start, "end": end} for start, end in self.pauses]
        if self.probabilities:
            content["pause_probabilities"] = [round(value, 3) for value in self.probabilities]
        return json.dumps(content, ensure_ascii=False, indent=1) + "\n"

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Writes a .txt, .srt or .json file -> its path: a free number is taken where something is there already.

        Raises AudioError where it cannot be written.
        """
        file = TranscriptFile(path, overwrite)
        try:
            file.write(self)
        finally:
            file.close()
        return file.path


class TranscriptFile:
    """A file of a transcript that grows: every `write` puts a whole version in the place of the one before.

    Raises AudioError for another suffix, and where it cannot be written, as far as can be known beforehand.
    """

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        self._format = format_of(path)
        self._output = Output(path, overwrite)

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        return self._output.path

    def write(self, transcript: Transcript) -> None:
        self._output.rewrite(self._format(transcript))

    def close(self) -> None:
        """What was written stays. May be called twice."""
        self._output.abort()


FORMATS: dict[str, Callable[[Transcript], str]] = {
    ".txt": Transcript.as_txt, ".srt": Transcript.as_srt, ".json": Transcript.as_json,
}  # fmt: skip


def format_of(path: str | os.PathLike[str]) -> Callable[[Transcript], str]:
    """How a file of that name is written. Raises AudioError for another suffix."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise AudioError(f"{os.fspath(path)}: a transcript is .txt, .srt or .json; give it such a name")
    return FORMATS[suffix]


def text_of(line: Iterable[Said]) -> str:
    return " ".join(said.word for said in line)


def _line_as_json(line: Line) -> dict[str, Any]:
    words = [said._asdict() for said in line]
    return {"start": line[0].start, "end": line[-1].end, "text": text_of(line), "words": words}


def begins_line(line: Line, said: Said) -> bool:
    """Whether a word is the first of another utterance than the line before it."""
    if said.start - line[-1].end > PAUSE_SECONDS:
        return True
    return line[-1].word.endswith(SENTENCE_ENDS) and len(text_of(line)) >= LINE_LETTERS


def _latest_end(said: Said) -> float:
    """Where a word ends of which nothing is known but that it was said."""
    return round(said.start + max(WORD_SECONDS, LETTER_SECONDS * len(said.word)), 3)


def _cues(line: Line) -> Iterator[Line]:
    """A line as parts that can be read as subtitles; one that is over half full ends with a sentence."""
    cue: Line = []
    for said in line:
        if cue and not _fits([*cue, said]):
            yield cue
            cue = []
        cue.append(said)
        if said.word.endswith(SENTENCE_ENDS) and len(text_of(cue)) > ROW_LETTERS:
            yield cue
            cue = []
    if cue:
        yield cue


def _fits(cue: Line) -> bool:
    return cue[-1].end - cue[0].start <= CUE_SECONDS and len(_wrapped(text_of(cue), ROW_LETTERS)) <= CUE_ROWS


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [text]


def _rows(text: str) -> str:
    """Two rows about equally long, where one is not enough."""
    if len(text) <= ROW_LETTERS:
        return text
    widths = range(min(ROW_LETTERS, len(text) // CUE_ROWS), ROW_LETTERS + 1)
    rows = next((rows for rows in (_wrapped(text, width) for width in widths) if len(rows) <= CUE_ROWS), None)
    return "\n".join(rows or _wrapped(text, ROW_LETTERS))


def _end_of(cue: Line, next_one: float) -> float:
    """When a subtitle goes: not before it can be read, nor after the next one comes."""
    return min(max(cue[-1].end, cue[0].start + SHORTEST_CUE), next_one)


def clock(seconds: float, point: str = ".") -> str:
    """00:01:02.345"""
    minutes, milliseconds = divmod(round(1e3 * seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
