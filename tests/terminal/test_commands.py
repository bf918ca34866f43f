"""The commands: all listed, each with its version, its completion and its console script."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import moshi_mlx
from moshi_mlx.__main__ import main
from moshi_mlx.terminal import arguments
from moshi_mlx.terminal.commands import COMMANDS
from moshi_mlx.terminal.version import DISTRIBUTION, VERSION

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_every_command_is_listed(capsys):
    packages = {path.parent.name for path in (ROOT / "moshi_mlx").glob("*/__main__.py")} - {"cached"}  # is models
    modules = {path.stem for path in (ROOT / "moshi_mlx").glob("*.py") if "__main__" in path.read_text()}
    made = packages | modules - {"__main__"} | {"convert"}
    assert set(COMMANDS) == made
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name, line in COMMANDS.items():
        assert f"python -m moshi_mlx.{name}" in printed
        assert line in printed


def test_an_unknown_command_is_one_line():
    done = run("moshi_mlx", "sing")
    assert done.returncode == 2
    assert done.stderr.startswith("moshi_mlx: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_has_a_version_and_a_completion(command):
    assert run("moshi_mlx", command, "--version").stdout == f"moshi_mlx {VERSION}\n"
    script = arguments.script_of(f"moshi_mlx.{command}")
    completion = run(f"moshi_mlx.{command}", "--print-completion", "bash")
    assert completion.returncode == 0, completion.stderr
    assert completion.stdout.rstrip().endswith(f" {script}")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_has_its_console_script(command):
    scripts = {entry.name: entry.value for entry in entry_points(group="console_scripts")}
    room = {"models": "cached"}.get(command, command)
    assert scripts[arguments.script_of(f"moshi_mlx.{command}")].startswith(f"moshi_mlx.{room}")


def test_without_shtab_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit):
        arguments.Parser("python -m moshi_mlx.local").parse_args(["--print-completion", "zsh"])
    assert f"pip install '{DISTRIBUTION}[completion]'" in capsys.readouterr().err


def test_one_version():
    assert moshi_mlx.__version__ == VERSION
