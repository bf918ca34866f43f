"""Keeps tests from opening a person's microphone and speaker: PortAudio is not there for them and what they start.

On a Mac it is so unless MOSHI_MLX_TEST_DEVICES=1 asks for the real devices. On Linux there is a virtual sound card.
"""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "no_devices"


def begin():
    """From now on, in this process and in those that it starts, `import sounddevice` says that there is none."""
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.path.insert(0, str(FOLDER))
