"""Talk with Moshi from the command line: python -m moshi_mlx.local.

The main thread is the model thread: it loads, steps and writes. So Ctrl-C ends a download at once, while in a
conversation it ends the wait for the next frame.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence

from ..audio import portaudio
from ..errors import MoshiError
from ..terminal import streams
from ..terminal.interrupt import STATUS, Interrupts
from . import options, personas, view
from .talk import Talk

Parse = Callable[[Sequence[str] | None], argparse.Namespace]
SWITCH_SECONDS = 0.001  # after which a thread that draws lets an audio callback run


def _run(program: str, kind: type[Talk], arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    with contextlib.ExitStack() as stack:
        talk = kind(arguments, stack, interrupts)
        talk.open()
        session = talk.load()
        try:
            statistics = talk.converse(session)
        except KeyboardInterrupt:
            if not talk.frames:
                raise
            streams.say("; ".join([f"{program}: interrupted", *talk.kept_lines()]))
            return STATUS
        talk.report(statistics)
        return STATUS if talk.stop.is_set() and not (talk.live and statistics.frames) else 0


def run(program: str, kind: type[Talk], parse: Parse, argv: Sequence[str] | None) -> int:
    """Runs a command line whose arguments are `parse`d, as a talk of that kind; returns the exit status."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        arguments = parse(argv)
        with Interrupts() as interrupts:
            if arguments.list_voices:
                return personas.list_voices(arguments, view.write_out)
            if arguments.list_devices:
                return streams.listed(portaudio.devices())
            return _run(program, kind, arguments, interrupts)
    except MoshiError as error:
        return streams.failed(program, error)
    except KeyboardInterrupt as stop:
        kept = f" ({stop})" if str(stop) else ""
        streams.say(f"{program}: interrupted, no output was written{kept}")
        return STATUS
    finally:
        sys.setswitchinterval(before)


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    return run(options.PROGRAM, Talk, options.parse, argv)


if __name__ == "__main__":
    sys.exit(main())
