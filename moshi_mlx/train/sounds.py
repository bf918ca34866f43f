"""The sound of a conversation as a stream of blocks, whatever its files say of themselves.

Neither time nor memory depends on what a header claims: a block has a fixed number of samples, and reading ends where
the samples end. A file that holds less than it says is damaged, and is named.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from ..audio.files import FILE_RATES
from ..errors import AudioError, InputError, clipped
from .files import is_file

BLOCK = 1 << 18  # sample times that are read at once
MISSING_SECONDS = 0.25  # that a file may hold less than it says: compressed ones round
FAILURES = (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, AssertionError, OSError)


class Header(NamedTuple):
    """What a sound file says of itself."""

    rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def header(path: Path) -> Header:
    """Raises AudioError where there is no sound file, or its header makes no sense, InputError where it is text."""
    with _opened(path) as file:
        said = Header(file.samplerate, file.channels, file.frames)
    if not FILE_RATES[0] <= said.rate <= FILE_RATES[1]:
        raise AudioError(f"{path}: has a sample rate of {said.rate} Hz, expected {FILE_RATES[0]} to {FILE_RATES[1]} Hz")
    if said.frames < 1:
        raise AudioError(f"{path}: is empty, it holds no samples")
    return said


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    if not is_file(path):
        raise AudioError(f"{path}: no such sound file")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: cannot be read: Permission denied")
    try:
        with _decoder_silenced():
            file = soundfile.SoundFile(os.fsencode(path))
    except FAILURES as error:
        what = f"{path}: not a sound file that can be read"
        if _is_text(path):
            raise InputError(f"{what}, but text; is it a Git LFS pointer or a web page?") from error
        raise AudioError(f"{what}, expected WAV, FLAC, OGG or MP3") from error
    try:
        yield file
    finally:
        with contextlib.suppress(*FAILURES):
            file.close()


def _is_text(path: Path) -> bool:
    """Whether somebody else's file stands there: then it hardly is the only one, and no damage."""
    try:
        with path.open("rb") as file:
            start = file.read(200).decode("ascii")
    except (OSError, UnicodeDecodeError):
        return False
    return bool(start) and all(letter.isprintable() or letter.isspace() for letter in start)


@contextlib.contextmanager
def _decoder_silenced() -> Iterator[None]:
    """libmpg123 remarks on every damaged byte, on file descriptor 2; what matters of it is said by name here."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # standard error may be closed
            before = os.dup(2)
            stack.callback(os.close, before)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nowhere)
            os.dup2(nowhere, 2)
            stack.callback(os.dup2, before, 2)
        yield


def stream(paths: list[Path], sample_rate: int) -> Iterator[np.ndarray]:
    """The channels of one or more files of one rate, side by side and resampled, in blocks float32 [channels, T].

    Of several files the shorter ones end in silence, and so are samples that are no finite numbers. Raises AudioError,
    naming the file, where one is cut short or damaged.
    """
    with contextlib.ExitStack() as stack:
        files = [_File(path, stack.enter_context(_opened(path))) for path in paths]
        rate = files[0].said.rate
        resampler = soxr.ResampleStream(rate, sample_rate, sum(file.said.channels for file in files), dtype="float32")
        ended = False
        while not ended:
            parts = [file.read(BLOCK) for file in files]
            length, ended = max(map(len, parts)), all(file.ended for file in files)
            block = np.concatenate([np.pad(part, [(0, length - len(part)), (0, 0)]) for part in parts], axis=1)
            block = block if rate == sample_rate else resampler.resample_chunk(block, last=ended)
            if len(block):
                yield np.ascontiguousarray(block.T)


class _File:
    """A file that is read to its end, and then held against what it said."""

    def __init__(self, path: Path, file: soundfile.SoundFile) -> None:
        self.said = Header(file.samplerate, file.channels, file.frames)
        self.ended = False
        self._path, self._file, self._done = path, file, 0

    def read(self, length: int) -> np.ndarray:
        """The next samples [at most `length`, channels]; fewer at the end."""
        if self.ended:
            return np.zeros((0, self.said.channels), np.float32)
        try:
            with _decoder_silenced():
                block = self._file.read(length, dtype="float32", always_2d=True)
        except FAILURES as error:
            at = self._done / self.said.rate
            raise AudioError(
                f"{self._path}: is damaged: it cannot be read after {at:.1f} s ({clipped(str(error))})"
            ) from error
        self._done += len(block)
        self.ended = len(block) < length
        if self.ended and self.said.frames - self._done > MISSING_SECONDS * self.said.rate:
            holds = f"says that it has {self.said.seconds:.1f} s, but holds {self._done / self.said.rate:.1f} s"
            raise AudioError(f"{self._path}: {holds}; it is cut short or damaged")
        return np.nan_to_num(block, copy=False, nan=0, posinf=0, neginf=0)
