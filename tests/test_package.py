"""The house: imports go one way, the library is light to import, the README's commands are the ones that CI runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moshi_mlx

ROOT = Path(__file__).parents[1]
# From the ground up: a module imports only what stands before it.
LAYERS = [
    "errors", "chips", "keys", "huggingface_config", "kyutai_config", "config", "state", "outputs", "inputs",
    "initial", "losses", "safetensors", "hub", "cache", "sequence", "linear", "conv", "transformer", "quantizer",
    "mimi", "helium", "sampling", "depth", "streams", "teacher_forcing", "moshi", "duplex", "layouts", "translation",
    "quantization", "filling", "preflight", "text", "session", "finding", "checkpoint",
    "lora", "generation", "pretrained", "audio",
    "loop", "local",
]  # fmt: skip
TRAIN = [
    "files", "recordings", "prepare", "dataset", "options", "weights", "forward", "loss", "curves", "steps", "saving",
    "trainer", "__main__",
]  # fmt: skip


def imports(path, level=1):
    """Names of the modules of its package (level 2: of the one around it) that a file imports when it is imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level == level:
            yield from [node.module] if node.module else [alias.name for alias in node.names]


@pytest.mark.parametrize(("folder", "layers"), [("moshi_mlx", LAYERS), ("moshi_mlx/train", TRAIN)])
def test_imports_go_one_way(folder, layers):
    files = {path.stem: path for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"}
    assert sorted(files) == sorted(layers)
    for name, path in files.items():
        for imported in imports(path):
            assert layers.index(imported) < layers.index(name), f"{name} imports {imported}"


def test_training_stands_on_the_library_below_sound_and_command_lines():
    below = LAYERS[: LAYERS.index("lora") + 1]
    for path in (ROOT / "moshi_mlx/train").glob("*.py"):
        assert set(imports(path, level=2)) <= set(below), path


def test_importing_the_library_loads_no_sound_and_no_web_code():
    heavy = "{'sounddevice', 'soundfile', 'soxr', 'huggingface_hub', 'http.server', 'aiohttp', 'sentencepiece'}"
    code = f"import sys, moshi_mlx; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_readme_has_two_commands_that_set_up_everything():
    commands = re.findall("^python3 -m venv .*", (ROOT / "README.md").read_text(), re.M)
    assert len(commands) == 2
    assert commands[0].endswith("--demo")
    assert commands[1].endswith("pytest")


def test_public_names_are_there():
    for name in moshi_mlx.__all__:
        assert getattr(moshi_mlx, name).__doc__
