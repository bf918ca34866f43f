"""What is saved or shared depends on values alone, not on how they lie in memory.

On Metal every plain matrix of a model rests as the transposed view of the published one, and what a conversation
hands out may be a part of something larger.
"""

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS, golden, question

import moshi_mlx
from moshi_mlx.checkpoints import layouts, writing
from moshi_mlx.checkpoints.safetensors import as_mx, as_stored, info_of, load_lazily
from moshi_mlx.conversation import duplex
from moshi_mlx.models import state as states
from moshi_mlx.models.layers import linear
from moshi_mlx.train.files import write_tensors


def views(dtype):
    """An array of 3 x 4 seen in every way that is not the way it lies in memory."""
    base = mx.arange(1, 25).reshape(4, 6).astype(dtype)
    seen = {
        "transposed": base.T, "every other": base[:, ::2], "middle": base[1:3, 2:5], "backwards": base[::-1],
        "repeated": mx.broadcast_to(base[:, :1], (4, 6)), "strided": mx.as_strided(base, (3, 4), (2, 5), 1),
        "moved": mx.moveaxis(base.reshape(2, 2, 6), 0, 2), "row": base[2],
    }  # fmt: skip
    mx.eval(seen)
    return seen


TYPES = [mx.float32, mx.bfloat16, mx.float16, mx.uint32, mx.int32, mx.uint8]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_file_of_views_holds_their_values(tmp_path, dtype):
    seen = views(dtype)
    write_tensors(tmp_path / "state.safetensors", seen, {})
    for read in (mx.load, lambda path: load_lazily(tmp_path / "state.safetensors")):
        for name, value in read(str(tmp_path / "state.safetensors")).items():
            assert mx.array_equal(value, mx.contiguous(seen[name])), name


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_view_through_numpy_and_back_is_the_same(dtype):
    for name, value in views(dtype).items():
        stored = as_stored(value)
        assert stored.shape == value.shape
        assert stored.tobytes() == as_stored(mx.contiguous(value)).tobytes(), name
        assert mx.array_equal(as_mx(stored, info_of(value).dtype), value), name


@pytest.fixture
def resting(monkeypatch):
    """The golden model with its matrices as Metal has them."""
    for module in (linear, layouts):
        monkeypatch.setattr(module, "resting", lambda weight: weight.T)
    model = moshi_mlx.load(GOLDENS / "moshi_tiny", dtype=mx.float32)
    monkeypatch.undo()
    return model


@pytest.mark.parametrize("layout", ["mlx", "kyutai", "huggingface"])
def test_a_model_of_views_is_written_as_any_other(resting, model, tmp_path, layout):
    for name, one in (("views", resting), ("plain", model)):
        writing.save(one, tmp_path / name, layout)
    written = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert sorted(path.name for path in (tmp_path / "views").iterdir()) == written
    for name in written:
        assert (tmp_path / "views" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name


def test_the_state_of_one_of_two_conversations_is_saved_whole(model, tmp_path):
    sampling = duplex.DuplexSampling()
    _, state = duplex.prime(model, duplex.init_state(model, [1, 2]), sampling)
    codes = mx.array(golden("lm")["user"][:, :2].T.astype(np.int32))
    for _ in range(3):
        _, state = duplex.step_codes(model, codes, state, sampling)
    second = states.take(state, 1)
    mx.eval(second)
    leaves = states.flatten(second)
    mx.save_safetensors(str(tmp_path / "state.safetensors"), dict(leaves))
    read = mx.load(str(tmp_path / "state.safetensors"))
    restored = states.unflatten([(name, read[name]) for name, _ in leaves])
    after = [duplex.step_codes(model, codes[1:], one, sampling)[0] for one in (second, restored)]
    assert all(mx.array_equal(a, b) for a, b in zip(*after, strict=True))


def test_what_a_frame_hands_out_stays_as_it_was(model):
    session = model.session()
    sound = question().reshape(-1, 1920)
    session.step(sound[0])
    frame = session.step(sound[1])
    pcm, codes = frame.pcm.copy(), frame.audio_codes.copy()
    for given in sound[2:8]:
        session.step(given)
    np.testing.assert_array_equal(frame.pcm, pcm)
    np.testing.assert_array_equal(frame.audio_codes, codes)
    frame.pcm[:] = 0  # the user's own


def test_what_is_handed_in_may_change_afterwards(model):
    """A buffer that a program fills anew for every frame."""
    sound, buffer = question().reshape(-1, 1920)[:6], np.empty(1920, np.float32)
    reused, plain = model.session(), model.session()
    for given in sound:
        buffer[:] = given
        got = reused.step(buffer)
        buffer[:] = np.nan
        expected = plain.step(given)
        np.testing.assert_array_equal(got.audio_codes, expected.audio_codes)
    assert reused.nonfinite_samples == 0
