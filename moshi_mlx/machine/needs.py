"""What moshi_mlx needs of a machine before anything is installed: one line, and exit status 2, where it is missing.

    python3 moshi_mlx/machine/needs.py

A script on its own, of the standard library alone and for any Python from 3.6: the README's commands run it before
pip, whose own words for an old Python or a machine without wheels help nobody.
"""

import os
import platform
import subprocess
import sys

PYTHON = (3, 10)
MACOS = (14, 0)
GLIBC = (2, 35)  # of MLX's wheels for Linux
ANYWAY = "MOSHI_MLX_ANYWAY"
RUNS_ON = "it runs on Macs with Apple silicon (M1 or later) and macOS 14 or later, and on x86-64 Linux"
AGAIN = "then delete the folder .venv and run the command again"


def main() -> int:
    line = missing()
    if line:
        sys.stderr.write(f"moshi_mlx: {line}\n")
    return 2 if line and os.environ.get(ANYWAY) != "1" else 0


def missing() -> str:
    """What this machine or this Python lacks, and what to do; "" where nothing is missing."""
    system = platform.system()
    return _of_system(system, platform.machine()) or _of_python(sys.version_info, system)


def _of_system(name: str, machine: str) -> str:
    if name == "Darwin":
        return _of_mac(machine)
    if name != "Linux":
        return f"this is {name or 'an unknown system'}; {RUNS_ON}"
    if machine.lower() not in ("x86_64", "amd64"):
        where = f"this is Linux on {machine or 'an unknown processor'}, where nothing was tried yet"
        return f"{where}; {RUNS_ON}. {ANYWAY}=1 in the environment goes on all the same"
    library = c_library()
    if not library.startswith("glibc ") or numbers(library[6:]) < GLIBC:
        return f"needs glibc 2.35 or newer (Debian 12, Ubuntu 22.04), this is {library or 'another C library'}"
    return ""


def _of_mac(machine: str) -> str:
    if machine != "arm64":
        if ask("sysctl", "-n", "sysctl.proc_translated") == "1":
            native = "a native one (brew install python@3.13, or python.org)"
            return f"this Python is a program for Intel on a Mac with Apple silicon; install {native}, {AGAIN} with it"
        return f"this Mac has an Intel processor; {RUNS_ON}"
    version = macos_version()
    if version and numbers(version) < MACOS:
        update = "update macOS in System Settings > General > Software Update"
        return f"needs macOS 14 or later, this is macOS {version}; {update}, {AGAIN}"
    return ""


def _of_python(version: tuple, system: str) -> str:
    if tuple(version[:2]) >= PYTHON:
        return ""
    how = "brew install python@3.13, or python.org" if system == "Darwin" else "your system's Python 3.10 to 3.13"
    begun = f"needs Python 3.10 or newer, this is Python {version[0]}.{version[1]}"
    return f"{begun}; install one ({how}), {AGAIN} with, say, python3.13 in the place of python3"


def macos_version() -> str:
    """Of the system itself: a Python that was built long ago takes every newer one for 10.16."""
    version = platform.mac_ver()[0]
    return (ask("sw_vers", "-productVersion") or version) if version.startswith("10.") else version


def c_library() -> str:
    """ "glibc 2.36"; "" for another one. (Before Python 3.8, `platform.libc_ver` says what Python was built for.)"""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def ask(*command: str) -> str:
    """What a command of the system prints; "" where there is none."""
    environment = dict(os.environ, SYSTEM_VERSION_COMPAT="0")
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, env=environment).decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def numbers(version: str) -> tuple:
    """ "14.6.1" -> (14, 6, 1)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


if __name__ == "__main__":
    sys.exit(main())
