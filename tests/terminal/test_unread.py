"""Every command with a standard output that is closed, full, or read by nobody: no traceback, and the same end."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from moshi_mlx.terminal.commands import COMMANDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WAYS = (">/dev/full", ">&-", "| true", "2>&1 | head -c 1")
WORK = [
    ["convert", "inspect", "tests/goldens/moshi_tiny", "--no-checksum"],
    ["convert", "--model", "tests/goldens/moshi_tiny", "--dry-run"],
    ["models"],
    ["transcribe", "tests/goldens/question.flac", "--model", "tests/goldens/family/stt"],
    ["doctor", "--no-speed", "--no-sound", "--offline"],
]


def check(arguments, ways):
    command = f"'{sys.executable}' -m {' '.join(arguments)}"
    # The first status of a pipe is the command's; what it says on standard error is what we look at.
    lines = [f"{command} {way}; echo status ${{PIPESTATUS[0]}} >&2" for way in ways]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    statuses = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("status ")]
    assert len(statuses) == len(ways), done.stderr
    assert len(set(statuses)) == 1, done.stderr
    for sign in ("Traceback", "Exception", "Errno", "error:"):
        assert sign not in done.stderr, done.stderr
    return statuses[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help(command):
    assert check([f"moshi_mlx.{command}", "--help"], WAYS) == "0"


def test_the_list_of_commands():
    assert check(["moshi_mlx"], WAYS) == "0"


@pytest.mark.parametrize("arguments", WORK, ids=" ".join)
def test_what_a_command_prints(arguments):
    check([f"moshi_mlx.{arguments[0]}", *arguments[1:]], WAYS[:3])


def test_nothing_is_printed_past_the_streams():
    """`print` raises where nobody reads: commands write through `terminal.streams`."""
    found = []
    for path in [*(ROOT / "moshi_mlx").rglob("*.py"), *(ROOT / "convert").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                to_stderr = any(word.arg == "file" for word in node.keywords)
                found += [] if to_stderr else [f"{path.relative_to(ROOT)}:{node.lineno}"]
    assert not found


def test_every_command_is_made_for_it():
    rooms = {"models": "cached/__main__", "local_web": "local_web"}
    for name in COMMANDS:
        if name == "convert":
            path = ROOT / "convert" / "cli.py"
        else:
            path = ROOT / "moshi_mlx" / f"{rooms.get(name, f'{name}/__main__')}.py"
        assert "@streams.command\ndef main(" in path.read_text(), name
