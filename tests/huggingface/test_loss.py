"""The training loss against Kyutai's package, its masks, and its gradients against finite differences."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers import delays, golden
from mlx.utils import tree_flatten

import moshi_mlx
from moshi_mlx import InputError
from moshi_mlx.checkpoints.filling import module_at
from moshi_mlx.models.losses import cross_entropy

LOSS = golden("loss")
LENGTHS = (20, 13, 2)


def arguments(streams):
    """Streams [B, 17, T] as inputs and labels."""
    text, own, user = streams[:, 0], streams[:, 1:9], streams[:, 9:]
    return {
        "input_ids": text, "moshi_audio_codes": own, "user_audio_codes": user, "text_labels": text,
        "audio_labels": own,
    }  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """A small model with random weights of its own, large enough to be curved, in float32."""
    mimi = moshi_mlx.MimiConfig(
        hidden_size=8, num_filters=1, codebook_size=8, codebook_dim=4, num_quantizers=3, num_hidden_layers=1,
        num_attention_heads=1, intermediate_size=8,
    )  # fmt: skip
    return moshi_mlx.MoshiForConditionalGeneration(
        moshi_mlx.MoshiConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            num_codebooks=2, ffn_dim=12, sliding_window=3, initializer_range=0.4, audio_encoder_config=mimi,
            depth_decoder_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 12},
        )
    )  # fmt: skip


def small_streams(seed=0, batch=2, length=6):
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(0, 11, (batch, length)),
        "moshi_audio_codes": rng.integers(0, 8, (batch, 2, length)),
        "user_audio_codes": rng.integers(0, 8, (batch, 2, length)),
    }


@pytest.mark.parametrize("delay", [1, 2])
def test_loss_equals_kyutais(checkpoint, delay):
    model = moshi_mlx.load(checkpoint(delays=delays(delay)), dtype=mx.float32)
    out = model(**arguments(LOSS["streams"]))
    np.testing.assert_allclose(out.text_loss.item(), LOSS[f"delay{delay}.text_loss"], rtol=1e-5)
    np.testing.assert_allclose(out.depth_loss.item(), LOSS[f"delay{delay}.depth_loss"], rtol=1e-5)
    np.testing.assert_allclose(out.loss.item(), out.text_loss.item() + out.depth_loss.item(), rtol=1e-6)
    np.testing.assert_allclose(np.array(out.logits), LOSS[f"delay{delay}.text_logits"], atol=2e-3)
    audio = np.array(out.audio_logits)
    assert audio.shape == (3, 8, 20, 32)
    np.testing.assert_allclose(audio[:, :2], LOSS[f"delay{delay}.first_logits"], atol=2e-3)


def test_text_or_audio_alone(model):
    both = model(**arguments(LOSS["streams"]))
    for given, absent in [("text", "audio"), ("audio", "text")]:
        labels = {k: v for k, v in arguments(LOSS["streams"]).items() if k != f"{absent}_labels"}
        out = model(**labels)
        part = {"text": "text_loss", "audio": "depth_loss"}
        assert out.loss.item() == getattr(out, part[given]).item() == getattr(both, part[given]).item()
        assert getattr(out, part[absent]) is None


def test_labels_that_do_not_count(model):
    """-100, the initial token and targets of other indices leave the loss of the rest alone."""
    given = arguments(LOSS["streams"])
    text, audio = given["text_labels"].copy(), given["audio_labels"].copy()
    text[:, 3:], audio[:, :, 3:] = -100, -1
    some = model(**{**given, "text_labels": text, "audio_labels": audio})
    text[:, 3:], audio[:, :, 3:] = 64, 32
    again = model(**{**given, "text_labels": text, "audio_labels": audio})
    assert some.loss.item() == again.loss.item() != model(**given).loss.item()
    nothing = np.full_like(text, -1)
    assert model(**{**given, "text_labels": nothing, "audio_labels": np.full_like(audio, -1)}).loss.item() == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_rows_alone(model, side):
    streams = np.where(LOSS["streams"] < 0, 5, LOSS["streams"])
    mask = np.zeros((3, 20), int)
    rows = np.full_like(streams, 7)
    spans = [slice(0, n) if side == "right" else slice(20 - n, 20) for n in LENGTHS]
    for row, (span, length) in enumerate(zip(spans, LENGTHS, strict=True)):
        mask[row, span] = 1
        rows[row, :, span] = streams[row, :, :length]
    out = model(**arguments(rows), attention_mask=mask)
    sums = {"text_loss": 0.0, "depth_loss": 0.0}
    counts = {"text_loss": 0, "depth_loss": 0}
    for row, (span, length) in enumerate(zip(spans, LENGTHS, strict=True)):
        alone = model(**arguments(streams[row : row + 1, :, :length]))
        np.testing.assert_allclose(np.array(out.logits)[row, span], np.array(alone.logits)[0], atol=1e-3)
        # of the delayed codebooks, index length - 1 has logits in the padding, which the row alone has not
        theirs, ours = np.array(alone.audio_logits)[0], np.array(out.audio_logits)[row][:, span]
        np.testing.assert_allclose(ours[:, :-1], theirs[:, :-1], atol=1e-3)
        for part, count in (("text_loss", length), ("depth_loss", length + 7 * (length - 1))):
            sums[part] += getattr(alone, part).item() * count
            counts[part] += count
    for part, total in sums.items():
        np.testing.assert_allclose(getattr(out, part).item(), total / counts[part], rtol=1e-5)


def test_gradients_equal_finite_differences(small):
    streams = small_streams()
    streams["user_audio_codes"][0, :, 2] = -1
    labels = {"text_labels": streams["input_ids"], "audio_labels": streams["moshi_audio_codes"]}
    mask = np.array([[1] * 6, [0, 0, 1, 1, 1, 1]])

    def loss(model):
        return model(**streams, **labels, attention_mask=mask).loss

    _, gradients = nn.value_and_grad(small, loss)(small)
    rng = np.random.default_rng(1)
    checked = 0
    parameters = {}
    for name, gradient in tree_flatten(gradients):  # of what several steps share, one of the names has the gradient
        place, leaf = module_at(small, name)
        before = parameters.get((id(place), leaf), (name, place, leaf, 0))[-1]
        parameters[id(place), leaf] = (name, place, leaf, before + gradient)
    for name, place, leaf, gradient in parameters.values():
        weight = place[leaf]
        direction = mx.array(rng.standard_normal(weight.shape).astype(np.float32))
        step = 1e-2 / np.sqrt(direction.size)
        values = []
        for sign in (1, -1):
            place[leaf] = weight + sign * step * direction
            values.append(loss(small).item())
        place[leaf] = weight
        expected = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose((gradient * direction).sum().item(), expected, atol=6e-3, err_msg=name)
        checked += abs(expected) > 0.02
    assert checked > 12


def test_the_codec_is_frozen_and_the_depth_decoder_on_request(small):
    trainable = {name.split(".")[0] for name, _ in tree_flatten(small.trainable_parameters())}
    assert trainable == {"decoder", "depth_decoder"}
    small.freeze_depth_decoder()
    assert {name.split(".")[0] for name, _ in tree_flatten(small.trainable_parameters())} == {"decoder"}
    small.unfreeze()
    small.freeze_audio_encoder()
    assert {name.split(".")[0] for name, _ in tree_flatten(small.trainable_parameters())} == trainable


def test_sound_takes_part_without_gradient(small):
    sound = np.random.default_rng(3).standard_normal((2, 1, 6 * 1920)).astype(np.float32)
    streams = small_streams()
    del streams["user_audio_codes"]

    def loss(model):
        labels = {"text_labels": streams["input_ids"], "audio_labels": streams["moshi_audio_codes"]}
        return model(**streams, user_input_values=mx.array(sound), **labels).loss

    value, gradients = nn.value_and_grad(small, loss)(small)
    codes = small.audio_encoder.encode(mx.array(sound), num_quantizers=2).audio_codes
    assert value.item() == pytest.approx(loss(small).item(), rel=1e-6)  # another graph adds in another order
    streams["user_audio_codes"] = codes
    labels = {"text_labels": streams["input_ids"], "audio_labels": streams["moshi_audio_codes"]}
    assert value.item() == pytest.approx(small(**streams, **labels).loss.item(), rel=1e-6)
    assert all(mx.isfinite(g).all() for _, g in tree_flatten(gradients))


def test_a_compiled_training_step_equals_an_eager_one(small):
    streams = {name: mx.array(value) for name, value in small_streams(2).items()}

    def loss(streams):
        labels = {"text_labels": streams["input_ids"], "audio_labels": streams["moshi_audio_codes"]}
        return small(**streams, **labels).loss

    np.testing.assert_allclose(mx.compile(loss)(streams).item(), loss(streams).item(), rtol=1e-5)


def test_cross_entropy_of_nothing_is_zero_and_so_is_its_gradient():
    logits = mx.array([[1.0, 2.0]])
    value, gradient = mx.value_and_grad(lambda x: cross_entropy(x, mx.array([-1])))(logits)
    assert value.item() == 0
    assert (np.array(gradient) == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_labels": np.zeros((2, 5), int)}, "text_labels: got shape [2, 5], expected [2, 6]"),
        ({"audio_labels": np.zeros((2, 3, 6), int)}, "audio_labels: got shape [2, 3, 6], expected [2, 2, 6]"),
        ({"text_labels": np.full((2, 6), 12)}, "text_labels: got values from 12 to 12, expected -100 to 11"),
        ({"audio_labels": np.zeros((2, 2, 6))}, "audio_labels: got float32, expected whole numbers"),
        ({"inputs_embeds": mx.zeros((2, 6, 8))}, "expected whole streams beside them"),
        ({"input_ids": np.zeros((2, 5), int)}, "got input_ids 2 rows of 5, moshi_audio_codes 2 rows of 6"),
        ({"user_audio_codes": np.full((2, 2, 6), 9)}, "user_audio_codes: got values from 9 to 9, expected -1 to 8"),
        ({"attention_mask": np.ones((2, 5))}, "attention_mask: got shape [2, 5], expected [2, 6]"),
    ],
)
def test_bad_labels_are_named(small, change, message):
    streams = small_streams()
    labels = {"text_labels": streams["input_ids"], "audio_labels": streams["moshi_audio_codes"]}
    with pytest.raises(InputError) as caught:
        small(**{**streams, **labels, **change})
    assert message in str(caught.value)
