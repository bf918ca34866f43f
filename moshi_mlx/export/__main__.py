"""Export a model for apps in C, C++ and Swift: python -m moshi_mlx.export CHECKPOINT FOLDER."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..checkpoints.hub import local_folder
from ..checkpoints.reading import open_checkpoint
from ..errors import MoshiError
from ..terminal import streams
from ..terminal.arguments import Parser, named, number
from .bundle import export
from .checking import differences

PROGRAM = "moshi_mlx.export"
DTYPES = {name: getattr(mx, name) for name in ("bfloat16", "float16", "float32")}
EPILOG = """\
FOLDER gets the graphs of a frame, the text of each token and a manifest, less than 1 MB. An app loads it beside the
checkpoint itself, which stays as it is; docs/embedding.md goes on from here.

exit status: 0; 1 where --check finds a difference; 2 on an error, and then nothing is left of FOLDER; 130 when Ctrl-C
ends it.
"""


def parser() -> Parser:
    parser = Parser(
        f"python -m {PROGRAM}", table="export", description="Export a model for apps in C, C++ and Swift.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="folder or hub id, in any layout")
    add("folder", metavar="FOLDER", type=Path, help="the bundle to write")
    add("--dtype", choices=tuple(DTYPES), help="type that the language model runs in (default: the stored one)")
    add("--kv-bits", type=int, choices=(8, 4), help="keep the attention cache in so many bits")
    add("--guidance", type=number(float, 0), metavar="N", help="Hibiki: 3 sounds more like the speaker "
        "(default: 1, none)")  # fmt: skip
    add("--condition", type=named, action="append", default=[], metavar="NAME=VALUE", help="what the model is told of "
        "all conversations, as description=good (default: what the published programs say)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace a bundle, once the new one is whole")
    add("--check", action="store_true", help="run the bundle against the model here, on a spoken question")
    return parser


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except (MoshiError, OSError) as error:
        return streams.failed(PROGRAM, error)
    except KeyboardInterrupt:
        streams.say(f"{PROGRAM}: interrupted")
        return 130


def _run(arguments: argparse.Namespace) -> int:
    dtype = DTYPES.get(arguments.dtype)
    told = {"conditions": dict(arguments.condition), "guidance": arguments.guidance}
    made = export(arguments.checkpoint, arguments.folder, dtype, arguments.kv_bits, arguments.overwrite, **told)
    streams.tell(f"{made.folder}: {len(made.files)} files, {sum(made.files.values()) / 1000:.0f} KB")
    if not arguments.check:
        return 0
    checkpoint = open_checkpoint(local_folder(arguments.checkpoint))
    equal = True
    for found in differences(arguments.folder, checkpoint, dtype, arguments.kv_bits, **told):
        what = f"{found.tokens} tokens differ, sound by at most {found.sound:.1e}"
        streams.tell(f"{found.settings}: {found.frames} frames, {'equal to the session' if found.equal else what}")
        equal &= found.equal
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
