"""A folder is there whole or not at all: whatever ends the writing, whoever else writes, whatever lies in the way."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from moshi_mlx import CheckpointError, InputError
from moshi_mlx.checkpoints.disk import folders
from moshi_mlx.checkpoints.disk.folders import new_folder, refuse_existing, refuse_inside, write_small


def fill(path, text, overwrite=False):
    with new_folder(path, overwrite) as folder:
        write_small(folder / "config.json", text.encode())
        write_small(folder / "a.safetensors", text.encode() * 100)


def check(path, text):
    """The folder is whole, and nothing hidden lies beside it."""
    assert sorted(file.name for file in path.iterdir()) == ["a.safetensors", "config.json"]
    assert (path / "config.json").read_text() == text
    assert (path / "a.safetensors").read_text() == text * 100
    real = Path(os.path.realpath(path))
    assert not [file.name for file in real.parent.iterdir() if file.name.startswith(".")]


def test_new_and_replaced(tmp_path):
    path = tmp_path / "deep" / "out"
    fill(path, "one")
    check(path, "one")
    with pytest.raises(InputError, match="exists already"):
        fill(path, "two")
    fill(path, "two", overwrite=True)
    check(path, "two")


@pytest.fixture(params=[True, False], ids=["exchanged", "renamed twice"])
def at_once(request, monkeypatch):
    """Whether the system exchanges two folders in one step, or needs two."""
    if not request.param:
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    return request.param


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_interrupted_anywhere(tmp_path, monkeypatch, at_once, overwrite, after):
    """Ctrl-C at every call to the system, before it or after: one whole folder or what was there, and true words."""
    for count in range(1, 40):
        path = tmp_path / str(count) / "out"
        if overwrite:
            fill(path, "old")
        calls = _interrupt_at(monkeypatch, count, after)
        try:
            fill(path, "new", overwrite)
            message = "done"
        except KeyboardInterrupt as stop:
            message = str(stop)
        finally:
            monkeypatch.undo()
            if not at_once:
                monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
        written = message == "done" or message.endswith("is written and whole")
        if path.exists() or overwrite:
            assert (path / "config.json").read_text() == ("new" if written else "old"), (count, calls)
        else:
            assert not written
        fill(path, "next", overwrite=True)  # what an interrupted clearing may have left goes now
        check(path, "next")
        if message == "done":
            return
    pytest.fail("more calls than were tried")


def _interrupt_at(monkeypatch, count, after):
    calls = []

    def wrap(module, name):
        real = getattr(module, name)

        def call(*given, **named):
            calls.append(name)
            if len(calls) == count and not after:
                raise KeyboardInterrupt
            result = real(*given, **named)
            if len(calls) == count:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(module, name, call)

    for module, name in (
        (os, "mkdir"), (os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (shutil, "rmtree"),
        (folders, "_exchange"), (folders, "_take_place"), (Path, "rename"), (Path, "mkdir"),
    ):  # fmt: skip
        wrap(module, name)
    return calls


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from moshi_mlx.checkpoints.disk import folders
path, name, count, once = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"
if not once:
    folders._exchange = lambda a, b: False
seen = 0
def wrap(owner, name):
    real = getattr(owner, name)
    def call(*given, **named):
        global seen
        result = real(*given, **named)
        seen += 1
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, call)
wrap({"rename": Path, "rmtree": shutil, "_exchange": folders}[name], name)
with folders.new_folder(path, True) as folder:
    folders.write_small(folder / "config.json", b"new")
    folders.write_small(folder / "a.safetensors", b"new" * 100)
"""


@pytest.mark.parametrize(
    ("name", "count", "once"),
    [("rename", 1, 0), ("rename", 2, 0), ("rmtree", 1, 0), ("_exchange", 1, 1), ("rmtree", 1, 1)],
)
def test_killed_while_one_takes_the_place_of_another(tmp_path, name, count, once):
    """One whole model is left, at its place or under a hidden name that the next run puts back."""
    path = tmp_path / "out"
    fill(path, "old")
    run = subprocess.run([sys.executable, "-c", KILLED, str(path), name, str(count), str(once)], check=False)
    assert run.returncode == -signal.SIGKILL
    whole = [p for p in (path, folders.hidden(path, "old"), folders.hidden(path, "partial")) if p.is_dir()]
    assert whole
    with pytest.raises(ZeroDivisionError), new_folder(path, overwrite=True):
        raise ZeroDivisionError  # the next run fails: what was whole must not be lost
    check(path, (path / "config.json").read_text())
    fill(path, "next", overwrite=True)
    check(path, "next")


def _full(path, overwrite):
    with new_folder(path, overwrite) as folder:
        write_small(folder / "config.json", b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_fails_leaves_what_was_there(tmp_path, at_once):
    path = tmp_path / "out"
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device; nothing is left of it"):
            _full(path, overwrite)
        assert path.exists() == overwrite
        fill(path, "old", overwrite)
        check(path, "old")


def test_a_second_rename_that_fails(tmp_path, monkeypatch):
    path = tmp_path / "out"
    fill(path, "old")
    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    real = Path.rename

    def rename(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CheckpointError, match="Input/output error"):
        fill(path, "new", overwrite=True)
    monkeypatch.undo()
    check(path, "old")


def test_over_a_link(tmp_path, at_once):
    """The folder that a link points to is replaced, where it lies; the link stays."""
    disk, link = tmp_path / "disk" / "model", tmp_path / "link"
    fill(disk, "old")
    link.symlink_to(disk)
    with pytest.raises(InputError, match="exists already"):
        fill(link, "new")
    fill(link, "new", overwrite=True)
    assert link.is_symlink()
    check(disk, "new")
    check(link, "new")


def test_two_at_once(tmp_path):
    path = tmp_path / "out"
    with new_folder(path), pytest.raises(InputError, match="another process is writing it"):
        fill(path, "two")
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_many_at_once(tmp_path):
    """Of many that write one folder again and again none finds it torn, and none is told anything but who writes."""
    path = tmp_path / "out"
    fill(path, "0")
    odd = []

    def work(text):
        for _ in range(10):
            try:
                fill(path, text, overwrite=True)
            except InputError as error:
                if "another process" not in str(error):
                    odd.append(error)
            except BaseException as error:
                odd.append(error)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not odd
    check(path, (path / "config.json").read_text())


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    fill(tmp_path / "out", "one")
    check(tmp_path / "out", "one")


@pytest.mark.parametrize("kind", ["lock", "partial", "old"])
def test_hidden_names_that_somebody_has_planted(tmp_path, kind):
    """A link under a hidden name is removed, never followed; so is a FIFO of the folder's."""
    path, victim = tmp_path / "out", tmp_path / "victim"
    victim.mkdir()
    (victim / "photo").write_text("dear")
    note = tmp_path / "note"
    note.write_text("dear")
    for target in (victim, note, tmp_path / "none"):
        folders.hidden(path, kind).symlink_to(target)
        fill(path, "new", overwrite=True)
        check(path, "new")
        assert not (tmp_path / "none").exists()
        assert (note.read_text(), (victim / "photo").read_text()) == ("dear", "dear")
    os.mkfifo(folders.hidden(path, kind))
    if kind == "lock":
        with pytest.raises(InputError, match="is no regular file"):
            fill(path, "next", overwrite=True)
        os.unlink(folders.hidden(path, kind))
    fill(path, "next", overwrite=True)
    check(path, "next")


def test_long_names(tmp_path):
    for name in ("x" * 255, "é" * 127):
        fill(tmp_path / name, "one")
        fill(tmp_path / name, "two", overwrite=True)
        check(tmp_path / name, "two")
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        refuse_existing(tmp_path / ("x" * 256), overwrite=False)


def test_places_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out", tmp_path / "a\0b"):
        with pytest.raises(InputError, match="cannot be written"):
            refuse_existing(path, overwrite=False)
    with pytest.raises((InputError, CheckpointError), match="cannot be written"):
        fill(Path("/proc/nowhere"), "x")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="takes no new files"):
        refuse_existing(tmp_path / "out", overwrite=False)


def test_what_is_no_checkpoint_is_not_overwritten(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("meow")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    for path in (photos, photos / "cat.jpg", tmp_path / "fifo", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not the folder of a checkpoint"):
            fill(path, "x", overwrite=True)
    assert (photos / "cat.jpg").read_text() == "meow"


def test_what_is_read_is_not_overwritten(tmp_path):
    fill(tmp_path / "out" / "inner", "x")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "weights").symlink_to(tmp_path / "out" / "inner" / "a.safetensors")
    for path in (tmp_path / "out", tmp_path / "link"):
        for file in (tmp_path / "out" / "inner", tmp_path / "link", tmp_path / "weights"):
            with pytest.raises(InputError, match="which is read"):
                refuse_inside(path, file)
    refuse_inside(tmp_path / "out" / "inner" / "new", tmp_path / "out" / "inner")
    refuse_inside(tmp_path / "outer", tmp_path / "out")
