"""The house: imports go one way, the library is light to import, the README's commands are the ones that CI runs."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import moshi_mlx

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_built_wheel_has_the_converter(tmp_path):
    """As installed from an archive, with no checkout near: the module, the command and its help."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("moshi_mlx", "convert", "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        scripts = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    assert "moshi-mlx-convert = moshi_mlx.convert.cli:main" in scripts
    code = "import sys, runpy, moshi_mlx; sys.argv[1:] = ['--help']; print(moshi_mlx.__file__); "
    code += "runpy.run_module('moshi_mlx.convert', run_name='__main__')"
    run = [
        sys.executable,
        "-S",
        "-c",
        f"import sys; sys.path[:0] = {[str(tmp_path / 'installed'), *sys.path]!r}; {code}",
    ]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith(str(tmp_path / "installed"))
    assert "--quant-predicate" in done.stdout


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
