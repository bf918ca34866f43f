"""The codec against Kyutai's PyTorch package, streamed in chunks of any length and whole."""

import mlx.core as mx
import numpy as np
import pytest
from helpers import golden, question

import moshi_mlx
from moshi_mlx.errors import InputError

CODES = golden("mimi")


@pytest.fixture(scope="module")
def mimi(model):
    return model.audio_encoder


@pytest.mark.parametrize("chunk", [1920, 3 * 1920, 700, 10**6])
def test_stream_codes_equal_the_reference(mimi, chunk):
    stream, sound = mimi.stream(), question()
    codes = [stream.encode(sound[start : start + chunk]) for start in range(0, len(sound), chunk)]
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), CODES["codes"])


def test_whole_file_codes_equal_the_reference(mimi):
    np.testing.assert_array_equal(np.array(mimi.encode(mx.array(question()[None])).audio_codes)[0], CODES["codes"])


@pytest.mark.parametrize("count", [1, 5, 8, 10])
def test_fewer_codebooks_are_the_first_ones(mimi, count):
    codes = np.array(mimi.encode(mx.array(question()[None]), num_quantizers=count).audio_codes)[0]
    np.testing.assert_array_equal(codes, CODES["codes"][:count])


def tone():
    t = np.arange(28800) / 24000
    x = 0.3 * np.sin(2 * np.pi * 220 * t) * np.sin(2 * np.pi * 1.5 * t) + 0.1 * np.sin(2 * np.pi * 3111 * t)
    return x.astype(np.float32)


def test_codes_of_a_tone(mimi):
    np.testing.assert_array_equal(np.array(mimi.encode(mx.array(tone()[None])).audio_codes)[0], CODES["codes_tone"])


@pytest.mark.parametrize("chunk", [1, 3, 44])
def test_decoded_sound_equals_the_reference(mimi, chunk):
    stream, codes = mimi.stream(), CODES["codes8"]
    parts = [stream.decode(codes[:, start : start + chunk]) for start in range(0, codes.shape[1], chunk)]
    sound = np.concatenate(parts)
    peak = np.abs(sound).max()
    np.testing.assert_allclose(sound[: len(CODES["pcm"])], CODES["pcm"], atol=1e-4 * peak)
    np.testing.assert_allclose(sound[::32], CODES["pcm_every_32"], atol=1e-4 * peak)


def test_whole_file_decode_equals_streamed(mimi):
    codes = CODES["codes8"]
    whole = np.array(mimi.decode(mx.array(codes[None])).audio_values)[0, 0]
    np.testing.assert_allclose(whole, mimi.stream().decode(codes), atol=1e-5)


def test_window_is_exact_where_the_ring_wraps(checkpoint):
    folder = checkpoint()
    import json

    config = json.loads((folder / "mimi_config.json").read_text())
    config["transformer"]["context"] = 12
    (folder / "mimi_config.json").write_text(json.dumps(config))
    mimi = moshi_mlx.load(folder).audio_encoder
    codes = np.array(mimi.stream(8).encode(question()[: 37 * 1920]))
    np.testing.assert_array_equal(codes, CODES["window.codes"])
    sound = mimi.stream().decode(CODES["window.codes"])
    head, tail = CODES["window.pcm_head"], CODES["window.pcm_tail"]
    peak = np.abs(sound).max()
    np.testing.assert_allclose(sound[: len(head)], head, atol=1e-4 * peak)
    np.testing.assert_allclose(sound[-len(tail) :], tail, atol=1e-4 * peak)


def test_batched_sounds_equal_each_alone(mimi):
    sound = question()[: 20 * 1920].reshape(2, -1)
    both = np.array(mimi.encode(mx.array(sound)).audio_codes)
    for row, codes in zip(sound, both, strict=True):
        np.testing.assert_array_equal(np.array(mimi.encode(mx.array(row[None])).audio_codes)[0], codes)


def test_reset_forgets_every_leaf(mimi):
    stream, sound = mimi.stream(8), question()
    first = stream.encode(sound)
    reply = stream.decode(first)
    stream.encode(sound[:700])  # leaves a partial frame behind
    stream.reset()
    np.testing.assert_array_equal(stream.encode(sound), first)
    np.testing.assert_array_equal(stream.decode(first), reply)


def test_a_partial_frame_waits(mimi):
    stream = mimi.stream(8)
    assert stream.encode(question()[:1919]).shape == (8, 0)
    assert stream.encode(np.zeros(0, np.float32)).shape == (8, 0)
    assert stream.encode(question()[1919:1920]).shape == (8, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(mx.zeros((2, 2, 1920))), "expected [B, T] or [B, 1, T]"),
        (lambda m: m.encode(mx.zeros((1, 0))), "with T > 0"),
        (lambda m: m.encode(mx.zeros((1, 1920)), num_quantizers=11), "got 11 codebooks, expected 1 to 10"),
        (lambda m: m.decode(mx.zeros((1, 11, 3), mx.int32)), "got 11 codebooks"),
        (lambda m: m.decode(mx.zeros((8, 3), mx.int32)), "audio_codes: got shape [8, 3], expected [any, any, any]"),
        (lambda m: m.stream(0), "got 0 codebooks"),
        (lambda m: m.stream().encode(np.zeros((1, 1920))), "of shape [1, 1920], expected float32 of shape [any]"),
        (lambda m: m.stream().decode(np.zeros(8, int)), "codes: got shape [8], expected [any, any]"),
    ],
)
def test_wrong_shapes_are_named(mimi, call, message):
    with pytest.raises(InputError) as caught:
        call(mimi)
    assert message in str(caught.value)
