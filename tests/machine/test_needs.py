"""What is said before pip: on every machine that cannot run this, one line of ours."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moshi_mlx.machine import needs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "moshi_mlx" / "machine" / "needs.py"
OLD = [python for version in ("3.6", "3.7", "3.8", "3.9")
       for python in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this machine look like another one."""

    def become(system="Darwin", processor="arm64", python=(3, 12, 1), macos="26.1", libc="glibc 2.36", **answers):
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: processor)
        monkeypatch.setattr(platform, "mac_ver", lambda: (macos, ("", "", ""), processor))
        monkeypatch.setattr(sys, "version_info", python)
        monkeypatch.setattr(needs, "c_library", lambda: libc)
        monkeypatch.setattr(needs, "ask", lambda *command: answers.get(command[0], ""))

    return become


@pytest.mark.parametrize("given", [
    {}, {"python": (3, 10, 0)}, {"macos": "14.0"}, {"macos": "15.7.2"}, {"macos": "10.16", "sw_vers": "26.0"},
    {"system": "Linux", "processor": "x86_64"}, {"system": "Linux", "processor": "x86_64", "libc": "glibc 2.35"},
])  # fmt: skip
def test_nothing_is_missing(machine, capsys, given):
    machine(**given)
    assert needs.main() == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("given", "said"), [
    ({"python": (3, 9, 6)}, r"needs Python 3.10 or newer, this is Python 3.9; install one \(brew install python@3.13"),
    ({"python": (3, 9, 2), "system": "Linux", "processor": "x86_64"}, r"this is Python 3.9; install one \(your system"),
    ({"processor": "x86_64"}, "this Mac has an Intel processor; it runs on Macs with Apple silicon"),
    ({"processor": "x86_64", "sysctl": "1"}, "a program for Intel on a Mac with Apple silicon; install a native one"),
    ({"macos": "13.7.8"}, "needs macOS 14 or later, this is macOS 13.7.8; update macOS in System Settings"),
    ({"macos": "10.16", "sw_vers": "12.6"}, "this is macOS 12.6"),
    ({"system": "Linux", "processor": "aarch64"}, "this is Linux on aarch64, where nothing was tried yet; it runs on"),
    ({"system": "Linux", "processor": "armv7l"}, "this is Linux on armv7l"),
    ({"system": "Linux", "processor": "x86_64", "libc": "glibc 2.31"}, "needs glibc 2.35 .* this is glibc 2.31"),
    ({"system": "Linux", "processor": "x86_64", "libc": ""}, "this is another C library"),
    ({"system": "Windows", "processor": "AMD64"}, "this is Windows; it runs on Macs"),
])  # fmt: skip
def test_what_is_missing_is_one_line_that_says_what_is_needed(machine, monkeypatch, capsys, given, said):
    machine(**given)
    assert needs.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(f"^moshi_mlx: .*{said}", err)
    monkeypatch.setenv(needs.ANYWAY, "1")
    assert needs.main() == 0


def run_readme_command(folder, python):
    """The README's first command where `python3` is another one, as far as the line that ends it."""
    command = re.search("^python3 -m venv .*", (ROOT / "README.md").read_text(), re.M).group()
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(python)
    (folder / "moshi_mlx").symlink_to(ROOT / "moshi_mlx")
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}
    return subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not OLD, reason="no Python below 3.10 here")
@pytest.mark.parametrize("python", OLD, ids=lambda path: path.parts[-3])
def test_the_readmes_first_command_with_an_old_python_ends_with_our_line(tmp_path, python):
    done = run_readme_command(tmp_path, python)
    assert done.returncode == 2
    *before, last = done.stderr.splitlines()
    assert last.startswith("moshi_mlx: needs Python 3.10 or newer, this is Python 3.")
    assert not [line for line in before if "pip" in line]


def test_the_script_needs_nothing_but_the_standard_library():
    done = subprocess.run([sys.executable, "-I", "-S", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_both_commands_of_the_readme_ask_before_pip():
    commands = re.findall("^python3 -m venv .*", (ROOT / "README.md").read_text(), re.M)
    asks = " .venv/bin/python moshi_mlx/machine/needs.py && .venv/bin/python -m pip install "
    assert len(commands) == 2
    assert all(asks in command for command in commands)
