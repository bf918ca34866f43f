"""The microphone as frames, for as long as somebody speaks: it outlives its device, and says what is wrong with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from ..audio import defaults, portaudio
from ..audio.devices import DeviceLost, Microphone
from ..errors import AudioError
from ..inputs import Samples

RETRY_SECONDS = 0.5  # PortAudio tells nobody of new devices: one has to look
DEAD_SECONDS = 2.0  # of exact zeros, after which a microphone is reported
AGAIN_SECONDS = 10.0  # so often at most the same is said

Say = Callable[[str], None]


class Listening:
    """What a microphone hears, frame by frame, until `end`. `say` gets one line for the person.

    Where the model is slower than the person speaks, sound waits; when more waits than is kept, the oldest is lost and
    that is said.
    """

    def __init__(self, microphone: Microphone, say: Say, now: Callable[[], float] = time.monotonic) -> None:
        self.microphone, self._say, self._now = microphone, say, now
        self._stop, self._changed = threading.Event(), False
        self._lost, self._said = 0, dict[str, float]()
        directions = () if microphone.chosen else (microphone.direction,)
        self._watch = defaults.Watch(directions, self._default_changed)

    def __iter__(self) -> Iterator[Samples]:
        while not self._stop.is_set():
            try:
                if self._changed:
                    self._changed = False
                    raise DeviceLost("the system's default device changed")
                if not self.microphone.fill():
                    return
            except DeviceLost as lost:
                self._recover(str(lost))
                continue
            yield self.microphone.take()
            self._tell_what_is_wrong()

    def _tell_what_is_wrong(self) -> None:
        microphone = self.microphone
        if microphone.overflows > self._lost:
            self._lost = microphone.overflows
            self._tell("slow", "too slow to keep up: sound was lost (try a smaller or quantized model, or --codebooks)")
        if microphone.dead_seconds >= DEAD_SECONDS:
            self._tell("dead", f"the microphone {microphone.name!r} gives nothing but zeros: it is muted, or not "
                       "permitted (macOS: System Settings > Privacy & Security > Microphone, then restart the "
                       "terminal)")  # fmt: skip

    def _tell(self, what: str, line: str) -> None:
        """Unless it was said a moment ago."""
        now = self._now()
        if now - self._said.get(what, -AGAIN_SECONDS) >= AGAIN_SECONDS:
            self._said[what] = now
            self._say(line)

    def _default_changed(self, direction: str) -> None:
        """From any thread: the system has another default microphone."""
        self._changed = True

    def _recover(self, what: str) -> None:
        """Opens the microphone again as soon as it can be, or another one. Gives up after `end`."""
        self._say(f"{what}; waiting until it, or another one, can be opened")
        while not self._stop.is_set():
            try:
                self.microphone.close()
                portaudio.look_again()
                self.microphone.reopen()
            except AudioError:
                self._stop.wait(RETRY_SECONDS)
                continue
            self._say(f"sound is back: microphone {self.microphone.name!r}")
            return

    def end(self) -> None:
        """From any thread, and from a signal handler: there are no more frames."""
        self._stop.set()
        self.microphone.end()

    def close(self) -> None:
        self._watch.close()
        self.microphone.close()

    @property
    def overflows(self) -> int:
        """Times that sound was lost."""
        return self.microphone.overflows
