"""Standard streams that are closed, full, or read by nobody."""

import os
import subprocess
import sys
import threading

import pytest

from moshi_mlx.terminal import streams

CHILD = """
import sys
from moshi_mlx.terminal import streams
streams.open_missing()
kept = open(sys.argv[1], "w")
for n in range(3):
    streams.write_out(f"word {n}\\n")
    streams.say(f"line {n}")
print("from elsewhere", file=sys.stderr)
kept.write("kept")
kept.close()
streams.settle()
"""
WAYS = [
    ">&-",
    "2>&-",
    "<&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>/dev/full",
    "| true",
    "2>&1 | head -c 1",
]


@pytest.mark.parametrize("way", WAYS)
def test_the_work_goes_on_and_no_file_takes_the_place_of_a_closed_stream(tmp_path, way):
    (tmp_path / "child.py").write_text(CHILD)
    command = f'set -o pipefail; "{sys.executable}" child.py kept.txt {way}'
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept.txt").read_text() == "kept"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_full_standard_output_is_told_once(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "child.py", "k"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE,
                              text=True)  # fmt: skip
    assert done.stderr.count("standard output: cannot be written: No space left on device; going on without it") == 1


@pytest.mark.parametrize("name", ["caf\udce9.wav", "\u6771\u4eac", "\U0001f600"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_any_name_can_be_said(name, encoding):
    code = f"from moshi_mlx.terminal import streams; streams.write_out({name!r}); streams.say({name!r})"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_foreign_lines_reach_the_view_and_the_stream_is_given_back(capfd):
    lines, seen = [], threading.Event()

    def say(line):
        lines.append(line)
        if line == "last":
            seen.set()

    with streams.ForeignLines(say):
        for text in (b"ALSA lib pcm.c: broken\n", b"ALSA lib pcm.c: broken\n", b"\n", b"\xff half", b" a line\nlast\n"):
            os.write(2, text)
        assert seen.wait(10)
    os.write(2, b"after\n")
    assert lines == ["ALSA lib pcm.c: broken", "\ufffd half a line", "last"]
    assert capfd.readouterr().err == "after\n"


def test_foreign_lines_leave_no_thread_and_no_file():
    threads, files = threading.active_count(), len(os.listdir("/dev/fd"))
    foreign = streams.ForeignLines(lambda line: None)
    with foreign:
        foreign.close()
        foreign.close()
    assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (threads, files)
