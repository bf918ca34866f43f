"""The commands of docs/training.md's worked example, as they stand there, in a shortened form."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORTER = {
    "miniature.lesson record": "--count 8",
    "moshi_mlx.train --config": "--iters 24 --batch-size 2 --steps-per-eval 24",
    "miniature.lesson score": "--count 1",
    "moshi_mlx.local": "--steps 5",
}


def commands():
    text = (ROOT / "docs" / "training.md").read_text()
    block = re.search(r"## A worked example.*?```sh\n(.*?)```", text, re.S)[1]
    return block.splitlines()


@pytest.mark.slow
def test_the_worked_example_runs_and_learns(tmp_path):
    for name in ("docs", "bench", "moshi_mlx"):
        (tmp_path / name).symlink_to(ROOT / name)
    outputs = []
    for line in commands():
        assert line.startswith("python -m ")
        shorter = next((more for start, more in SHORTER.items() if f"-m {start}" in line), "")
        command = [sys.executable, *shlex.split(line)[1:], *shlex.split(shorter)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (line, done.stderr)
        outputs.append(done.stdout)
    assert re.search(r"^new: \d of 1 answered right\nold: \d of 4 answered right$", outputs[4], re.M)
    assert (tmp_path / "lesson" / "reply.wav").stat().st_size > 1000
    with (tmp_path / "lesson" / "adapters" / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["split"] == "train" for row in rows) == 24
    before, after = (float(row["text"]) for row in rows if row["split"] == "valid")
    assert after < 0.5 * before


def test_the_guides_flags_and_keys_are_the_trainers():
    from moshi_mlx.train import options

    text = (ROOT / "docs" / "training.md").read_text()
    known = {action.option_strings[0] for action in options.parser()._actions}
    rows = re.findall(r"^\| (`--.*?) \|", text, re.M)
    assert len(rows) > 12
    for flag in re.findall(r"`(--[a-z-]+)`", " ".join(rows)):
        assert flag in known | {"--no-compile"}, flag
    assert options.from_file(ROOT / "docs" / "lesson.yaml")["rank"] == 16
