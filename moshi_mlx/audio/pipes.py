"""Standard input and standard output as the ends of a conversation: `--input -`, `--output -`.

Raw means 16-bit little-endian samples, mono, at the codec's rate, a frame as soon as it is there.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import sys

import numpy as np

from ..errors import AudioError
from ..inputs import Samples
from .files import pcm16

POLL_SECONDS = 0.1  # after which `end` is noticed
UNKNOWN = 2**32 - 1  # the size of a WAV whose end is not known, as other programs write it too


class RawSource:
    """Frames of raw samples from standard input, followed by `tail` samples of silence; the last frame is padded."""

    latency = None

    def __init__(self, frame_size: int, tail: int = 0) -> None:
        if sys.stdin is None or sys.stdin.isatty():
            raise AudioError("standard input: expected 16-bit samples from a pipe or a file, got a terminal")
        self.drops, self.lost_seconds, self.backlog = 0, 0.0, 0.0
        self._input = sys.stdin.fileno()
        self._frame_size, self._tail = frame_size, tail
        self._given, self._length, self._ended = 0, 0, False
        self._at_end = False

    @property
    def length(self) -> int | None:
        """How many samples there are, tail included; None until the input has ended."""
        return self._length + self._tail if self._at_end else None

    @property
    def expected(self) -> int:
        return self.length or 0

    def read(self) -> Samples | None:
        data = b"" if self._at_end else self._read(2 * self._frame_size)
        self._length += len(data) // 2
        if self._ended or (self._at_end and self._given >= self._length + self._tail):
            return None
        self._given += self._frame_size
        frame = np.frombuffer(data[: len(data) // 2 * 2], "<i2") / np.float32(32768)
        return np.pad(frame, (0, self._frame_size - len(frame))).astype(np.float32)

    def _read(self, count: int) -> bytes:
        """`count` bytes, or what there was before the end."""
        data = b""
        while len(data) < count and not self._ended:
            if not select.select([self._input], [], [], POLL_SECONDS)[0]:
                continue
            try:
                more = os.read(self._input, count - len(data))
            except OSError as error:
                raise AudioError(f"standard input: cannot be read: {error.strerror}") from error
            self._at_end = not more
            if self._at_end:
                break
            data += more
        return data

    def end(self) -> None:
        self._ended = True

    def close(self) -> None:
        self.end()


class StreamSink:
    """Frames to standard output, each as soon as it is there: raw, or behind the header of a WAV without end."""

    def __init__(self, sample_rate: int, raw: bool = False) -> None:
        self.drops, self.lost_seconds, self.written = 0, 0.0, 0
        try:
            if sys.stdout is None or sys.stdout.isatty():
                raise AudioError("standard output: sound goes to a pipe or a file, not to a terminal")
            self._file = os.dup(sys.stdout.fileno())
        except (OSError, ValueError) as error:
            if isinstance(error, AudioError):
                raise
            raise AudioError("standard output: cannot be written: it is closed") from error
        self._header = b"" if raw else _endless_header(sample_rate)

    def write(self, pcm: Samples) -> None:
        data, self._header = self._header + pcm16(pcm), b""
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise AudioError(f"standard output: cannot be written: {error.strerror}") from error
        self.written += len(pcm)

    def drain(self) -> None:
        """Whoever reads it plays it."""

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                os.close(file)

    keep = abort = close


def _endless_header(sample_rate: int) -> bytes:
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVEfmt " + struct.pack("<I", 16) + form
        + b"data" + struct.pack("<I", UNKNOWN - 36)
    )  # fmt: skip
