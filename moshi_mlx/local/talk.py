"""One run of the command: what it opens, the model, the conversation, and what is kept of it however it ends."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..audio.recorder import Recorder
from ..conversation import loop
from ..errors import ConfigError, InputError, MoshiError
from ..models.moshi import Moshi
from ..models.roles import check_role
from ..terminal import streams
from ..terminal.interrupt import Interrupts
from . import options, personas, screen, view
from .ends import FRAME_SIZE, SAMPLE_RATE, Ends
from .keyboard import Keys
from .trace import Trace
from .transcript import Transcript

FRAME_SECONDS = FRAME_SIZE / SAMPLE_RATE
LONG_SECONDS = 30.0  # a file from that length on shows how far it is
VOLUMES = (0.0, 2.0)
VOLUME_STEP = 0.1


class Talk:
    """Everything that is opened goes on `self.stack`, in whose reverse order it is closed: devices last."""

    roles: tuple[str, ...] = ("dialogue",)  # of models that it is for
    ends_class: type[Ends] = Ends

    def __init__(self, arguments: argparse.Namespace, stack: contextlib.ExitStack, interrupts: Interrupts) -> None:
        self.arguments, self.stack, self.interrupts = arguments, stack, interrupts
        self.stop, self.controls = threading.Event(), loop.Controls()
        self.live = arguments.input is None
        self._write = streams.write_out
        if arguments.output == options.STREAM:
            self._write = streams.write_err
        self.screen: view.View = self._plain()
        self.observers: list[loop.Observer] = []
        self.frames = 0
        self._files: list[tuple[str, Any, Callable[[], None]]] = []  # (what it is, it, how it is kept)

    def _plain(self) -> view.Plain:
        return view.Plain(self.arguments.quiet, FRAME_SECONDS, self._write)

    def say(self, line: str) -> None:
        """To whatever the person looks at just now."""
        self.screen.say(line)

    # What is opened before the model is loaded, so that what is wrong with it is said at once

    def open(self) -> None:
        arguments = self.arguments
        if arguments.push_to_talk:
            if sys.stdin is None or not sys.stdin.isatty():
                raise InputError("--push-to-talk needs a terminal, whose space key it listens to")
            self.controls.push_to_talk = True
        note = None
        if arguments.record:
            recorder = Recorder(arguments.record, SAMPLE_RATE, FRAME_SIZE, arguments.overwrite)
            self._observe("conversation recorded in", recorder)
        if arguments.transcript:
            transcript = Transcript(arguments.transcript, FRAME_SECONDS, arguments.overwrite)
            self._observe("transcript written to", transcript)
        if arguments.trace:
            trace = Trace(arguments.trace, arguments.overwrite)
            self._observe("trace written to", trace)
            note = trace.callback
        self.ends = self.ends_class(arguments, self.stack, self.say, note)
        if self.ends.file is not None:
            self._files.append(("reply written to", self.ends.file, self.ends.file.keep))
        self._tell_numbers()

    def _observe(self, what: str, observer: Any) -> None:
        self.observers.append(observer)
        self._files.append((what, observer, observer.close))
        self.stack.callback(observer.close)

    def _tell_numbers(self) -> None:
        """Where something is there already."""
        asked = [getattr(self.arguments, name) for name in ("record", "transcript", "trace", "output")]
        for path in filter(None, asked):
            taken = [file.path for _, file, _ in self._files if _is_numbered(getattr(file, "path", path), path)]
            for other in taken:
                self.say(f"{path} is there already: this goes to {other} (--overwrite replaces)")

    # The model

    def load(self) -> Any:
        """Loads the model, compiles its step, and finds out whether this machine can hold the conversation."""
        import moshi_mlx

        from ..machine import advice, loading, preflight

        arguments, began = self.arguments, time.perf_counter()
        asked = advice.Asked(arguments.model, arguments.kv_bits, arguments.context)
        adapted = {"adapter": arguments.adapter} if arguments.adapter else {}
        force = arguments.force or not self.live  # where nothing runs in real time, it is only said
        model = loading.load(
            arguments.model, lambda: moshi_mlx.load(arguments.model, **adapted), self.say,
            force=force, quiet=arguments.quiet, advice=advice.before_loading(asked),
        )  # fmt: skip
        if isinstance(model, Moshi):
            check_role(model, *self.roles)
        held = [arguments.kv_bits, arguments.context, self.guidance]
        self.say(f"loaded in {time.perf_counter() - began:.1f} s; {preflight.report(model, *held)}")
        needed = preflight.conversation_bytes(model, *held)
        with loading.forced(force, self.say):
            help_it = advice.for_memory(model, asked, preflight.usable_bytes())
            preflight.check_memory(needed, "a conversation with a full context", help_it)
        session = self._session(model)
        self._check_frames(session)
        frames = preflight.time_live(session) if self.live else preflight.time_frames(session, 0)
        if self.live:
            helps = advice.for_speed(model, asked, preflight.median_ms(frames))
            with loading.forced(force, self.say):
                self.say(preflight.check_speed(frames, helps))
        if arguments.drawn:
            self.say(f"seed {arguments.seed}")
        return session

    def _session(self, model: Any) -> Any:
        """A conversation with the settings of the command line, its kernels built."""
        settings = self._settings() | personas.settings(model, self.arguments, self.say)
        if self.live:
            self.say("compiling ...")
        began = time.perf_counter()
        session = self._make(model, settings)
        if self.live:
            self.say(f"compiled in {time.perf_counter() - began:.1f} s")
        return session

    def _make(self, model: Any, settings: dict[str, Any]) -> Any:
        return model.session(seed=self.arguments.seed, **settings)

    @property
    def guidance(self) -> float:
        """As the session is to have it."""
        return 1.0

    def _settings(self) -> dict[str, Any]:
        kinds = ("temperature", "top_k", "top_p", "min_p")
        names = (*kinds, *(f"text_{kind}" for kind in kinds), "kv_bits", "context")
        asked = {name: getattr(self.arguments, name) for name in names}
        settings = {name: value for name, value in asked.items() if value is not None}
        return settings | ({"progress": False} if self.arguments.quiet else {})

    def _check_frames(self, session: Any) -> None:
        if (session.sample_rate, session.frame_size) != (SAMPLE_RATE, FRAME_SIZE):
            raise ConfigError(
                f"{self.arguments.model}: has frames of {session.frame_size} samples at {session.sample_rate} Hz, "
                f"expected {FRAME_SIZE} at {SAMPLE_RATE} Hz"
            )

    # The conversation

    def converse(self, session: Any) -> loop.Statistics:
        """Runs until the input ends, a key or a signal; whatever ends it, what was recorded until then is kept."""
        self._open_talk()
        self.interrupts.handle(self.quit)
        try:
            statistics = self._run(session)
        except KeyboardInterrupt:
            self.keep()
            raise
        except BaseException:
            if self.live:  # an hour's reply is not lost to a full disk below the recording
                with contextlib.suppress(MoshiError):
                    self.keep()
            raise
        self.keep()
        return statistics

    def _open_talk(self) -> None:
        """What a person is told first."""
        if self.live:
            self.say("talk now; Ctrl-C ends the conversation")
        if self.arguments.input == options.DEMO_INPUT:
            self.say(f"you: {options.DEMO_TEXT.read_text().strip()}")
            self.say("Moshi:")

    def _run(self, session: Any) -> loop.Statistics:
        with contextlib.ExitStack() as shown:
            keys = Keys(self._actions() if self.live else {}, self._before_stop, self._after_stop)
            shown.enter_context(keys)
            self.interrupts.last_acts.append(keys.close)
            self._show(keys.active, shown)
            self.interrupts.last_acts += [keep for _, _, keep in self._files]  # the last come first
            observers: list[loop.Observer] = [self.screen, *self.observers, self._count]
            return loop.run(
                session, self.ends.source, self.ends.sink, observers, self.arguments.steps, self.stop, self.controls
            )

    def _count(self, moment: loop.Moment) -> None:
        self.frames += 1

    def _show(self, keys: bool, shown: contextlib.ExitStack) -> None:
        """On a terminal a view; what is not to be shown as one goes on as lines."""
        expected = getattr(self.ends.source, "expected", 0) / SAMPLE_RATE
        if self.arguments.json:
            self.screen = view.Json(self.controls, FRAME_SECONDS, self.arguments.quiet)
        elif not self.arguments.quiet and (self.live or expected > LONG_SECONDS):
            if _is_terminal(sys.stdout):
                self._show_terminal(keys, shown)
            elif not self.live and _is_terminal(sys.stderr):
                progress = view.Progress(lambda: self.ends.source.expected, SAMPLE_RATE)
                shown.callback(progress.close)
                self.observers.append(progress)
        shown.callback(self._end_show, self.screen)

    def _show_terminal(self, keys: bool, shown: contextlib.ExitStack) -> None:
        total = (lambda: 0.0) if self.live else (lambda: self.ends.source.expected / SAMPLE_RATE)
        terminal = screen.Terminal(self.controls, FRAME_SECONDS, keys, volume=self._volume, total=total)
        self.interrupts.last_acts.append(terminal.close)
        self.screen = terminal
        if _is_terminal(sys.stderr):
            foreign = streams.ForeignLines(terminal.say)
            shown.enter_context(foreign)
            self.interrupts.last_acts.append(foreign.close)

    def _end_show(self, shown: view.View) -> None:
        self.screen = self._plain()
        shown.close()

    # Keys

    def _actions(self) -> dict[str, Callable[[], None]]:
        return {
            "m": self._mute, "p": self._push_to_talk, " ": self.controls.press, "r": self._begin_anew, "q": self.quit,
            "+": lambda: self._louder(VOLUME_STEP), "=": lambda: self._louder(VOLUME_STEP),
            "-": lambda: self._louder(-VOLUME_STEP),
        }  # fmt: skip

    def _mute(self) -> None:
        self.controls.muted = not self.controls.muted

    def _push_to_talk(self) -> None:
        self.controls.push_to_talk = not self.controls.push_to_talk

    def _begin_anew(self) -> None:
        self.controls.reset()
        self.say(f"new conversation (seed {self.arguments.seed})")

    def _volume(self) -> float:
        return self.ends.speaker.volume if self.ends.speaker else 1.0

    def _louder(self, by: float) -> None:
        low, high = VOLUMES
        if self.ends.speaker:
            self.ends.speaker.volume = round(min(high, max(low, self.ends.speaker.volume + by)), 1)

    def _before_stop(self) -> None:
        """Ctrl-Z: the shell gets a terminal without a view."""
        if isinstance(self.screen, screen.Terminal):
            self.screen.pause()

    def _after_stop(self) -> None:
        if isinstance(self.screen, screen.Terminal):
            self.screen.resume()

    def quit(self) -> None:
        """Ends the conversation after the frame at hand. From any thread, and from a signal handler."""
        self.stop.set()
        self.ends.source.end()

    # What is kept

    def keep(self) -> None:
        """Closes every file, before any device; what cannot be closed keeps no other from being."""
        self.interrupts.closing()
        errors = []
        for _, _, keep in self._files:
            try:
                keep()
            except MoshiError as error:
                errors.append(error)
        self.interrupts.kept()
        if errors:
            raise errors[0]

    def report(self, statistics: loop.Statistics) -> None:
        self.say(str(statistics))
        for line in self.kept_lines():
            self.say(line)

    def kept_lines(self) -> list[str]:
        """What is there now of this conversation."""
        lines = []
        for what, file, _ in self._files if self.frames else []:
            path = getattr(file, "path", "standard output")
            lines.append(f"{what} {path}" + (f" and {file.json_path}" if isinstance(file, Recorder) else ""))
        return lines


def _is_numbered(taken: Path, asked: Path) -> bool:
    return taken != asked and taken.parent == asked.parent and taken.suffix == asked.suffix and (
        taken.stem.startswith(f"{asked.stem}-")
    )  # fmt: skip


def _is_terminal(stream: Any) -> bool:
    try:
        return stream is not None and bool(stream.isatty())
    except ValueError:  # it is closed
        return False
