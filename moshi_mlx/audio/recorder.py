"""A conversation on disk, frame by frame: a stereo WAV (left the user, right Moshi) and the words in a JSON file.

Both are whole at any moment, also after `kill -9`: the WAV's header says after every frame how long it is by then, and
the JSON file is replaced by its successor, at most once a second.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..conversation.loop import Moment
from ..errors import AudioError
from ..terminal.outputs import Output, named_errors, replace, write_all
from .files import pcm16

JSON_SECONDS = 1.0  # between two versions of the words
LARGEST_RIFF = 2**32 - 1  # what a plain WAV header can say; beyond it the file turns into RF64 (EBU Tech 3306)
HEADER_BYTES = 80


def _header(sample_rate: int, data_bytes: int) -> bytes:
    """RIFF, or RF64 with the sizes in the chunk that a small file keeps free for them."""
    file_bytes = HEADER_BYTES - 8 + data_bytes
    large = file_bytes > LARGEST_RIFF
    sizes = struct.pack("<QQQI", file_bytes, data_bytes, data_bytes // 4, 0) if large else bytes(28)
    form = struct.pack("<HHIIHH", 1, 2, sample_rate, 4 * sample_rate, 4, 16)
    limit = 2**32 - 1
    return b"".join(
        (
            b"RF64" if large else b"RIFF", struct.pack("<I", limit if large else file_bytes), b"WAVE",
            b"ds64" if large else b"JUNK", struct.pack("<I", 28), sizes,
            b"fmt ", struct.pack("<I", 16), form,
            b"data", struct.pack("<I", limit if large else data_bytes),
        )
    )  # fmt: skip


class Words:
    """Pieces of text, frame by frame -> words with the seconds at which they begin and end, as JSON text."""

    def __init__(self, frame_seconds: float) -> None:
        self.done: list[str] = []
        self._frame_seconds = frame_seconds
        self._word, self._start, self._end = "", 0.0, 0.0

    def add(self, frame: int, text: str) -> None:
        """What frame number `frame` adds; a space, at either end or in the middle, ends a word."""
        start = frame * self._frame_seconds
        for n, part in enumerate(text.split(" ")):
            if n:
                self.finish()
            if part:
                self._start = self._start if self._word else start
                self._word += part
                self._end = start + self._frame_seconds

    def finish(self) -> None:
        """No more pieces of the word at hand come."""
        self.done += self.at_hand()
        self._word = ""

    def at_hand(self) -> list[str]:
        """The word that may still go on, or none."""
        word = {"word": self._word, "start": round(self._start, 3), "end": round(self._end, 3)}
        return [json.dumps(word, ensure_ascii=False)] if self._word else []

    def __str__(self) -> str:
        """All of them, the one at hand included, as a JSON list of a line each."""
        return "[\n  " + ",\n  ".join(self.done + self.at_hand()) + "\n ]"


class Recorder:
    """An observer of a conversation. Nothing is written, and nothing replaced, before its first frame.

    Left and right of one sample are what Moshi heard and what it said to that in the same frame; a listener heard the
    right side later, by the latency. Sound that was dropped is in neither; `drops` of the JSON file says when and how
    much. An earlier recording stays and a free number is taken (`path` and `json_path` say which), unless `overwrite`
    is given. Raises AudioError for a path that cannot be written, as far as can be known beforehand.
    """

    def __init__(
        self, path: str | os.PathLike[str], sample_rate: int, frame_size: int, overwrite: bool = False
    ) -> None:
        if Path(path).suffix.lower() != ".wav":
            raise AudioError(f"{path}: the conversation is recorded as WAV; give it a name that ends in .wav")
        self._output = Output(path, overwrite, also=(".json",))
        self._rate, self._frame_seconds = sample_rate, frame_size / sample_rate
        self._bytes, self._frames, self._lost = 0, 0, (0.0, 0.0)
        self._words = Words(self._frame_seconds)
        self._drops: list[dict[str, Any]] = []
        self._resets: list[float] = []
        self._written = -JSON_SECONDS
        self._closing, self._closed = threading.Lock(), False

    @property
    def path(self) -> Path:
        """Where the sound is, or will be."""
        return self._output.path

    @property
    def json_path(self) -> Path:
        """Where the words are, or will be."""
        return self.path.with_suffix(".json")

    def __call__(self, moment: Moment) -> None:
        """Writes one frame."""
        with self._closing:
            if self._closed:
                return
            with named_errors(self.path):
                self._write_sound(np.stack([moment.heard, moment.said], axis=1))
            if moment.reset:
                self._words.finish()
                self._resets.append(round(self._frames * self._frame_seconds, 3))
            self._words.add(self._frames, moment.frame.text)
            self._note_losses(moment)
            self._frames += 1
            if time.monotonic() - self._written >= JSON_SECONDS:
                self._write_json()

    def _write_sound(self, stereo: np.ndarray) -> None:
        """First the sound, then the header that tells of it: what does not fit a full disk was never there."""
        data = pcm16(stereo)
        try:
            _write_at(self._output.file, data, HEADER_BYTES + self._bytes)
            _write_at(self._output.file, _header(self._rate, self._bytes + len(data)), 0)
        except OSError:
            os.ftruncate(self._output.file, HEADER_BYTES + self._bytes if self._bytes else 0)
            raise
        self._bytes += len(data)
        self._output.settle()

    def _note_losses(self, moment: Moment) -> None:
        for side, before, now in zip(("user", "moshi"), self._lost, moment.lost, strict=True):
            if now > before:
                at = round(self._frames * self._frame_seconds, 3)
                self._drops.append({"time": at, "side": side, "seconds": round(now - before, 3)})
        self._lost = moment.lost

    def _write_json(self) -> None:
        content = {
            "sample_rate": self._rate,
            "channels": ["user", "moshi"],
            "seconds": round(self._frames * self._frame_seconds, 3),
            "drops": self._drops,
            "resets": self._resets,
        }
        head = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        with named_errors(self.json_path):
            replace(self.json_path, f'{{\n {head},\n "words": {self._words}\n}}\n')
        self._written = time.monotonic()

    def close(self) -> None:
        """Writes the last words. May be called twice, and from a thread that ends a program that hangs."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            try:
                if self._frames:
                    self._write_json()
            finally:
                self._output.abort()  # what was written is in its place


def _write_at(file: int, data: bytes, position: int) -> None:
    os.lseek(file, position, os.SEEK_SET)
    write_all(file, data)
