"""The house: arrows go one way, a folder is one room, and the picture shows what is."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(
    {path.parent for top in ("moshi_mlx", "convert", "bench", "miniature") for path in (ROOT / top).rglob("*.py")}
)
NAMES = [str(folder.relative_to(ROOT)) for folder in FOLDERS]


@pytest.fixture(scope="module")
def rooms():
    pytest.importorskip("grimp", reason="pip install -e '.[dev]' brings import-linter")
    sys.path.insert(0, str(ROOT))
    return runpy.run_path(str(ROOT / "docs" / "rooms.py"))


def test_the_picture_is_of_the_imports_as_they_are(rooms):
    assert rooms["PICTURE"].read_text() == rooms["picture"](), "run: python docs/rooms.py"


def test_no_arrow_goes_upwards(rooms):
    layers = rooms["rows"]()
    level = {room: row for row, layer in enumerate(layers) for room in layer}
    upwards = [arrow for arrow in rooms["arrows"](list(level)) if level[arrow[0]] >= level[arrow[1]]]
    assert not upwards


def test_the_contract_names_every_room(rooms):
    named = {room for layer in rooms["rows"]() for room in layer}
    there = {
        f"moshi_mlx.{p.stem}"
        for p in (ROOT / "moshi_mlx").iterdir()
        if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert there - {"moshi_mlx.__init__"} <= named


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_a_folder_is_one_room(folder):
    files = sorted(folder.glob("*.py"))
    assert len(files) <= 16
    first = (folder / "__init__.py").read_text()
    assert first.startswith('"""'), f"{folder}/__init__.py says in one sentence what the folder is"
    for path in files:
        lines = len(path.read_text().splitlines())
        assert lines <= 360, f"{path} has {lines} lines"


def test_every_package_is_installed():
    text = (ROOT / "pyproject.toml").read_text()
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "moshi_mlx").rglob("__init__.py")}
    listed = set(re.findall(r'^    "(moshi_mlx[\w.]*)",$', text.split("packages = [")[1].split("]")[0], re.M))
    assert listed == folders | {"moshi_mlx.convert"}
