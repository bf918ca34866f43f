"""Attention to what is fixed: a layer's against NumPy, from the published tensors; a voice of a row is that row's."""

import mlx.core as mx
import numpy as np
import pytest
from family import FAMILY, Run, loaded, voice_of_golden

from moshi_mlx.conversation import duplex
from moshi_mlx.roles import steps

DIM, HEADS = 32, 4


@pytest.fixture(scope="module")
def tts():
    return loaded("tts")


def by_hand(tensors, layer, x, source):
    """norm_cross, queries, keys and values, softmax, output: float64 [B, T, dim]."""
    start = f"transformer.layers.{layer}."
    named = {name.removeprefix(start): np.array(t, np.float64) for name, t in tensors.items() if name.startswith(start)}
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    normed = (x - mean) / np.sqrt(variance + 1e-5) * named["norm_cross.weight"] + named["norm_cross.bias"]
    q, _, _ = np.split(normed @ named["cross_attention.in_proj_weight"].T, 3, axis=-1)
    _, k, v = np.split(source @ named["cross_attention.in_proj_weight"].T, 3, axis=-1)
    q, k, v = (part.reshape(*part.shape[:2], HEADS, -1).transpose(0, 2, 1, 3) for part in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(DIM / HEADS)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return out.transpose(0, 2, 1, 3).reshape(x.shape) @ named["cross_attention.out_proj.weight"].T


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer(tts, layer, length):
    source, random = np.random.default_rng(1).normal(size=(2, 7, DIM)), np.random.default_rng(2)
    x = random.normal(size=(2, length, DIM))
    one = tts.decoder.model.transformer.layers[layer]
    fixed = one.cross_attention.keys_values(mx.array(source.astype(np.float32)))
    got = one.cross_attention(one.norm_cross(mx.array(x.astype(np.float32))), fixed)
    expected = by_hand(mx.load(str(FAMILY / "tts" / "model.safetensors")), layer, x, source)
    np.testing.assert_allclose(np.array(got), expected, atol=1e-4)


def test_a_row_has_its_own_voice(tts):
    """Voices are parts of the state: beside another, and in its place, each is what it is alone."""
    run = Run(tts, "tts")
    vectors, mask = voice_of_golden()
    voices = [{"speaker_wavs": (vectors, mask)}, {"speaker_wavs": (vectors[::-1] + 1, mask[::-1])}]
    alone = [run.begin(conditions=voice) for voice in voices]
    both = run.begin(rows=2)
    both["temporal"]["cross"] = [
        {name: mx.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*(state["temporal"]["cross"] for state in alone), strict=True)
    ]
    each = [run.drawn(state=state) for state in alone]
    assert not np.array_equal(each[0][1], each[1][1])
    for row in (0, 1):
        for got, expected in zip(run.drawn(row, both), each[row], strict=True):
            np.testing.assert_array_equal(got, expected)
    run.check(*each[0])


def test_empty_slots_are_attended(tts):
    """What the mask hides is the learnt vector, and not left out: five slots differ from one."""
    run = Run(tts, "tts")
    vectors, mask = voice_of_golden()
    five = run.begin()
    one = duplex.init_state(tts, [0], conditions={"speaker_wavs": (vectors[:5], mask[:5])})
    hidden = [np.array(steps.ask(tts, state, run.sampling)[1]["hidden"]) for state in (five, one)]
    assert np.abs(hidden[0] - hidden[1]).max() > 1e-3
