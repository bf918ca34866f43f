"""Words with times as Moshi's text stream, and the stream as words."""

import numpy as np
import pytest

from moshi_mlx import InputError
from moshi_mlx.conversation.text import END_OF_PADDING, PADDING, TextDecoder, align

E, P = END_OF_PADDING, PADDING


class Tokenizer:
    """A token for each letter: a is 10."""

    def encode(self, word):
        return [10 + ord(letter) - ord("a") for letter in word]


def aligned(words, frames=10, **settings):
    return align(words, Tokenizer(), frames, **settings).tolist()


def test_padding_between_words_and_its_end_before_them():
    assert aligned([("ab", 0.0), ("c", 0.4)]) == [10, 11, P, P, E, 12, P, P, P, P]
    assert aligned([("ab", 0.16, 0.3), ("c", 0.4, 0.6)]) == [P, E, 10, 11, E, 12, P, P, P, P]
    assert aligned([]) == [P] * 10


def test_a_word_waits_for_the_one_before_it():
    assert aligned([("abcd", 0.16), ("e", 0.2), ("f", 0.24)]) == [P, E, 10, 11, 12, 13, 14, 15, P, P]


def test_what_lies_beyond_the_last_frame_is_left_out():
    assert aligned([("abc", 0.64), ("d", 5.0)]) == [P, P, P, P, P, P, P, E, 10, 11]
    assert aligned([("a", 0.8)]) == [P] * 9 + [E]


def test_a_time_on_a_frame_is_that_frame():
    for frame in range(1, 60):
        assert aligned([("a", frame * 0.08)], 60).index(10) == frame


def test_other_rates_and_ids():
    assert aligned([("a", 0.5)], 4, frame_rate=4, padding=7, end_of_padding=8) == [7, 8, 10, 7]


def test_the_goldens_tokenizer_back_and_forth(model):
    words = ["Hello,", "good", "morning"]
    stream = align([(word, 0.8 * n) for n, word in enumerate(words, 1)], model.tokenizer, 40)
    assert stream.dtype == np.int32
    said = TextDecoder(model.tokenizer, (E, P))
    assert (
        "".join(said(int(token)) for token in stream).split()
        == "".join(" " + model.tokenizer.decode(model.tokenizer.encode(word)) for word in words).split()
    )


@pytest.mark.parametrize(
    ("words", "frames", "message"),
    [
        ([("a", 1.0), ("b", 0.5)], 5, "'b' begins at 0.5, expected 1.0 or later"),
        ([("a", -1.0)], 5, "'a' begins at -1.0, expected 0.0 or later"),
        ([("a", float("nan"))], 5, "'a' begins at nan"),
        ([(" ", 1.0)], 5, "' ' has no tokens"),
        ([], 0, "num_frames: got 0, expected 1 or more"),
    ],
)
def test_bad_words_are_named(words, frames, message):
    with pytest.raises(InputError) as caught:
        aligned(words, frames)
    assert message in str(caught.value)


def test_bytes_of_a_character_wait_for_the_rest():
    class Pieces:
        pieces = ("<unk>", "<0xC3>", "<0xA9>", "<pad>", "\u2581yes", "</s>")
        id_to_piece = pieces.__getitem__

        def is_byte(self, token):
            return token in (1, 2)

        def is_control(self, token):
            return token == 5

    said = TextDecoder(Pieces(), (E, P))
    assert [said(token) for token in (0, 1, 2, 3, 4, 5)] == ["", "", "\u00e9", "", " yes", ""]
    assert [said(token) for token in (1, 3, 4, 1, 1, 2)] == ["", "", "\ufffd yes", "", "\ufffd", "\u00e9"]
    assert TextDecoder(None, (E, P))(7) == ""
