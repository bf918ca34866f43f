"""Moshi's words as lines: on the screen and in files."""

import json
import os

import pytest
from stand_ins import moment

from moshi_mlx.errors import AudioError
from moshi_mlx.local.transcript import Transcript, Turns

FRAME = 0.08
ANSWERS = {3: " It", 4: " is", 6: " fi", 7: "ve.", 60: " And", 61: " caf\u00e9?"}  # two lines, 4 s apart


def frames(texts=ANSWERS, count=70, resets=()):
    return [moment(n, texts.get(n, ""), reset=n in resets) for n in range(count)]


def shown(texts, count=70, resets=()):
    turns = Turns(FRAME)
    return "".join(turns(one) for one in frames(texts, count, resets))


def test_an_answer_has_no_leading_space_and_a_line_of_its_own():
    assert shown(ANSWERS) == "It is five.\nAnd caf\u00e9?"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({0: " ", 1: " ", 2: " a"}, "a"),
        ({0: " a", 18: " b"}, "a b"),
        ({0: " a", 30: " ", 31: " b"}, "a\nb"),
        ({0: " a", 30: "b"}, "a\nb"),
        ({}, ""),
    ],
)
def test_where_lines_begin(texts, expected):
    assert shown(texts) == expected


def test_a_new_conversation_begins_a_line():
    assert shown({0: " a", 3: " b"}, resets={2}) == "a\nb"


EXPECTED = {
    "txt": "[00:00:00.240] It is five.\n[00:00:04.800] And caf\u00e9?\n",
    "srt": "1\n00:00:00,240 --> 00:00:00,640\nIt is five.\n\n2\n00:00:04,800 --> 00:00:04,960\nAnd caf\u00e9?\n\n",
}


@pytest.mark.parametrize("suffix", ["txt", "srt", "json"])
def test_files(tmp_path, suffix):
    transcript = Transcript(tmp_path / f"talk.{suffix}", FRAME)
    for one in frames():
        transcript(one)
    transcript.close()
    transcript.close()
    written = (tmp_path / f"talk.{suffix}").read_text(encoding="utf-8")
    if suffix != "json":
        assert written == EXPECTED[suffix]
        return
    first, second = json.loads(written)["lines"]
    assert (first["text"], first["start"], first["end"]) == ("It is five.", 0.24, 0.64)
    assert second["words"][1] == {"word": "caf\u00e9?", "start": 4.88, "end": 4.96}


def test_it_is_whole_at_any_moment(tmp_path, monkeypatch):
    monkeypatch.setattr("moshi_mlx.local.transcript.WRITE_SECONDS", 0.0)
    transcript = Transcript(tmp_path / "talk.json", FRAME)
    for one in frames():
        transcript(one)
        if one.frame.text:
            lines = json.loads((tmp_path / "talk.json").read_text())["lines"]
            assert lines[-1]["text"].endswith(one.frame.text.strip())
    transcript.close()
    assert os.listdir(tmp_path) == ["talk.json"]


def test_a_subtitle_is_short_enough_to_be_read(tmp_path):
    transcript = Transcript(tmp_path / "talk.srt", FRAME)
    for n in range(0, 500, 5):
        transcript(moment(n, f" word{n}"))
    transcript.close()
    cues = (tmp_path / "talk.srt").read_text().strip().split("\n\n")
    assert len(cues) >= 6
    assert all(len(cue.splitlines()) == 3 for cue in cues)


def test_resets_begin_lines_in_files_too(tmp_path):
    transcript = Transcript(tmp_path / "talk.txt", FRAME)
    for one in frames({0: " a", 1: "b", 3: "c"}, 5, resets={2}):
        transcript(one)
    transcript.close()
    assert (tmp_path / "talk.txt").read_text() == "[00:00:00.000] ab\n[00:00:00.240] c\n"


def test_earlier_ones_stay_and_nothing_is_written_before_the_first_word(tmp_path):
    (tmp_path / "talk.txt").write_text("before")
    Transcript(tmp_path / "talk.txt", FRAME).close()
    assert os.listdir(tmp_path) == ["talk.txt"]
    transcript = Transcript(tmp_path / "talk.txt", FRAME)
    transcript(moment(0, " a"))
    transcript.close()
    assert transcript.path == tmp_path / "talk-2.txt"
    assert (tmp_path / "talk.txt").read_text() == "before"


@pytest.mark.parametrize(
    ("name", "said"),
    [("talk.doc", ".txt, .srt or .json"), ("talk", "or .json"), ("missing/talk.txt", "no folder"),
     ("file/talk.srt", "Not a directory")],
)  # fmt: skip
def test_places_that_cannot_be_written(tmp_path, name, said):
    (tmp_path / "file").touch()
    with pytest.raises(AudioError, match=said):
        Transcript(tmp_path / name, FRAME)
