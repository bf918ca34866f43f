"""Ctrl-C while the command line still imports what it needs: the system's own end, without a traceback.

A program that imports the package is left alone; the command sets its own handlers as soon as it runs.
"""

import os
import signal
import sys

_TALKING = {"moshi_mlx", "moshi_mlx.local", "moshi-mlx", "moshi_mlx.translate", "moshi-mlx-translate"}

if _TALKING & {*sys.orig_argv, os.path.basename(sys.argv[0] if sys.argv else "")}:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
