"""A prefill is the same as its positions one by one, whatever its length, delays and place in the ring."""

import mlx.core as mx
import numpy as np
import personaplex
import pytest
from helpers import GREEDY
from personaplex import DELAY_2, SIZES, STUB

import moshi_mlx
from moshi_mlx import InputError
from moshi_mlx.conversation import duplex, prompt
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.models.layers import cache
from moshi_mlx.models.sampling import Sampling

SAMPLING = DuplexSampling(Sampling(temperature=0), Sampling(temperature=0))
MIXED = SIZES | {"delays": [0, *[0, 2, 1, 3, 1, 2, 2, 0] * 2], "dep_q": 16}


@pytest.fixture(scope="module", params=[SIZES, DELAY_2, MIXED], ids=["delay 1", "delay 2", "mixed delays"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt") / "model"
    return moshi_mlx.load(personaplex.write(folder, STUB | request.param, request.param))


def columns_of(model, length):
    config, random = model.config, np.random.RandomState(length)
    columns = random.randint(0, 60, (17, length)).astype(np.int32)
    columns[:, 0] = [config.vocab_size, *[config.audio_vocab_size] * 16]
    return columns


def one_by_one(model, columns):
    """The state after every position was a step of its own, with what the columns say in the place of draws."""
    own, _ = duplex.delays_of(model.config)
    state, length = duplex.init_state(model, [0]), columns.shape[1]
    for position in range(length):
        user = np.maximum(columns[9:, position], 0) % model.config.audio_vocab_size
        text, heard = duplex.hear_codes(model, mx.array(user[None]), state, SAMPLING)
        if position + 1 < length:
            text = mx.array(columns[:1, position + 1])
        back = [position + 1 - delay for delay in own]
        said = [int(columns[1 + k, n]) if 1 <= n < length else -1 for k, n in enumerate(back)]
        _, state = duplex.speak(model, text, heard, SAMPLING, mx.array([said]))
        mx.eval(state)
    return state


@pytest.mark.parametrize("length", [2, 5, 90])
def test_prefill_is_its_steps(model, length):
    columns = columns_of(model, length)
    made = prompt.prefill(model, prompt.Columns(columns[None], np.array([length])))
    assert made.capacity == made.length == length
    stepped = one_by_one(model, columns)
    begun = prompt.begin(model, prompt.grown(made, model.config.sliding_window), [0], SAMPLING)
    begun |= {name: stepped[name] for name in ("encoder", "decoder")}
    np.testing.assert_array_equal(np.array(begun["text"]), np.array(stepped["text"]))
    random = np.random.RandomState(1)
    for n in range(1, 12):
        user = mx.array(random.randint(0, 2048, (1, 8)))
        known = prompt.known(model, made, n)
        replies = []
        for state in (begun, stepped):
            reply, after = duplex.step_codes(model, user, state, SAMPLING, *known)
            state.clear()
            state.update(after)
            replies.append(reply)
        for name in ("text", "codes") if replies[1].ready.item() else ("text",):
            got, wanted = (np.array(getattr(reply, name)) for reply in replies)
            np.testing.assert_array_equal(got, wanted, err_msg=f"{name} {n}")


def test_a_session_begins_from_any_length(model):
    for length in (2, 89, 90):
        columns = columns_of(model, length)
        made = prompt.prefill(model, prompt.Columns(columns[None], np.array([length])))
        session = model.session(prompt=made, progress=False, **GREEDY)
        for _ in range(10):
            frame = session.step_codes(np.zeros(8, int))
        assert frame.pcm is not None
    with pytest.raises(InputError, match="90 frames, but the context is 80"):
        model.session(prompt=made, context=80)


def test_what_is_no_prompt_is_refused(model):
    columns = np.stack([columns_of(model, 5)] * 2)
    two = prompt.prefill(model, prompt.Columns(columns, np.array([5, 5])))
    for odd in (two, 3, "", columns):
        with pytest.raises(InputError, match="prompt"):
            model.session(prompt=odd)


def test_caches_are_packed_as_they_are_written():
    pairs = mx.random.normal((1, 2, 2, 5, 64), key=mx.random.key(0))
    whole = cache.packed({"pairs": pairs}, 8)
    stepped = cache.create(1, 2, 5, 64, mx.float32, 8)
    for n in range(5):
        slot = mx.array([[[[n]]]])
        stepped = cache.write(stepped, slot, pairs.swapaxes(1, 2)[..., n : n + 1, :])
    assert whole.keys() == stepped.keys()
    for name, part in whole.items():
        assert mx.array_equal(part, stepped[name]), name
