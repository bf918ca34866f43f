"""The public face of a conversation."""

import os
import resource
import subprocess
import sys
import tempfile

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS, GREEDY, ROOT, check_tokens, golden, question, run_codes

import moshi_mlx
from moshi_mlx import InputError, Session
from moshi_mlx.conversation import duplex
from moshi_mlx.conversation import session as session_module
from moshi_mlx.models import state
from moshi_mlx.models.layers import cache

LM = golden("lm")


def frames_of(session, count=10):
    return [session.step(frame) for frame in question().reshape(-1, 1920)[:count]]


def same(a, b):
    return all(
        x.text_token == y.text_token
        and x.text == y.text
        and np.array_equal(x.audio_codes, y.audio_codes)
        and np.array_equal(x.pcm, y.pcm)
        for x, y in zip(a, b, strict=True)
    )


def test_a_frame_is_what_the_docs_say(model):
    session = model.session()
    frame = session.step(question()[:1920])
    assert isinstance(session, Session)
    assert (session.frame_size, session.sample_rate) == (1920, 24000)
    assert frame.pcm.dtype == np.float32
    assert frame.pcm.shape == (1920,)
    assert frame.audio_codes.dtype == np.int32
    assert frame.audio_codes.shape == (8,)
    assert isinstance(frame.text, str)
    assert isinstance(frame.text_token, int)


def test_codes_are_those_of_the_sound(model):
    frames = frames_of(model.session())
    codes = np.stack([f.audio_codes for f in frames], axis=1)
    decoded = model.audio_encoder.stream().decode(codes)
    np.testing.assert_allclose(np.concatenate([f.pcm for f in frames]), decoded, atol=1e-5)


def test_step_and_step_codes_are_the_same_conversation(model):
    sound = question()[: 10 * 1920]
    codes = model.audio_encoder.stream(8).encode(sound)
    assert same(frames_of(model.session()), run_codes(model, codes, temperature=0.8, text_temperature=0.7))


def test_no_pcm_while_the_delay_fills(checkpoint):
    from helpers import delays

    model = moshi_mlx.load(checkpoint(delays=delays(3)), dtype=mx.float32)
    frames = frames_of(model.session(), 5)
    assert [f.pcm is None for f in frames] == [True, True, False, False, False]
    assert [f.audio_codes is None for f in frames] == [True, True, False, False, False]


def test_reset_equals_a_new_session_and_covers_every_leaf(model):
    session = model.session(seed=4)
    fresh = state.flatten(duplex.init_state(model, [4]))
    before = frames_of(session)
    moved = dict(state.flatten(session._state))
    assert set(moved) == {name for name, _ in fresh}
    for name, leaf in fresh:  # every leaf has something to reset
        assert not mx.array_equal(moved[name], leaf), name
    session.reset()
    assert same(frames_of(session), before)
    assert same(frames_of(model.session(seed=4)), before)


def test_seeds_make_different_conversations(model):
    one, two = (frames_of(model.session(seed=seed)) for seed in (1, 2))
    assert not same(one, two)


def test_sessions_do_not_disturb_each_other(model):
    expected = frames_of(model.session(seed=1))
    a, b = model.session(seed=1), model.session(seed=2)
    got = []
    for frame in question().reshape(-1, 1920)[:10]:
        got.append(a.step(frame))
        b.step(frame)
    assert same(got, expected)


def test_a_small_first_cache_grows_without_a_trace(model, monkeypatch):
    monkeypatch.setattr("moshi_mlx.conversation.session.FIRST_CAPACITY", 4)
    frames = run_codes(model, LM["user"])  # context 64: 4, 8, 16, 32, 64, then the ring wraps
    check_tokens(frames, {"text": LM["delay1.text"], "audio": LM["delay1.audio"]})


def test_a_full_ring_from_the_start_says_the_same(model, monkeypatch):
    """As on a GPU, whose attention skips what is not seen yet."""
    monkeypatch.setattr(session_module, "FIRST_CAPACITY", 4)
    monkeypatch.setattr(session_module, "reads_unseen_slots", lambda head_dim, kv_bits: False)
    session = model.session(**GREEDY)
    assert cache.capacity_of(session._state["temporal"]["layers"][0]) == 64
    check_tokens(run_codes(model, LM["user"]), {"text": LM["delay1.text"], "audio": LM["delay1.audio"]})


def test_growing_traces_nothing_anew(model, monkeypatch):
    monkeypatch.setattr("moshi_mlx.conversation.session.FIRST_CAPACITY", 4)
    traces, step = [], duplex.step
    monkeypatch.setattr(duplex, "step", lambda *arguments: (traces.append(1), step(*arguments))[1])
    session = model.session()
    sound = question().reshape(-1, 1920)
    session.step(sound[0])
    before = len(traces)
    for frame in np.tile(sound, (2, 1))[:70]:  # past 8, 16, 32 and the whole context of 64
        session.step(frame)
    assert len(traces) == before


@pytest.mark.parametrize(("on_cpu", "head_dim", "kv_bits", "expected"), [
    (True, 128, None, [256, 512, 1000]),  # the CPU's product reads hidden keys
    (True, 128, 8, [256, 512, 1000]),
    (False, 128, None, [1000]),  # Metal's kernel does not
    (False, 64, None, [1000]),
    (False, 128, 8, [256, 512, 1000]),  # but a quantized product does
    (False, 32, None, [256, 512, 1000]),  # and so does the fallback for heads that it has no kernel for
])  # fmt: skip
def test_a_ring_grows_where_attention_reads_what_it_does_not_see(monkeypatch, on_cpu, head_dim, kv_bits, expected):
    monkeypatch.setattr("moshi_mlx.models.layers.cache.on_cpu", lambda: on_cpu)
    assert session_module.capacities(1000, head_dim, kv_bits) == expected
    assert session_module.capacities(100, head_dim, kv_bits) == [100]


COUNT_KERNELS = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, "tests")
import mlx.core as mx, numpy as np
import moshi_mlx
from moshi_mlx.conversation import session
session.FIRST_CAPACITY = 4  # then 8, 16, 32 and the context of 64
def built():
    return {path.name for path in Path(tempfile.gettempdir()).rglob("*") if path.is_file()}
model = moshi_mlx.load(sys.argv[1], dtype=mx.float32)
for settings in {}, {"kv_bits": 8}, {"on_text": lambda token: token}:
    talk = model.session(**settings)
    before = built()
    assert len(before) > 10  # so many are counted here
    for n in range(70):
        talk.step(np.full(1920, n / 70, np.float32))
    talk.reset()
    for n in range(70):
        talk.step_codes(np.full(8, n % 32))
    assert built() == before, (settings, built() - before)
"""


@pytest.mark.slow
def test_making_a_session_builds_every_kernel_of_its_frames(checkpoint):
    """With an empty kernel cache: on the CPU, MLX writes each kernel that it builds to the temporary folder."""
    folder = checkpoint(num_heads=1)  # one head of 32: what 8 bits need
    with tempfile.TemporaryDirectory() as empty:
        run = [sys.executable, "-c", COUNT_KERNELS, str(folder)]
        done = subprocess.run(run, env={**os.environ, "TMPDIR": empty}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_smaller_context_is_that_window_exactly(checkpoint):
    """The conversation of a model whose own context is 24, and of one of 64 that is asked to remember 24."""
    small = moshi_mlx.load(checkpoint(context=24), dtype=mx.float32)
    large = moshi_mlx.load(GOLDENS / "moshi_tiny", dtype=mx.float32)
    expected = run_codes(small, LM["user"][:, :80])
    assert same(run_codes(large, LM["user"][:, :80], context=24), expected)
    assert not same(run_codes(large, LM["user"][:, :80]), expected)


@pytest.mark.parametrize("context", [0, -1, 65, 1.5, True, "all"])
def test_a_context_that_cannot_be_is_named(model, context):
    with pytest.raises(InputError, match=r"context: got .*, expected 1 to 64 frames"):
        model.session(context=context)


def test_a_full_context_is_that_and_leaves_no_trace(model, monkeypatch):
    monkeypatch.setattr("moshi_mlx.conversation.session.FIRST_CAPACITY", 4)
    session = model.session(seed=3)
    expected = frames_of(session, 3)
    session.fill_context()
    assert cache.capacity_of(session._state["temporal"]["layers"][0]) == 64
    seen = cache.window(session._state["temporal"]["offset"], 1, 64, 64).mask
    assert np.array(seen).all()  # every slot is attended to
    session.step(question()[:1920])
    session.reset()
    assert same(frames_of(session, 3), expected)


def test_eight_bit_cache_in_a_session(checkpoint):
    folder = checkpoint(num_heads=1)  # one head of 32: what 8 bits need
    model = moshi_mlx.load(folder, dtype=mx.float32)
    session = model.session(kv_bits=8, **GREEDY)
    assert "keys_scales" in session._state["temporal"]["layers"][0]
    assert frames_of(session, 3)[-1].pcm.shape == (1920,)
    # Fed the same tokens, the text that it would choose is the same; left alone it would soon say something else.
    tokens = mx.array(np.random.default_rng(0).integers(0, 32, (1, 17, 60)))
    states = [model.decoder.model.init_state(1, positions=60, kv_bits=bits) for bits in (None, 8)]
    choices = [np.array(mx.argmax(model.decoder.step(tokens, s)[1], axis=-1)) for s in states]
    assert (choices[0] == choices[1]).mean() > 0.9
    with pytest.raises(InputError, match="kv_bits: got 3"):
        model.session(kv_bits=3)


def test_text_is_printed_once_and_padding_never(model):
    frames = run_codes(model, LM["user"][:, :199])
    tokens = LM["delay1.text"]  # the first of the 200 is the priming step's
    pieces = [model.tokenizer.id_to_piece(int(t)).replace("\u2581", " ") for t in tokens if t not in (0, 1, 2, 3)]
    assert "".join(frame.text for frame in frames) == "".join(pieces)
    assert all(frame.text == "" for frame in frames[1:] if frame.text_token in (0, 3))


def test_nonfinite_samples_are_silence_and_counted(model):
    broken, clean = question()[:1920].copy(), question()[:1920].copy()
    broken[[5, 6, 7]] = [np.nan, np.inf, -np.inf]
    clean[[5, 6, 7]] = 0
    a, b = model.session(), model.session()
    assert same([a.step(broken)], [b.step(clean)])
    assert (a.nonfinite_samples, b.nonfinite_samples) == (3, 0)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("step", np.zeros(1919, np.float32), "float32 of shape [1919], expected float32 of shape [1920]"),
        ("step", np.zeros((1, 1920), np.float32), "of shape [1, 1920]"),
        ("step", np.zeros(1920, np.int16), "got int16"),
        ("step", "hello", "pcm: got"),
        ("step", None, "pcm: got None"),
        ("step_codes", np.zeros(7, np.int32), "codes: got shape [7], expected [8]"),
        ("step_codes", np.zeros(8, np.float32), "got float32"),
        ("step_codes", np.full(8, 32), "values from 32 to 32, expected -1 to 31"),
        ("step_codes", np.full(8, -2), "values from -2 to -2"),
    ],
)
def test_wrong_input_is_named_and_changes_nothing(model, method, given, message):
    session = model.session()
    expected = frames_of(model.session(), 2)
    with pytest.raises(InputError) as caught:
        getattr(session, method)(given)
    assert message in str(caught.value)
    assert same(frames_of(session, 2), expected)


def test_default_sampling_is_the_references(model):
    expected = moshi_mlx.DuplexSampling(text=moshi_mlx.Sampling(0.7, 25), audio=moshi_mlx.Sampling(0.8, 250))
    assert model.session()._sampling == moshi_mlx.DuplexSampling() == expected


def test_wrong_settings_are_named(model):
    with pytest.raises(InputError, match="temperature: got -1"):
        model.session(temperature=-1)


def test_greedy_needs_no_seed(model):
    assert same(frames_of(model.session(seed=1, **GREEDY)), frames_of(model.session(seed=2, **GREEDY)))


def test_one_evaluation_a_frame(model, monkeypatch):
    session, calls, evaluate = model.session(), [], mx.eval
    monkeypatch.setattr(mx, "eval", lambda *trees: (calls.append(len(trees)), evaluate(*trees)))
    frames_of(session, 5)
    assert len(calls) == 5


def resident_bytes():
    """Resident memory now; on a Mac, where that cannot be read without a package, the peak, which bounds growth."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
def test_memory_is_flat_over_20000_frames(checkpoint):
    session = moshi_mlx.load(checkpoint(context=16), dtype=mx.float32).session()
    sound = question().reshape(-1, 1920)
    resident = []
    for n in range(20_000):
        session.step(sound[n % len(sound)])
        if n in (10_000, 19_999):
            resident.append(resident_bytes())
    assert resident[1] - resident[0] < 5e6


# The hook on the text


def test_hook_that_keeps_every_token_changes_nothing(model):
    plain, seen = frames_of(model.session(seed=2), 20), []
    session = model.session(seed=2, on_text=seen.append)  # append returns None
    hooked = frames_of(session, 20)
    assert seen == [frame.text_token for frame in hooked]
    assert [f.text_token for f in hooked] == [f.text_token for f in plain]
    np.testing.assert_array_equal([f.audio_codes for f in hooked], [f.audio_codes for f in plain])
    np.testing.assert_allclose([f.pcm for f in hooked], [f.pcm for f in plain], atol=1e-5)
    session.reset()
    assert same(frames_of(session, 20), hooked)


def test_forced_tokens_are_said_as_if_sampled(model):
    """Forcing what another seed samples makes the depth decoder answer to that text."""
    wanted = iter([5, 9, 11, 5, 20])
    plain = run_codes(model, LM["user"][:, :5])
    forced = run_codes(model, LM["user"][:, :5], on_text=lambda token: next(wanted))
    assert [frame.text_token for frame in forced] == [5, 9, 11, 5, 20]
    assert not same(forced, plain)
    pieces = [model.tokenizer.id_to_piece(t).replace("\u2581", " ") for t in (5, 9, 11, 5, 20)]
    assert "".join(f.text for f in forced).endswith("".join(pieces))
    # The same codes as those of the pure step, given that token between its halves.
    sampling = duplex.DuplexSampling(moshi_mlx.Sampling(0), moshi_mlx.Sampling(0))
    _, tree = duplex.prime(model, duplex.init_state(model, [0]), sampling)
    for column, token, frame in zip(LM["user"].T, (5, 9, 11, 5, 20), forced, strict=False):
        _, heard = duplex.hear_codes(model, mx.array(column[None].astype(np.int32)), tree, sampling)
        reply, tree = duplex.speak(model, mx.array([token]), heard, sampling)
        assert np.array(reply.codes)[0].tolist() == frame.audio_codes.tolist()


def test_gating_a_word(model):
    frames = frames_of(model.session(on_text=lambda token: None if token in (0, 3) else 3), 20)
    assert {frame.text_token for frame in frames} <= {0, 3}


@pytest.mark.parametrize("returned", [-1, 64, 1.5, "no", True])
def test_hook_that_returns_no_token_is_named(model, returned):
    with pytest.raises(InputError, match=r"on_text: returned .* expected None or a text token from 0 to 63"):
        frames_of(model.session(on_text=lambda token: returned), 1)


def test_hook_that_fails_leaves_a_conversation_that_goes_on(model):
    calls = []

    def once_broken(token):
        calls.append(token)
        if len(calls) == 3:
            raise ZeroDivisionError

    plain = frames_of(model.session(seed=2), 20)
    session = model.session(seed=2, on_text=once_broken)
    sound = question().reshape(-1, 1920)
    after = []
    for n, frame in enumerate(sound[:20]):
        if n == 2:
            with pytest.raises(ZeroDivisionError):
                session.step(frame)
        else:
            after.append(session.step(frame).text_token)
    assert after == [f.text_token for n, f in enumerate(plain) if n != 2]


def test_two_evaluations_a_frame_with_a_hook(model, monkeypatch):
    session, calls, evaluate = model.session(on_text=lambda token: None), [], mx.eval
    monkeypatch.setattr(mx, "eval", lambda *trees: (calls.append(len(trees)), evaluate(*trees)))
    frames_of(session, 5)
    assert len(calls) == 10


def test_reset_with_a_seed_is_a_new_session_with_that_seed(model):
    session, other = model.session(seed=1), model.session(seed=2)
    sound = question()[: 10 * 1920].reshape(-1, 1920)
    wanted = [other.step(frame).audio_codes.tolist() for frame in sound]
    first = [session.step(frame).audio_codes.tolist() for frame in sound]
    assert first != wanted
    session.reset(seed=2)
    assert [session.step(frame).audio_codes.tolist() for frame in sound] == wanted
    session.reset()  # keeps it
    assert [session.step(frame).audio_codes.tolist() for frame in sound] == wanted
