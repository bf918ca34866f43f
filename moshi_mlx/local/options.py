"""The options of python -m moshi_mlx.local, and what is wrong with them."""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.names import MINIATURE_FOLDER
from ..terminal.arguments import Parser
from . import personas

PROGRAM = "moshi_mlx.local"
HUB_SUFFIXES = {4: "q4", 8: "q8", 16: "bf16"}
DEMO_MODEL = MINIATURE_FOLDER
DEMO_INPUT = Path(__file__).parents[1] / "assets" / "question.flac"
DEMO_TEXT = DEMO_INPUT.with_suffix(".txt")
DEMO_OUTPUT = Path("reply.wav")

EPILOG = """\
Without --input Moshi listens to the microphone; without --output, or with a microphone, it speaks on the speaker.
The reply's text goes to standard output, all else to standard error; on a terminal a live conversation is shown as a
view instead, with keys: m mutes you, r begins a new conversation, q quits. Ctrl-C ends at any time, and what was
recorded or written by then is kept.

exit status: 0 at the end of the input, after --steps, or when a key or Ctrl-C ends a live conversation; 2 on an error,
and then no output file is written; 130 when Ctrl-C ends anything else.
"""


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
    parser = Parser(
        f"python -m {PROGRAM}",
        description="Talk with Moshi.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _model_options(parser)
    _sound_options(parser)
    _device_options(parser.add_argument_group("live sound"))
    _output_options(parser.add_argument_group("what is shown and kept"))
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FOLDER_OR_HUB_ID", help="checkpoint; overrides -q and --voice")
    which.add_argument("--demo", action="store_true", help="miniature model and question of the package, no download")
    parser.add_argument("--adapter", metavar="FOLDER_OR_HUB_ID", help="what fine-tuning made of that checkpoint")
    parser.add_argument("-q", "--quantized", type=int, choices=HUB_SUFFIXES, default=4, help="bits (default: 4)")
    personas.add_options(parser)
    add = functools.partial(_add, parser)
    add("--context", _number(int, 1), "frames of 80 ms that Moshi remembers (default: the model's, 3000)")
    add("--seed", _number(int, 0, 2**64), "same seed, model and input: same reply", 0)
    parser.add_argument("--kv-bits", type=int, choices=(8,), help="keep the attention cache in 8 bits")
    for name, of, temperature, top_k in (("--", "sound", 0.8, 250), ("--text-", "text", 0.7, 25)):
        add(
            f"{name}temperature",
            _number(float, 0),
            f"of the {of}; 0 is greedy (default: the model's, or {temperature})",
        )
        add(f"{name}top-k", _number(int, 0), f"of the {of}; 0 is no limit (default: the model's, or {top_k})")
    parser.add_argument("--force", action="store_true", help="go on where the machine is found too small or too slow")


def _sound_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, metavar="FILE", help="what you say: WAV, FLAC, OGG or MP3")
    parser.add_argument("--output", type=Path, metavar="FILE", help="writes the reply as WAV")
    _add(parser, "--tail", _number(float, 0), "seconds of silence after the input file", 3.0)
    _add(parser, "--steps", _number(int, 1), "end after so many frames of 80 ms")


def _device_options(group: Any) -> None:
    group.add_argument("--list-devices", action="store_true", help="show the sound devices, and end")
    group.add_argument("--input-device", metavar="NAME_OR_NUMBER", help="microphone (default: the system's)")
    group.add_argument("--output-device", metavar="NAME_OR_NUMBER", help="speaker (default: the system's)")
    _add(group, "--device-rate", _number(int, 8000, 400_000), "Hz at which devices are opened (default: 24000 where "
         "they take it, or else their own)")  # fmt: skip
    group.add_argument("--user-file", type=Path, metavar="FILE", help="what you say first, before the microphone")
    group.add_argument("--echo-cancel", action="store_true", help="take what the speaker plays out of the microphone")
    _add(group, "--latency-limit", _number(int, 160, 10_000), "ms; where Moshi would answer later, sound is dropped, "
         "otherwise only silence is", 400)  # fmt: skip


def _output_options(group: Any) -> None:
    group.add_argument("--record", type=Path, metavar="FILE.wav", help="both sides in stereo, and the words in .json")
    group.add_argument("--trace", type=Path, metavar="FILE.json", help="what was done when, for chrome://tracing")
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
    _check_devices(parser, arguments)
    _check_files(parser, arguments)
    return arguments


def _check_devices(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """An option about a device that is not used is a mistake."""
    if arguments.input is not None:
        for name in ("input_device", "user_file", "echo_cancel"):
            if getattr(arguments, name):
                parser.error(f"--{name.replace('_', '-')} is about the microphone, which --input takes the place of")
        if arguments.output is not None:
            for name in ("output_device", "device_rate"):
                if getattr(arguments, name):
                    parser.error(f"--{name.replace('_', '-')} is about devices, and --input and --output are files")


def _check_files(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """No file may be written that is read, or written twice."""
    record = arguments.record
    paths = {
        "--input": arguments.input, "--user-file": arguments.user_file, "--output": arguments.output,
        "--record": record, "--record's words": record and record.with_suffix(".json"), "--trace": arguments.trace,
        "--prompt": arguments.prompt,
    }  # fmt: skip
    seen: dict[str, str] = {}
    for name, path in paths.items():
        if path is None or (name == "--user-file" and path == arguments.input):
            continue
        real = os.path.realpath(path)
        if real in seen:
            parser.error(f"{seen[real]} and {name} are the same file: {path}")
        seen[real] = name
