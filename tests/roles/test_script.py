"""A text as words: turns, speakers, pauses and unspoken signs as the reference has them, however the text is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roles_spoken import MACHINE, entries, reader, tokenizer

from moshi_mlx import InputError
from moshi_mlx.roles import script
from moshi_mlx.roles.script import Reader, Script, words_of
from moshi_mlx.roles.words import Word


@pytest.mark.parametrize("case", MACHINE, ids=[f"{n}" for n in range(len(MACHINE))])
def test_words_are_the_references(case):
    assert words_of(reader(case), case["script"]) == entries(case)


def in_pieces(reader, pieces):
    state, words = Script(), []
    for piece in pieces:
        more, state = script.read(reader, state, piece)
        words += more
    more, state = script.finish(reader, state)
    assert state.pending == ""
    return words + more


@pytest.mark.parametrize("case", MACHINE[::3], ids=[" | ".join(case["script"]) for case in MACHINE[::3]])
def test_letter_by_letter_is_the_same(case):
    for turn in case["script"]:
        assert in_pieces(reader(case), turn) == words_of(reader(case), [turn])


ODD = [
    "<",
    "<b",
    "<break",
    ' time="',
    "1",
    ".5",
    's"',
    "/>",
    ">",
    " ",
    "\n",
    "x",
    "you",
    "’",
    ":",
    "(",
    "é",
    '<break time="1s"/>',
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(ODD), max_size=14), st.data())
def test_cut_anywhere_is_the_same(parts, data):
    text, letters = "".join(parts), Reader(Letters())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert in_pieces(letters, pieces) == words_of(letters, [text])


class Letters:
    def encode(self, text):
        return [4 + ord(letter) % 40 for letter in text]


def test_words_come_as_soon_as_they_are_whole():
    words, state = script.read(Reader(tokenizer()), Script(), "hello b")
    assert [word.text for word in words] == ["hello"]
    words, state = script.read(Reader(tokenizer()), state, "ig<bre")
    assert not words  # might be a pause
    words, state = script.read(Reader(tokenizer()), state, 'ak time="2s"/>')
    assert [(word.text, word.padding) for word in words] == [("big", len(tokenizer().encode("big"))), ("", 25)]


def test_what_only_begins_like_a_tag_is_spoken():
    texts = [
        word.text for word in words_of(Reader(Letters()), ["a<br> <break soon <break time=\"1\"/> <break time='2s'>"])
    ]
    assert texts == ["a<br>", "<break", "soon", "<break", 'time="1"/>', "<break", "time='2s'>"]


def test_speakers_take_turns():
    one = Reader(Letters(), padding_between=0)
    firsts = [word.tokens[0] for word in words_of(one, ["a b", "a", "", "a", "a"])]
    assert firsts == [1, Letters().encode("b")[0], 2, *Letters().encode("a"), 1]
    assert [word.tokens for word in words_of(Reader(Letters(), speakers=False), ["a", "a"])] == [(21,), (21,)]


def test_space_between_words():
    assert words_of(Reader(Letters(), padding_between=0), ["abc"])[0].padding == 0
    assert words_of(Reader(Letters(), padding_between=4, speakers=False), ["abc"])[0].padding == 6


@pytest.mark.parametrize("text", ["", " \n ", ":", "()"])
def test_nothing_to_say_is_no_word(text):
    assert words_of(Reader(Letters()), [text]) == []


@pytest.mark.parametrize("seconds", ["601", "9" * 400])
def test_a_pause_that_never_ends_is_refused(seconds):
    with pytest.raises(InputError, match=r"break of 60?1?.* s, expected at most 600|break of 9+"):
        words_of(Reader(Letters()), [f'<break time="{seconds}s"/>'])
    assert words_of(Reader(Letters()), ['<break time="600s"/>']) == [Word((), "", 7500)]
