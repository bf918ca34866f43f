"""The options of python -m moshi_mlx.transcribe, and what is wrong with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..roles.pauses import SHARE
from ..roles.transcript import FORMATS
from ..terminal.arguments import Parser, number

PROGRAM = "moshi_mlx.transcribe"
MODEL = "kyutai/stt-1b-en_fr"
STREAM = Path("-")
NEVER = "never"

EPILOG = """\
The words go to standard output as they come, a line for each utterance with the time at which it begins; all else goes
to standard error. Sound files may have any rate and any number of channels; - is a sound file on standard input, or
with --raw 16-bit little-endian samples, mono, 24 kHz, which are written down as they come.

--output X.txt, X.srt or X.json writes a transcript, which is whole at any moment; --output .srt (or .txt, .json)
writes one beside each sound file. A file that exists already is kept: the next free number is taken (talk-2.srt),
unless --overwrite is given.

A live transcription ends with Ctrl-C: what was said until then is written down first.

exit status: 0 at the end of all files, or when Ctrl-C ends a live transcription; 2 on an error: what was written by
then stays; 130 when Ctrl-C ends anything else.
"""


def parser() -> Parser:
    made = Parser(
        f"python -m {PROGRAM}", table="transcribe", description="Write down what is said, with times.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("sounds", metavar="FILE", nargs="*", type=Path, help="WAV, FLAC, OGG, MP3; with `pip install av` "
                      "also m4a, mp4, webm; - is standard input")  # fmt: skip
    made.add_argument("--live", action="store_true", help="the microphone instead of files")
    made.add_argument("--model", metavar="FOLDER_OR_HUB_ID", default=MODEL, help=f"STT checkpoint (default: {MODEL})")
    _output_options(made.add_argument_group("what is written"))
    _model_options(made.add_argument_group("the model"))
    _device_options(made.add_argument_group("live sound"))
    return made


def _output_options(group: Any) -> None:
    group.add_argument("--output", type=Path, metavar="FILE", help="transcript: .txt, .srt or .json; the suffix alone "
                       "writes one beside each sound file")  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="replace files that exist instead of taking a free "
                       "number")  # fmt: skip
    group.add_argument("--pauses", action="store_true", help="say when the speaker pauses; with --json also how likely "
                       "that is in each frame")  # fmt: skip
    group.add_argument("--json", action="store_true", help="one JSON object an event on standard output")
    group.add_argument("--quiet", action="store_true", help="words and errors only")


def _model_options(group: Any) -> None:
    add = group.add_argument
    add("--temperature", type=number(float, 0), metavar="N", help="0 is greedy; 0.25 where it stops writing (default: "
        "the model's, 0)")  # fmt: skip
    add("--seed", type=number(int, 0, 2**64), default=0, metavar="N", help="for a temperature above 0 (default: 0)")
    add("--codebooks", type=number(int, 1), metavar="N", help="of the sound that are heard: fewer are faster (default: "
        "all, 32)")  # fmt: skip
    add("--refresh", type=_share, default=SHARE, metavar="SHARE", help="how full the model's memory is when it is "
        "emptied at a pause; at the latest it is when it is full; with never, only the oldest is forgotten (default: "
        f"{SHARE})")  # fmt: skip
    add(
        "--context", type=number(int, 1), metavar="N", help="frames of 80 ms that are remembered (default: the model's)"
    )
    add("--kv-bits", type=int, choices=(8, 4), help="keep the attention cache in so many bits")
    add("--raw", action="store_true", help="- means 16-bit samples without a header")
    add("--force", action="store_true", help="go on where the machine is found too small")


def _device_options(group: Any) -> None:
    group.add_argument("--list-devices", action="store_true", help="show the sound devices, and end")
    group.add_argument("--input-device", metavar="NAME_OR_NUMBER", help="microphone (default: the system's)")
    group.add_argument("--device-rate", type=number(int, 8000, 400_000), metavar="N", help="Hz at which it is opened "
                       "(default: 24000 where it takes it, or else its own)")  # fmt: skip


def _share(text: str) -> float | None:
    """A type for argparse: a number from 0.1 to 1, or never (None)."""
    if text == NEVER:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0.1 to 1, or {NEVER}")
    return value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Ends the program, with one line, where they contradict each other."""
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.list_devices:
        return arguments
    if arguments.live and arguments.sounds:
        made.error(f"--live is the microphone, but {arguments.sounds[0]} is a sound file: give one of them")
    if not arguments.live and not arguments.sounds:
        made.error("nothing to write down: give a sound file, - for standard input, or --live")
    if arguments.sounds.count(STREAM) > 1:
        made.error("- is standard input, which can be read once")
    if arguments.raw and STREAM not in arguments.sounds:
        _refuse(made, arguments, "raw", "needs -")
    for name in ("input_device", "device_rate"):
        if getattr(arguments, name) is not None and not arguments.live:
            _refuse(made, arguments, name, "needs --live")
    _check_output(made, arguments)
    return arguments


def _refuse(made: Parser, arguments: argparse.Namespace, name: str, why: str) -> None:
    """A flag that was given is a mistake; one of a person's own settings is left aside."""
    if name not in arguments.from_settings:
        made.error(f"--{name.replace('_', '-')} {why}")
    setattr(arguments, name, made.get_default(name))


def _check_output(made: Parser, arguments: argparse.Namespace) -> None:
    output = arguments.output
    if output is None:
        return
    if is_suffix(output):
        if arguments.live or STREAM in arguments.sounds:
            made.error(f"--output {output} writes beside a sound file, which this is not: give it a name")
    elif len(arguments.sounds) > 1:
        made.error(
            f"--output {output} is one file, but there are {len(arguments.sounds)} sounds; --output "
            f"{output.suffix or '.txt'} writes one beside each"
        )


def is_suffix(output: Path) -> bool:
    """Whether it is .txt, .srt or .json and nothing else."""
    return str(output).lower() in FORMATS
