"""Words with times as Moshi's text stream, and the stream as words."""

import json

import numpy as np
import pytest
from helpers import GOLDENS

from moshi_mlx import InputError
from moshi_mlx.conversation.text import END_OF_PADDING, PADDING, TextDecoder, align
from moshi_mlx.train import timings

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


def test_a_word_cuts_off_the_one_before_it_or_waits_for_it():
    words = [("abcd", 0.16), ("e", 0.2), ("f", 0.24)]
    assert aligned(words) == [P, E, 14, 15, P, P, P, P, P, P]  # e is in the frame of abcd and takes its place
    assert aligned(words, shift=True) == [P, E, 10, 11, 12, 13, 14, 15, P, P]
    assert aligned([("abcd", 0.16, 0.5), ("e", 0.32, 0.4)]) == [P, E, 10, 11, 14, P, P, P, P, P]


def test_words_without_length_or_letters():
    assert aligned([("a", 0.16, 0.16), ("b", 0.4, 0.3)]) == [P] * 10
    assert aligned([("abcd", 0.16, 0.5), (" ", 0.32, 0.4)]) == [P, E, 10, 11, P, P, P, P, P, P]
    assert aligned([("abcd", 0.16, 0.5), (" ", 0.32, 0.4)], shift=True) == [P, E, 10, 11, 12, 13, P, P, P, P]


def test_what_lies_beyond_the_last_frame_is_left_out():
    assert aligned([("abc", 0.64), ("d", 5.0), ("e", 1e308)]) == [P, P, P, P, P, P, P, E, 10, 11]
    assert aligned([("a", 0.8)]) == [P] * 9 + [E]
    assert aligned([("a", 0.88)]) == [P] * 10


def test_a_time_before_the_start_is_the_first_frame():
    assert aligned([("ab", -1.0, 0.5)], 3) == [10, 11, P]


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
        ([("a", float("nan"))], 5, "'a' begins at nan"),
        ([("a", float("inf"))], 5, "'a' begins at inf"),
        ([], 0, "num_frames: got 0, expected 1 or more"),
    ],
)
def test_bad_words_are_named(words, frames, message):
    with pytest.raises(InputError) as caught:
        aligned(words, frames)
    assert message in str(caught.value)


@pytest.mark.parametrize("case", json.loads((GOLDENS / "alignment.json").read_text()), ids=lambda case: case["name"])
@pytest.mark.parametrize("shift", [False, True], ids=["cut", "shifted"])
def test_alignment_is_kyutais(model, tmp_path, case, shift):
    """From the transcript as a file to the text stream, with moshi-finetune's own results."""
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"alignments": case["transcript"]}))
    words = timings.read(path, "SPEAKER_MAIN").words
    found = align(words, model.tokenizer, case["frames"], shift=shift)
    assert found.tolist() == case["shifted" if shift else "cut"]


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
    said = TextDecoder(Pieces(), (E, P))
    assert [said(token) for token in (1, 3, 4, 2, 4)] == ["", "", "\ufffd yes", "\ufffd", " yes"]
    assert [said(token) for token in (1, 1, 2, 4)] == ["", "\ufffd", "\u00e9", " yes"]
