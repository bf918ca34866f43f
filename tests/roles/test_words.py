"""The word machine: every decision is the reference's, and the same when the text comes while it is spoken."""

import json

import pytest
from helpers import GOLDENS, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from roles_spoken import MACHINE, driven, entries, rules

from moshi_mlx import InputError
from moshi_mlx.roles import words
from moshi_mlx.roles.words import NEW_WORD, PADDING, Rules, Word

IDS = [f"{' | '.join(case['script'])[:20]}-{case['machine']['second_stream_ahead']}" for case in MACHINE]


@pytest.mark.parametrize("case", MACHINE, ids=IDS)
def test_decisions_are_the_references(case):
    given, consumed, transcript, end = driven(rules(case), entries(case), case["asked"])
    assert given == case["given"]
    assert consumed == case["consumed"]
    assert transcript == case["transcript"]
    assert [step for step, begins in enumerate(consumed) if begins] == case["consumption_times"]
    assert end == case["end_step"]


@pytest.mark.parametrize("suffix", ["", "_fewer"])
def test_decisions_of_a_model_that_spoke(suffix):
    case = json.loads((GOLDENS / "family" / "tts" / "script.json").read_text())
    arrays = golden("family/tts/ref")
    given, _, transcript, end = driven(rules(case), entries(case), arrays[f"asked{suffix}"].tolist())
    assert given == arrays[f"given{suffix}"].tolist()
    assert (transcript, end) == tuple(case[f"result{suffix}"][name] for name in ("transcript", "end_step"))


asked = st.lists(st.sampled_from([NEW_WORD, PADDING, 17]), min_size=1, max_size=120)
spoken = st.lists(
    st.builds(
        Word,
        st.lists(st.integers(0, 60), max_size=5).map(tuple),
        st.just("w"),
        st.integers(0, 6),
    ),
    max_size=12,
)
ruled = st.builds(Rules, st.just(64), st.integers(0, 3), st.integers(0, 8), st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(ruled, spoken, asked, st.data())
def test_a_text_that_comes_while_it_is_spoken_is_answered_as_the_whole(rules, spoken, asked, data):
    whole, *_ = driven(rules, spoken, asked)
    state, left, given = words.begin(rules), list(spoken), []
    for token in asked:
        while not words.ready(rules, state):
            count = data.draw(st.integers(1, 3))
            state = words.append(state, left[:count]) if left else words.close(state)
            del left[:count]
        number, _, state = words.answer(rules, state, token)
        given.append(number)
    assert given == whole


def test_it_waits_no_longer_than_the_second_stream_needs():
    rules = Rules(64, ahead=2, initial_padding=0)
    word, pause = Word((9, 10), "w", 2), Word((), "", 3)
    state = words.begin(rules)
    assert not words.ready(rules, state)
    for more, expected in ((word, False), (pause, False), (word, False), (word, True)):
        state = words.append(state, [more])
        assert words.ready(rules, state) == expected
    number, begun, state = words.answer(rules, state, NEW_WORD)
    assert (number, begun) == (rules.joined(9, NEW_WORD), word)
    assert words.ready(rules, state)  # the rest of the word is known, whatever follows
    assert words.ready(rules, words.append(words.begin(rules), [pause]))


def test_a_pause_is_as_long_as_it_says():
    rules = Rules(64, ahead=0, initial_padding=0)
    given, consumed, _, end = driven(rules, [Word((), "", 5), Word((9,), "w")], [NEW_WORD] * 9)
    assert given == [3, 3, 3, 3, 3, 0, 9, 3, 3]
    assert consumed.index(True) == 0
    assert (consumed[5], end) == (True, 7)


def test_no_word_after_the_end():
    state = words.close(words.begin(Rules(64)))
    assert words.append(state, []) == state
    with pytest.raises(InputError, match="after its end"):
        words.append(state, [Word((9,), "w")])


def test_a_state_is_never_changed():
    rules = Rules(64, ahead=1)
    state = words.append(words.begin(rules), [Word((9, 8), "w", 2), Word((7,), "v")])
    before = repr(state)
    for token in (NEW_WORD, PADDING) * 3:
        words.answer(rules, state, token)
    assert repr(state) == before
