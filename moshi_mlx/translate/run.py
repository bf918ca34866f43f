"""One run of the command: a talk whose model translates, and which ends when the last word has been said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..conversation import loop
from ..errors import AudioError
from ..inputs import Samples
from ..local import ends
from ..local.talk import FRAME_SECONDS, Talk
from ..roles.translator import Translator

CLOSING_SECONDS = 5.0  # after the last frame, until all is played and kept


class Translation(Talk):
    """See `Talk`."""

    roles = ("translator",)

    def _make(self, model: Any, settings: dict[str, Any]) -> Translator:
        arguments = self.arguments
        told = {"guidance": arguments.guidance, "conditions": dict(arguments.condition)}
        made: Translator = model.translator(
            seed=arguments.seed, tail=arguments.longest, say=self.say, **told, **settings
        )
        return made

    @property
    def guidance(self) -> float:
        return 1.0 if self.arguments.guidance is None else float(self.arguments.guidance)

    def _open_talk(self) -> None:
        if self.live:
            self.interrupts.patience = self.arguments.longest + CLOSING_SECONDS
            self.say("speak now; q or Ctrl-C ends the source, and once more ends the translation at once")

    def converse(self, session: Translator) -> loop.Statistics:
        self.ends.source = Ending(self.ends.source, session, self.stop if self.live else None)
        statistics = super().converse(session)
        if session.done and not session.said_end:
            self.say(f"the model went on after {self.arguments.longest:g} s: cut off there (--tail)")
        return statistics

    def quit(self) -> None:
        """Live, at first the source ends, and what is still to be said is waited for. From any thread, or a signal."""
        source = self.ends.source
        if self.live and isinstance(source, Ending) and not source.ended:
            source.end()
        else:
            super().quit()


class Ends(ends.Ends):
    """The two ends, where a translation that nobody asked to be written is heard if it can be."""

    def _open_files(self) -> None:
        self.source = self._open_input()
        self._stack.callback(self.source.close)
        self.file = self._open_file(None)
        self.sink = self.file if self.file is not None else self._open_heard()

    def _open_heard(self) -> loop.Sink:
        try:
            return self._open_speaker(pace=True)
        except AudioError as error:
            if self._arguments.output_device is not None:
                raise
            self._say(f"nothing is played: {error} (--output FILE.wav writes the translation)")
            return Unheard()


Translation.ends_class = Ends


class Ending:
    """A source, and behind its end silence for as long as the translation goes on.

    Where there are devices (`stop` says that nobody waits any more) silence comes at their pace.
    """

    def __init__(
        self, source: loop.Source, translator: Translator, stop: threading.Event | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._source, self._translator, self._stop, self._clock = source, translator, stop, clock
        self._due: float | None = None
        self._silence = np.zeros(translator.frame_size, np.float32)
        self._lost: tuple[int, float] | None = None  # by the source, while it was one
        self.ended = False
        """Whether somebody ended the source."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self) -> Samples | None:
        """The next frame of the source, or of silence; None where the translation is done."""
        if not self._translator.over:
            pcm = self._source.read()
            if pcm is not None:
                return pcm
            self._lost = (self._source.drops, self._source.lost_seconds)
            self._translator.end()
        if self._translator.done:
            return None
        self._wait()
        return self._silence

    def _wait(self) -> None:
        if self._stop is None:
            return
        now = self._clock()
        self._due = (now if self._due is None else max(self._due, now - FRAME_SECONDS)) + FRAME_SECONDS
        self._stop.wait(max(0.0, self._due - now))

    @property
    def drops(self) -> int:
        """Times that sound was lost while there was a source."""
        return self._source.drops if self._lost is None else self._lost[0]

    @property
    def lost_seconds(self) -> float:
        """What was lost of it."""
        return self._source.lost_seconds if self._lost is None else self._lost[1]

    @property
    def backlog(self) -> float:
        """Seconds of sound that wait to be read."""
        return self._source.backlog if self._lost is None else 0.0

    @property
    def latency(self) -> float | None:
        """See `loop.Source`; None for silence, which nobody said."""
        return self._source.latency if self._lost is None else None

    def end(self) -> None:
        """The source is over. From any thread, and from a signal handler."""
        self.ended = True
        self._source.end()

    def close(self) -> None:
        self._source.close()


class Unheard:
    """A sink of what nobody hears."""

    drops, lost_seconds = 0, 0.0

    def write(self, pcm: Samples) -> None:
        """Nothing."""

    def drain(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def abort(self) -> None:
        """Nothing."""
