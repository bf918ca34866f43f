"""One run of the command: what it opens, the model, what is said, and what is kept however it ends."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import devices, files, pipes
from ..errors import ConfigError
from ..models.roles import check_role
from ..roles import voices
from ..roles.speaker import Speaker
from ..terminal import streams
from ..terminal.interrupt import STATUS, Interrupts
from . import options
from .texts import texts_of

SAMPLE_RATE, FRAME_SIZE = 24_000, 1920
GAP_SECONDS = 0.24  # between two texts of one run


class Run:
    """Everything that is opened goes on `stack`, in whose reverse order it is closed."""

    def __init__(self, arguments: argparse.Namespace, stack: contextlib.ExitStack, interrupts: Interrupts) -> None:
        self.arguments, self._stack, self._interrupts = arguments, stack, interrupts
        self._stop, self._waiting = threading.Event(), False
        self._write = streams.write_err if arguments.output == options.STREAM else streams.write_out
        self._samples, self._computed, self._waited = 0, 0.0, 0.0  # seconds: of work, and for text

    def __call__(self) -> int:
        """The exit status."""
        arguments = self.arguments
        texts = texts_of(arguments.text)
        home = home_of(arguments.model)
        voice = [voices.find(home, name) for name in self._names(home)]
        self._open()
        speaker = self._load(voice)
        self._interrupts.handle(self._quit)
        self._interrupts.last_acts.append(self._sink.keep if self._file else lambda: None)
        try:
            self._say_all(speaker, texts)
        except KeyboardInterrupt:  # while text was waited for
            self._stop.set()
        self._keep()
        return STATUS if self._stop.is_set() else 0

    def _tell(self, line: str) -> None:
        if not self.arguments.quiet:
            streams.say(line)

    def _quit(self) -> None:
        """Ends after the frame at hand, at once where text is waited for. From a signal handler."""
        self._stop.set()
        if self._waiting:
            raise KeyboardInterrupt

    # What is opened before the model is loaded, so that what is wrong with it is said at once

    def _open(self) -> None:
        arguments, self._file = self.arguments, self.arguments.output is not None
        self._sink: Any
        if arguments.output is None:
            rate, device = arguments.device_rate, arguments.output_device
            self._sink = devices.Speaker(SAMPLE_RATE, FRAME_SIZE, device, rate, pace=True)
            self._stack.callback(self._sink.close)
            return
        if arguments.output == options.STREAM:
            self._sink = pipes.StreamSink(SAMPLE_RATE, arguments.raw)
        else:
            self._sink = files.FileSink(arguments.output, SAMPLE_RATE, overwrite=arguments.overwrite)
            if self._sink.path != arguments.output:
                streams.say(
                    f"{arguments.output} is there already: this goes to {self._sink.path} (--overwrite replaces)"
                )
        self._stack.callback(self._sink.abort)

    # The model

    def _load(self, voice: list[Path]) -> Speaker:
        import moshi_mlx

        from ..machine import loading

        arguments, began = self.arguments, time.perf_counter()
        model = loading.load(
            arguments.model, lambda: moshi_mlx.load(arguments.model), self._tell,
            force=arguments.force, quiet=arguments.quiet,
        )  # fmt: skip
        asked = {name: getattr(arguments, name) for name in ("force", "kv_bits", "context")}
        loading.check_conversation(model, "speaking", self._tell, **asked)
        speaker = model.speaker(voice, arguments.seed, progress=not arguments.quiet, **self._settings())
        if (speaker.sample_rate, speaker.frame_size) != (SAMPLE_RATE, FRAME_SIZE):
            raise ConfigError(
                f"{arguments.model}: speaks frames of {speaker.frame_size} samples at {speaker.sample_rate} Hz, "
                f"expected {FRAME_SIZE} at {SAMPLE_RATE} Hz"
            )
        seed = f", seed {arguments.seed}" if arguments.drawn else ""
        self._tell(f"ready in {time.perf_counter() - began:.1f} s{seed}")
        return speaker

    def _names(self, home: voices.Home) -> list[str]:
        """Of the voices that are asked for."""
        given: list[str] | None = self.arguments.voice
        if given is None:
            return [voices.DEFAULT_VOICE] if home.vectors else []
        return [] if given == [options.NO_VOICE] else given

    def _settings(self) -> dict[str, Any]:
        names = (
            "guidance", "codebooks", "temperature", "top_k", "text_temperature", "text_top_k", "padding_between",
            "padding_bonus", "context", "kv_bits",
        )  # fmt: skip
        return {name: getattr(self.arguments, name) for name in names}

    # What is said

    def _say_all(self, speaker: Speaker, texts: Iterator[Iterable[str]]) -> None:
        while (text := self._awaited(texts)) is not None and not self._stop.is_set():
            if self._samples:
                self._put(np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32))
            self._say(speaker, text)

    def _say(self, speaker: Speaker, text: Iterable[str]) -> None:
        before, frames = self._samples / SAMPLE_RATE, speaker.stream(self._watched(text))
        while True:
            began, waited = time.perf_counter(), self._waited
            frame = next(frames, None)
            self._computed += time.perf_counter() - began - (self._waited - waited)
            if frame is None:
                return
            for word, start, stop in frame.words if self.arguments.times else ():
                self._write(f"{before + start:.2f} {before + stop:.2f} {word}\n")
            self._put(frame.pcm)
            if self._stop.is_set():
                speaker.reset()
                return

    def _watched(self, pieces: Iterable[str]) -> Iterator[str]:
        source = iter(pieces)
        while (piece := self._awaited(source)) is not None:
            yield piece

    def _awaited(self, source: Iterator[Any]) -> Any:
        """The next of what may take its time, in which Ctrl-C ends the wait."""
        began, self._waiting = time.perf_counter(), True
        try:
            return next(source, None)
        finally:
            self._waiting = False
            self._waited += time.perf_counter() - began

    def _put(self, pcm: Any) -> None:
        self._sink.write(pcm)
        self._samples += len(pcm)

    def _keep(self) -> None:
        """What is there of the sound is kept, or played to its end."""
        if self._file:
            self._interrupts.closing()
            self._sink.keep()
        elif not self._stop.is_set():
            self._sink.drain()
        self._interrupts.kept()
        seconds = self._samples / SAMPLE_RATE
        speed = f" ({self._computed / seconds:.2f}x)" if seconds else ""
        self._tell(f"{seconds:.1f} s of speech in {self._computed:.1f} s{speed}")
        if not self._file and self._computed > seconds:
            self._tell("slower than it is heard, so there were gaps: try --codebooks, a quantized model, or --output")
        if self._samples and isinstance(self._sink, files.FileSink):
            self._tell(f"speech written to {self._sink.path}")


def home_of(name: str) -> voices.Home:
    """What the voices of a model are found by, before gigabytes of it are fetched.

    Raises InputError for a model that does not speak.
    """
    from ..checkpoints import finding, hub
    from ..huggingface.config import config_of

    config = config_of(name)
    check_role(config, "speaker")
    folder = hub.local_folder(name, only="config")
    said = (finding.config_of(folder)[0] or {}).get("model_id")
    vectors = voices.CONDITION in [condition.name for condition in config.conditions]
    return voices.Home(vectors, said if isinstance(said, dict) else {}, folder)


def list_voices(arguments: argparse.Namespace) -> int:
    """The names of the voices of a model, a line each."""
    for name in voices.names(home_of(arguments.model)):
        streams.tell(name)
    return 0
