"""Talk with Moshi from the command line: python -m moshi_mlx.local.

The main thread is the model thread: it loads, steps and writes. So Ctrl-C ends a download at once, while in a
conversation a signal handler sets the one event that ends the loop.
"""

import argparse
import contextlib
import functools
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from . import audio, loop
from .errors import ConfigError, MoshiError

PROGRAM = "moshi_mlx.local"
SAMPLE_RATE = 24_000  # Hz
FRAME_SIZE = 1920  # samples
HUB_SUFFIXES = {4: "q4", 8: "q8", 16: "bf16"}
DEMO_MODEL = Path(__file__).parent / "assets" / "miniature"
DEMO_INPUT = Path(__file__).parent / "assets" / "question.flac"
DEMO_OUTPUT = Path("reply.wav")

EPILOG = """\
Without --input Moshi listens to the default microphone; without --output, or with a microphone, it speaks on the
default speaker. The reply's text goes to standard output, all else to standard error. Ctrl-C ends the
conversation, and what the output file then holds is kept.

exit status: 0 at the end of the input, after --steps, or when Ctrl-C ends a live conversation; 2 on an error, and
then no output file is written; 130 when Ctrl-C ends anything else.
"""

Handler = Callable[[int, FrameType | None], Any]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: error: {message} (--help shows the options)\n")


def _number(kind: type, least: float, below: float = math.inf) -> Callable[[str], Any]:
    """A type for argparse: a finite number of `kind` from `least` up."""

    def parse(text: str) -> Any:
        expected = f"{'a whole number' if kind is int else 'a number'} of at least {least}"
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        f"python -m {PROGRAM}",
        description="Talk with Moshi.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FOLDER_OR_HUB_ID", help="checkpoint; overrides -q and --voice")
    which.add_argument("--demo", action="store_true", help="miniature model and question of the package, no download")
    parser.add_argument("--adapter", metavar="FOLDER_OR_HUB_ID", help="what fine-tuning made of that checkpoint")
    parser.add_argument("-q", "--quantized", type=int, choices=HUB_SUFFIXES, default=4, help="bits (default: 4)")
    parser.add_argument("--voice", choices=("moshiko", "moshika"), default="moshiko", help="default: moshiko")
    parser.add_argument("--input", type=Path, metavar="FILE", help="what you say: WAV, FLAC, OGG or MP3")
    parser.add_argument("--output", type=Path, metavar="FILE", help="writes the reply as WAV")
    add = functools.partial(_add, parser)
    add("--tail", _number(float, 0), "seconds of silence after the input file", 3.0)
    add("--steps", _number(int, 1), "end after so many frames of 80 ms")
    add("--seed", _number(int, 0, 2**64), "same seed, model and input: same reply", 0)
    parser.add_argument("--kv-bits", type=int, choices=(8,), help="keep the attention cache in 8 bits")
    for name, of, temperature, top_k in (("--", "sound", 0.8, 250), ("--text-", "text", 0.7, 25)):
        add(
            f"{name}temperature",
            _number(float, 0),
            f"of the {of}; 0 is greedy (default: the model's, or {temperature})",
        )
        add(f"{name}top-k", _number(int, 0), f"of the {of}; 0 is no limit (default: the model's, or {top_k})")
    return parser


def _add(
    parser: argparse.ArgumentParser, name: str, kind: Callable[[str], Any], help: str, default: Any = None
) -> None:
    shown = "" if default is None else f" (default: {default})"
    parser.add_argument(name, type=kind, default=default, metavar="N", help=help + shown)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.demo:
        arguments.model = str(DEMO_MODEL)
        arguments.input = arguments.input or DEMO_INPUT
        arguments.output = arguments.output or DEMO_OUTPUT
    elif arguments.model is None:
        arguments.model = f"kyutai/{arguments.voice}-mlx-{HUB_SUFFIXES[arguments.quantized]}"
    ends = [path for path in (arguments.input, arguments.output) if path is not None and os.path.exists(path)]
    if len(ends) == 2 and os.path.samefile(*ends):
        parser.error(f"--input and --output are the same file: {arguments.input}")
    return arguments


class _Tee:
    """A sink that hands everything to several, in order."""

    def __init__(self, *sinks: loop.Sink) -> None:
        self._sinks = sinks

    @property
    def drops(self) -> int:
        return sum(sink.drops for sink in self._sinks)

    def write(self, pcm: audio.Samples) -> None:
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


def _source(arguments: argparse.Namespace) -> audio.FileSource | audio.Microphone:
    if arguments.input is None:
        return audio.Microphone(SAMPLE_RATE, FRAME_SIZE)
    samples = audio.read_sound(arguments.input, SAMPLE_RATE)
    return audio.FileSource(samples, FRAME_SIZE, round(arguments.tail * SAMPLE_RATE))


def _sink(arguments: argparse.Namespace, source: audio.FileSource | audio.Microphone) -> loop.Sink:
    length = source.length if isinstance(source, audio.FileSource) else None
    if arguments.output is None:
        return audio.Speaker(SAMPLE_RATE, FRAME_SIZE, pace=length is not None)
    file = audio.FileSink(arguments.output, SAMPLE_RATE, length)
    if length is not None:
        return file
    try:
        return _Tee(audio.Speaker(SAMPLE_RATE, FRAME_SIZE), file)
    except MoshiError:
        file.abort()
        raise


def _session(arguments: argparse.Namespace) -> Any:
    """Loads the model and compiles its step. What is not asked for in `arguments` is left to the model."""
    import moshi_mlx

    from . import preflight

    _say(f"loading {arguments.model} ...")
    names = ("temperature", "top_k", "text_temperature", "text_top_k", "kv_bits")
    asked = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in asked.items() if value is not None}
    adapted = {"adapter": arguments.adapter} if arguments.adapter else {}
    model = moshi_mlx.load(arguments.model, **adapted)
    _say(preflight.report(model))
    session = model.session(seed=arguments.seed, **given)
    if (session.sample_rate, session.frame_size) != (SAMPLE_RATE, FRAME_SIZE):
        raise ConfigError(
            f"{arguments.model}: has frames of {session.frame_size} samples at {session.sample_rate} Hz, "
            f"expected {FRAME_SIZE} at {SAMPLE_RATE} Hz"
        )
    session.step(np.zeros(FRAME_SIZE, np.float32))  # compiles; else the first frame would wait for it
    session.reset()
    return session


def _converse(arguments: argparse.Namespace, stop: threading.Event) -> loop.Statistics:
    """Opens both ends before the model is loaded, so that what is wrong with them is said at once."""
    with contextlib.ExitStack() as ends:
        source = _source(arguments)
        ends.callback(source.close)
        sink = _sink(arguments, source)
        ends.callback(sink.abort)
        session = _session(arguments)
        if arguments.input is None:
            _say("talk now; Ctrl-C ends the conversation")
        with _on_signals(_setter(stop)):
            statistics = loop.run(session, source, sink, _print_text, arguments.steps, stop)
        if statistics.frames:
            sink.close()
    return statistics


def _print_text(frame: Any) -> None:
    if frame.text:
        _print(frame.text)


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)
    except BrokenPipeError:  # nobody reads the text any more; the conversation goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _setter(stop: threading.Event) -> Handler:
    def handler(number: int, stack: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)  # the second Ctrl-C does not wait for the frame
        stop.set()

    return handler


@contextlib.contextmanager
def _on_signals(handler: Handler) -> Iterator[None]:
    """Handles Ctrl-C and `kill` by `handler`; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _report(arguments: argparse.Namespace, statistics: loop.Statistics) -> None:
    _print("\n")  # ends the reply's text
    _say(str(statistics))
    if arguments.output and statistics.frames:
        _say(f"reply written to {arguments.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    arguments = _arguments(argv)
    stop = threading.Event()
    try:
        with _on_signals(signal.default_int_handler):
            statistics = _converse(arguments, stop)
            _report(arguments, statistics)
    except MoshiError as error:
        _say(f"{PROGRAM}: error: {' '.join(str(error).splitlines())}")
        return 2
    except KeyboardInterrupt:
        _say(f"{PROGRAM}: interrupted, no output was written")
        return 130
    live = arguments.input is None and statistics.frames
    return 130 if stop.is_set() and not live else 0


if __name__ == "__main__":
    sys.exit(main())
