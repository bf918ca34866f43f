"""A transcript as lines, subtitles and JSON, in files that are whole."""

import itertools
import json
import os

import pytest

from moshi_mlx.errors import AudioError
from moshi_mlx.roles.hearing import EndWord, Word
from moshi_mlx.roles.pauses import EndPause, Pause
from moshi_mlx.roles.transcript import Said, Transcript, TranscriptFile, clock


def spoken(*words, seconds=60.0):
    """A transcript of (word, start) each, a word's end where the next begins."""
    transcript = Transcript()
    for n, (word, start) in enumerate(words):
        if n:
            transcript.add(EndWord(start))
        transcript.add(Word(word, start))
    transcript.finish(seconds)
    return transcript


def paced(text, begin=0.0, step=0.3):
    return spoken(*((word, round(begin + n * step, 3)) for n, word in enumerate(text.split())))


SENTENCE = "The quick brown fox jumps over the lazy dog while five boxing wizards jump very quickly. "


def test_words_and_their_ends():
    transcript = spoken(("Hi", 0.5), ("there", 0.9), ("friend", 7.0))
    assert transcript.words == [Said("Hi", 0.5, 0.9), Said("there", 0.9, 1.9), Said("friend", 7.0, 8.0)]
    assert str(transcript) == "Hi there\nfriend"


def test_the_rest_of_a_word_is_part_of_it():
    transcript = Transcript()
    for event in (Word("hel", 1.0), Word("lo", 1.0, True), EndWord(1.4)):
        transcript.add(event)
    assert transcript.words == [Said("hello", 1.0, 1.4)]


def test_a_long_word_lasts_longer_and_none_lasts_beyond_the_sound():
    assert spoken(("1,234,567,890", 1.0)).words[0].end == pytest.approx(2.3)
    assert spoken(("end", 1.0), seconds=1.25).words[0].end == 1.25


def test_pauses():
    transcript = Transcript()
    for event in (EndPause(0.8), Pause(3.0), EndPause(4.5), Pause(5.0), EndPause(5.0), Pause(6.0)):
        transcript.add(event)
    transcript.finish(7.04)
    assert transcript.pauses == [(0.0, 0.8), (3.0, 4.5), (6.0, 7.04)]


def test_text_has_a_line_for_each_utterance():
    assert (
        spoken(("Hi", 0.5), ("there.", 0.9), ("Yes", 65.25)).as_txt()
        == "[00:00:00.500] Hi there.\n[00:01:05.250] Yes\n"
    )
    long = paced(SENTENCE * 4)
    assert [len(line) for line in long.lines] == [32, 32], "a sentence's end breaks a line that is long"
    assert Transcript().as_txt() == ""
    assert str(Transcript()) == ""


def cues(transcript):
    """(start, end, rows) of each subtitle."""
    parsed = []
    for n, block in enumerate(transcript.as_srt().strip().split("\n\n"), 1):
        number, times, *rows = block.split("\n")
        assert int(number) == n
        parsed.append((*times.split(" --> "), rows))
    return parsed


def test_subtitles():
    parsed = cues(spoken(("Hi", 0.5), ("there.", 0.9), ("Yes", 65.25)))
    assert parsed == [("00:00:00,500", "00:00:01,900", ["Hi there."]), ("00:01:05,250", "00:01:06,250", ["Yes"])]


@pytest.mark.parametrize("step", [0.1, 0.3, 0.9])
@pytest.mark.parametrize(
    "text", [SENTENCE * 5, "word " * 80, "a " * 200, "Donaudampfschifffahrtsgesellschaftskapitänsmütze " * 5]
)
def test_subtitles_can_be_read(text, step):
    transcript = paced(text, step=step)
    parsed = cues(transcript)
    assert " ".join(" ".join(rows) for *_, rows in parsed).split() == text.split()
    for start, end, rows in parsed:
        assert len(rows) <= 2
        assert all(len(row) <= 42 or " " not in row for row in rows)
        assert start < end
    for (_, end, _), (start, _, _) in itertools.pairwise(parsed):
        assert end <= start, "no two at once"


def test_two_rows_are_about_equally_long():
    (_, _, rows), *_ = cues(paced("one two three four five six seven eight nine ten", step=0.2))
    assert len(rows) == 2
    assert abs(len(rows[0]) - len(rows[1])) < 12


def test_a_short_word_is_shown_for_a_second_unless_the_next_comes():
    transcript = Transcript()
    for event in (
        Word("w" * 50 + ".", 1.0),
        EndWord(1.2),
        Word("No", 1.5),
        EndWord(3.0),
        Word("So", 9.0),
        EndWord(9.1),
    ):
        transcript.add(event)
    assert [cue[:2] for cue in cues(transcript)] == [
        ("00:00:01,000", "00:00:01,500"), ("00:00:01,500", "00:00:02,500"), ("00:00:09,000", "00:00:10,000"),
    ]  # fmt: skip


def test_json():
    transcript = spoken(("Hi", 0.5), ("café?", 0.9), ("Yes", 65.25), seconds=70)
    transcript.pauses, transcript.probabilities = [(2.0, 65.0)], [0.12345, 0.9]
    content = json.loads(transcript.as_json())
    assert content["text"] == "Hi café?\nYes"
    assert content["seconds"] == 70
    assert content["lines"][0] == {
        "start": 0.5, "end": 1.9, "text": "Hi café?",
        "words": [{"word": "Hi", "start": 0.5, "end": 0.9}, {"word": "café?", "start": 0.9, "end": 1.9}],
    }  # fmt: skip
    assert content["pauses"] == [{"start": 2.0, "end": 65.0}]
    assert content["pause_probabilities"] == [0.123, 0.9]
    assert "café" in transcript.as_json()


@pytest.mark.parametrize("suffix", [".txt", ".SRT", ".json"])
def test_files(tmp_path, suffix):
    transcript = spoken(("Hi", 0.5), ("there.", 0.9))
    path = transcript.save(tmp_path / f"talk{suffix}")
    assert path.read_text() == getattr(transcript, f"as_{suffix[1:].lower()}")()
    second = transcript.save(tmp_path / f"talk{suffix}")
    assert second.name == f"talk-2{suffix}"
    Transcript().save(tmp_path / f"talk{suffix}", overwrite=True)
    assert path.read_text() == getattr(Transcript(), f"as_{suffix[1:].lower()}")()
    assert len(os.listdir(tmp_path)) == 2


def test_a_file_that_grows_is_whole_at_any_moment(tmp_path):
    file, transcript = TranscriptFile(tmp_path / "talk.json"), Transcript()
    for n in range(4):
        transcript.add(Word(f"w{n}", float(n)))
        file.write(transcript)
        assert json.loads(file.path.read_text())["text"] == str(transcript)
    file.close()
    file.close()
    assert os.listdir(tmp_path) == ["talk.json"]


def test_nothing_is_left_of_a_file_that_was_not_written(tmp_path):
    TranscriptFile(tmp_path / "talk.json").close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["talk.doc", "talk", "no/such/folder/talk.txt"])
def test_a_name_that_cannot_be(tmp_path, name):
    with pytest.raises(AudioError, match="talk"):
        Transcript().save(tmp_path / name)


def test_times():
    assert [clock(seconds) for seconds in (0, 0.0006, 59.9996, 3661.25)] == [
        "00:00:00.000", "00:00:00.001", "00:01:00.000", "01:01:01.250",
    ]  # fmt: skip
