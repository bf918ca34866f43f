"""One run of the command: what it opens, the model, each sound, and what is kept however it ends."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..audio import decoding, devices
from ..audio.pipes import RawSource
from ..errors import AudioError, InputError
from ..inputs import Samples
from ..roles.listener import Step, check_model, flush_frames, tail_frames
from ..roles.transcriber import Transcriber
from ..roles.transcript import Transcript, TranscriptFile, format_of
from ..terminal import streams
from ..terminal.interrupt import STATUS, Interrupts
from ..terminal.progress import steps
from . import options
from .live import Listening
from .view import Json, Plain

WRITE_SECONDS = 1.0  # between two versions of a transcript
CODEC_RATE, CODEC_FRAME = 24_000, 1920  # of the microphone and of raw samples, which are opened before the model


class Sound(NamedTuple):
    """What is written down, and the file that it is written to."""

    path: Path | None  # None: the microphone
    file: TranscriptFile | None

    @property
    def name(self) -> str:
        return (
            "microphone" if self.path is None else "standard input" if self.path == options.STREAM else str(self.path)
        )


class Run:
    """Everything that is opened goes on `stack`, in whose reverse order it is closed."""

    def __init__(self, arguments: argparse.Namespace, stack: contextlib.ExitStack, interrupts: Interrupts) -> None:
        self.arguments, self._stack, self._interrupts = arguments, stack, interrupts
        self._stop = threading.Event()
        self._view: Plain | Json = (Json if arguments.json else Plain)(arguments.pauses)
        self._listening: Listening | None = None
        self._raw: RawSource | None = None

    def __call__(self) -> int:
        """The exit status."""
        sounds = [self._opened(path) for path in (self.arguments.sounds or [None])]
        transcriber = self._load()
        self._interrupts.handle(self._quit)
        for n, sound in enumerate(sounds):
            if self._stop.is_set():
                break
            if n:
                transcriber.reset()
            self._write_down(transcriber, sound, len(sounds) > 1)
        self._interrupts.closing()
        self._interrupts.kept()  # from here on, Ctrl-C need not wait for a device that is slow to close
        return STATUS if self._stop.is_set() and not self.arguments.live else 0

    def _say(self, line: str) -> None:
        if not self.arguments.quiet:
            streams.say(line)

    def _quit(self) -> None:
        """Ends after the frame at hand. From a signal handler."""
        self._stop.set()
        if self._listening:
            self._listening.end()
        if self._raw:
            self._raw.end()

    # What is opened before the model is loaded, so that what is wrong with it is said at once

    def _opened(self, path: Path | None) -> Sound:
        arguments = self.arguments
        if arguments.output is not None and not options.is_suffix(arguments.output):
            format_of(arguments.output)  # a wrong name is said before a microphone is opened
        if path is None:
            microphone = devices.Microphone(CODEC_RATE, CODEC_FRAME, arguments.input_device, arguments.device_rate)
            self._listening = Listening(microphone, self._say)
            self._stack.callback(self._listening.close)
        elif path == options.STREAM and arguments.raw:
            self._raw = RawSource(CODEC_FRAME)
        elif path != options.STREAM:
            decoding.blocks_at(path, CODEC_RATE)[1].close()  # type: ignore[attr-defined]
        elif sys.stdin is None or sys.stdin.isatty():
            raise AudioError("standard input: expected a sound file, as in `... - < talk.wav`")
        return Sound(path, self._output(path))

    def _output(self, path: Path | None) -> TranscriptFile | None:
        output = self.arguments.output
        if output is None:
            return None
        asked = path.with_suffix(str(output)) if path is not None and options.is_suffix(output) else output
        file = TranscriptFile(asked, self.arguments.overwrite)
        self._stack.callback(file.close)
        if file.path != asked:
            self._say(f"{asked} is there already: this goes to {file.path} (--overwrite replaces)")
        return file

    # The model

    def _load(self) -> Transcriber:
        import moshi_mlx

        from ..machine import loading

        arguments, began = self.arguments, time.perf_counter()
        model = loading.load(
            arguments.model, lambda: moshi_mlx.load(arguments.model), self._say,
            force=arguments.force, quiet=arguments.quiet,
        )  # fmt: skip
        check_model(model)
        asked = {name: getattr(arguments, name) for name in ("force", "kv_bits", "context")}
        loading.check_conversation(model, "a transcription", self._say, **asked)
        transcriber = Transcriber(model, arguments.seed, progress=not arguments.quiet, **self._settings())
        size = (transcriber.sample_rate, transcriber.frame_size)
        if (self._listening or self._raw) and size != (CODEC_RATE, CODEC_FRAME):
            raise InputError(f"{arguments.model}: hears frames of {size[1]} samples at {size[0]} Hz; give it a file")
        self._say(f"ready in {time.perf_counter() - began:.1f} s")
        return transcriber

    def _settings(self) -> dict[str, Any]:
        names = ("temperature", "codebooks", "context", "kv_bits", "refresh")
        return {name: getattr(self.arguments, name) for name in names}

    # Each sound

    def _write_down(self, transcriber: Transcriber, sound: Sound, named: bool) -> None:
        transcript, began = Transcript(), time.perf_counter()
        self._view.begin(sound.name if named else None)
        if sound.path is None:
            self._say("speak now; Ctrl-C ends the transcription")
        writing = _Writing(sound.file)
        self._interrupts.last_acts.append(lambda: writing.now(transcript))
        try:
            for event in self._events(transcriber, sound):
                transcript.add(event)
                self._view(event, transcript)
                writing(transcript, event)
        finally:  # whatever ends it, what was written down is kept
            transcript.finish(transcriber.seconds)
            self._view.end()
            writing.now(transcript)
            self._interrupts.last_acts.pop()
        self._report(transcriber, sound, time.perf_counter() - began)

    def _events(self, transcriber: Transcriber, sound: Sound) -> Iterator[Any]:
        """Of a sound, and of the silence behind it that brings its last words."""
        expected, blocks = self._blocks(transcriber, sound)
        shown = not self.arguments.quiet and sound.path is not None and not _is_terminal(sys.stdout)
        with steps("transcribing", expected // transcriber.frame_size, shown and bool(expected)) as done:
            for block in blocks:
                for event in transcriber.feed(block):
                    done(isinstance(event, Step))
                    yield event
                if self._stop.is_set():
                    break
        if self._stop.is_set():
            self._interrupts.closing()  # the last words take longer than a program is left that was told to end
        config = transcriber.model.config
        yield from transcriber.flush(tail_frames(config) if sound.path is not None else flush_frames(config))

    def _blocks(self, transcriber: Transcriber, sound: Sound) -> tuple[int, Iterator[Samples]]:
        """How many samples to expect (0: unknown), and the sound, a frame or a bit more at a time."""
        if self._listening:
            return 0, iter(self._listening)
        if sound.path == options.STREAM and self._raw:
            return 0, _frames(self._raw)
        assert sound.path is not None
        expected, blocks = decoding.blocks_at(sound.path, transcriber.sample_rate)
        return expected, _in_parts(blocks, transcriber.frame_size)

    def _report(self, transcriber: Transcriber, sound: Sound, seconds: float) -> None:
        heard = transcriber.seconds
        if self._listening:
            lost = self._listening.overflows
            self._say(f"{heard:.1f} s of sound" + (f", of which some was lost {lost} times" if lost else ""))
        else:
            self._say(f"{sound.name}: {heard:.1f} s of sound in {seconds:.1f} s ({seconds / max(heard, 1e-9):.2f}x)")
        if transcriber.nonfinite_samples:
            self._say(f"{transcriber.nonfinite_samples} samples were NaN or infinite, and heard as silence")
        if sound.file:
            self._say(f"transcript written to {sound.file.path}")


class _Writing:
    """Puts a transcript in its file: now and then while words come, and at the end."""

    def __init__(self, file: TranscriptFile | None) -> None:
        self._file, self._written = file, time.monotonic()

    def __call__(self, transcript: Transcript, event: Any) -> None:
        if not isinstance(event, Step) and time.monotonic() - self._written >= WRITE_SECONDS:
            self.now(transcript)

    def now(self, transcript: Transcript) -> None:
        if self._file:
            self._file.write(transcript)
            self._written = time.monotonic()


def _frames(source: RawSource) -> Iterator[Samples]:
    while (frame := source.read()) is not None:
        yield frame


def _in_parts(blocks: Iterator[Samples], size: int) -> Iterator[Samples]:
    """Blocks as parts of at most a frame, so that the command can be ended after any of them."""
    for block in blocks:
        yield from (block[at : at + size] for at in range(0, len(block), size))


def _is_terminal(stream: Any) -> bool:
    try:
        return stream is not None and bool(stream.isatty())
    except ValueError:  # it is closed
        return False
