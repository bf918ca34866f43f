"""Speaker: a text as speech in a voice, whole or as it comes, for people who embed a model that speaks (TTS)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import inputs
from ..errors import InputError, brief
from ..inputs import spelled_out
from ..models.moshi import Moshi
from ..models.roles import check_role
from ..models.sampling import SamplingSettings
from ..terminal.progress import steps
from . import voices
from .speaking.row import SpeakerRow
from .speaking.speakers import Speakers, SpeakersSettings
from .speaking.utterance import Spoken

if TYPE_CHECKING:
    from typing_extensions import Unpack

AT_ONCE = 8  # texts in one step of `say_all`


class SpeakerSettings(SamplingSettings, SpeakersSettings, total=False):
    """What a speaker takes beside its model, voice and seed: see `Speaker`."""

    turns: bool | None


class Speech(NamedTuple):
    """A text spoken: float32 [samples] at sample_rate, and its words as (word, start, stop) in seconds."""

    pcm: np.ndarray
    words: list[tuple[str, float, float]]


class Speaker:
    """One voice that says texts. Made by `model.speaker(...)`.

    `voice`: a name of kyutai/tts-voices, with or without `.wav`, the path of a voice's file, or arrays; a list of two
    for a dialogue, in which each line of a text is the other's turn (or as `turns` says); up to five are looked at. A
    model that takes recordings (kyutai/tts-0.75b-en-public) goes on from a sound file, one voice alone. None: the
    model's own idea. See `roles.voices`.

    `guidance` is how much the model is held to text and voice, 2 by default: a model distilled for it (tts-1.6b) is
    told, and knows 1 to 4 in steps of a half; another is asked twice for every code, once without them, unless it is 1.
    `codebooks`: how many of the codec's are drawn (default: all); each costs its share of a frame's time, and fewer
    sound worse. `padding_between` frames at least lie between words (1); `padding_bonus`, added to the logit of
    padding, makes slower speech. `kv_bits` (8 or 4) is how the attention cache is kept, `context` how many frames are
    remembered. temperature, top_k, top_p, min_p are of the sound, with `text_` before them of when words begin;
    what is not given is as the checkpoint says, else 0.6, and 250 and 25.

    Every text is drawn from the same `seed`: the same text is the same sound. What is to sound like one speech is best
    said as one text, in pieces as they come (`stream`).

    MLX work belongs to a thread, so make it and use it on one thread. Raises InputError for a model that does not
    speak, for a voice that is none of it and for a setting out of range, TypeError for one that does not exist.

    >>> speaker = model.speaker("expresso/ex03-ex01_happy_001_channel1_334s", seed=1)
    >>> sound = speaker.say('Good morning. <break time="1s"/> How are you?')  # float32 at sample_rate
    >>> speaker.words[0]  # (word, start, stop) in seconds
    >>> for frame in speaker.stream(pieces_of_text):  # 80 ms each, as soon as the words for it are there
    ...     play(frame.pcm)
    """

    @spelled_out(SpeakerSettings)
    def __init__(self, model: Moshi, voice: Any = None, seed: int = 0, **settings: Unpack[SpeakerSettings]) -> None:
        given: dict[str, Any] = dict(settings)
        self._turns = given.pop("turns", None)
        self._own = {name: given.pop(name) for name in list(given) if name in SpeakersSettings.__annotations__}
        self._own["sampling"] = given
        self._seed = inputs.seed(seed)
        self.model = model
        check_role(model, "speaker")
        self._own["voice"] = voices.voices_of(model, voice)
        self._speakers = Speakers(model, 1, **self._own)
        self.sample_rate, self.frame_size = self._speakers.sample_rate, self._speakers.frame_size
        self.words: list[tuple[str, float, float]] = []
        """The words of the last text so far: (word, start, stop) in seconds of its sound."""
        self._row: SpeakerRow | None = None

    def say(self, text: str) -> np.ndarray:
        """The whole text as sound, float32 [samples] at sample_rate. Raises InputError where there are no words."""
        if not isinstance(text, str):
            raise InputError(f"text: got {brief(text)}, expected text; `stream` takes it in pieces, `say_all` several")
        return np.concatenate([frame.pcm for frame in self.stream(text) if frame.pcm is not None])

    def stream(self, text: str | Iterable[str]) -> Iterator[Spoken]:
        """The text, or pieces of it cut anywhere, as frames of 80 ms; each comes as soon as its words are known.

        Pieces are taken when they are needed: a few words ahead of what is spoken. While one is waited for, the speech
        stands still, and it goes on as if the whole text had been there. One text at a time: a stream that is begun
        while another one is not over is refused with InputError; close the other (`reset` does), or make a second
        speaker. Raises InputError where there is nothing to say, and for a pause of over ten minutes.
        """
        return self._spoken(iter([text]) if isinstance(text, str) else _pieces(text))

    def reset(self, seed: int | None = None) -> None:
        """Give up the text that is being said, if any. `seed` (None: as before) is that of the texts from now on."""
        self._seed = self._seed if seed is None else inputs.seed(seed)
        if self._row in self._speakers.rows:
            self._speakers.leave(self._row)
        self._row = None

    def say_all(self, texts: Sequence[str], at_once: int = AT_ONCE, progress: bool = True) -> list[Speech]:
        """Several texts, `at_once` of them in each step, which takes far less time than one after another.

        Each is as `say` would say it. Raises InputError as `say`, naming the text.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"texts: got {brief(texts)}, expected a list of texts")
        at_once = min(inputs.whole("at_once", at_once, 1), max(1, len(texts)))
        own: Any = {**self._own, "progress": progress}
        speakers, waiting = Speakers(self.model, at_once, **own), list(enumerate(texts))
        rows: dict[SpeakerRow, int] = {}
        parts: list[list[Spoken]] = [[] for _ in texts]
        with steps("speaking", len(texts), progress) as said:
            while waiting or rows:
                while waiting and speakers.free:
                    number, text = waiting.pop(0)
                    row = self._begin(speakers)
                    rows[row] = number
                    row.add(text)
                    _end(row, f"texts[{number}]")
                for row, spoken in speakers.step().items():
                    parts[rows[row]].append(spoken)
                    if row.done:
                        speakers.leave(row)
                        del rows[row]
                        said(1)
        return [_speech(frames) for frames in parts]

    def _begin(self, speakers: Speakers) -> SpeakerRow:
        return speakers.join(seed=self._seed, turns=self._turns)

    def _spoken(self, pieces: Iterator[str]) -> Iterator[Spoken]:
        """The frames that have sound, with the words since the one before."""
        if self._row is not None:
            raise InputError("stream: this speaker is in the middle of another text; finish that, or reset() first")
        row = self._row = self._begin(self._speakers)
        self.words = []
        words: tuple[tuple[str, float, float], ...] = ()
        try:
            while not row.done:
                _feed(row, pieces)
                spoken = self._speakers.step()[row]
                words += spoken.words
                self.words += spoken.words
                if spoken.pcm is not None:
                    yield spoken._replace(words=words)
                    words = ()
                if self._row is not row:
                    raise InputError("stream: this text was given up by reset(); begin another")
        finally:
            if self._row is row:
                self.reset()


def _feed(row: SpeakerRow, pieces: Iterator[str]) -> None:
    """Take as much text as the next frame needs. Raises InputError where there is none at all."""
    while not row.ready:
        piece = next(pieces, None)
        if piece is None:
            _end(row, "text")
        else:
            row.add(piece)


def _end(row: SpeakerRow, name: str) -> None:
    row.end()
    if row.empty:
        raise InputError(f"{name}: got nothing to say, expected words")


def _pieces(text: Any) -> Iterator[str]:
    try:
        return iter(text)
    except TypeError:
        raise InputError(f"text: got {brief(text)}, expected text, or pieces of it") from None


def _speech(frames: list[Spoken]) -> Speech:
    pcm = [frame.pcm for frame in frames if frame.pcm is not None]
    return Speech(np.concatenate(pcm), [word for frame in frames for word in frame.words])


class Speaks:
    """The doors to what is here, as methods of a model."""

    @spelled_out(SpeakerSettings)
    def speaker(self, voice: Any = None, seed: int = 0, **settings: Unpack[SpeakerSettings]) -> Speaker:
        """A voice that says texts, of a model that speaks (TTS): see `Speaker`.

        Raises InputError for another model, a voice that is none of it and a setting out of range; CheckpointError for
        a voice that the hub does not have.
        """
        return Speaker(self, voice, seed, **settings)  # type: ignore[arg-type]

    @spelled_out(SpeakersSettings)
    def speakers(
        self, slots: int, *, voice: Any = None, sampling: SamplingSettings | None = None,
        **settings: Unpack[SpeakersSettings],
    ) -> Speakers:  # fmt: skip
        """Up to `slots` texts in one step, each with its voice: see `Speakers`. Raises InputError."""
        return Speakers(self, slots, voice=voice, sampling=sampling, **settings)  # type: ignore[arg-type]
