"""What a conversation is told: the reference's vectors, from the published tensors by NumPy; what is none is named."""

import mlx.core as mx
import numpy as np
import pytest
from family import FAMILY, KINDS, loaded, voice_of_golden
from mlx.utils import tree_flatten

import moshi_mlx
from moshi_mlx import InputError
from moshi_mlx.models.conditions import Condition
from moshi_mlx.models.conditions_config import ConditionConfig

NAMES = {"hibiki": {"description"}, "tts": {"speaker_wavs", "cfg", "control"}}
VALUES = {
    ("hibiki", "description"): ("very_bad", "bad", "neutral", "good", "very_good"),
    ("tts", "cfg"): ("1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"),
    ("tts", "control"): ("ok",),
}


@pytest.fixture(scope="module")
def models():
    return {kind: loaded(kind) for kind in NAMES}


def filed(kind, name):
    tensors = mx.load(str(FAMILY / kind / "model.safetensors"))
    start = f"condition_provider.conditioners.{name}."
    return {key.removeprefix(start): np.array(value) for key, value in tensors.items() if key.startswith(start)}


@pytest.mark.parametrize("kind", KINDS)
def test_names(kind):
    conditions = loaded(kind).conditions
    assert set(conditions.names) == NAMES.get(kind, set())
    for name in conditions.names:
        assert conditions.values_of(name) == VALUES.get((kind, name), ())


@pytest.mark.parametrize(("kind", "name"), VALUES)
def test_every_text_is_its_row(models, kind, name):
    tensors, conditions = filed(kind, name), models[kind].conditions
    for row, value in enumerate(VALUES[kind, name]):
        expected = tensors["output_proj.weight"] @ tensors["embed.weight"][row]
        got = conditions.conditioners[name](value)
        np.testing.assert_allclose(np.array(got), expected[None], rtol=1e-5, atol=1e-5)
    nothing = conditions.conditioners[name](None)
    np.testing.assert_array_equal(np.array(nothing), tensors["learnt_padding"][0])


def test_the_sum_of_all(models):
    conditions = models["tts"].conditions
    parts = [np.array(conditions.conditioners[name](value))[0] for name, value in (("cfg", "3.5"), ("control", "ok"))]
    np.testing.assert_allclose(np.array(conditions.vector({"cfg": "3.5"})), sum(parts), atol=1e-5)
    usual = conditions.check(None)
    assert usual == {"speaker_wavs": None, "cfg": "2.0", "control": "ok"}
    assert models["hibiki"].conditions.check({}) == {"description": "very_good"}
    assert models["hibiki"].conditions.source() is None


def test_what_cross_attention_looks_at(models):
    tensors, conditions = filed("tts", "speaker_wavs"), models["tts"].conditions
    vectors, mask = voice_of_golden()
    made = np.array(conditions.source({"speaker_wavs": (vectors, mask)}))
    projected = np.array(vectors, np.float64) @ tensors["output_proj.weight"].T
    expected = np.where(mask[:, None], projected, tensors["learnt_padding"][0])
    turns = np.arange(25)[:, None] / 10000 ** (np.arange(16) / 15)
    np.testing.assert_allclose(made, expected + np.concatenate([np.cos(turns), np.sin(turns)], axis=1), atol=1e-4)
    alone = np.array(conditions.source({}))  # nobody's voice
    np.testing.assert_allclose(alone[0], tensors["learnt_padding"][0, 0] + ([1] * 16 + [0] * 16), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", NAMES)
def test_they_stay_float32(kind, dtype):
    model = moshi_mlx.load(FAMILY / kind, dtype=dtype)
    kinds = {name: array.dtype for name, array in tree_flatten(model.conditions.parameters())}
    assert kinds
    assert set(kinds.values()) == {mx.float32}, kinds
    exact = loaded(kind).conditions
    np.testing.assert_array_equal(np.array(model.conditions.vector()), np.array(exact.vector()))


NO_TEXTS = ["", "excellent", "Very_good", 3, 2.0, True, ["good"], {"good": 1}, b"good", np.array(["good", "bad"]), ()]
NO_SEQUENCES = {
    "a text": "voice", "a number": 3, "one array": np.zeros((3, 8), np.float32),
    "no mask": (np.zeros((3, 8), np.float32),), "another width": (np.zeros((3, 7), np.float32), [True] * 3),
    "a longer mask": (np.zeros((3, 8), np.float32), [True] * 4), "no vectors": (np.zeros((0, 8), np.float32), []),
    "one vector": (np.zeros(8, np.float32), [True] * 8), "texts": ([["a"] * 8] * 3, [True] * 3),
    "a mask of texts": (np.zeros((3, 8), np.float32), [["a"], "b", None]), "nothing": (None, None),
    "a ragged mask": (np.zeros((2, 8), np.float32), [[True], [True, False]]),
}  # fmt: skip


@pytest.mark.parametrize("value", NO_TEXTS, ids=repr)
def test_what_is_no_text(models, value):
    with pytest.raises(InputError, match=r"'description' got .* expected one of very_bad, bad"):
        models["hibiki"].conditions.vector({"description": value})


@pytest.mark.parametrize("name", NO_SEQUENCES)
def test_what_is_no_sequence(models, name):
    with pytest.raises(InputError, match="speaker_wavs"):
        models["tts"].conditions.source({"speaker_wavs": NO_SEQUENCES[name]})


@pytest.mark.parametrize("given", [{"voice": "ok"}, {"": None}, {3: "ok"}, {"Description": "good"}])
def test_names_there_are_not(models, given):
    for model, known in ((models["hibiki"], "description"), (loaded("hibiki_zero"), "takes no conditions")):
        with pytest.raises(InputError, match=rf"conditions: got .*{known}"):
            model.conditions.check(given)


@pytest.mark.parametrize("given", ["very_good", ["description"], 3, {"very_good"}])
def test_what_is_not_by_name(models, given):
    with pytest.raises(InputError, match="expected values by name"):
        models["hibiki"].conditions.check(given)


def test_a_condition_of_few_rows():
    one = Condition(ConditionConfig("mood", 4, ("glad", "sad"), 5), 6)
    assert one.embed.weight.shape == (6, 4)
    assert one("sad").shape == one(None).shape == (1, 6)
