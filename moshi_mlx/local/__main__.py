"""Talk with Moshi from the command line: python -m moshi_mlx.local.

The main thread is the model thread: it loads, steps and writes. So Ctrl-C ends a download at once, while in a
conversation it ends the wait for the next frame.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

from ..audio import devices, files, portaudio
from ..audio.echo import EchoCanceller
from ..audio.recorder import Recorder
from ..conversation import loop
from ..errors import ConfigError, InputError, MoshiError
from ..inputs import Samples
from ..terminal.interrupt import Interrupts
from ..terminal.progress import Loading
from . import options, personas, view
from .keyboard import Keys
from .live import Conversation, UserFile
from .trace import Trace

SAMPLE_RATE = 24_000  # Hz
FRAME_SIZE = 1920  # samples
FRAME_SECONDS = FRAME_SIZE / SAMPLE_RATE
SWITCH_SECONDS = 0.001  # after which a thread that draws lets an audio callback run


class _Tee:
    """A sink that hands everything to several, in order."""

    def __init__(self, *sinks: loop.Sink) -> None:
        self._sinks = sinks

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


class Talk:
    """One run of the command: its ends, its observers, and what a person may do meanwhile.

    Everything that is opened goes on `self.stack`, in whose reverse order it is closed.
    """

    def __init__(self, arguments: argparse.Namespace, stack: contextlib.ExitStack, interrupts: Interrupts) -> None:
        self.arguments, self.stack, self.interrupts = arguments, stack, interrupts
        self.stop, self.controls = threading.Event(), loop.Controls()
        self.screen: view.View = view.Plain(arguments.quiet)
        self.observers: list[loop.Observer] = []
        self.live = arguments.input is None

    def say(self, line: str) -> None:
        """To whatever the person looks at just now."""
        self.screen.say(line)

    # Both ends, opened before the model is loaded, so that what is wrong with them is said at once

    def open(self) -> None:
        arguments = self.arguments
        if arguments.record:
            self.recorder = Recorder(arguments.record, SAMPLE_RATE, FRAME_SIZE)
            self.interrupts.last_acts.append(self.recorder.close)
            self.stack.callback(self.recorder.close)
            self.observers.append(self.recorder)
        if arguments.trace:
            self.trace = Trace(arguments.trace)
            self.observers.append(self.trace)
        self.source, self.sink = self._live_ends() if self.live else self._file_ends()

    def _live_ends(self) -> tuple[loop.Source, loop.Sink]:
        arguments = self.arguments
        said = files.read_sound(arguments.user_file, SAMPLE_RATE) if arguments.user_file else None
        rate = arguments.device_rate
        speaker = devices.Speaker(SAMPLE_RATE, FRAME_SIZE, arguments.output_device, rate, tap=arguments.echo_cancel)
        self.stack.callback(speaker.close)
        clean = EchoCanceller(SAMPLE_RATE, speaker.played) if arguments.echo_cancel else None
        microphone = devices.Microphone(SAMPLE_RATE, FRAME_SIZE, arguments.input_device, rate, clean)
        self.stack.callback(microphone.close)
        if arguments.trace:
            microphone.note = speaker.note = self.trace.callback
        talk = Conversation(microphone, speaker, arguments.latency_limit / 1000, self.say)
        if not arguments.echo_cancel and portaudio.same_case(microphone.name, speaker.name):
            self.say("wear headphones, or use --echo-cancel: this microphone hears this speaker")
        source = talk if said is None else UserFile(talk, said, FRAME_SIZE)
        return source, self._with_file(talk.voice, None)

    def _file_ends(self) -> tuple[loop.Source, loop.Sink]:
        arguments = self.arguments
        samples = files.read_sound(arguments.input, SAMPLE_RATE)
        source = files.FileSource(samples, FRAME_SIZE, round(arguments.tail * SAMPLE_RATE))
        if arguments.output is not None:
            return source, self._with_file(None, source.length)
        speaker = devices.Speaker(SAMPLE_RATE, FRAME_SIZE, arguments.output_device, arguments.device_rate, pace=True)
        self.stack.callback(speaker.close)
        if arguments.trace:
            speaker.note = self.trace.callback
        return source, speaker

    def _with_file(self, speaker: loop.Sink | None, length: int | None) -> loop.Sink:
        """The speaker, the output file, or both."""
        if self.arguments.output is None:
            assert speaker is not None
            return speaker
        file = files.FileSink(self.arguments.output, SAMPLE_RATE, length)
        self.stack.callback(file.abort)
        self.interrupts.last_acts.append(file.abort)
        return file if speaker is None else _Tee(speaker, file)

    # The model

    def load(self) -> Any:
        """Loads the model, compiles its step, and finds out whether this machine can hold the conversation."""
        import moshi_mlx

        from ..checkpoints import hub
        from ..machine import advice, preflight

        arguments = self.arguments
        if arguments.quiet:
            hub.be_quiet()
        asked = advice.Asked(arguments.model, arguments.kv_bits, arguments.context)
        plan = preflight.plan(arguments.model)
        self.say(f"loading {plan or arguments.model} ...")
        if plan:
            self._check(preflight.check_memory, plan.size, f"{arguments.model} alone", advice.before_loading(asked))
        began = time.perf_counter()
        adapted = {"adapter": arguments.adapter} if arguments.adapter else {}
        with Loading(plan.size if plan else 0), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = moshi_mlx.load(arguments.model, **adapted)
        for warning in told:
            self.say(f"warning: {warning.message}")
        held = [arguments.kv_bits, arguments.context][: 1 if arguments.context is None else 2]
        self.say(f"loaded in {time.perf_counter() - began:.1f} s; {preflight.report(model, *held)}")
        needed = preflight.conversation_bytes(model, *held)
        self._check(lambda *_: preflight.check_memory(
            needed, "a conversation with a full context", advice.for_memory(model, asked, preflight.usable_bytes())
        ))  # fmt: skip
        session = self._session(model)
        self._check_frames(session)
        frames = preflight.time_live(session) if self.live else preflight.time_frames(session, 0)
        if self.live:
            helps = advice.for_speed(model, asked, preflight.median_ms(frames))
            self._check(lambda *_: self.say(preflight.check_speed(frames, helps)))
        return session

    def _session(self, model: Any) -> Any:
        """A conversation with the settings of the command line, its kernels built."""
        arguments = self.arguments
        names = ("temperature", "top_k", "text_temperature", "text_top_k", "kv_bits", "context")
        asked = {name: getattr(arguments, name) for name in names}
        settings = {name: value for name, value in asked.items() if value is not None}
        if arguments.quiet:
            settings["progress"] = False
        settings |= personas.settings(model, arguments, self.say)
        if self.live:
            self.say("compiling ...")
        began = time.perf_counter()
        session = model.session(seed=arguments.seed, **settings)
        if self.live:
            self.say(f"compiled in {time.perf_counter() - began:.1f} s")
        return session

    def _check(self, check: Any, *given: Any) -> None:
        """What a person may overrule is only said where it is overruled, or where nothing runs in real time."""
        try:
            check(*given)
        except InputError as error:
            if self.live and not self.arguments.force:
                raise
            self.say(f"warning: {str(error).removesuffix(', or go on all the same with --force')}")

    def _check_frames(self, session: Any) -> None:
        if (session.sample_rate, session.frame_size) != (SAMPLE_RATE, FRAME_SIZE):
            raise ConfigError(
                f"{self.arguments.model}: has frames of {session.frame_size} samples at {session.sample_rate} Hz, "
                f"expected {FRAME_SIZE} at {SAMPLE_RATE} Hz"
            )

    # The conversation

    def converse(self, session: Any) -> loop.Statistics:
        """Runs until the input ends, a key or Ctrl-C; what was written is kept if there was a frame."""
        if self.live:
            self.say("talk now; Ctrl-C ends the conversation")
        if self.arguments.input == options.DEMO_INPUT:
            self.say(f"you: {options.DEMO_TEXT.read_text().strip()}")
            self.say("Moshi:")
        self.interrupts.handle(self.quit)
        actions = {"m": self._mute, "r": self.controls.reset, "q": self.quit}
        with Keys(actions if self.live else {}) as keys, contextlib.ExitStack() as shown:
            self.interrupts.last_acts.append(keys.close)
            self._show(keys.active)
            shown.callback(self.screen.close)
            statistics = loop.run(
                session, self.source, self.sink, [self.screen, *self.observers], self.arguments.steps, self.stop,
                self.controls,
            )  # fmt: skip
        self.screen = view.Plain(self.arguments.quiet)
        if statistics.frames:
            self.sink.close()
            if self.arguments.trace:
                self.trace.close()
        return statistics

    def _show(self, keys: bool) -> None:
        """On a terminal a view; what is not to be shown as one goes on as lines."""
        if self.arguments.json:
            self.screen = view.Json(self.controls, FRAME_SECONDS, self.arguments.quiet)
        elif self.live and not self.arguments.quiet and sys.stdout.isatty():
            terminal = view.Terminal(self.controls, FRAME_SECONDS, keys)
            self.interrupts.last_acts.append(terminal.close)
            self.screen = terminal

    def _mute(self) -> None:
        self.controls.muted = not self.controls.muted

    def quit(self) -> None:
        """Ends the conversation after the frame at hand. From any thread, and from a signal handler."""
        self.stop.set()
        self.source.end()

    def report(self, statistics: loop.Statistics) -> None:
        self.say(str(statistics))
        arguments = self.arguments
        if not statistics.frames:
            return
        if arguments.record:
            self.say(f"conversation recorded in {arguments.record} and {self.recorder.json_path}")
        if arguments.trace:
            self.say(f"trace written to {arguments.trace}")
        if arguments.output:
            self.say(f"reply written to {arguments.output}")


def _run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    with contextlib.ExitStack() as stack:
        talk = Talk(arguments, stack, interrupts)
        talk.open()
        statistics = talk.converse(talk.load())
    talk.report(statistics)
    return 130 if talk.stop.is_set() and not (talk.live and statistics.frames) else 0


def _list_devices() -> int:
    for device in portaudio.devices():
        view.write_out(f"{device}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    arguments = options.parse(argv)
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with Interrupts() as interrupts:
            if arguments.list_voices:
                return personas.list_voices(arguments, view.write_out)
            return _list_devices() if arguments.list_devices else _run(arguments, interrupts)
    except MoshiError as error:
        view.say(f"{options.PROGRAM}: error: {' '.join(str(error).splitlines())}")
        return 2
    except KeyboardInterrupt as stop:
        kept = f" ({stop})" if str(stop) else ""
        view.say(f"{options.PROGRAM}: interrupted, no output was written{kept}")
        return 130
    finally:
        sys.setswitchinterval(before)


if __name__ == "__main__":
    sys.exit(main())
