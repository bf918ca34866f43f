"""The options of python -m moshi_mlx.local, and what is wrong with them."""

from __future__ import annotations

import argparse
import functools
import math
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.names import MINIATURE_FOLDER
from ..terminal.arguments import Parser
from ..terminal.arguments import number as _number
from . import personas

PROGRAM = "moshi_mlx.local"
HUB_SUFFIXES = {4: "q4", 8: "q8", 16: "bf16"}
DEMO_MODEL = MINIATURE_FOLDER
DEMO_INPUT = Path(__file__).parents[1] / "assets" / "question.flac"
DEMO_TEXT = DEMO_INPUT.with_suffix(".txt")
DEMO_OUTPUT = Path("reply.wav")
DEMO_SEED = 0
NO_DEVICE = "none"
STREAM = Path("-")

EPILOG = """\
Without --input Moshi listens to the microphone; without --output, or with a microphone, it speaks on the speaker.
The reply's text goes to standard output, all else to standard error; on a terminal a live conversation is shown as a
view instead, with keys: m mutes you, p turns push-to-talk on and off (hold space to be heard), + and - change the
volume, r begins a new conversation, q quits. Ctrl-C ends at any time, and what was recorded or written by then is kept.

A file that exists already is kept too: --output, --record, --transcript and --trace take the next free number
(talk-2.wav) and say so, unless --overwrite is given.

--input - reads a sound file from standard input, --output - writes the reply to standard output as WAV, and the words
then go to standard error. With --raw both are 16-bit little-endian samples, mono, 24 kHz, frame by frame as they come.

exit status: 0 at the end of the input, after --steps, or when a key or Ctrl-C ends a live conversation; 2 on an error:
nothing half-written is left, what was whole stays; 130 when Ctrl-C ends anything else.
"""


def _frames(text: str) -> int:
    """A type for argparse: frames of 80 ms, or seconds with an s behind them."""
    if text.endswith("s"):
        return math.ceil(_number(float, 1 / 12.5, 2**31)(text.removesuffix("s").strip()) * 12.5)
    return int(_number(int, 1)(text))


def _share(least: float) -> Callable[[str], float]:
    """A type for argparse: a number from `least` to 1."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= 1:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a number {'above 0' if least else 'from 0'} to 1")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        f"python -m {PROGRAM}",
        table="local",
        description="Talk with Moshi.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _model_options(parser)
    _sampling_options(parser.add_argument_group("sampling"))
    _sound_options(parser)
    _device_options(parser.add_argument_group("live sound"))
    _output_options(parser.add_argument_group("what is shown and kept"))
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FOLDER_OR_HUB_ID", help="checkpoint; overrides -q and --voice")
    which.add_argument("--demo", action="store_true", help="ask the package's miniature model a question, and hear its "
                       "answer where there is a speaker; no download")  # fmt: skip
    parser.add_argument("--adapter", metavar="FOLDER_OR_HUB_ID", help="LoRA folder, file or hub id")
    parser.add_argument("-q", "--quantized", type=int, choices=HUB_SUFFIXES, default=4, help="bits (default: 4)")
    personas.add_options(parser)
    _add(parser, "--context", _frames, "what Moshi remembers: frames of 80 ms, or seconds as in 60s (default: the "
         "model's, 3000)")  # fmt: skip
    parser.add_argument("--kv-bits", type=int, choices=(8, 4), help="keep the attention cache in so many bits")
    parser.add_argument("--force", action="store_true", help="go on where the machine is found too small or too slow")


def _sampling_options(group: Any) -> None:
    add = functools.partial(_add, group)
    add("--seed", _number(int, 0, 2**64), "same seed, model and input: same reply (default: a random one, which is "
        f"printed; {DEMO_SEED} for --demo)")  # fmt: skip
    for name, of, temperature, top_k in (("--", "sound", 0.8, 250), ("--text-", "text", 0.7, 25)):
        add(f"{name}temperature", _number(float, 0), f"of the {of}; 0 is greedy (default: the model's, or "
            f"{temperature})")  # fmt: skip
        add(f"{name}top-k", _number(int, 0), f"of the {of}; 0 is no limit (default: the model's, or {top_k})")
        add(f"{name}top-p", _share(math.ulp(0.0)), f"of the {of}: the likeliest tokens that hold this share (default: "
            "the model's, or 1, which is all)")  # fmt: skip
        add(f"{name}min-p", _share(0), f"of the {of}: tokens at least that likely as the likeliest (default: the "
            "model's, or 0, which is all)")  # fmt: skip


def _sound_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, metavar="FILE", help="sound file used instead of the microphone: WAV, "
                        "FLAC, OGG, MP3; with `pip install av` also m4a, mp4, webm; - is stdin")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="writes the reply as WAV; - is standard output")
    parser.add_argument("--raw", action="store_true", help="- means 16-bit samples without a header")
    _add(parser, "--tail", _number(float, 0), "seconds of silence after the input file", 3.0)
    _add(parser, "--steps", _number(int, 1), "end after so many frames of 80 ms")


def _device_options(group: Any) -> None:
    group.add_argument("--list-devices", action="store_true", help="show the sound devices, and end")
    group.add_argument("--input-device", metavar="NAME_OR_NUMBER", help="microphone (default: the system's)")
    group.add_argument("--output-device", metavar="NAME_OR_NUMBER", help="speaker (default: the system's); for --demo "
                       f"also {NO_DEVICE!r}")  # fmt: skip
    _add(group, "--device-rate", _number(int, 8000, 400_000), "Hz at which devices are opened (default: 24000 where "
         "they take it, or else their own)")  # fmt: skip
    group.add_argument("--user-file", type=Path, metavar="FILE", help="what you say first, before the microphone")
    group.add_argument("--echo-cancel", action="store_true", help="remove the speaker's sound from what the microphone "
                       "hears")  # fmt: skip
    group.add_argument("--push-to-talk", action="store_true", help="Moshi hears you only while you hold the space key")
    _add(group, "--latency-limit", _number(int, 160, 10_000), "ms; longest reply delay: beyond it speech is skipped "
         "too, below it only silence", 400)  # fmt: skip


def _output_options(group: Any) -> None:
    group.add_argument("--record", type=Path, metavar="FILE.wav", help="both sides in stereo, and the words in .json")
    group.add_argument("--transcript", type=Path, metavar="FILE", help="Moshi's words with times: .txt, .srt or .json")
    group.add_argument("--trace", type=Path, metavar="FILE.json", help="what was done when, for chrome://tracing")
    group.add_argument("--overwrite", action="store_true", help="replace files that exist instead of taking a free "
                       "number")  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="Moshi's words and errors only")
    group.add_argument("--json", action="store_true", help="one JSON object a frame on standard output")


def _add(parser: Any, name: str, kind: Callable[[str], Any], help: str, default: Any = None) -> None:
    shown = "" if default is None else f" (default: {default})"
    parser.add_argument(name, type=kind, default=default, metavar="N", help=help + shown)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the demo's filled in. Ends the program, with one line, where they contradict each other."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.demo:
        arguments.model = str(DEMO_MODEL)
        arguments.input = arguments.input or DEMO_INPUT
        arguments.output = arguments.output or DEMO_OUTPUT
    elif arguments.model is None:
        arguments.model = f"kyutai/{personas.model_of(parser, arguments)}-mlx-{HUB_SUFFIXES[arguments.quantized]}"
    arguments.drawn = arguments.seed is None and not arguments.demo
    if arguments.seed is None:
        arguments.seed = secrets.randbelow(10**6) if arguments.drawn else DEMO_SEED
    _check_devices(parser, arguments)
    _check_streams(parser, arguments)
    _check_files(parser, arguments)
    return arguments


def plays_demo(arguments: argparse.Namespace) -> bool:
    """Whether question and answer are to be heard."""
    return arguments.demo and arguments.output_device != NO_DEVICE and arguments.output != STREAM


def _check_devices(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """An option about a device that is not used is a mistake."""
    if arguments.input is not None:
        for name in ("input_device", "user_file", "echo_cancel", "push_to_talk"):
            if getattr(arguments, name):
                _refuse(parser, arguments, name, "is about the microphone, which --input takes the place of")
        if arguments.output is not None and not arguments.demo:
            for name in ("output_device", "device_rate"):
                if getattr(arguments, name):
                    _refuse(parser, arguments, name, "is about devices, and --input and --output are files")


def _refuse(parser: argparse.ArgumentParser, arguments: argparse.Namespace, name: str, why: str) -> None:
    """A flag that was given is a mistake; one of a person's own settings is left aside."""
    if name not in arguments.from_settings:
        parser.error(f"--{name.replace('_', '-')} {why}")
    setattr(arguments, name, parser.get_default(name))


def _check_streams(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Standard output is for one thing, and the microphone is not standard input."""
    if arguments.output == STREAM:
        if arguments.json:
            _refuse(parser, arguments, "json", "and --output - both write to standard output")
        if arguments.input is None:
            parser.error("--output - needs --input")
    if arguments.raw and STREAM not in (arguments.input, arguments.output):
        _refuse(parser, arguments, "raw", "needs --input - or --output -")


def _check_files(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """No file may be written that is read, or written twice."""
    record = arguments.record
    paths = {
        "--input": arguments.input, "--user-file": arguments.user_file, "--output": arguments.output,
        "--record": record, "--record's words": record and record.with_suffix(".json") if record and record.name else
        None, "--transcript": arguments.transcript, "--trace": arguments.trace,
    }  # fmt: skip
    seen: dict[str, str] = {}
    for name, path in paths.items():
        if path is None or path == STREAM or (name == "--user-file" and path == arguments.input):
            continue
        try:
            real = os.path.realpath(path)
        except ValueError:  # a zero in a name: who opens it says so
            continue
        if real in seen:
            parser.error(f"{seen[real]} and {name} are the same file: {path}")
        seen[real] = name
