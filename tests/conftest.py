"""Shared fixtures. Everything here is tiny and seeded; nothing needs PyTorch, a hub or a microphone."""

import os
import shutil
import signal
import sys

import mlx.core as mx
import pytest
import without_devices
from helpers import GOLDENS, edit_json

import moshi_mlx
from moshi_mlx.inputs import compiles

for ignored in (signal.SIGINT, signal.SIGHUP):  # as `nohup` and shells in the background have it
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, signal.default_int_handler if ignored == signal.SIGINT else signal.SIG_DFL)

if sys.platform == "darwin" and os.environ.get("MOSHI_MLX_TEST_DEVICES") != "1":
    without_devices.begin()


def pytest_runtest_setup(item):
    if item.get_closest_marker("compiled") and not compiles():
        pytest.skip("MLX compiles nothing here; install g++ (Debian: apt install g++)")


@pytest.fixture
def checkpoint(tmp_path):
    """A function that copies a golden checkpoint to a folder of the test's own, with keys of its config changed."""

    def copy(name="moshi_tiny", **changes):
        folder = tmp_path / name
        shutil.copytree(GOLDENS / name, folder)
        for file in ("config.json", "mimi.safetensors", "mimi_config.json", "tokenizer.model"):
            if not (folder / file).exists():
                shutil.copy(GOLDENS / "moshi_tiny" / file, folder / file)
        names = {
            f"{part}_name": file for part, file in [("mimi", "mimi.safetensors"), ("tokenizer", "tokenizer.model")]
        }
        edit_json(folder / "config.json", **names, mimi_config_name="mimi_config.json", **changes)
        return folder

    return copy


@pytest.fixture(scope="session")
def model():
    """The tiny golden model in float32."""
    return moshi_mlx.load(GOLDENS / "moshi_tiny", dtype=mx.float32)
