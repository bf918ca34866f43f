"""Speech by espeak-ng with the moment of every word, through its library (libespeak-ng), in this process."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import soxr

from moshi_mlx.errors import MoshiError

SAMPLE_RATE = 24_000  # Hz, of what `speak` returns
PEAK = 0.7
SILENT = 0.01  # of the peak: what lies below at both ends is cut

# From speak_lib.h of espeak-ng 1.51.
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8, _BY_CHARACTER = 2, 0x8000, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_NO_MORE_EVENTS, _WORD = 0, 1


@dataclass(frozen=True)
class Voice:
    """name: espeak-ng's, with its variant; speed: words a minute; pitch: 0 to 99; range: of the intonation, 0 to 99."""

    name: str
    speed: int
    pitch: int
    range: int = 50


class Word(NamedTuple):
    """A word as it is spoken; start and end in seconds."""

    text: str
    start: float
    end: float


def delayed(words: list[Word], seconds: float) -> list[Word]:
    return [Word(word.text, seconds + word.start, seconds + word.end) for word in words]


class Utterance(NamedTuple):
    """sound float32 [T] at SAMPLE_RATE, its peak PEAK, without silence at the ends; the words in their order."""

    sound: np.ndarray
    words: list[Word]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Engine:
    """The library, initialized once a process; it keeps what it speaks until it has finished."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise MoshiError("espeak-ng: its library was not found; install it (Debian: espeak-ng)")
        self._library = ctypes.CDLL(name)
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, _DO_NOT_EXIT)
        if self.rate <= 0:
            raise MoshiError(f"espeak-ng: {name} did not start (status {self.rate})")
        self._sound: list[np.ndarray] = []
        self._words: list[tuple[int, int, int]] = []
        self._callback = _Callback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self._sound.append(np.ctypeslib.as_array(wave, (count,)).copy())
        for event in _until_the_last(events):
            if event.type == _WORD:
                self._words.append((event.text_position, event.length, event.sample))
        return 0

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
        """Sound int16 [T] at `rate`, and (first character counted from 1, characters, sample) of every word."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise MoshiError(f"espeak-ng: it has no voice {voice.name!r}; espeak-ng --voices lists them")
        for parameter, value in ((_RATE, voice.speed), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._sound, self._words = [], []
        data = text.encode() + b"\0"
        status = self._library.espeak_Synth(data, len(data), 0, _BY_CHARACTER, 0, _UTF8, None, None)
        if status or not self._sound:
            raise MoshiError(f"espeak-ng: it did not speak {text!r} (status {status})")
        return np.concatenate(self._sound), self._words


def _until_the_last(events: Any) -> Any:
    index = 0
    while events[index].type != _NO_MORE_EVENTS:
        yield events[index]
        index += 1


_engine = functools.cache(_Engine)


def speak(text: str, voice: Voice) -> Utterance:
    """The text spoken. The words are those between its blanks; timings are espeak-ng's own, to a sample.

    Raises MoshiError where espeak-ng is missing, does not know the voice or has nothing to say.
    """
    raw, marks = _engine().speak(text, voice)
    rate = _engine().rate
    sound = raw.astype(np.float32)
    peak = np.abs(sound).max()
    loud = np.flatnonzero(np.abs(sound) > SILENT * peak)
    first, last = (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(sound))
    words = _words(text, marks, loud, last)
    cut = soxr.resample(sound[first:last], rate, SAMPLE_RATE)
    cut = (cut * (PEAK / np.abs(cut).max())).astype(np.float32)
    return Utterance(cut, [Word(w, max(0, s - first) / rate, max(0, e - first) / rate) for w, s, e in words])


def _words(text: str, marks: list[tuple[int, int, int]], loud: np.ndarray, last: int) -> list[tuple[str, int, int]]:
    """(word, first sample, sample after its last loud one).

    Several marks in a word (digits) are one; words that espeak-ng speaks as one ("it is") share its time by length.
    """
    spans = _spans(text)
    starts: dict[int, int] = {}
    for position, _, sample in marks:
        index = next(i for i, (_, _, end) in enumerate(spans) if position - 1 < end)
        starts.setdefault(index, sample)
    found: list[tuple[str, int, int]] = []
    firsts = sorted(starts)
    for first, after in zip(firsts, [*firsts[1:], len(spans)], strict=True):
        begin, end = starts[first], starts.get(after, last)
        inside = loud[np.searchsorted(loud, begin) : np.searchsorted(loud, end)]
        end = int(inside[-1]) + 1 if len(inside) else end
        words = [word for word, _, _ in spans[first:after]]
        bounds = np.cumsum([0, *map(len, words)]) * (end - begin) // sum(map(len, words)) + begin
        found += [(word, int(bounds[i]), int(bounds[i + 1])) for i, word in enumerate(words)]
    return found


def _spans(text: str) -> list[tuple[str, int, int]]:
    """(word, first character, character after it) of what lies between blanks."""
    spans, position = [], 0
    for word in text.split():
        begin = text.index(word, position)
        position = begin + len(word)
        spans.append((word, begin, position))
    return spans
