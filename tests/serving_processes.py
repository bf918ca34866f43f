"""Servers as processes of their own: started, asked, told to end."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

WORKER = Path(__file__).parent / "serve" / "echo_worker.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def health(port):
    """What /health says, or None where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)
    except OSError:
        return None


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.05)


@contextlib.contextmanager
def worker(port, *flags, command=(sys.executable, str(WORKER))):
    """A server that is open; killed at the end where it still runs."""
    process = subprocess.Popen(
        [*command, "--port", str(port), *flags], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        wait_for(lambda: health(port) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
