"""The two ends of a conversation, as the options say: devices, files, standard streams, and the demo's loudspeaker."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..audio import decoding, devices, files, pipes, portaudio
from ..audio.echo import EchoCanceller
from ..conversation import loop
from ..errors import AudioError
from ..inputs import Samples
from . import options
from .live import Conversation, UserFile

SAMPLE_RATE = 24_000  # Hz
FRAME_SIZE = 1920  # samples

Note = Callable[[str, int], None]


class Kept(Protocol):
    """A sink whose sound is there when the conversation is over."""

    @property
    def written(self) -> int: ...
    def keep(self) -> None: ...
    def abort(self) -> None: ...


class Ends:
    """Opens both, and closes on `stack` what is open. `say` gets a line for the person.

    `source` and `sink` are for `loop.run`; `file` is the part of the sink that is to be kept, `speaker` the one whose
    volume can be changed. `note`, where given, is told of every callback of a device.
    """

    def __init__(
        self, arguments: argparse.Namespace, stack: contextlib.ExitStack, say: Callable[[str], None], note: Note | None
    ) -> None:
        self._arguments, self._stack, self._say, self._note = arguments, stack, say, note
        self.speaker: devices.Speaker | None = None
        self.file: Any = None
        self.source: Any = None
        self.sink: loop.Sink
        if arguments.input is None:
            self._open_live()
        else:
            self._open_files()

    # Microphone and speaker

    def _open_live(self) -> None:
        arguments = self._arguments
        said = files.read_sound(arguments.user_file, SAMPLE_RATE) if arguments.user_file else None
        self.file = self._open_file(None)
        microphone = devices.Microphone(SAMPLE_RATE, FRAME_SIZE, arguments.input_device, arguments.device_rate)
        self._stack.callback(microphone.close)
        microphone.wait_running()  # a wireless headset changes over to another rate when its microphone opens
        speaker = self._open_speaker(tap=arguments.echo_cancel)
        if arguments.echo_cancel:
            microphone.clean = EchoCanceller(SAMPLE_RATE, speaker.played)
        microphone.note = self._note
        talk = Conversation(microphone, speaker, arguments.latency_limit / 1000, self._say)
        self._stack.callback(talk.close)
        if not arguments.echo_cancel and portaudio.same_case(microphone.name, speaker.name):
            self._say("wear headphones, or use --echo-cancel: this microphone hears this speaker")
        self.source = talk if said is None else UserFile(talk, said, FRAME_SIZE)
        self.sink = talk.voice if self.file is None else Both(talk.voice, self.file)

    def _open_speaker(self, **settings: bool) -> devices.Speaker:
        arguments = self._arguments
        speaker = devices.Speaker(SAMPLE_RATE, FRAME_SIZE, arguments.output_device, arguments.device_rate, **settings)
        self._stack.callback(speaker.close)
        speaker.note = self._note
        self.speaker = speaker
        return speaker

    # Files

    def _open_files(self) -> None:
        self.source = self._open_input()
        self._stack.callback(self.source.close)
        self.file = self._open_file(lambda: self.source.length)
        if options.plays_demo(self._arguments):
            self.sink = self._open_demo()
        else:
            self.sink = self.file if self.file is not None else self._open_speaker(pace=True)

    def _open_input(self) -> Any:
        arguments = self._arguments
        tail = round(arguments.tail * SAMPLE_RATE)
        if arguments.input == options.STREAM and arguments.raw:
            return pipes.RawSource(FRAME_SIZE, tail)
        expected, blocks = decoding.blocks_at(arguments.input, SAMPLE_RATE)
        return files.FileSource(blocks, FRAME_SIZE, tail, expected)

    def _open_file(self, length: Callable[[], int | None] | None) -> Any:
        arguments = self._arguments
        if arguments.output is None:
            return None
        if arguments.output == options.STREAM:
            file: Kept = pipes.StreamSink(SAMPLE_RATE, arguments.raw)
        else:
            file = files.FileSink(arguments.output, SAMPLE_RATE, length, arguments.overwrite)
        self._stack.callback(file.abort)
        return file

    def _open_demo(self) -> loop.Sink:
        """Where there is a speaker, question and answer are heard; the answer is written in any case."""
        try:
            speaker = self._open_speaker(pace=True)
        except AudioError as error:
            self._say(f"nothing is played: {error}")
            return self.file
        return Both(Aloud(speaker, self.source, self._say), self.file)


class Both:
    """A sink that hands everything to a speaker and a file."""

    def __init__(self, speaker: loop.Sink, file: loop.Sink) -> None:
        self._sinks = (file, speaker)  # the file first: what a device loses is kept there

    @property
    def drops(self) -> int:
        return sum(sink.drops for sink in self._sinks)

    @property
    def lost_seconds(self) -> float:
        return sum(sink.lost_seconds for sink in self._sinks)

    def write(self, pcm: Samples) -> None:
        for sink in self._sinks:
            sink.write(pcm)

    def drain(self) -> None:
        for sink in self._sinks:
            sink.drain()

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def abort(self) -> None:
        for sink in self._sinks:
            sink.abort()


class Aloud:
    """The demo's speaker: what Moshi hears and what it says are played together. It may go away."""

    drops, lost_seconds = 0, 0.0  # a demo is no measurement

    def __init__(self, speaker: devices.Speaker, source: files.FileSource, say: Callable[[str], None]) -> None:
        self._speaker, self._source, self._say = speaker, source, say
        self._gone = False

    def write(self, pcm: Samples) -> None:
        if self._gone:
            return
        try:
            self._speaker.write(np.clip(pcm + self._source.last, -1.0, 1.0))
        except devices.DeviceLost as lost:
            self._gone = True
            self._say(f"{lost}; the rest is not heard")

    def drain(self) -> None:
        if not self._gone:
            self._speaker.drain()

    def close(self) -> None:
        self._speaker.close()

    def abort(self) -> None:
        self.close()
