"""Where sound comes from and goes to: sound files, the microphone, the speaker.

What is here has the shape of `loop.Source` or `loop.Sink`. All sound is mono float32, nominally in [-1, 1].

Of a device, PortAudio's own thread calls back; the callback only copies into or out of a bounded ring.
sounddevice is imported where a device is opened, so that sound files need no PortAudio.
"""

import contextlib
import os
import secrets
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from .errors import AudioError

Samples = npt.NDArray[np.float32]

BLOCK = 1 << 16  # sample times that are decoded at once
FILE_RATES = (1_000, 1_000_000)  # Hz; a rate outside is a broken header, and resampling it would fill the memory
WAV_SAMPLES = (2**32 - 64) // 2  # what the header of a 16-bit WAV file can say: a day at 24 kHz
MICROPHONE_SECONDS = 2.0  # what a stall of the model may last before the user's sound is lost
SPEAKER_SECONDS = 0.4  # the most by which a reply may lag behind the model
DEVICE_TIMEOUT = 5.0  # seconds without a callback; the first of a sleeping or wireless device takes up to two


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
        self.drops = 0
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

    def close(self) -> None:
        self._position = self.length


class FileSink:
    """A 16-bit mono WAV file of at most `length` samples.

    It grows under another name in the same folder and is renamed by `close`: under `path` there is never a
    half-written file. Raises AudioError if it cannot be written, as far as can be known when it is created.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int, length: int | None = None) -> None:
        self.drops = 0
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


class Ring:
    """A bounded first-in first-out store of samples between one audio callback and one other thread.

    Its memory is taken once. The lock is held for one copy only, so neither side waits for the other's work.
    """

    def __init__(self, capacity: int) -> None:
        self._data = np.zeros(capacity, np.float32)
        self._start = 0
        self._filled = 0
        self._ended = False
        self._changed = threading.Condition()

    def push(self, pcm: Samples) -> int:
        """Copies `pcm` in and returns how many samples, the oldest ones, were lost for lack of room."""
        capacity = len(self._data)
        kept = pcm[-capacity:]
        with self._changed:
            lost = max(0, self._filled + len(kept) - capacity)
            self._start = (self._start + lost) % capacity
            end = (self._start + self._filled - lost) % capacity
            first = min(len(kept), capacity - end)
            self._data[end : end + first] = kept[:first]
            self._data[: len(kept) - first] = kept[first:]
            self._filled += len(kept) - lost
            self._changed.notify_all()
        return lost + len(pcm) - len(kept)

    def pull(self, out: Samples) -> int:
        """Fills the start of `out` with the oldest samples and returns how many there were."""
        capacity = len(self._data)
        with self._changed:
            count = min(len(out), self._filled)
            first = min(count, capacity - self._start)
            out[:first] = self._data[self._start : self._start + first]
            out[first:count] = self._data[: count - first]
            self._start = (self._start + count) % capacity
            self._filled -= count
            self._changed.notify_all()
        return count

    def clear(self) -> None:
        with self._changed:
            self._filled = 0

    def end(self) -> None:
        """Wakes whoever waits: the callback will not come again."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_filled(self, count: int, timeout: float) -> bool:
        """Waits for `count` samples; False if they do not come."""
        return self._wait(lambda: self._filled >= count, timeout)

    def wait_room(self, count: int, timeout: float) -> bool:
        """Waits for room for `count` samples; False if it does not come."""
        return self._wait(lambda: len(self._data) - self._filled >= count, timeout)

    def _wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: ready() or self._ended, timeout)
            return ready()


class Microphone:
    """The default sound input, in frames. Raises AudioError where there is none, or when it falls silent.

    It runs from the start, since a device takes its time to wake; the first `read` begins with what comes then.
    """

    def __init__(self, sample_rate: int, frame_size: int) -> None:
        self.drops = 0
        self._frame_size = frame_size
        self._listening = False
        self._closed = False
        self._ring = Ring(int(MICROPHONE_SECONDS * sample_rate))
        self._stream = _open_stream("Input", sample_rate, frame_size, self._callback, self._ring.end)

    def _callback(self, indata: Samples, frames: int, time: Any, status: Any) -> None:
        lost = self._ring.push(indata[:, 0])
        if self._listening and (lost or status.input_overflow):
            self.drops += 1

    def read(self) -> Samples | None:
        if not self._listening:
            self._ring.clear()
            self._listening = True
        filled = self._ring.wait_filled(self._frame_size, DEVICE_TIMEOUT)
        if self._closed:
            return None
        if not filled:
            raise AudioError("the microphone gives no more sound; see that it is connected, and start again")
        frame = np.empty(self._frame_size, np.float32)
        self._ring.pull(frame)
        return frame

    def close(self) -> None:
        """From any thread: a `read` that waits returns None."""
        self._closed = True
        _close_stream(self._stream)


class Speaker:
    """The default sound output. Raises AudioError where there is none, or when it stops.

    `pace` makes `write` wait for room, so that the speaker sets the pace of a source that has none (a file).
    Without it the source sets the pace, and a reply that comes too fast loses its oldest samples.
    """

    def __init__(self, sample_rate: int, frame_size: int, pace: bool = False) -> None:
        self._late = 0  # counted by the callback: it had nothing to play
        self._lost = 0  # counted by the writer: there was no room
        self._pace = pace
        self._playing = False
        self._capacity = int(SPEAKER_SECONDS * sample_rate)
        self._ring = Ring(self._capacity)
        self._stream = _open_stream("Output", sample_rate, frame_size, self._callback, self._ring.end)
        self._silence = np.zeros(int(self._stream.latency * sample_rate) + frame_size, np.float32)

    def _callback(self, outdata: Samples, frames: int, time: Any, status: Any) -> None:
        filled = self._ring.pull(outdata[:, 0])
        outdata[filled:] = 0.0
        if self._playing and (filled < frames or status.output_underflow):
            self._late += 1

    @property
    def drops(self) -> int:
        return self._late + self._lost

    def write(self, pcm: Samples) -> None:
        stalled = self._pace and not self._ring.wait_room(len(pcm), DEVICE_TIMEOUT)
        if stalled or self._stream.closed or not self._stream.active:
            raise AudioError("the speaker plays no more; see that it is connected, and start again")
        if self._ring.push(pcm):
            self._lost += 1
        self._playing = True

    def drain(self) -> None:
        """Silence is sent after the reply: when the device has taken it, the reply has left its buffers."""
        self._playing = False  # from here on running empty is no drop
        self._ring.wait_room(self._capacity, DEVICE_TIMEOUT)
        self._ring.push(self._silence)
        self._ring.wait_room(self._capacity, DEVICE_TIMEOUT)

    def close(self) -> None:
        self._playing = False
        _close_stream(self._stream)

    def abort(self) -> None:
        self.close()


def _open_stream(
    direction: str, sample_rate: int, frame_size: int, callback: Callable[..., None], ended: Callable[[], None]
) -> Any:
    """A running stream of the default device; `ended` is called when it stops, whoever stopped it."""
    device = {"Input": "microphone", "Output": "speaker"}[direction]
    try:
        import sounddevice

        stream = getattr(sounddevice, f"{direction}Stream")(
            sample_rate,
            frame_size,
            channels=1,
            dtype="float32",
            latency="low",
            callback=callback,
            finished_callback=ended,
        )
        stream.start()
    except (OSError, ValueError) as error:  # OSError: there is no PortAudio library
        raise _no_device(device, error) from error
    except sounddevice.PortAudioError as error:
        raise _no_device(device, error) from error
    return stream


def _close_stream(stream: Any) -> None:
    if not stream.closed:
        stream.abort()
        stream.close()


def _no_device(device: str, error: Exception) -> AudioError:
    return AudioError(
        f"no {device} can be opened ({error}); connect one, or use --input and --output with sound files, or --demo"
    )
