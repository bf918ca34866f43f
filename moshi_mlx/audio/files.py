"""Sound files: what the user says from one, and the reply into one. All sound is mono float32, nominally in [-1, 1].

What is here has the shape of `loop.Source` or `loop.Sink`, and needs no sound device.
"""

import contextlib
import os
import secrets
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from ..errors import AudioError
from ..inputs import Samples

BLOCK = 1 << 16  # sample times that are decoded at once
FILE_RATES = (1_000, 1_000_000)  # Hz; a rate outside is a broken header, and resampling it would fill the memory
WAV_SAMPLES = (2**32 - 64) // 2  # what the header of a 16-bit WAV file can say: a day at 24 kHz


def read_sound(path: str | os.PathLike[str], sample_rate: int) -> Samples:
    """Reads a WAV, FLAC, OGG or MP3 file of any rate and channels as mono float32 [N] at `sample_rate` Hz.

    NaN and infinite samples stay where they are, for the session to count and replace.
    Raises AudioError for a file that is missing, unreadable, not sound or empty.
    """
    _check_readable(path)
    try:
        with soundfile.SoundFile(path) as sound:
            rate = sound.samplerate
            mono = _read_mono(sound)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file
        raise AudioError(f"{path}: not a sound file that can be read, expected WAV, FLAC, OGG or MP3") from error
    if not FILE_RATES[0] <= rate <= FILE_RATES[1]:
        raise AudioError(f"{path}: has a sample rate of {rate} Hz, expected {FILE_RATES[0]} to {FILE_RATES[1]} Hz")
    samples = _resample(mono, rate, sample_rate)
    if not len(samples):
        raise AudioError(f"{path}: is empty, it holds no samples")
    return samples


def _check_readable(path: str | os.PathLike[str]) -> None:
    """libsndfile calls all of these a system error."""
    try:
        os.stat(path)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror}") from error
    if os.path.isdir(path):
        raise AudioError(f"{path}: is a folder, expected a sound file")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: cannot be read: Permission denied")


def _read_mono(sound: soundfile.SoundFile) -> Samples:
    """Block by block, so that a file of many channels does not stand in memory."""
    blocks = [np.zeros(0, np.float32)]
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: passed on as NaN
        while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
    return np.concatenate(blocks)


def _resample(mono: Samples, from_rate: int, to_rate: int) -> Samples:
    """The resampling filter would smear one NaN over its whole block: NaN goes around it."""
    if from_rate == to_rate or not len(mono):
        return mono
    broken = np.flatnonzero(~np.isfinite(mono))
    mono[broken] = 0.0
    samples: Samples = soxr.resample(mono, from_rate, to_rate)
    if len(samples):
        samples[np.minimum(broken * to_rate // from_rate, len(samples) - 1)] = np.nan
    return samples


class FileSource:
    """Samples float32 [N] as whole frames, followed by `tail` samples of silence; the last frame is padded."""

    def __init__(self, samples: Samples, frame_size: int, tail: int = 0) -> None:
        self.drops, self.lost_seconds, self.backlog = 0, 0.0, 0.0
        self.length = len(samples) + tail  # without the padding
        self._samples = samples
        self._frame_size = frame_size
        self._position = 0

    def read(self) -> Samples | None:
        if self._position >= self.length:
            return None
        part = self._samples[self._position : self._position + self._frame_size]
        frame = np.zeros(self._frame_size, np.float32)
        frame[: len(part)] = part
        self._position += self._frame_size
        return frame

    def end(self) -> None:
        self._position = self.length

    def close(self) -> None:
        self.end()


class FileSink:
    """A 16-bit mono WAV file of at most `length` samples.

    It grows under another name in the same folder and is renamed by `close`: under `path` there is never a
    half-written file. Raises AudioError if it cannot be written, as far as can be known when it is created.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int, length: int | None = None) -> None:
        self.drops, self.lost_seconds = 0, 0.0
        self.path = Path(path)
        self._target = Path(os.path.realpath(path))  # a link stays a link
        self._part = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}.part")
        self._left = WAV_SAMPLES if length is None else min(length, WAV_SAMPLES)
        self._check_target()
        with self._named_errors():
            self._file: BinaryIO = open(self._part, "xb")  # noqa: SIM115
        self._wave: wave.Wave_write | None = wave.open(self._file, "wb")  # noqa: SIM115
        self._wave.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))

    def _check_target(self) -> None:
        kind = self.path.suffix[1:].upper()
        if kind != "WAV" and kind in soundfile.available_formats():
            raise AudioError(f"{self.path}: the reply is written as WAV; give it a name that ends in .wav")
        if not os.path.exists(self._target):
            return
        if not os.path.isfile(self._target):
            raise AudioError(f"{self.path}: cannot be written: it is not a regular file")
        if not os.access(self._target, os.W_OK):  # renaming would replace it all the same
            raise AudioError(f"{self.path}: cannot be written: Permission denied")

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AudioError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def write(self, pcm: Samples) -> None:
        if self._wave is None:
            raise AudioError(f"{self.path}: cannot be written: it is closed")
        kept = pcm[: self._left]
        self._left -= len(kept)
        pcm16 = np.rint(np.clip(np.nan_to_num(kept, nan=0.0), -1.0, 1.0) * 32767.0).astype("<i2")
        with self._named_errors():
            self._wave.writeframesraw(pcm16.tobytes())

    def drain(self) -> None:
        """A file is played by nobody."""

    def close(self) -> None:
        if self._wave is None:
            return
        try:
            with self._named_errors():
                self._wave.close()  # writes the length into the header
                self._file.close()
                os.replace(self._part, self._target)
            self._wave = None
        finally:
            self.abort()

    def abort(self) -> None:
        if self._wave is None:
            return
        for step in (self._wave.close, self._file.close, self._part.unlink):
            with contextlib.suppress(OSError):
                step()
        self._wave = None
