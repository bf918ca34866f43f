"""The options of python -m moshi_mlx.translate, and what is wrong with them."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..local import options as shared
from ..roles.translator import TAIL_SECONDS
from ..terminal.arguments import Parser, named, number

PROGRAM = "moshi_mlx.translate"
MODEL = "kyutai/hibiki-1b-mlx-bf16"
STREAM = shared.STREAM

EPILOG = """\
The words go to standard output as they come, all else to standard error; the sound to --output, or without it to the
speaker. FILE may have any rate and any number of channels; - is a sound file on standard input, and --output - writes
WAV to standard output, the words then go to standard error. With --raw both are 16-bit little-endian samples, mono,
24 kHz, frame by frame as they come.

When the source is over the model is told so, and what it still has to say is waited for, --tail seconds at most. Live,
q or Ctrl-C says that the source is over, and once more ends at once; m mutes you, p turns push-to-talk on and off,
+ and - change the volume, r begins anew. What was recorded or written by then is kept.

A file that exists already is kept too: --output, --record, --transcript and --trace take the next free number
(talk-2.wav) and say so, unless --overwrite is given.

exit status: 0 at the end of the translation, or when a key or Ctrl-C ends a live one; 2 on an error: nothing
half-written is left, what was whole stays; 130 when Ctrl-C ends anything else.
"""
ABSENT = {"demo": False, "list_voices": False, "voice": None, "persona": None, "prompt": None, "steps": None,
          "wait_for_greeting": False, "tail": 0.0}  # fmt: skip
"""What a conversation takes and a translation does not."""


def parser() -> Parser:
    made = Parser(
        f"python -m {PROGRAM}", table="translate", description="Translate speech into speech, while it is said.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("input", metavar="FILE", nargs="?", type=Path, help="WAV, FLAC, OGG, MP3; with `pip install av` "
                      "also m4a, mp4, webm; - is standard input")  # fmt: skip
    made.add_argument("--live", action="store_true", help="the microphone instead of a file")
    made.add_argument("--output", type=Path, metavar="FILE", help="writes the translation as WAV; - is standard output")
    made.add_argument("--raw", action="store_true", help="- means 16-bit samples without a header")
    _model_options(made.add_argument_group("the model"))
    shared.sampling_options(made.add_argument_group("sampling"), demo=False)
    shared.device_options(made.add_argument_group("live sound"), "the translator", demo=False)
    shared.output_options(made.add_argument_group("what is shown and kept"), "the translator")
    return made


def _model_options(group: Any) -> None:
    add = group.add_argument
    add("--model", metavar="FOLDER_OR_HUB_ID", default=MODEL, help=f"Hibiki or Hibiki-Zero (default: {MODEL})")
    add("--adapter", metavar="FOLDER_OR_HUB_ID", help="LoRA folder, file or hub id")
    add("--guidance", type=number(float, 0), metavar="N", help="3 sounds more like the speaker, more than that costs "
        "the translation; a Hibiki alone takes it (default: 1, none)")  # fmt: skip
    add("--condition", type=named, action="append", default=[], metavar="NAME=VALUE", help="what the model is told of "
        "the recording, as description=good (default: very_good)")  # fmt: skip
    add("--tail", dest="longest", type=number(float, 0, 600.001), metavar="SECONDS", default=TAIL_SECONDS, help="how "
        f"long it may go on after the source (default: {TAIL_SECONDS:g})")  # fmt: skip
    shared.memory_options(group, 500)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Ends the program, with one line, where they contradict each other."""
    made = parser()
    arguments = made.parse_args(argv)
    vars(arguments).update(ABSENT)
    if arguments.list_devices:
        return arguments
    if arguments.live and arguments.input is not None:
        made.error(f"--live is the microphone, but {arguments.input} is a sound file: give one of them")
    if not arguments.live and arguments.input is None:
        made.error("nothing to translate: give a sound file, - for standard input, or --live")
    arguments.drawn = arguments.seed is None
    if arguments.drawn:
        arguments.seed = secrets.randbelow(10**6)
    shared.check(made, arguments, "FILE")
    return arguments
