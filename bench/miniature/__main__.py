"""Regenerate the miniature: `python -m bench.miniature data|codec|dialogues FOLDER`.

Each command goes on where it was ended. FOLDER is for the working files.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

from . import codec, codec_data, dialogues

Say = Callable[[str], None]
COMMANDS: dict[str, Callable[[Path, Say], object]] = {
    "data": lambda folder, say: codec_data.prepare(folder, say=say),
    "codec": lambda folder, say: codec.train(folder, say=say),
    "dialogues": lambda folder, say: dialogues.write(folder, say=say),
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.miniature", description="Regenerate the miniature model.")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folder", type=Path, help="where the working files lie")
    arguments = parser.parse_args()
    COMMANDS[arguments.command](arguments.folder, functools.partial(print, flush=True))


if __name__ == "__main__":
    main()
