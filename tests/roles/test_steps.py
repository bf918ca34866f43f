"""The step of every kind of model: the reference's tokens, compiled, beside others, with fewer codebooks, for hours."""

import mlx.core as mx
import numpy as np
import pytest
from family import FAMILY, KINDS, RUNS, Run, loaded
from mlx.utils import tree_flatten

import moshi_mlx
from moshi_mlx import InputError
from moshi_mlx.conversation import duplex
from moshi_mlx.roles import steps


@pytest.fixture(scope="module")
def models():
    return {kind: loaded(kind) for kind in KINDS}


@pytest.fixture(params=RUNS, ids=lambda run: "".join(run))
def run(request, models):
    kind, suffix = request.param
    return Run(models[kind], kind, suffix)


def test_every_call_is_the_references(run):
    run.check(*run.drawn())


def test_compiled(run):
    compiled = {skips: mx.compile(lambda *given, s=skips: run.call(*given, skips=s)) for skips in (False, True)}
    text, more = run.drawn(call=lambda *given, skips: compiled[skips](*given))
    run.check(text, more)


def test_rows_are_what_they_are_alone(run):
    """The second of three, whose neighbours are told and given other things, is the reference's."""
    state = run.begin(rows=3)
    state["temporal"] |= {
        name: mx.where(mx.array([n % 3 == 1 for n in range(len(value))]).reshape(-1, *[1] * (value.ndim - 1)), value, 0)
        for name, value in state["temporal"].items()
        if name == "condition"
    }
    state["text"] = mx.array([5, 0, 9])

    def call(state, *given, skips):
        mine = (mx.arange(3) == 1).reshape(3, *[1] * (given[0].ndim - 1))
        others = mx.where(mine, given[0], (given[0] + 1) % 7)
        return run.call(state, others, *given[1:], skips=skips)

    run.check(*run.drawn(1, state, call))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_types(kind, dtype):
    model = moshi_mlx.load(FAMILY / kind, dtype=dtype)
    run = Run(model, kind)
    text, more = run.drawn()
    expected = run.reference["asked" if run.speaks else "text"]
    assert text.shape == expected.shape
    assert np.isfinite(more.astype(np.float32)).all()
    assert (text == expected)[:3].all(), "so early a rounding changes nothing"
    for name, tensor in dict(model.parameters()["conditions"])["conditioners"].items():
        assert {array.dtype for _, array in tree_flatten(tensor)} == {mx.float32}, name


# --- fewer codebooks ------------------------------------------------------------------------------------------------


def test_codebooks_that_are_not_given_are_zeros(models):
    """As Unmute runs it, with 20 of 32: -1 is no vector, in the place of a code's."""
    model, silenced = models["stt"], loaded("stt")
    run, other = Run(model, "stt"), Run(silenced, "stt")
    table, rows = silenced.decoder.model.embed_tokens, model.config.table_rows
    place = mx.arange(sum(rows)) - sum(rows[:6])  # behind the text's and five codebooks'
    initial = place % rows[-1] == model.config.audio_vocab_size
    table.weight = mx.where(((place < 0) | initial)[:, None], table.weight, 0)

    def five(state, codes, skips):
        return run.call(state, mx.where(mx.arange(8) < 5, codes, -1))

    text, heads = run.drawn(call=five)
    assert not np.array_equal(text, run.reference["text"])
    zeroed, zeroed_heads = other.drawn()
    np.testing.assert_array_equal(text, zeroed)
    np.testing.assert_allclose(heads, zeroed_heads, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["tts", "tts_prefix"])
def test_the_first_codebooks_do_not_know_of_the_others(models, kind, count):
    """A depth decoder that stops early has drawn what it draws; the rest is -1."""
    run = Run(models[kind], kind)
    (given, _), state = next(iter(run.calls())), run.begin()
    _, heard = steps.ask(run.model, state, run.sampling)
    whole, _, _ = steps.say(run.model, given[0], heard, run.sampling)
    few, _, after = steps.say(run.model, given[0], heard, run.sampling, steps=count)
    np.testing.assert_array_equal(np.array(few)[:, :count], np.array(whole)[:, :count])
    assert (np.array(few)[:, count:] == -1).all()
    assert int(after["offset"][0]) == 1


def test_a_skipped_depth_decoder_draws_nothing(models):
    run = Run(models["tts"], "tts")
    _, heard = steps.ask(run.model, run.begin(), run.sampling)
    codes, column, _ = steps.say(run.model, mx.array([3]), heard, run.sampling, skip_depth=True)
    assert (np.array(codes) == -1).all()
    assert column.shape == (1, 4)


# --- what is refused ------------------------------------------------------------------------------------------------

WRONG_TEXT = {"too many": [[3, 3]], "too large": [65 * 65], "below": [-2], "no whole number": [0.5]}
WRONG_CODES = {"too few": [[1, 2]], "too large": [[33] * 4], "below": [[-3] * 4], "no whole numbers": [[0.5] * 4]}


@pytest.mark.parametrize("name", WRONG_TEXT)
def test_text_that_cannot_be_said(models, name):
    run = Run(models["tts"], "tts")
    _, heard = steps.ask(run.model, run.begin(), run.sampling)
    with pytest.raises(InputError, match="text"):
        steps.say(run.model, mx.array(WRONG_TEXT[name]), heard, run.sampling)


@pytest.mark.parametrize("name", WRONG_CODES)
def test_codes_that_cannot_be_said(models, name):
    run = Run(models["tts"], "tts")
    _, heard = steps.ask(run.model, run.begin(), run.sampling)
    with pytest.raises(InputError, match="replaced"):
        steps.say(run.model, mx.array([3]), heard, run.sampling, mx.array(WRONG_CODES[name]))


def test_a_half_state_is_for_the_other_half(models):
    run = Run(models["tts"], "tts")
    state = run.begin()
    with pytest.raises(InputError, match="state"):
        steps.say(run.model, mx.array([3]), state, run.sampling)
    with pytest.raises(InputError, match="sampling"):
        steps.ask(run.model, state, None)
    with pytest.raises(InputError, match="codes"):
        steps.listen(models["stt"], mx.full((1, 8), 33), duplex.init_state(models["stt"], [0]), run.sampling)


# --- for hours ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "suffix"), [("hibiki", "_cfg3"), ("hibiki_zero", ""), ("stt", ""), ("plain_2026", "")]
)
def test_ten_thousand_steps(models, kind, suffix):
    """Memory is flat, and the end is what a young conversation makes of as much as reaches the end at all."""
    run = Run(models[kind], kind, suffix)
    config = run.model.config
    frames = np.random.default_rng(3).integers(0, config.audio_vocab_size, (10_000, 1, config.user_codebooks))
    compiled, state, told, memory = mx.compile(run.call), run.begin(), [], []
    reach = config.num_hidden_layers * config.sliding_window + 2 * max(1, *config.audio_delays)
    for n, frame in enumerate(frames):
        if n >= len(frames) - reach:
            told.append((state["text"], state.get("own")))
        out, state = compiled(state, mx.array(frame))
        mx.eval(out, state)
        if n in (2_000, 9_999):
            memory.append(mx.get_active_memory())
    assert memory[1] - memory[0] < 200_000
    young = run.begin()
    _, young = compiled(young, mx.array(frames[0]))
    for frame, (text, own) in zip(frames[-reach:], told, strict=True):
        young = {**young, "text": text, **({} if own is None else {"own": own})}
        last, young = compiled(young, mx.array(frame))
    np.testing.assert_array_equal(np.array(last[0]), np.array(out[0]))
    np.testing.assert_allclose(np.array(last[1]), np.array(out[1]), atol=1e-3)
