"""Write down what is said, with times: python -m moshi_mlx.transcribe FILE... | - | --live."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from ..audio import portaudio
from ..errors import MoshiError
from ..terminal import streams
from ..terminal.interrupt import STATUS, Interrupts
from . import options
from .run import Run


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    arguments = options.parse(argv)
    try:
        if arguments.list_devices:
            return streams.listed(portaudio.devices())
        with Interrupts() as interrupts, contextlib.ExitStack() as stack:
            return Run(arguments, stack, interrupts)()
    except MoshiError as error:
        return streams.failed(options.PROGRAM, error)
    except KeyboardInterrupt:
        streams.say(f"{options.PROGRAM}: interrupted")
        return STATUS


if __name__ == "__main__":
    sys.exit(main())
