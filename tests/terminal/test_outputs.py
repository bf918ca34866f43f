"""Files that are there whole or not at all, and never in the place of an earlier one."""

import os
import resource
import subprocess
import sys

import pytest

from moshi_mlx.errors import AudioError
from moshi_mlx.terminal import outputs
from moshi_mlx.terminal.outputs import Output


def written(output, data=b"new"):
    outputs.write_all(output.file, data)
    output.keep()
    return output.path


def test_it_grows_beside_its_place(tmp_path):
    output = Output(tmp_path / "a.wav")
    assert os.listdir(tmp_path) == [".a.wav.part"]
    assert written(output).read_bytes() == b"new"
    output.keep()
    output.abort()
    assert os.listdir(tmp_path) == ["a.wav"]


def test_earlier_files_stay_and_numbers_go_on(tmp_path):
    for n in range(3):
        written(Output(tmp_path / "a.wav"), b"%d" % n)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.wav": b"0", "a-2.wav": b"1", "a-3.wav": b"2"}


def test_overwrite_replaces_when_the_new_one_is_whole(tmp_path):
    (tmp_path / "a.wav").write_text("before")
    aborted = Output(tmp_path / "a.wav", overwrite=True)
    outputs.write_all(aborted.file, b"half")
    aborted.abort()
    assert (tmp_path / "a.wav").read_text() == "before"
    assert written(Output(tmp_path / "a.wav", overwrite=True)).read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.wav"]


def test_two_programs_on_one_path_notice_each_other(tmp_path):
    first, second = Output(tmp_path / "a.wav"), Output(tmp_path / "a.wav")
    assert second.path.name == "a-2.wav"
    with pytest.raises(AudioError, match=r"a\.wav: cannot be written: another program is writing it"):
        Output(tmp_path / "a.wav", overwrite=True)
    first.settle()
    with pytest.raises(AudioError, match="another program is writing it"):
        Output(tmp_path / "a.wav", overwrite=True)
    assert (written(first).name, written(second).name) == ("a.wav", "a-2.wav")
    written(Output(tmp_path / "a.wav", overwrite=True))


def test_a_file_that_somebody_made_meanwhile_stays(tmp_path):
    output = Output(tmp_path / "a.wav")
    (tmp_path / "a.wav").write_text("somebody's")
    assert written(output).name == "a-2.wav"
    assert (tmp_path / "a.wav").read_text() == "somebody's"


def test_what_a_killed_program_left_is_used_again(tmp_path):
    code = "import os, sys; from moshi_mlx.terminal import outputs as o; a = o.Output(sys.argv[1]); os.abort()"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.wav"], check=False)
    assert os.listdir(tmp_path) == [".a.wav.part"]
    written(Output(tmp_path / "a.wav"))
    assert os.listdir(tmp_path) == ["a.wav"]


def test_a_link_in_the_place_of_the_part_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("before")
    (tmp_path / ".a.wav.part").symlink_to("victim")
    with pytest.raises(AudioError, match="cannot be written"):
        Output(tmp_path / "a.wav")
    assert (tmp_path / "victim").read_text() == "before"


def test_text_is_one_version_or_the_next(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    output = Output(tmp_path / "a.txt")
    for n in range(3):
        output.rewrite(f"version {n} caf\udce9")
        assert output.path.read_text().startswith(f"version {n}")
        with pytest.raises(AudioError, match="another program"):
            Output(output.path, overwrite=True)
    output.keep()
    assert sorted(os.listdir(tmp_path)) == ["a-2.txt", "a.txt"]


@pytest.mark.parametrize("how", ["rewrite", "keep"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_nothing_new_and_all_that_was(tmp_path, how, overwrite):
    (tmp_path / "a.txt").write_text("before")
    output = Output(tmp_path / "a.txt", overwrite)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises((AudioError, OSError), match="File too large"):
            output.rewrite("x" * 2000) if how == "rewrite" else outputs.write_all(output.file, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    output.abort()
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"


def test_file_systems_without_locks_are_written_to_all_the_same(tmp_path, monkeypatch):
    import fcntl

    def flock(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(os, "fsync", lambda file: flock(file, 0))
    assert written(Output(tmp_path / "a.wav")).read_bytes() == b"new"


PLACES = {
    "missing/a.wav": "there is no folder .*missing", "file/a.wav": "Not a directory", "folder": "it is a folder",
    "pipe": "not a regular file", "a" * 300: "name too long", "/proc/a.wav": "No such file", "/dev/null": "regular",
    "nul\0l": "null",
}  # fmt: skip


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=range(len(PLACES)))
def test_places_that_cannot_be_written(tmp_path, place, overwrite):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(AudioError, match=PLACES[place]) as caught:
        Output(tmp_path / place, overwrite)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before
