"""Regenerate the miniature model: `python -m miniature all FOLDER`, or one of its steps.

Each step goes on where it was ended. FOLDER is for the working files (about 1 GB).
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from moshi_mlx.errors import MoshiError

from . import ship
from .codec import data as codec_data
from .codec import train as codec
from .conversations import dialogues, questions

Say = Callable[[str], None]
STEPS: dict[str, Callable[[Path, Say], object]] = {
    "data": lambda folder, say: codec_data.prepare(folder, say=say),
    "codec": lambda folder, say: codec.train(folder, say=say),
    "questions": lambda folder, say: questions.write(folder, say=say),
    "dialogues": lambda folder, say: dialogues.write(folder, say=say),
    "language": lambda folder, say: ship.train(folder, say=say),
    "evaluate": lambda folder, say: ship.scores(folder, say=say),
    "export": lambda folder, say: ship.export(folder, say=say),
}
HELP = {
    "data": "speech for the codec",
    "codec": "train the codec",
    "questions": "speak and encode what the language model learns to answer",
    "dialogues": "conversations that it is validated with",
    "language": "train the language model",
    "evaluate": "ask it questions; scores.json and pictures",
    "export": "put it into moshi_mlx/assets",
}


def main() -> int:
    listed = "; ".join(f"{name}: {text}" for name, text in HELP.items())
    parser = argparse.ArgumentParser("python -m miniature", description="Regenerate the miniature model.")
    parser.add_argument("step", choices=["all", *STEPS], help=f"all: every step in this order. {listed}")
    parser.add_argument("folder", type=Path, help="where the working files lie")
    arguments = parser.parse_args()
    try:
        for name in STEPS if arguments.step == "all" else [arguments.step]:
            STEPS[name](arguments.folder, functools.partial(print, flush=True))
    except MoshiError as error:
        print(f"miniature: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
