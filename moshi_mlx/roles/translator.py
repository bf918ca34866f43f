"""A translator (Hibiki, Hibiki-Zero): what somebody says in one language, said in another while they speak.

It hears and speaks as Moshi does. What it has besides is an end: when the source is over it hears so in one frame of a
token of its own, and goes on until it has said the last word, which it says in its text (Kyutai's `run_inference` of
moshi 0.2.13, where nobody waits for the codes of the last columns).
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import inputs
from ..conversation.duplex import delays_of
from ..conversation.frame import Frame, SessionSettings
from ..conversation.session import Session
from ..errors import InputError
from ..inputs import Samples, spelled_out
from ..models.helium import END
from ..models.moshi import Moshi
from ..models.roles import check_role
from ..terminal.progress import steps

if TYPE_CHECKING:
    from typing_extensions import Unpack

TAIL_SECONDS = 30.0  # after the source, within which it is to come to an end
MOST_SECONDS = 600.0
ZERO_SECONDS = 120.0  # the longest source that Hibiki-Zero was trained with

Say = Callable[[str], object]


class Translation(NamedTuple):
    """What a translator says of a whole source.

    - `sound`: float32 [samples] at 24000 Hz; it begins when the source does.
    - `text`: the same in words.
    """

    sound: Samples
    text: str


class Translator:
    """One source, frame by frame. Made by `model.translator(...)`.

    `step` takes what is said now and gives what the translator says meanwhile: a `Frame`, as `Session.step`. When the
    source is over, `finish` gives the frames up to the end of the translation. `reset` begins another source.

    `tail` is how many seconds it may go on after the source. `say` gets a line where a source is longer than what the
    model was made for (default: a warning). The other settings are those of `Session`: `guidance` 3 makes a Hibiki
    sound more like the speaker, at the price of the translation.
    """

    def __init__(
        self, model: Moshi, seed: int = 0, *, tail: float = TAIL_SECONDS, say: Say | None = None, **settings: Any
    ) -> None:
        """Raises InputError for a model of another role, and for a setting out of range."""
        check_role(model, "translator")
        self._tail, self._say = inputs.number("tail", tail, 0.0, MOST_SECONDS), say or _warn
        self.session = Session(model, seed, **settings)
        """The conversation that it is."""
        self.sample_rate, self.frame_size = self.session.sample_rate, self.session.frame_size
        self.hears_end = model.config.end_reads_as_padding
        """Whether the model was trained to hear the end of its source (not in Kyutai's files for MLX)."""
        config = model.config
        self._end = np.full(config.user_codebooks, config.audio_vocab_size, np.int32)
        self._longest, self._most = max(delays_of(config)[0]), None if model.conditions.names else ZERO_SECONDS
        self._begin()

    def _begin(self) -> None:
        first = int(np.array(self.session._state["text"])[0])
        self._texts = deque([first], self._longest + 1)  # of the positions from the newest complete column on
        self._heard = self._after = 0  # frames of the source, and after it
        self._left: int | None = None  # frames until the last column is complete, once the end was said
        self.over = False
        """Whether the source is over."""
        self.said_end = False
        """Whether the translator has said that it is at the end."""

    @property
    def nonfinite_samples(self) -> int:
        """Samples that were heard as silence, since they were none: see `Session`."""
        return self.session.nonfinite_samples

    @property
    def done(self) -> bool:
        """Whether the translation is complete, to the last code of its last word."""
        return self._left == 0

    def reset(self, seed: int | None = None) -> None:
        """Begin another source. Raises InputError for a seed that is no whole number."""
        self.session.reset(seed)
        self._begin()

    def fill_context(self) -> None:
        """For measuring: see `Session.fill_context`."""
        self.session.fill_context()

    def step(self, pcm: Any) -> Frame:
        """One frame of the source, float [frame_size] -> what is said meanwhile; after `end` pcm is not heard.

        Raises InputError as `Session.step`, and where the translation is done.
        """
        if self.done:
            raise InputError("step: the translation is at its end; reset() begins another source")
        if self.over:
            return self._go_on()
        frame = self._noted(self.session.step(pcm))
        self._count()
        return frame

    def step_codes(self, codes: Any) -> Frame:
        """The same from Mimi codes int [user codebooks] of the source. Raises InputError, also after `end`."""
        if self.over:
            raise InputError("step_codes: the source is over; reset() begins another one")
        frame = self._noted(self.session.step_codes(codes))
        self._count()
        return frame

    def end(self) -> None:
        """The source is over: the next frame tells the model so, and those after it are silence."""
        self.over = True

    def finish(self) -> Iterator[Frame]:
        """The frames after the source, up to the end of the translation. Nothing where it is done already."""
        self.end()
        return self._rest()

    def _rest(self) -> Iterator[Frame]:
        while not self.done:
            yield self._go_on()

    def _count(self) -> None:
        self._heard += 1
        seconds = self._heard * self.frame_size / self.sample_rate
        if self._most is not None and seconds > self._most >= seconds - self.frame_size / self.sample_rate:
            self._say(
                f"the source is longer than {self._most:.0f} s, which is the most that Hibiki-Zero was trained with: "
                "what follows may be translated badly"
            )

    def _go_on(self) -> Frame:
        """A frame after the source."""
        begins, self._after = self._after == 0, self._after + 1
        frame = self._noted(self.session.step_codes(self._end) if begins and self.hears_end else self._silence())
        if self._left is not None:
            self._left -= 1
        elif len(self._texts) > self._longest and self._texts[0] == END:  # earlier ones are none
            self.said_end, self._left = True, self._longest
        elif self._after * self.frame_size >= self._tail * self.sample_rate:
            self._left = self._longest
        return frame

    def _silence(self) -> Frame:
        return self.session.step(np.zeros(self.frame_size, np.float32))

    def _noted(self, frame: Frame) -> Frame:
        self._texts.append(frame.text_token)
        return frame


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=4)


def translate(translator: Translator, sound: Any, progress: bool = True) -> Translation:
    """A whole source: float [samples] at 24000 Hz, or a sound file of any rate and channels.

    Its last frame is filled with silence. Raises InputError, and AudioError for a file that cannot be read.
    """
    size = translator.frame_size
    if isinstance(sound, (str, os.PathLike)):
        from ..audio.files import read_sound  # libraries that only files need

        sound = read_sound(Path(sound), translator.sample_rate)
    samples = inputs.sound("sound", sound, (None,))
    frames = np.pad(samples, (0, -len(samples) % size)).reshape(-1, size)
    said, words = [], []
    with steps("translating", len(frames), progress) as told:
        for number, frame in enumerate(_all(translator, frames)):
            said.append(np.zeros(size, np.float32) if frame.pcm is None else frame.pcm)
            words.append(frame.text)
            told(number < len(frames))
    return Translation(np.concatenate(said), "".join(words).strip())


def _all(translator: Translator, frames: np.ndarray) -> Iterator[Frame]:
    yield from map(translator.step, frames)
    yield from translator.finish()


class Translates:
    """Mixed into `MoshiForConditionalGeneration`."""

    @spelled_out(SessionSettings)
    def translator(
        self, seed: int = 0, *, tail: float = TAIL_SECONDS, say: Say | None = None, **settings: Unpack[SessionSettings]
    ) -> Translator:
        """A translator, ready for the first frame of its source: see `Translator`.

        The settings are those of `session`. Raises InputError for a model of another role and for a setting out of
        range, TypeError for one that does not exist.
        """
        said: Any = {**self.sampling_defaults, **settings}  # type: ignore[attr-defined]
        return Translator(self, seed, tail=tail, say=say, **said)  # type: ignore[arg-type]

    @spelled_out(SessionSettings)
    def translate(
        self, sound: Any, seed: int = 0, *, tail: float = TAIL_SECONDS, **settings: Unpack[SessionSettings]
    ) -> Translation:
        """A whole source, float [samples] at 24000 Hz or a sound file -> (sound, text): see `Translation`.

        The settings are those of `translator`. Raises InputError, and AudioError for a file that cannot be read.
        """
        progress = settings.get("progress", True) is not False
        return translate(self.translator(seed, tail=tail, **settings), sound, progress)
