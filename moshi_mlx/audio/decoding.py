"""Sound files as streams of mono blocks, whatever holds the sound: libsndfile's formats, and FFmpeg's with PyAV.

All sound is float32, nominally in [-1, 1]. NaN and infinite samples stay where they are, for a session to count.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from ..errors import AudioError
from ..inputs import Samples

BLOCK = 1 << 16  # sample times that are decoded at once
FILE_RATES = (1_000, 1_000_000)  # Hz; a rate outside is a broken header, and resampling it would fill the memory
STDIN = Path("-")
MISSING = (
    "not a sound file that can be read, expected WAV, FLAC, OGG or MP3; "
    "for m4a, mp4, webm and others: pip install av"
)  # by that name: the package's own extra may be another project's


class Decoded(NamedTuple):
    """A sound as it is read: `frames` is what its header says (0: unknown)."""

    rate: int
    frames: int
    blocks: Iterator[Samples]


def blocks_at(path: str | os.PathLike[str], sample_rate: int) -> tuple[int, Iterator[Samples]]:
    """-> the number of samples to expect (0: unknown), and the sound of a file, mono, at `sample_rate` Hz.

    The first block is decoded at once, so that a file that is missing, unreadable, no sound or empty raises
    AudioError here. "-" is standard input.
    """
    decoded = _decode(path)
    blocks = _resampled(decoded.blocks, decoded.rate, sample_rate)
    first = next(blocks, None)
    if first is None:
        raise AudioError(f"{path}: is empty, it holds no samples")
    return round(decoded.frames * sample_rate / decoded.rate), _with_first(first, blocks)


def _with_first(first: Samples, rest: Iterator[Samples]) -> Iterator[Samples]:
    yield first
    yield from rest


def _decode(path: str | os.PathLike[str]) -> Decoded:
    file: Any = _standard_input() if Path(path) == STDIN else os.fsencode(path)
    if isinstance(file, bytes):
        _check_readable(path)
    try:
        return _by_libsndfile(path, soundfile.SoundFile(file))
    except (soundfile.SoundFileError, TypeError):  # TypeError: a headerless .raw file
        return _by_ffmpeg(path, file)


def _standard_input() -> io.BytesIO:
    """All of it: headers are read by seeking."""
    if sys.stdin is None or sys.stdin.isatty():
        raise AudioError("standard input: expected a sound file, as in `... --input - < question.wav`")
    try:
        return io.BytesIO(sys.stdin.buffer.read())
    except OSError as error:
        raise AudioError(f"standard input: cannot be read: {error.strerror}") from error


def _check_readable(path: str | os.PathLike[str]) -> None:
    """libsndfile calls all of these a system error."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero in a name
        raise AudioError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error
    if stat.S_ISDIR(mode):
        raise AudioError(f"{path}: is a folder, expected a sound file")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: cannot be read: Permission denied")


def _check_rate(path: str | os.PathLike[str], rate: int) -> None:
    if not FILE_RATES[0] <= rate <= FILE_RATES[1]:
        raise AudioError(f"{path}: has a sample rate of {rate} Hz, expected {FILE_RATES[0]} to {FILE_RATES[1]} Hz")


def _by_libsndfile(path: str | os.PathLike[str], sound: soundfile.SoundFile) -> Decoded:
    """Block by block, so that neither many channels nor hours stand in memory."""

    def blocks() -> Iterator[Samples]:
        with sound:
            try:
                while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
                    yield _mono(block, axis=1)
            except soundfile.SoundFileError as error:
                raise AudioError(f"{path}: cannot be decoded any further ({error})") from error

    with contextlib.ExitStack() as failed:
        failed.callback(sound.close)
        _check_rate(path, sound.samplerate)
        failed.pop_all()
    return Decoded(sound.samplerate, max(0, sound.frames) if sound.seekable() else 0, blocks())


def _by_ffmpeg(path: str | os.PathLike[str], file: bytes | io.BytesIO) -> Decoded:
    try:
        import av
    except ImportError:
        raise AudioError(f"{path}: {MISSING}") from None
    with contextlib.ExitStack() as failed:
        try:
            opened = failed.enter_context(open(file, "rb") if isinstance(file, bytes) else file)  # noqa: SIM115
            opened.seek(0)
            container: Any = failed.enter_context(av.open(opened))
            stream = container.streams.audio[0]
            rate = stream.codec_context.sample_rate
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            raise AudioError(f"{path}: not a sound file that can be read ({_said(error)})") from error
        _check_rate(path, rate)
        failed.pop_all()
    seconds = (container.duration or 0) / av.time_base

    def blocks() -> Iterator[Samples]:
        planar = av.AudioResampler(format="fltp", rate=rate)
        with contextlib.closing(opened), container:
            try:
                for frame in container.decode(stream):
                    for part in planar.resample(frame):
                        yield _mono(part.to_ndarray(), axis=0)
                for part in planar.resample(None):  # what it still held
                    yield _mono(part.to_ndarray(), axis=0)
            except av.FFmpegError as error:
                raise AudioError(f"{path}: cannot be decoded any further ({_said(error)})") from error

    return Decoded(rate, int(seconds * rate), blocks())


def _mono(block: np.ndarray, axis: int) -> Samples:
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: passed on as NaN
        mixed: Samples = block.mean(axis=axis)
        return mixed


def _said(error: Exception) -> str:
    if isinstance(error, IndexError):
        return "there is no sound in it"
    return str(getattr(error, "strerror", None) or error)


def _resampled(blocks: Iterator[Samples], from_rate: int, to_rate: int) -> Iterator[Samples]:
    """The resampling filter would smear one NaN over its whole length: NaN goes around it."""
    if from_rate == to_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")
    broken, taken, given = np.zeros(0, np.int64), 0, 0
    for block, last in _with_last(blocks):
        lost = np.flatnonzero(~np.isfinite(block))
        broken = np.concatenate([broken, (lost + taken) * to_rate // from_rate])
        block[lost] = 0.0
        out: Samples = stream.resample_chunk(block, last=last)
        taken, end = taken + len(block), given + len(out)
        if last:
            broken = np.minimum(broken, end - 1)
        out[broken[broken < end] - given] = np.nan
        broken, given = broken[broken >= end], end
        if len(out):
            yield out


def _with_last(blocks: Iterator[Samples]) -> Iterator[tuple[Samples, bool]]:
    """Each block, and whether it is the last one."""
    held: Samples | None = None
    for block in blocks:
        if held is not None:
            yield held, False
        held = block
    if held is not None:
        yield held, True
