"""Transcriber: one person's sound as words, for people who embed; and whole sounds as transcripts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import inputs
from ..errors import InputError
from ..inputs import Samples, spelled_out
from ..models.moshi import Moshi
from ..models.sampling import StreamSettings
from ..terminal.progress import steps
from .hearing import EndWord, Word
from .listener import Event, Step, tail_frames
from .pauses import EndPause, Pause
from .transcribers import Transcribers
from .transcript import Transcript

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "EndPause",
    "EndWord",
    "Event",
    "Pause",
    "Step",
    "Transcriber",
    "Transcribes",
    "Transcript",
    "Word",
    "transcribe",
]

BLOCK_SECONDS = 1.0


class Transcriber:
    """Sound of any length in, events out, without end. Made by `model.transcriber(...)`.

    temperature (0: greedy; Unmute's is 0.25), top_k, top_p and min_p are of its text; what is not given is as the
    checkpoint says. `codebooks` is how many of the sound are heard (default: all; Unmute's 20 of 32); of the others the
    model is given nothing. `kv_bits` (8 or 4) is how the attention cache is kept, `context` how many frames are
    remembered (default: the model's, which is the most).

    Beyond the context the oldest frames are forgotten one by one, as the reference does. With `refresh` the whole cache
    is emptied at times but for the last frames, whose text is still to come: at a pause once it is 60 % full (or
    another share: refresh=0.8), else when it is full. That ends an early mistake that would be repeated for ever.

    Raises InputError for a setting out of range and for a model that does not transcribe, TypeError for a setting that
    does not exist. A call while another one runs is refused.

    >>> from moshi_mlx.roles.transcriber import Word
    >>> transcriber = model.transcriber()  # a model such as moshi_mlx.load("kyutai/stt-1b-en_fr")
    >>> events = transcriber.feed(np.zeros(24000, np.float32))
    >>> words = [event for event in events + transcriber.flush() if isinstance(event, Word)]
    """

    @spelled_out(StreamSettings)
    def __init__(
        self,
        model: Moshi,
        seed: int = 0,
        *,
        kv_bits: int | None = None,
        context: int | None = None,
        codebooks: int | None = None,
        refresh: bool | float | None = None,
        progress: bool = True,
        **settings: Unpack[StreamSettings],
    ) -> None:
        self._people = Transcribers(
            model, 1, kv_bits=kv_bits, context=context, codebooks=codebooks, refresh=refresh, progress=progress
        )
        self.sample_rate, self.frame_size, self.model = self._people.sample_rate, self._people.frame_size, model
        self.context, self.codebooks = self._people.context, self._people.codebooks
        self._row = self._people.join(seed, **settings)
        self._partial = np.zeros(0, np.float32)
        self._turns = inputs.Turns()

    def feed(self, sound: Any) -> list[Event]:
        """sound float [T] at sample_rate, any T -> the events of the frames that it completes, in order.

        Samples that are NaN, infinite or beyond a million are silence. Raises InputError for another shape and for
        samples that are not floats.
        """
        with self._turns.taken("feed"):
            samples = np.concatenate([self._partial, inputs.sound("sound", sound, (None,))])
            whole = len(samples) - len(samples) % self.frame_size
            self._partial = samples[whole:]
            frames = samples[:whole].reshape(-1, self.frame_size)
            return [event for frame in frames for event in self._people.step({self._row: frame})[self._row]]

    def feed_codes(self, codes: Any) -> list[Event]:
        """The same from Mimi codes: int [user codebooks, frames], -1 where there is no input; no prefix comes before.

        Raises InputError for another shape, for codes that Mimi does not have, and after sound that fills no frame.
        """
        config = self.model.config
        with self._turns.taken("feed_codes"):
            if len(self._partial):
                raise InputError("feed_codes: came after part of a frame of sound; flush it, or feed whole frames")
            given = inputs.on_host("codes", codes)
            if given.ndim != 2 or given.shape[1]:  # no frames are no sound
                shape = (config.user_codebooks, None)
                given = np.array(inputs.tokens("codes", given, shape, -1, config.most_user_code))
            return [event for one in given.T for event in self._people.step_codes({self._row: one})[self._row]]

    def flush(self, frames: int | None = None) -> list[Event]:
        """All that was said until now, at once: silence is pushed through until it is written. One may go on feeding.

        That takes the delay's frames and one more (or `frames`): 7 where text comes half a second after sound, 32 where
        it comes 2.5. The silence takes no time: words before and after it have the times of their sound.
        """
        with self._turns.taken("flush"):
            partial, self._partial = self._partial, np.zeros(0, np.float32)
            return self._people.flush(self._row, partial, frames)

    def refresh(self) -> None:
        """Empty the attention cache now but for the last frames; codec, clock and the word at hand are not touched."""
        with self._turns.taken("refresh"):
            self._people.refresh(self._row)

    def reset(self, seed: int | None = None) -> None:
        """Another sound, as with a new transcriber of this one's settings and `seed` (None: its own)."""
        with self._turns.taken("reset"):
            self._row = self._people.reset(self._row, seed)
            self._partial = np.zeros(0, np.float32)

    @property
    def seconds(self) -> float:
        """Seconds of whole frames of sound so far, without silence that was put between."""
        return self._row.seconds

    @property
    def paused(self) -> bool:
        """Whether the person pauses just now: see `PauseDetector`."""
        return self._row.paused

    @property
    def positions(self) -> int:
        """Frames that the attention cache has held since it was last refreshed, the priming one included."""
        return self._row.positions

    @property
    def refreshed(self) -> int:
        """How often the attention cache was refreshed."""
        return self._row.refreshed

    @property
    def nonfinite_samples(self) -> int:
        """NaN and infinite samples that were replaced by silence so far."""
        return self._row.nonfinite_samples


def events_of(transcriber: Transcriber, blocks: Iterable[Samples]) -> Iterator[Event]:
    """Blocks of one sound -> its events, until all of it is written: as a file, which a second of silence follows."""
    for block in blocks:
        yield from transcriber.feed(block)
    yield from transcriber.flush(tail_frames(transcriber.model.config))


def transcribe(transcriber: Transcriber, sound: Any, progress: bool = True) -> Transcript:
    """A whole sound, or a sound file of any rate -> its transcript. Raises InputError or AudioError."""
    rate = transcriber.sample_rate
    if isinstance(sound, (str, os.PathLike)):
        from ..audio import decoding  # libraries that only files need

        expected, blocks = decoding.blocks_at(Path(sound), rate)
    else:
        samples = inputs.sound("sound", sound, (None,))
        size = round(BLOCK_SECONDS * rate)
        expected, blocks = len(samples), (samples[at : at + size] for at in range(0, len(samples), size))
    transcript = Transcript()
    with steps("transcribing", expected // transcriber.frame_size, progress) as done:
        for event in events_of(transcriber, blocks):
            transcript.add(event)
            if isinstance(event, Step):
                done(1)
    transcript.finish(transcriber.seconds)
    return transcript


class Transcribes:
    """The doors to what is here, as methods of a model. Each refuses, by name, a model of another role."""

    @spelled_out(StreamSettings)
    def transcriber(
        self, seed: int = 0, *, kv_bits: int | None = None, context: int | None = None, codebooks: int | None = None,
        refresh: bool | float | None = None, progress: bool = True, **settings: Unpack[StreamSettings],
    ) -> Transcriber:  # fmt: skip
        """Sound of any length in, words with times and pauses out, of an STT model: see `Transcriber`.

        Raises InputError for a setting out of range and for another model, TypeError for a name that does not exist.
        """
        given: Any = {"kv_bits": kv_bits, "context": context, "codebooks": codebooks, "refresh": refresh, **settings}
        return Transcriber(self, seed, progress=progress, **given)  # type: ignore[arg-type]

    def transcribers(
        self, slots: int, *, kv_bits: int | None = None, context: int | None = None, codebooks: int | None = None,
        refresh: bool | float | None = None, progress: bool = True,
    ) -> Transcribers:  # fmt: skip
        """Up to `slots` people in one step: see `Transcribers`. Raises InputError."""
        given: Any = {"kv_bits": kv_bits, "context": context, "codebooks": codebooks, "refresh": refresh}
        return Transcribers(self, slots, progress=progress, **given)  # type: ignore[arg-type]

    @spelled_out(StreamSettings)
    def transcribe(
        self, sound: Any, seed: int = 0, *, kv_bits: int | None = None, context: int | None = None,
        codebooks: int | None = None, refresh: bool | float | None = True, progress: bool = True,
        **settings: Unpack[StreamSettings],
    ) -> Transcript:  # fmt: skip
        """A whole sound, float [T] at 24000 Hz, or a sound file of any rate and channels -> its transcript.

        The settings are those of `transcriber`, but that the memory is refreshed at pauses, as in the command: a
        recording may last for hours. Raises InputError, and AudioError for a file that cannot be read.
        """
        given: Any = {"kv_bits": kv_bits, "context": context, "codebooks": codebooks, "refresh": refresh, **settings}
        return transcribe(self.transcriber(seed, progress=progress, **given), sound, progress)
