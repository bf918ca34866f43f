"""Say a text: python -m moshi_mlx.say TEXT | FILE | -."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from ..audio import portaudio
from ..errors import MoshiError
from ..terminal import streams
from ..terminal.interrupt import STATUS, Interrupts
from . import options
from .run import Run, list_voices


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    arguments = options.parse(argv)
    try:
        if arguments.list_devices:
            return streams.listed(portaudio.devices())
        with Interrupts() as interrupts, contextlib.ExitStack() as stack:
            return list_voices(arguments) if arguments.list_voices else Run(arguments, stack, interrupts)()
    except MoshiError as error:
        return streams.failed(options.PROGRAM, error)
    except KeyboardInterrupt:
        streams.say(f"{options.PROGRAM}: interrupted, no output was written")
        return STATUS


if __name__ == "__main__":
    sys.exit(main())
