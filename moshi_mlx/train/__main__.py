"""The command line: python -m moshi_mlx.train, and python -m moshi_mlx.train prepare."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from ..errors import AudioError, InputError, MoshiError
from ..terminal import streams
from . import options, recordings
from .files import claimed, say
from .options import PROGRAM, Parser
from .recordings import Conversation

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 at the end, 2 on an error, 130 when Ctrl-C ended it (what is done is saved)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        return _prepare(arguments[1:]) if arguments[:1] == ["prepare"] else _train(arguments)
    except (MoshiError, OSError) as error:  # a folder that vanished, for example
        return streams.failed(PROGRAM, error)
    except MemoryError as error:
        say(f"{PROGRAM}: error: out of memory ({' '.join(str(error).split())}); a smaller --batch-size needs less")
        return 2
    except KeyboardInterrupt:
        say(f"{PROGRAM}: interrupted; the same command, with --resume-adapter-file for training, goes on")
        return 130


def _train(argv: Sequence[str]) -> int:
    chosen = options.read(argv)
    from .trainer import Trainer, is_first

    with claimed(Path(chosen.adapter_path)) if is_first() else contextlib.nullcontext():
        trainer = Trainer(chosen)
        stop = threading.Event()
        with _stopping(stop) if trainer.is_alone else contextlib.nullcontext():
            return 0 if trainer.run(stop) else 130


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C, `kill` or closed terminal lets the iteration end and be saved; the second does not wait."""

    def handler(number: int, stack: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        say("stopping after this iteration; press Ctrl-C again to stop now")
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup: it is to go on
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _prepare(argv: Sequence[str]) -> int:
    arguments = _prepare_parser().parse_args(argv)
    parts = _parts(arguments)
    for part in filter(None, parts.values()):
        recordings.check(part, arguments.speaker, warn=lambda line: None)
    with claimed(arguments.output):
        left_out = _encode(arguments, parts)
    if left_out:
        count = f"{len(left_out)} recordings are" if len(left_out) > 1 else "1 recording is"
        raise AudioError(f"{count} left out (see above); the others are in {arguments.output}")
    return 0


def _parts(arguments: argparse.Namespace) -> dict[str, list[Conversation]]:
    """The recordings to train on and to validate with."""
    found = recordings.find(arguments.data)
    if arguments.valid_data:
        return {"train": found, "valid": recordings.find(arguments.valid_data)}
    if not arguments.valid_percent:
        return {"train": found, "valid": []}
    percent = arguments.valid_percent
    parts = {name: [c for c in found if _is_valid(c, percent) == (name == "valid")] for name in ("train", "valid")}
    if not all(parts.values()):
        sizes = " and ".join(f"{len(part)} for {name}" for name, part in parts.items())
        raise InputError(f"valid_percent {percent:g} leaves {sizes} of {len(found)} conversations")
    return parts


def _encode(arguments: argparse.Namespace, parts: dict[str, list[Conversation]]) -> list[str]:
    """Both parts; what an earlier run left of a part that there is not now is removed. Returns what is left out."""
    import moshi_mlx

    from .prepare import check_fits, clear, prepare, remove_index

    say(f"loading {arguments.model} ...")
    model = moshi_mlx.load(arguments.model)
    check_fits(model)
    for name in parts:
        remove_index(arguments.output / name)
    left_out = []
    for name, part in parts.items():
        if part:
            left_out += prepare(model, part, arguments.output / name, arguments.speaker, arguments.keep_and_shift)
        else:
            clear(arguments.output / name)
    return left_out


def _is_valid(conversation: Conversation, percent: float) -> bool:
    """By a hash of the name: what is held out stays so when recordings are added."""
    number = int.from_bytes(hashlib.sha256(os.fsencode(conversation.name)).digest()[:4], "big")
    return number < percent / 100 * 2**32


def _prepare_parser() -> argparse.ArgumentParser:
    parser = Parser(f"python -m {PROGRAM} prepare", description="Encode recorded conversations for training.")
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER_OR_HUB_ID", help="whose codec and tokenizer encode")
    add(
        "--data",
        required=True,
        type=Path,
        metavar="SOURCE",
        help="folder of recordings, or a manifest (.jsonl, .jsonl.gz)",
    )
    add("--output", required=True, type=Path, metavar="FOLDER", help="gets train/ and, for validation, valid/")
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--valid-data", type=Path, metavar="SOURCE", help="recordings for validation")
    held.add_argument("--valid-percent", type=_percent, default=0, metavar="N", help="of the recordings (default: 0)")
    add("--keep-and-shift", action="store_true", help="a word waits for the one before it instead of cutting it off")
    add("--speaker", default=recordings.SPEAKER, help=f"Moshi in the timings (default: {recordings.SPEAKER})")
    return parser


def _percent(text: str) -> float:
    value = float(text)
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 or more and less than 100")
    return value


if __name__ == "__main__":
    sys.exit(main())
