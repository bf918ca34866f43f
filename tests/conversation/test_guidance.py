"""Guidance: two rows a conversation, null + (told - null) * guidance; 1 and 3 differ, and both are the reference's."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
from family import FAMILY, Run, loaded, reference
from helpers import GREEDY, edit_json

import moshi_mlx
from moshi_mlx import InputError
from moshi_mlx.conversation import duplex, told
from moshi_mlx.conversation.duplex import DuplexSampling


@pytest.fixture(scope="module")
def models():
    return {kind: loaded(kind) for kind in ("hibiki", "hibiki_zero", "tts_prefix", "tts", "plain_2026")}


def test_one_and_three_differ_and_both_are_the_references(models):
    plain, guided = (Run(models["hibiki"], "hibiki", suffix) for suffix in ("", "_cfg3"))
    both = [run.drawn() for run in (plain, guided)]
    plain.check(*both[0])
    guided.check(*both[1])
    assert not np.array_equal(both[0][0], both[1][0])
    assert not np.array_equal(both[0][1], both[1][1])


def test_guidance_of_nothing_hears_the_other_side_alone(models):
    """At 0 what is drawn from is the null row's: the tokens of one who is told the opposite."""
    none = Run(models["hibiki"], "hibiki", guidance=0)
    opposite = Run(models["hibiki"], "hibiki")
    expected = opposite.drawn(state=opposite.begin(conditions={"description": "very_bad"}))
    for got, wanted in zip(none.drawn(), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert not np.array_equal(expected[0], reference("hibiki")["text"])


@pytest.mark.parametrize("guidance", [-1, 0.5, 2, 3])
def test_the_same_on_both_sides_guides_nowhere(models, guidance):
    run = Run(models["hibiki"], "hibiki", guidance=guidance)
    text, codes = run.drawn(state=run.begin(conditions={"description": "very_bad"}))
    opposite = Run(models["hibiki"], "hibiki")
    expected = opposite.drawn(state=opposite.begin(conditions={"description": "very_bad"}))
    np.testing.assert_array_equal(text, expected[0])
    np.testing.assert_array_equal(codes, expected[1])


def test_two_rows_only_where_they_are_needed(models):
    model = models["hibiki"]
    for guidance, rows in ((1, 3), (1.0, 3), (3, 6), (0, 6)):
        state = duplex.init_state(model, [0, 1, 2], guidance=guidance)
        assert len(state["temporal"]["offset"]) == len(state["temporal"]["condition"]) == rows
        assert len(state["offset"]) == len(state["own"]) == 3


def test_rows_may_be_told_otherwise(models):
    """Conditions lie in the state by row: each row is what it is alone, guided too."""
    run = Run(models["hibiki"], "hibiki", "_cfg3")
    alone = [run.begin(conditions={"description": value}) for value in ("very_good", "bad", None)]
    both = run.begin(rows=3)
    sides = [[state["temporal"]["condition"][side : side + 1] for state in alone] for side in (0, 1)]
    both["temporal"]["condition"] = mx.concatenate([*sides[0], *sides[1]])
    each = [run.drawn(state=state) for state in alone]
    assert len({one[1].tobytes() for one in each}) == 3
    for row, expected in enumerate(each):
        for got, wanted in zip(run.drawn(row, both), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_the_formula():
    said, null = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    both = mx.array(np.concatenate([said, null]))
    for guidance in (-1.0, 0.0, 1.0, 2.5):
        got = np.array(told.guided(both, 3, guidance))
        np.testing.assert_allclose(got, null + (said - null) * guidance, atol=1e-5)
    np.testing.assert_array_equal(np.array(told.guided(both, 6, 3.0)), np.array(both))


def test_a_recording_is_hidden_from_the_null_row(models):
    """Of a speaker with a prefix: hidden, as the reference has it; not hidden it says something else."""
    run = Run(models["tts_prefix"], "tts_prefix")
    run.check(*run.drawn())
    state = run.begin()
    del state["unseen"]
    assert not np.array_equal(run.drawn(state=state)[1], run.drawn()[1])


def test_the_end_of_a_sequence_as_it_is_filed(tmp_path, models):
    """Kyutai's loader puts padding's row there for model_type hibiki; without a model_type the table is as filed."""
    folder = shutil.copytree(FAMILY / "hibiki", tmp_path / "hibiki")
    edit_json(folder / "config.json", model_type=None)
    model = moshi_mlx.load(folder, dtype="float32")
    assert (model.config.role, model.config.end_reads_as_padding) == ("translator", False)
    run, expected = Run(model, "hibiki"), reference("hibiki")
    text, codes = run.drawn()
    np.testing.assert_array_equal(text, expected["text_eos_as_is"])
    np.testing.assert_array_equal(codes.T, expected["codes_eos_as_is"])
    assert models["hibiki"].config.end_reads_as_padding
    assert not np.array_equal(expected["text"], expected["text_eos_as_is"])


@pytest.mark.parametrize("value", ["3", None, True, np.nan, np.inf, [3], 1e60])
def test_what_is_no_guidance(value):
    with pytest.raises(InputError, match="guidance"):
        DuplexSampling.of(GREEDY, value)


@pytest.mark.parametrize("kind", ["hibiki_zero", "plain_2026"])
def test_nothing_to_guide_by(models, kind):
    with pytest.raises(InputError, match="takes no conditions to guide by"):
        told.conversation_guidance(models[kind], 3)
    assert told.conversation_guidance(models[kind], None) == 1
