"""The duplex step against Kyutai's PyTorch package, batched, compiled and exported."""

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS, GREEDY, check_tokens, delays, golden, question, run_codes
from mlx.utils import tree_map

import moshi_mlx
from moshi_mlx import DuplexSampling, Sampling
from moshi_mlx.conversation import duplex
from moshi_mlx.conversation.duplex import Reply
from moshi_mlx.models import state

LM = golden("lm")
SOUND = golden("sound")
GREEDY_STEP = DuplexSampling(Sampling(temperature=0), Sampling(temperature=0))


def case(name):
    return {key: LM[f"{name}.{key}"] for key in ("text", "audio")}


@pytest.mark.parametrize(
    ("name", "changes"),
    [("delay1", {}), ("delay2", {"delays": delays(2)}), ("context10", {"context": 10})],
)
def test_tokens_equal_the_reference(checkpoint, name, changes):
    model = moshi_mlx.load(checkpoint(**changes), dtype=mx.float32)
    check_tokens(run_codes(model, LM["user"]), case(name))


def test_shared_depth_weights_and_low_rank_embeddings(checkpoint):
    model = moshi_mlx.load(checkpoint("moshi_schedule"), dtype=mx.float32)
    slices = model.depth_decoder.slices
    assert slices[2].transformer is slices[3].transformer
    assert slices[0].transformer is not slices[1].transformer
    check_tokens(run_codes(model, LM["user"][:, :100]), case("schedule"))


def test_no_input_tokens(model):
    user = LM["user"].copy()
    user[:, 20:40] = -1
    check_tokens(run_codes(model, user), case("zero"))


def test_text_logits_equal_the_reference(model):
    """All positions in one call, with the tokens that the reference chose.

    Its own logits move by 1e-4 between float32 and float64 weights: their spread is 8, and attention is sharp.
    """
    text, audio = LM["delay1.text"], LM["delay1.audio"]
    length = text.shape[0]
    columns = np.concatenate([text[None], audio, LM["user"]])  # [17, T], stream indices
    shifts = 1 + np.array([0, *model.config.audio_delays])
    tokens = np.tile(np.array([[64]] + [[32]] * 16), (1, length))
    for row, shift in enumerate(shifts):
        tokens[row, shift:] = columns[row, : length - shift]
    cache = model.decoder.model.init_state(1, positions=length)
    _, logits, _ = model.decoder.step(mx.array(tokens[None]), cache)
    np.testing.assert_allclose(np.array(logits)[0], LM["delay1.text_logits"][:length], atol=1e-3)


def test_sound_to_sound_equals_the_reference(model):
    sound = np.concatenate([question(), np.zeros(12 * 1920, np.float32)])
    session = model.session(**GREEDY)
    frames = [session.step(frame) for frame in sound.reshape(-1, 1920)]
    assert len(question()) / 24000 > 3
    stream = model.audio_encoder.stream(8)
    np.testing.assert_array_equal(stream.encode(sound), SOUND["user_codes"])
    check_tokens(frames, SOUND)
    reply = np.concatenate([frame.pcm for frame in frames])
    head, tail = SOUND["pcm_head"].ravel(), SOUND["pcm_tail"].ravel()
    peak = np.abs(reply).max()
    np.testing.assert_allclose(reply[: len(head)], head, atol=1e-4 * peak)
    np.testing.assert_allclose(reply[-len(tail) :], tail, atol=1e-4 * peak)


def primed(model, seeds, sampling):
    _, primed_state = duplex.prime(model, duplex.init_state(model, seeds), sampling)
    return primed_state


def steps(model, sounds, conversation, sampling, function=duplex.step):
    """Replies to sounds [T, B, 1920], evaluated frame by frame, and the last state."""
    replies = []
    for sound in sounds:
        reply, conversation = function(model, mx.array(sound), conversation, sampling)
        mx.eval(reply, conversation)
        replies.append(Reply(*(np.array(part) for part in reply)))
    return replies, conversation


@pytest.mark.parametrize("sampling", [GREEDY_STEP, DuplexSampling()])
@pytest.mark.parametrize("delay", [1, 2])
def test_two_conversations_in_one_batch_one_joining_late(checkpoint, delay, sampling):
    model = moshi_mlx.load(checkpoint(delays=delays(delay), context=10), dtype=mx.float32)
    frames = question().reshape(-1, 1, 1920)[:24]
    first, second = frames[:20], frames[4:21]
    alone = [steps(model, sounds, primed(model, [seed], sampling), sampling)[0] for seed, sounds in
             ((1, first), (2, second))]  # fmt: skip
    early, one = steps(model, first[:3], primed(model, [1], sampling), sampling)
    both = state.stack([one, primed(model, [2], sampling)])
    late, _ = steps(model, np.concatenate([first[3:], second], axis=1), both, sampling)
    for row, (expected, got) in enumerate(zip(alone, ([*early, *late], late), strict=True)):
        for n, (a, b) in enumerate(zip(expected, got, strict=True)):
            at = row if len(b.text) == 2 else 0
            assert a.text[0] == b.text[at]
            assert a.ready[0] == b.ready[at] == (n + 1 >= delay)
            if a.ready[0]:
                np.testing.assert_array_equal(a.codes[0], b.codes[at])
                np.testing.assert_allclose(a.sound[0], b.sound[at], atol=1e-5)


def test_a_paused_conversation_is_one_where(model):
    frames = question().reshape(-1, 1, 1920)[:10]
    expected, _ = steps(model, frames, primed(model, [1], GREEDY_STEP), GREEDY_STEP)
    conversation, got = primed(model, [1], GREEDY_STEP), []
    for n, frame in enumerate(frames):
        if n == 4:  # the pause: a step that is taken back
            _, after = duplex.step(model, mx.array(frames[0]), conversation, GREEDY_STEP)
            conversation = state.where(mx.array([False]), after, conversation)
        replies, conversation = steps(model, [frame], conversation, GREEDY_STEP)
        got += replies
    assert [r.text[0] for r in got] == [r.text[0] for r in expected]
    np.testing.assert_array_equal(np.stack([r.codes for r in got]), np.stack([r.codes for r in expected]))


def test_take_undoes_stack(model):
    states = [primed(model, [seed], DuplexSampling()) for seed in (1, 2)]
    for n, one in enumerate(states):
        again = state.take(state.stack(states), n)
        for (name, a), (_, b) in zip(state.flatten(one), state.flatten(again), strict=True):
            assert mx.array_equal(a, b), name


@pytest.mark.parametrize("sampling", [GREEDY_STEP, DuplexSampling()])
def test_compiled_equals_eager(model, sampling):
    frames = question().reshape(-1, 1, 1920)[:20]
    compiled = mx.compile(lambda sound, conversation: duplex.step(model, sound, conversation, sampling))
    eager, _ = steps(model, frames, primed(model, [3], sampling), sampling)
    fast, _ = steps(model, frames, primed(model, [3], sampling), sampling, lambda m, x, s, _: compiled(x, s))
    for a, b in zip(eager, fast, strict=True):
        assert a.text[0] == b.text[0]
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_allclose(a.sound, b.sound, atol=1e-5)


@pytest.mark.parametrize("views", [False, True], ids=["as loaded", "views, as on Metal"])
def test_exported_step_fed_its_own_state_gives_equal_tokens(model, tmp_path, views):
    if views:
        model = moshi_mlx.load(GOLDENS / "moshi_tiny", dtype=mx.float32)
        model.update(tree_map(lambda w: mx.contiguous(w.T).T if w.ndim == 2 else w, model.parameters()))
        mx.eval(model.parameters())
    sound = np.tile(question(), 2).reshape(-1, 1, 1920)[:50]
    sampling = DuplexSampling()
    expected, _ = steps(model, sound, primed(model, [7], sampling), sampling)
    path = tmp_path / "step.mlxfn"
    with pytest.warns(DeprecationWarning, match=r"moshi_mlx\.export"):
        count = moshi_mlx.export_step(model, path, sampling, seed=7)
    saved = mx.load(str(path.with_suffix(".safetensors")))
    leaves = [saved[name] for name in sorted(saved)]
    assert len(leaves) == count
    imported = mx.import_function(str(path))
    for frame, reply in zip(sound, expected, strict=True):
        text, codes, pcm, ready, *leaves = imported(mx.array(frame), *leaves)
        mx.eval(text, codes, pcm, ready, leaves)
        assert text.item() == reply.text[0]
        np.testing.assert_array_equal(np.array(codes), reply.codes)
        np.testing.assert_allclose(np.array(pcm), reply.sound, atol=1e-5)


def test_initial_tokens_come_before_the_start_of_a_stream(model, monkeypatch):
    seen, call = [], moshi_mlx.MoshiForCausalLM.step

    def spy(self, tokens, cache):
        seen.append(np.array(tokens[0, :, 0]))
        return call(self, tokens, cache)

    monkeypatch.setattr(moshi_mlx.MoshiForCausalLM, "step", spy)
    conversation = primed(model, [0], GREEDY_STEP)
    for n in range(3):
        _, conversation = duplex.step_codes(model, mx.full((1, 8), n + 1), conversation, GREEDY_STEP)
    assert (seen[0] == [64, *[32] * 16]).all()  # position 0 sees initial tokens alone
    assert (seen[1][9:] == [1, *[32] * 7]).all()  # position 1 sees user frame 0 in codebook 0
    assert (seen[2][9:] == [2, *[1] * 7]).all()  # and a frame later in the delayed ones
