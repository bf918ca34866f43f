"""What a person or a program sees of a transcription as it goes."""

from __future__ import annotations

import json
from typing import Any

from ..roles.hearing import EndWord, Word
from ..roles.listener import Event, Step
from ..roles.pauses import EndPause, Pause
from ..roles.transcript import Line, Transcript, begins_line, clock
from ..terminal.streams import tell, write_out


class Plain:
    """Words as they come, a line for each utterance with the time at which it begins; with `pauses` those too."""

    def __init__(self, pauses: bool) -> None:
        self._pauses, self._inside = pauses, False
        self._line: Line = []

    def begin(self, name: str | None) -> None:
        """Another sound; `name` where there are several."""
        self.end()
        self._line = []
        if name is not None:
            tell(f"== {name}")

    def __call__(self, event: Event, transcript: Transcript) -> None:
        """An event, and the transcript that has it already."""
        if isinstance(event, Word):
            self._word(event, transcript)
        elif isinstance(event, Pause) and self._pauses:
            self.end()
            tell(f"[{clock(event.start)}] (pause)")

    def _word(self, word: Word, transcript: Transcript) -> None:
        before, said = transcript.words[-2:-1], transcript.words[-1]
        if self._line:
            self._line[-1] = said if word.joined else before[0]  # its end is known by now
        goes_on = bool(self._line) and (word.joined or not begins_line(self._line, said))
        if not word.joined:
            self._line = [*self._line, said] if goes_on else [said]
        if self._inside and goes_on:
            write_out(word.text if word.joined else f" {word.text}")
            return
        self.end()
        write_out(f"[{clock(word.start)}] {word.text}")
        self._inside = True

    def end(self) -> None:
        """Ends the line at hand."""
        if self._inside:
            write_out("\n")
        self._inside = False


class Json:
    """One object an event on standard output, for programs; with `pauses` also one for each frame."""

    def __init__(self, pauses: bool) -> None:
        self._pauses = pauses

    def begin(self, name: str | None) -> None:
        if name is not None:
            self._tell("file", {"name": name})

    def __call__(self, event: Event, transcript: Transcript) -> None:
        if isinstance(event, Word):
            self._tell("word", {"text": event.text, "start": event.start, "joined": event.joined})
        elif isinstance(event, EndWord):
            self._tell("end_word", {"stop": event.stop})
        elif isinstance(event, Pause):
            self._tell("pause", {"start": event.start})
        elif isinstance(event, EndPause):
            self._tell("end_pause", {"stop": event.stop})
        elif self._pauses and isinstance(event, Step):
            values = {"time": event.time, "pauses": [round(one, 4) for one in event.pauses]}
            self._tell("step", {**values, "pause": round(event.pause, 4)})

    def _tell(self, kind: str, content: dict[str, Any]) -> None:
        tell(json.dumps({"event": kind, **content}, ensure_ascii=False))

    def end(self) -> None:
        """Every object has ended its line."""
