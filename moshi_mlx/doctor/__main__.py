"""python -m moshi_mlx.doctor: checks everything that a conversation needs, without a model's download.

Two minutes on a Mac. `--report FILE` writes what was found as JSON, without names and places, to paste into an issue.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from ..terminal import streams
from ..terminal.arguments import Parser
from . import exactness, frames, hub, report, sound, system
from .finding import NOTE, OK, PROBLEM, Check, Finding, guarded

PROGRAM = "moshi_mlx.doctor"
EPILOG = "exit status: 0 where nothing is wrong, 1 where there is a problem, 2 on a wrong flag; 130 after Ctrl-C."


def checks(arguments: argparse.Namespace) -> Iterator[tuple[str, Check]]:
    """(what it is about, the check), in their order."""
    yield from (("system", system.system), ("Python", system.python), ("packages", system.packages),
                ("chip", system.chip), ("memory", system.memory), ("float32", system.tf32))  # fmt: skip
    yield from (("codec", exactness.codec), ("tokens", exactness.tokens), ("layouts", exactness.layouts),
                ("quantized", exactness.quantized))  # fmt: skip
    if not arguments.no_sound:
        yield from (("devices", sound.listed), ("microphone", sound.privacy), ("one second", sound.loop))
    yield "disk", hub.disk
    if not arguments.offline:
        yield "hub", hub.reachable
    if not arguments.no_speed:
        yield from (("miniature", frames.miniature), ("Moshi in 4 bits", frames.moshi))


def examine(arguments: argparse.Namespace, show: Callable[[Finding], None]) -> tuple[list[Finding], dict[str, float]]:
    """All findings, each shown as soon as it is there, and the seconds of each check."""
    found, seconds = [], {}
    for what, check in checks(arguments):
        began = time.perf_counter()
        waiting(f"{what} ...")
        for finding in guarded(what, check):
            waiting("")
            show(finding)
            found.append(finding)
        waiting("")
        seconds[what] = round(time.perf_counter() - began, 2)
    return found, seconds


def waiting(what: str) -> None:
    """What is being looked at, where someone looks; "" takes it away."""
    if sys.stderr.isatty():
        streams.write_err(f"\r{what:40}" + ("" if what else "\r"))


def show(finding: Finding) -> None:
    """A row of the table, and under it what to do."""
    streams.tell(f"{finding.verdict:8} {finding.what:26} {finding.said}")
    if finding.todo:
        streams.tell(f"{'':8} {'':26} -> {finding.todo}")


def summary(found: list[Finding]) -> str:
    counts = {verdict: sum(finding.verdict == verdict for finding in found) for verdict in (OK, NOTE, PROBLEM)}
    if not counts[PROBLEM]:
        return f"nothing is wrong: {counts[OK]} ok, {counts[NOTE]} to note"
    return f"{counts[PROBLEM]} to put right: {', '.join(f.what for f in found if f.verdict == PROBLEM)}"


def parser() -> Parser:
    made = Parser(f"python -m {PROGRAM}", description="Check that this machine can talk with Moshi.", epilog=EPILOG)
    made.add_argument("--report", type=Path, metavar="FILE", help="write JSON there, without names and places")
    made.add_argument("--no-sound", action="store_true", help="leave the sound devices alone")
    made.add_argument("--no-speed", action="store_true", help="leave out frame times, which take a minute and 2 GB")
    made.add_argument("--offline", action="store_true", help="do not ask the Hugging Face hub")
    return made


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.report:
            report.check_place(arguments.report)
        found, seconds = examine(arguments, show)
        streams.tell(summary(found))
        if arguments.report:
            report.write(arguments.report, found, seconds)
            streams.tell(f"report written to {arguments.report}")
    except InputError as error:
        return streams.failed(PROGRAM, error)
    except KeyboardInterrupt:
        streams.say(f"{PROGRAM}: interrupted, no report was written")
        return 130
    return 1 if any(finding.verdict == PROBLEM for finding in found) else 0


if __name__ == "__main__":
    sys.exit(main())
