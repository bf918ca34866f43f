"""Tokens as words with times, and what a second of sound is when silence was put between."""

import json
import random
from types import SimpleNamespace

import pytest

from moshi_mlx.errors import InputError
from moshi_mlx.roles.hearing import Clock, EndWord, Word, WordMachine

PIECES = ["<unk>", "<s>", "</s>", "<pad>", "▁hel", "lo", "▁big", "▁world", "▁", "<0xC3>", "<0xA9>", "caf", "▁a"]
TOKENIZER = SimpleNamespace(
    is_control=lambda token: token in (1, 2, 3),
    is_byte=lambda token: PIECES[token].startswith("<0x"),
    id_to_piece=lambda token: PIECES[token],
)
HEL, LO, BIG, WORLD, SPACE, C3, A9, CAF, A = range(4, 13)


def heard(tokens, machine=None, from_frame=0):
    """The events of tokens, a frame of a tenth of a second each."""
    machine = machine or WordMachine(TOKENIZER, frame_seconds=0.1)
    return [event for n, token in enumerate(tokens, from_frame) for event in machine(token, round(n / 10, 3))]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([3, 3, 0, 3], []),
        ([3, 0, HEL, LO, 3, 3], [Word("hello", 0.1)]),
        ([3, 0, HEL, LO, 3, 0, WORLD, 3], [Word("hello", 0.1), EndWord(0.5), Word("world", 0.5)]),
        ([0, HEL, LO, 0, WORLD, 0], [Word("hello", 0.0), EndWord(0.3), Word("world", 0.3), EndWord(0.5)]),
        # pieces with padding between them are one word, given out in two
        ([0, HEL, 3, LO, 3, 0], [Word("hel", 0.0), Word("lo", 0.0, True), EndWord(0.5)]),
        # several words after one 0: as many frames as pieces each
        ([0, HEL, LO, BIG, WORLD, 3], [
            Word("hello", 0.0), EndWord(0.2), Word("big", 0.2), EndWord(0.3), Word("world", 0.3),
        ]),
        # a word that nothing announced
        ([3, 3, 3, BIG, 3, 3, WORLD, 3], [Word("big", 0.2), EndWord(0.5), Word("world", 0.5)]),
        ([BIG, 3], [Word("big", 0.0)]),
        ([3, 3, LO, 3], [Word("lo", 0.1)]),
        # characters in bytes
        ([0, SPACE, CAF, C3, A9, 3], [Word("café", 0.0)]),
        ([0, SPACE, CAF, C3, 3, A9, 3], [Word("café", 0.0)]),
        ([0, SPACE, CAF, C3, 3, 0], [Word("caf\ufffd", 0.0), EndWord(0.5)]),
        ([0, SPACE, C3, HEL, 3], [Word("\ufffd", 0.0), EndWord(0.2), Word("hel", 0.2)]),
        ([0, SPACE, 3, 0, SPACE, SPACE, A, 3], [Word("a", 0.3)]),
        ([0, 1, HEL, 2, LO, 3], [Word("hel", 0.0), Word("lo", 0.0, True)]),  # control pieces print nothing
    ],
)  # fmt: skip
def test_words(tokens, expected):
    assert heard(tokens) == expected


def test_what_is_left_at_the_end():
    machine = WordMachine(TOKENIZER, frame_seconds=0.1)
    assert heard([0, HEL, LO], machine) == []
    assert machine.finish(0.4) == [Word("hello", 0.0), EndWord(0.4)]
    assert machine.finish(0.5) == []
    assert heard([0, BIG, 3], machine, 7) == [Word("big", 0.7)]
    assert machine.finish(0.1) == [EndWord(0.7)], "no word ends before it begins"


def test_other_numbers_may_say_padding():
    machine = WordMachine(TOKENIZER, silent=(1, 2), frame_seconds=0.1)
    assert heard([1, HEL, LO, 2], machine) == [Word("hello", 0.0)]


@pytest.mark.parametrize("seed", range(4))
def test_a_saved_machine_goes_on_as_it_would_have(seed):
    tokens = random.Random(seed).choices(range(len(PIECES)), [6, 1, 1, 6, *[2] * 9], k=200)
    expected = heard(tokens)
    for cut in range(0, 200, 7):
        first, second = WordMachine(TOKENIZER, frame_seconds=0.1), WordMachine(TOKENIZER, frame_seconds=0.1)
        before = heard(tokens[:cut], first)
        second.state = json.loads(json.dumps(first.state))
        assert before + heard(tokens[cut:], second, cut) == expected
        first.reset()
        assert heard(tokens, first) == expected


@pytest.mark.parametrize("seed", range(8))
def test_words_begin_and_end_in_order_and_nothing_is_lost(seed):
    tokens = random.Random(seed).choices(range(len(PIECES)), [4, 1, 1, 4, *[2] * 9], k=300)
    machine = WordMachine(TOKENIZER, frame_seconds=0.1)
    events = [*heard(tokens, machine), *machine.finish(30.0)]
    times = [event.start if isinstance(event, Word) else event.stop for event in events]
    assert times == sorted(times)
    inside = False
    for event in events:
        if isinstance(event, Word):
            assert inside == event.joined
        else:
            assert inside
        inside = isinstance(event, Word)
    letters = "".join(event.text for event in events if isinstance(event, Word))
    said = "".join(PIECES[t] for t in tokens if t in (HEL, LO, BIG, WORLD, CAF, A)).replace("▁", "")
    assert "".join(filter(str.isascii, letters)) == said


@pytest.mark.parametrize("state", [{}, {"waiting": "zz"}, {"word": "a"}])
def test_a_state_that_is_none(state):
    machine = WordMachine(TOKENIZER)
    if not state:
        machine.state = state  # all of it has defaults: nothing in hand
        return
    with pytest.raises(InputError, match="state"):
        machine.state = state


def test_silence_that_is_put_between_takes_no_time():
    clock = Clock(100)
    clock.silence(50)  # a prefix
    clock.sound(200)
    clock.silence(30)
    clock.sound(100)
    assert clock.fed == 380
    assert clock.now == 3.0
    assert [clock.seconds(at) for at in (-10, 0, 25, 50, 150, 250, 265, 280, 300)] == [
        0, 0, 0, 0, 1.0, 2.0, 2.0, 2.0, 2.2,
    ]  # fmt: skip


def test_a_clock_stays_small_and_exact():
    clock = Clock(100, kept=3)
    for _ in range(50):
        clock.sound(100)
        clock.silence(10)
    assert clock.now == 50.0
    assert clock.seconds(clock.fed - 60) == 49.5
    assert len(clock._silences) == 3
