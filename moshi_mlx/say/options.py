"""The options of python -m moshi_mlx.say, and what is wrong with them."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..roles.voices import DEFAULT_VOICE, REPOSITORY
from ..terminal.arguments import Parser, number

PROGRAM = "moshi_mlx.say"
MODEL = "kyutai/tts-1.6b-en_fr"
STREAM, PLAY = Path("-"), Path("play")
NO_VOICE = "none"

EPILOG = f"""\
TEXT is what is said; the name of a file that exists is read, and - is standard input, which is spoken as it comes: a
few words behind whoever writes it. A terminal's lines are said one by one. <break time="2s"/> in a text is a pause.

--voice takes a name of https://huggingface.co/{REPOSITORY} (--list-voices lists them), a file of one, or, with a model
that goes on from recordings (kyutai/tts-0.75b-en-public), a sound file. Given twice it is a dialogue: each line of the
text is the other's turn.

Without --output the speaker plays it; --output FILE.wav writes a file, which appears once it is whole, and - writes WAV
to standard output as it comes. A file that exists is kept: the next free number is taken (reply-2.wav), unless
--overwrite is given. --times prints each word with the seconds at which it begins and ends.

exit status: 0 when all is said; 2 on an error: nothing half-written is left; 130 when Ctrl-C ends it: what was said by
then is kept.
"""


def parser() -> Parser:
    made = Parser(
        f"python -m {PROGRAM}", table="say", description="Say a text.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("text", metavar="TEXT", nargs="?", help="text, the name of a file of text, or - for standard "
                      "input")  # fmt: skip
    made.add_argument("--model", metavar="FOLDER_OR_HUB_ID", default=MODEL, help=f"TTS checkpoint (default: {MODEL})")
    made.add_argument("--voice", metavar="NAME_OR_FILE", action="append", help="who says it, given again a second "
                      f"speaker; {NO_VOICE}: the model's own idea (default: {DEFAULT_VOICE} where voices have names, "
                      f"else {NO_VOICE})")  # fmt: skip
    made.add_argument("--list-voices", action="store_true", help="show the voices that the model has, and end")
    _speech_options(made.add_argument_group("how it is said"))
    _output_options(made.add_argument_group("where it goes"))
    return made


def _speech_options(group: Any) -> None:
    add = group.add_argument
    add("--seed", type=number(int, 0, 2**64), metavar="N", help="same seed, text and voice: same sound (default: a "
        "random one, which is printed)")  # fmt: skip
    add("--guidance", type=number(float, 0, 100), metavar="N", help="how much the model is held to text and voice; the "
        "1.6B knows 1 to 4 in steps of a half (default: 2)")  # fmt: skip
    add("--codebooks", type=number(int, 1), metavar="N", help="of the sound that are drawn: fewer are faster and sound "
        "worse, 8 at least are reasonable (default: all, 32 or 16)")  # fmt: skip
    for name, of in (("", "the sound"), ("text-", "when words begin")):
        add(f"--{name}temperature", type=number(float, 0), metavar="N", help=f"of {of}; 0 is greedy (default: the "
            "model's, or 0.6)")  # fmt: skip
        add(f"--{name}top-k", type=number(int, 0), metavar="N", help=f"of {of}; 0 is no limit (default: the model's, "
            f"or {25 if name else 250})")  # fmt: skip
    add("--padding-between", type=number(int, 0), metavar="N", help="frames of 80 ms at least between words (default: "
        "1)")  # fmt: skip
    add("--padding-bonus", type=float, metavar="N", help="more than 0 makes slower speech, less quicker (default: 0)")
    add(
        "--context", type=number(int, 1), metavar="N", help="frames of 80 ms that are remembered (default: the model's)"
    )
    add("--kv-bits", type=int, choices=(8, 4), help="keep the attention cache in so many bits")
    add("--force", action="store_true", help="go on where the machine is found too small")


def _output_options(group: Any) -> None:
    add = group.add_argument
    add("--output", type=Path, metavar="FILE", help="writes it as WAV; - is standard output, play the speaker")
    add("--raw", action="store_true", help="--output - writes 16-bit samples without a header")
    add("--overwrite", action="store_true", help="replace a file that exists instead of taking a free number")
    add("--list-devices", action="store_true", help="show the sound devices, and end")
    add("--output-device", metavar="NAME_OR_NUMBER", help="speaker (default: the system's)")
    add("--device-rate", type=number(int, 8000, 400_000), metavar="N", help="Hz at which it is opened (default: 24000 "
        "where it takes it, or else its own)")  # fmt: skip
    add("--times", action="store_true", help="print each word with its times to standard output")
    add("--quiet", action="store_true", help="errors only")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Ends the program, with one line, where they contradict each other."""
    made = parser()
    arguments = made.parse_args(argv)
    arguments.drawn = arguments.seed is None
    if arguments.drawn:
        arguments.seed = secrets.randbelow(10**6)
    if arguments.output == PLAY:
        arguments.output = None
    if arguments.list_devices or arguments.list_voices:
        return arguments
    if arguments.text is None:
        made.error('nothing to say: give a text ("Good morning."), the name of a file, or - for standard input')
    for name in ("output_device", "device_rate"):
        if getattr(arguments, name) is not None and arguments.output is not None:
            _refuse(made, arguments, name, "is about the speaker, which --output takes the place of")
    if arguments.output == STREAM and arguments.times:
        _refuse(made, arguments, "times", "and --output - both write to standard output")
    if arguments.raw and arguments.output != STREAM:
        _refuse(made, arguments, "raw", "needs --output -")
    return arguments


def _refuse(made: Parser, arguments: argparse.Namespace, name: str, why: str) -> None:
    """A flag that was given is a mistake; one of a person's own settings is left aside."""
    if name not in arguments.from_settings:
        made.error(f"--{name.replace('_', '-')} {why}")
    setattr(arguments, name, made.get_default(name))


def is_file(text: str) -> bool:
    """Whether what is given as a text is the name of a file."""
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, ~somebody
        return False
