"""Regenerate the miniature: `python -m bench.miniature data|codec FOLDER`; each command goes on where it was ended."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from . import codec, codec_data


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.miniature", description="Regenerate the miniature model.")
    parser.add_argument("command", choices=("data", "codec"))
    parser.add_argument("folder", type=Path, help="where the working files lie")
    arguments = parser.parse_args()
    say = functools.partial(print, flush=True)
    if arguments.command == "data":
        codec_data.prepare(arguments.folder, say=say)
    else:
        codec.train(arguments.folder, say=say)


if __name__ == "__main__":
    main()
