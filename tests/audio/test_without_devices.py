"""On a Mac, tests leave a person's microphone and speaker alone."""

import os
import subprocess
import sys

import without_devices
from helpers import GOLDENS, ROOT

import moshi_mlx


def test_no_device_opens_here_nor_in_a_program_that_is_started(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import subprocess, without_devices
without_devices.begin()
from moshi_mlx.audio import portaudio
try:
    portaudio.devices()
except portaudio.AudioError as error:
    print(error)
talk = [sys.executable, "-m", "moshi_mlx.local", "--model", {str(GOLDENS / "moshi_tiny")!r}]
done = subprocess.run(talk, capture_output=True, text=True)
print(done.returncode, done.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.count("tests open no real device") == 2
    assert "\n2 moshi_mlx.local: error: no sound device can be used" in done.stdout


def test_it_is_so_on_a_mac_alone(tmp_path):
    """Here the real sounddevice is imported, or the virtual card would stay silent."""
    assert sys.platform == "darwin" or str(without_devices.FOLDER) not in os.environ.get("PYTHONPATH", "")
    assert moshi_mlx.__file__.startswith(str(ROOT))
