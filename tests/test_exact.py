"""Float32 products are exact on every chip: the switch is set first, and it is what holds the goldens."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ON_AN_M5 = """
import sys
sys.path.insert(0, "tests")
import tf32
tf32.install()  # the stand-in is in place before anything of the package
import numpy as np
import moshi_mlx
from helpers import GOLDENS, golden, question, run_codes
import mlx.core as mx
model = moshi_mlx.load(GOLDENS / "moshi_tiny", dtype=mx.float32)
codes = model.audio_encoder.stream(8).encode(question())
print((np.array(codes) == golden("mimi")["codes8"]).all(), tf32.enabled())
"""


def python(code, **environment):
    rest = {name: value for name, value in os.environ.items() if name != "MLX_ENABLE_TF32"}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env={**rest, **environment}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_codes_are_the_references_on_a_chip_with_tf32():
    assert python(ON_AN_M5) == "True False"


def test_the_switch_is_what_holds_them():
    assert python(ON_AN_M5, MLX_ENABLE_TF32="1") == "False True"


@pytest.mark.parametrize("name", [
    "moshi_mlx", "moshi_mlx.errors", "moshi_mlx.models.layers.linear", "moshi_mlx.train.trainer", "moshi_mlx.convert",
    "convert.pipeline", "bench.cases", "miniature.training", "mlx.core, moshi_mlx",
])  # fmt: skip
def test_off_however_the_package_is_imported(name):
    assert python(f"import os, {name}; print(os.environ['MLX_ENABLE_TF32'])") == "0"


def test_a_user_who_asks_for_it_has_it():
    assert python("import os, moshi_mlx; print(os.environ['MLX_ENABLE_TF32'])", MLX_ENABLE_TF32="1") == "1"


def test_nothing_is_imported_before_the_switch():
    """All ways into the package go through its __init__: the switch stands first there, and needs nothing itself."""
    first = next(node for node in ast.parse((ROOT / "moshi_mlx/__init__.py").read_text()).body[1:])
    assert isinstance(first, ast.ImportFrom)
    assert [alias.name for alias in first.names] == ["exact"]
    imported = [node for node in ast.walk(ast.parse((ROOT / "moshi_mlx/exact.py").read_text()))
                if isinstance(node, (ast.Import, ast.ImportFrom))]  # fmt: skip
    assert [alias.name for node in imported for alias in node.names] == ["os"]
