"""The house: imports go one way, the library is light to import, the README's commands are the ones that CI runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import moshi_mlx

ROOT = Path(__file__).parents[1]
# From the ground up: a module imports only what stands before it.
LAYERS = [
    "starting", "errors", "chips", "config", "state", "safetensors", "hub", "cache", "linear", "conv", "transformer",
    "quantizer",
    "mimi", "helium", "depth", "sampling", "moshi", "duplex", "layouts", "filling", "session",
    "preflight", "checkpoint", "ring", "files", "resample", "pacing", "portaudio", "devices", "echo", "live", "loop",
    "recorder", "trace", "keys", "view", "progress", "interrupt", "options", "local",
]  # fmt: skip


def imports(path):
    """Names of this package's modules that a file imports when it is imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names]


def test_imports_go_one_way():
    files = {path.stem: path for path in (ROOT / "moshi_mlx").glob("*.py") if path.stem != "__init__"}
    assert sorted(files) == sorted(LAYERS)
    for name, path in files.items():
        for imported in imports(path):
            assert LAYERS.index(imported) < LAYERS.index(name), f"{name} imports {imported}"


def test_importing_the_library_loads_no_sound_and_no_web_code():
    heavy = {"sounddevice", "soundfile", "soxr", "huggingface_hub", "http.server", "aiohttp", "sentencepiece", "rich"}
    code = f"import sys, moshi_mlx; print(sorted({heavy | {'livekit'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_readme_has_two_commands_that_set_up_everything():
    commands = re.findall("^python3 -m venv .*", (ROOT / "README.md").read_text(), re.M)
    assert len(commands) == 2
    assert commands[0].endswith("--demo")
    assert commands[1].endswith("pytest")


def test_public_names_are_there():
    for name in moshi_mlx.__all__:
        assert getattr(moshi_mlx, name).__doc__
