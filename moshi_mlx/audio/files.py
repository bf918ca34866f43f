"""Sound files: what the user says from one, and the reply into one. All sound is mono float32, nominally in [-1, 1].

What is here has the shape of `loop.Source` or `loop.Sink`, and needs no sound device.
"""

from __future__ import annotations

import contextlib
import os
import threading
import wave
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import AudioError
from ..inputs import Samples
from ..terminal.outputs import Output, named_errors
from . import decoding
from .decoding import FILE_RATES

__all__ = ["FILE_RATES", "FileSink", "FileSource", "pcm16", "read_sound"]

WAV_SAMPLES = (2**32 - 64) // 2  # what the header of a 16-bit WAV file can say: a day at 24 kHz
WAV_SUFFIXES = ("", ".wav", ".wave")


def read_sound(path: str | os.PathLike[str], sample_rate: int) -> Samples:
    """Reads a sound file of any rate and channels as mono float32 [N] at `sample_rate` Hz.

    WAV, FLAC, OGG, MP3 and others that libsndfile knows; with the package `av` also m4a, mp4, webm and what else FFmpeg
    knows. "-" is standard input. NaN and infinite samples stay where they are, for the session to count and replace.
    Raises AudioError for a file that is missing, unreadable, not sound or empty.
    """
    return np.concatenate(list(decoding.blocks_at(path, sample_rate)[1]))


class FileSource:
    """Sound as whole frames, followed by `tail` samples of silence; the last frame is padded.

    `samples` is float32 [N], or blocks of it as they are decoded, of which `expected` says how many samples there will
    be. `length` is how many there are, tail included and padding not; None until that is known, which is at the latest
    when the last frame has been read.
    """

    latency = None

    def __init__(self, samples: Samples | Iterable[Samples], frame_size: int, tail: int = 0, expected: int = 0) -> None:
        self.drops, self.lost_seconds, self.backlog = 0, 0.0, 0.0
        self.length: int | None = None
        self.last = np.zeros(frame_size, np.float32)
        """The frame that was read last."""
        self._blocks: Iterator[Samples] = iter([samples] if isinstance(samples, np.ndarray) else samples)
        self._expected = (len(samples) if isinstance(samples, np.ndarray) else expected) + tail
        self._buffer = np.zeros(0, np.float32)
        self._taken, self._tail, self._frame_size, self._ended = 0, tail, frame_size, False
        self._look_ahead()

    @property
    def expected(self) -> int:
        """How many samples there will be, as far as can be known; 0 where it cannot."""
        return self._expected if self.length is None else self.length

    def _look_ahead(self) -> None:
        """Decodes more than a frame, so that the length is known when the last frame is read."""
        while self.length is None and len(self._buffer) <= self._frame_size:
            block = next(self._blocks, None)
            if block is None:
                self.length = self._taken + len(self._buffer) + self._tail
            else:
                self._buffer = np.concatenate([self._buffer, block])

    def read(self) -> Samples | None:
        if self._ended or (self.length is not None and self._taken >= self.length):
            return None
        part, self._buffer = self._buffer[: self._frame_size], self._buffer[self._frame_size :]
        self.last = np.pad(part, (0, self._frame_size - len(part)))
        self._taken += self._frame_size
        self._look_ahead()
        return self.last

    def end(self) -> None:
        self._ended = True

    def close(self) -> None:
        self.end()
        if isinstance(self._blocks, Generator):
            self._blocks.close()


class FileSink:
    """A 16-bit mono WAV file of at most `length` samples (which may be known later: a function that says it, or None).

    It grows under another name in the same folder and is renamed by `close`: under `path` there is never a half-written
    file. An earlier file stays and a free number is taken, unless `overwrite` is given. Raises AudioError if it cannot
    be written, as far as can be known when it is created. `keep` and `abort` may be called from any thread.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        length: int | Callable[[], int | None] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.drops, self.lost_seconds, self.written = 0, 0.0, 0
        self._length = length
        if Path(path).suffix.lower() not in WAV_SUFFIXES:
            raise AudioError(f"{os.fspath(path)}: the reply is written as WAV; give it a name that ends in .wav")
        self._output = Output(path, overwrite)
        self._closing = threading.Lock()
        self._file = os.fdopen(self._output.file, "wb", closefd=False)
        self._wave: wave.Wave_write | None = wave.open(self._file, "wb")  # noqa: SIM115
        self._wave.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        return self._output.path

    def write(self, pcm: Samples) -> None:
        with self._closing:
            if self._wave is None:
                raise AudioError(f"{self.path}: cannot be written: it is closed")
            kept = pcm[: self._left()]
            with named_errors(self.path):
                self._wave.writeframesraw(pcm16(kept))
                self._file.flush()
            self.written += len(kept)

    def _left(self) -> int:
        length = self._length() if callable(self._length) else self._length
        return min(WAV_SAMPLES if length is None else length, WAV_SAMPLES) - self.written

    def drain(self) -> None:
        """A file is played by nobody."""

    def close(self) -> None:
        with self._closing:
            if self._wave is None:
                return
            try:
                with named_errors(self.path):
                    self._wave.close()  # writes the length into the header
                    self._file.close()
                self._wave = None
                self._output.keep()
            finally:
                self._abort()

    def keep(self) -> None:
        """As `close` where anything was written, or else as `abort`."""
        if self.written:
            self.close()
        else:
            self.abort()

    def abort(self) -> None:
        with self._closing:
            self._abort()

    def _abort(self) -> None:
        file, self._wave = self._wave, None
        if file is not None:
            for step in (file.close, self._file.close):
                with contextlib.suppress(OSError):
                    step()
        self._output.abort()


def pcm16(sound: Samples) -> bytes:
    """float32 -> 16-bit little-endian samples; what is no number is silence."""
    return np.rint(np.clip(np.nan_to_num(sound, nan=0.0), -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
