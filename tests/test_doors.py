"""Every public call that takes sound, codes, tokens, seeds or counts, and every wrong kind of each: one guard.

Two tables: the doors by what they take, and what is wrong of it. Each door is tried with each.
"""

import functools
import threading

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS, GREEDY, question

import moshi_mlx
from moshi_mlx import DuplexSampling, InputError, MoshiError
from moshi_mlx.conversation import duplex

SOUND = question()
FRAME, SAMPLING = SOUND[1920:3840], DuplexSampling()
COLUMN = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.int32)  # a code of each codebook
TEXT, CODES = np.array([[5, 9, 3, 3]], np.int32), np.tile(COLUMN[None, :, None], (1, 1, 4))
HIDDEN = np.zeros((1, 1, 32), np.float32)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    mx.disable_compile()  # compiling takes seconds on a CPU
    for maker in ("Session", "roles.transcribers.Transcribers"):
        monkeypatch.setattr(f"moshi_mlx.{maker}._build_kernels", lambda self, progress: None)
    yield
    mx.enable_compile()


def primed(model, seeds=(0,)):
    return duplex.prime(model, duplex.init_state(model, list(seeds)), SAMPLING)[1]


def generated(model, **given):
    prompt = {"input_ids": TEXT, "moshi_audio_codes": CODES, "user_audio_codes": CODES, **given}
    wanted = prompt.pop("max_new_tokens", 1)
    return model.generate(**prompt, max_new_tokens=wanted)


def spoken(model, text):
    _, heard = duplex.hear(model, mx.array(FRAME[None]), primed(model), SAMPLING)
    return duplex.speak(model, text, heard, SAMPLING)


def in_batch(model, sound):
    batch = model.batch(1, progress=False)
    return batch.step({batch.join(): sound})


@functools.cache
def stt():
    """The tiny model that transcribes."""
    return moshi_mlx.load(GOLDENS / "family" / "stt", dtype="float32")


def among_others(sound):
    people = stt().transcribers(2)
    return people.step({people.join(): sound})


# --- sound: float [frame], or [B, T] of one row ---------------------------------------------------------------------

FRAMES = {
    "Session.step": lambda m, x: m.session(**GREEDY).step(x),
    "MimiStream.encode": lambda m, x: m.audio_encoder.stream(8).encode(x),
    "Batch.step": lambda m, x: in_batch(m, x),
    "Transcriber.feed": lambda m, x: stt().transcriber().feed(x),
    "Transcribers.step": lambda m, x: among_others(x),
}
ROWS = {
    "duplex.step": lambda m, x: duplex.step(m, x, primed(m), SAMPLING),
    "duplex.hear": lambda m, x: duplex.hear(m, x, primed(m), SAMPLING),
    "MimiModel.encode": lambda m, x: m.audio_encoder.encode(x, num_quantizers=8),
    "MimiModel": lambda m, x: m.audio_encoder(x, num_quantizers=8),
    "forward, user": lambda m, x: m(user_input_values=x),
    "forward, Moshi": lambda m, x: m(moshi_input_values=x),
    "streams": lambda m, x: m.streams(user_input_values=x),
    "generate, user": lambda m, x: generated(
        m, user_audio_codes=None, user_input_values=x, input_ids=TEXT[:, :1], moshi_audio_codes=CODES[..., :1]
    ),
    "generate, Moshi": lambda m, x: generated(m, moshi_audio_codes=None, moshi_input_values=x, input_ids=TEXT[:, :1]),
}
NO_SOUND = {
    "16-bit": lambda x: (x * 32767).astype(np.int16),
    "whole numbers": lambda x: np.zeros_like(x, int),
    "unsigned bytes": lambda x: np.full_like(x, 128, np.uint8),
    "a list of whole numbers": lambda x: np.zeros_like(x, int).tolist(),
    "MLX's whole numbers": lambda x: mx.zeros(x.shape, mx.int32),
    "truth": lambda x: x > 0,
    "complex": lambda x: x + 1j,
    "words": lambda x: np.full(x.shape, "a"),
    "a word": lambda x: "sound.wav",
    "nothing": lambda x: None if x.ndim == 1 else [[None]],
    "objects": lambda x: np.full(x.shape, None),
    "ragged": lambda x: [[0.5], [0.5, 0.5]],
    "a number": lambda x: 0.5,
    "one more axis": lambda x: x[None, None, None],
    "samples by channels": lambda x: np.zeros((48000, 1), np.float32),
    "samples by 2 channels": lambda x: np.zeros((48000, 2), np.float32),
}


@pytest.mark.parametrize("kind", NO_SOUND)
@pytest.mark.parametrize("door", FRAMES | ROWS)
def test_what_is_no_sound_is_refused(model, door, kind):
    call, frame = (FRAMES | ROWS)[door], FRAME if door in FRAMES else FRAME[None]
    with pytest.raises(InputError, match=r"^(pcm|sounds?|(user_|moshi_)?input_values): got "):
        call(model, NO_SOUND[kind](frame))


@pytest.mark.parametrize("door", FRAMES | ROWS)
def test_sound_of_every_kind_is_sound(model, door):
    call, frame = (FRAMES | ROWS)[door], FRAME if door in FRAMES else FRAME[None]
    for kind in (np.float16, np.float64, np.longdouble, mx.array, np.ndarray.tolist, np.asfortranarray):
        call(model, kind(frame) if not isinstance(kind, type) or kind is mx.array else frame.astype(kind))
    call(model, mx.array(frame).astype(mx.bfloat16))


DAMAGED = [np.nan, np.inf, -np.inf, 1e39, -1e300, 3e38, 1e20]


def damaged(bad, frames=4):
    sound = SOUND[1920 : (1 + frames) * 1920].astype(np.float64)
    sound[100] = bad
    return sound


@pytest.mark.parametrize("bad", DAMAGED)
def test_a_sample_that_is_none_is_silence_and_does_not_outlive_its_frame(model, bad):
    """In the stream and the whole file, in a session and in the pure step: as if it had been 0."""
    mimi = model.audio_encoder
    np.testing.assert_array_equal(mimi.stream(8).encode(damaged(bad)), mimi.stream(8).encode(damaged(0)))
    for given in (damaged(bad)[None], mx.array(damaged(bad)[None].astype(np.float64), mx.float32)):
        codes = np.array(mimi.encode(given, num_quantizers=8).audio_codes)
        np.testing.assert_array_equal(codes, np.array(mimi.encode(damaged(0)[None], num_quantizers=8).audio_codes))
    sessions, states = [model.session(seed=1) for _ in range(2)], [primed(model) for _ in range(2)]
    for broken, whole in zip(damaged(bad).reshape(-1, 1920), damaged(0).reshape(-1, 1920), strict=True):
        frames = [session.step(pcm) for session, pcm in zip(sessions, (broken, whole), strict=True)]
        assert frames[0].text_token == frames[1].text_token
        np.testing.assert_array_equal(frames[0].pcm, frames[1].pcm)
        replies = []
        for row, pcm in enumerate((broken, whole)):
            with np.errstate(over="ignore"):
                given = mx.array(pcm[None].astype(np.float32))
            reply, states[row] = duplex.step(model, given, states[row], SAMPLING)
            replies.append(np.array(reply.sound))
        np.testing.assert_array_equal(*replies)
    assert [session.nonfinite_samples for session in sessions] == [1, 0]


# --- codes and tokens -----------------------------------------------------------------------------------------------

# each call, a good argument, and the least and largest number that it may hold
NUMBERS = {
    "Session.step_codes": (lambda m, x: m.session(**GREEDY).step_codes(x), COLUMN, -1, 31),
    "Transcriber.feed_codes": (lambda m, x: stt().transcriber().feed_codes(x), COLUMN[:, None], -1, 47),
    "MimiStream.decode": (lambda m, x: m.audio_encoder.stream(8).decode(x), CODES[0], -1, 31),
    "MimiModel.decode": (lambda m, x: m.audio_encoder.decode(x), CODES, -1, 31),
    "duplex.step_codes": (lambda m, x: duplex.step_codes(m, x, primed(m), SAMPLING), COLUMN[None], -1, 31),
    "duplex.hear_codes": (lambda m, x: duplex.hear_codes(m, x, primed(m), SAMPLING), COLUMN[None], -1, 31),
    "duplex.language_step": (lambda m, x: duplex.language_step(m, x, primed(m), SAMPLING), COLUMN[None], -1, 31),
    "duplex.speak": (spoken, TEXT[0, :1], 0, 63),
    "forward, text": (lambda m, x: m(x), TEXT, -1, 64),
    "forward, user": (lambda m, x: m(user_audio_codes=x), CODES, -1, 32),
    "forward, Moshi": (lambda m, x: m(moshi_audio_codes=x), CODES, -1, 32),
    "text labels": (lambda m, x: m(TEXT, moshi_audio_codes=CODES, text_labels=x), TEXT, -100, 64),
    "audio labels": (lambda m, x: m(TEXT, moshi_audio_codes=CODES, audio_labels=x), CODES, -100, 32),
    "generate, text": (lambda m, x: generated(m, input_ids=x), TEXT, -1, 64),
    "generate, user": (lambda m, x: generated(m, user_audio_codes=x), CODES, -1, 32),
    "generate, Moshi": (lambda m, x: generated(m, moshi_audio_codes=x), CODES, -1, 31),
    "MoshiModel": (lambda m, x: m.decoder.model(x), TEXT, -1, 64),
    "MoshiForCausalLM": (lambda m, x: m.decoder(x), TEXT, -1, 64),
    "MoshiForCausalLM, labels": (lambda m, x: m.decoder(TEXT, labels=x), TEXT, -100, 63),
    "MoshiForCausalLM, logits_to_keep": (lambda m, x: m.decoder(TEXT, logits_to_keep=x), np.array([0, 1]), -4, 3),
    "text generation": (lambda m, x: m.decoder.generate(x, max_new_tokens=1), TEXT, -1, 64),
    "position_ids": (lambda m, x: m.decoder(TEXT, position_ids=x), np.arange(4)[None], 0, 2**31 - 1),
    "depth decoder": (lambda m, x: m.depth_decoder(x, HIDDEN), np.concatenate([TEXT[:, :1], CODES[:, :7, 0]], 1), -1,
                      32),
    "depth decoder, labels": (lambda m, x: m.depth_decoder(CODES[..., 0], HIDDEN, labels=x), CODES[..., 0], -100, 32),
    "depth decoder, generate": (lambda m, x: m.depth_decoder.generate(x, HIDDEN), TEXT[:, :1], 0, 64),
}  # fmt: skip
NO_NUMBERS = {
    "floats": lambda x, low, high: x.astype(np.float32),
    "truth": lambda x, low, high: x > 3,
    "MLX's floats": lambda x, low, high: mx.array(x).astype(mx.float16),
    "words": lambda x, low, high: np.full(x.shape, "a"),
    "objects": lambda x, low, high: np.full(x.shape, None),
    "ragged": lambda x, low, high: [[1], [1, 2]],
    "a word": lambda x, low, high: "hello",
    "Python's beyond 64 bits": lambda x, low, high: np.full(x.shape, 2**70, object).tolist(),
    "one more axis": lambda x, low, high: x[None],
    "none": lambda x, low, high: x[:0],
    "too low": lambda x, low, high: with_last(x, low - 1),
    "too high": lambda x, low, high: with_last(x, high + 1),
    "negative and huge": lambda x, low, high: with_last(x, -(2**62)),
    "huge": lambda x, low, high: with_last(x, 2**62),
    "just beyond 32 bits": lambda x, low, high: with_last(x, 2**32 + 1),
    "huge and unsigned": lambda x, low, high: with_last(x, 2**64 - 1, np.uint64),
    "unsigned, of MLX": lambda x, low, high: mx.array(with_last(x, 2**32 - 1, np.uint32)),
    "too high, in a list": lambda x, low, high: with_last(x, high + 1).tolist(),
    "too high, of MLX": lambda x, low, high: mx.array(with_last(x, high + 1)),
}


def with_last(array, value, kind=np.int64):
    changed = np.maximum(array, 0).astype(kind) if kind is not np.int64 else array.astype(kind)
    changed[(-1,) * changed.ndim] = value
    return changed


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize("door", NUMBERS)
def test_what_is_no_code_or_token_is_refused(model, door, kind):
    call, good, low, high = NUMBERS[door]
    if kind == "unsigned, of MLX" and high >= 2**31 - 1:
        pytest.skip("fits")
    with pytest.raises(InputError, match=r": got |^got .* codebooks"):
        call(model, NO_NUMBERS[kind](good, low, high))


@pytest.mark.parametrize("door", NUMBERS)
def test_whole_numbers_of_every_kind_are_taken(model, door):
    call, good, *_ = NUMBERS[door]
    for kind in (np.int64, np.int8, np.uint8, np.uint64):
        call(model, good.astype(kind))
    for array in (good.tolist(), mx.array(good), mx.array(good).astype(mx.uint32), np.asfortranarray(good)):
        call(model, array)


def test_frames_of_minus_one_are_silent_in_the_stream_as_in_the_file(model):
    mimi, codes = model.audio_encoder, CODES.copy()
    codes[:, 3, 2] = -1
    whole, stream = np.array(mimi.decode(codes).audio_values)[0, 0], mimi.stream(8).decode(codes[0])
    np.testing.assert_allclose(stream, whole, atol=1e-6)
    assert not stream[2 * 1920 : 3 * 1920].any()
    assert mimi.stream(8).decode(np.zeros((8, 0), int)).shape == (0,)


def test_codes_that_have_no_value_yet_read_no_foreign_memory(model):
    mimi = model.audio_encoder
    mx.enable_compile()
    decode = mx.compile(lambda codes, state: mimi.decode_step(codes, state)[0])
    for bad, inside in ((2**31 - 1, 31), (-(2**31), 0)):
        both = [decode(mx.full((1, 8, 1), value, mx.int32), mimi.init_decoder_state(1)) for value in (bad, inside)]
        np.testing.assert_array_equal(*map(np.array, both))


# --- embeddings, hidden states, masks -------------------------------------------------------------------------------

FLOATS = {
    "MoshiModel": (lambda m, x: m.decoder.model(inputs_embeds=x), np.zeros((1, 4, 32), np.float32)),
    "MoshiForCausalLM": (lambda m, x: m.decoder(inputs_embeds=x), np.zeros((1, 4, 32), np.float32)),
    "forward": (lambda m, x: m(inputs_embeds=x), np.zeros((1, 4, 32), np.float32)),
    "generate": (lambda m, x: generated(m, input_ids=None, inputs_embeds=x), np.zeros((1, 4, 32), np.float32)),
    "depth decoder": (lambda m, x: m.depth_decoder(CODES[..., 0], x), HIDDEN),
    "depth decoder, embeddings": (
        lambda m, x: m.depth_decoder(inputs_embeds=x, last_hidden_state=HIDDEN), np.zeros((1, 4, 16), np.float32)
    ),
    "depth decoder, generate": (lambda m, x: m.depth_decoder.generate(TEXT[:, :1], x), HIDDEN),
}  # fmt: skip


@pytest.mark.parametrize("door", FLOATS)
def test_embeddings_and_hidden_states(model, door):
    call, good = FLOATS[door]
    for array in (good.tolist(), mx.array(good), good.astype(np.float64), mx.array(good).astype(mx.bfloat16)):
        call(model, array)
    for bad in (good.astype(int), good[..., 1:], good > 0, "a", [[0.5], [1.0, 2.0]], good + 1j, good[None, None]):
        with pytest.raises(InputError, match=r"(inputs_embeds|last_hidden_state): got "):
            call(model, bad)


MASKS = {
    "MoshiModel": lambda m, x: m.decoder.model(TEXT, attention_mask=x),
    "forward": lambda m, x: m(TEXT, attention_mask=x),
    "labels": lambda m, x: m(TEXT, attention_mask=x, text_labels=TEXT),
    "generate": lambda m, x: generated(m, attention_mask=x),
    "text generation": lambda m, x: m.decoder.generate(TEXT, attention_mask=x, max_new_tokens=1),
    "MimiModel.encode": lambda m, x: m.audio_encoder.encode(SOUND[None, :4], x),
    "MimiModel.decode": lambda m, x: m.audio_encoder.decode(CODES, x),
}


@pytest.mark.parametrize("door", MASKS)
def test_masks(model, door):
    good = np.array([[1, 1, 1, 0]])
    for mask in (
        good,
        good.tolist(),
        good.astype(np.float32),
        good.astype(bool),
        mx.array(good),
        good.astype(np.uint8),
    ):
        MASKS[door](model, mask)
    for bad in ([[1, 1, 2, 0]], [[0, -1e9, 0, 0]], [[1, np.nan, 1, 1]], [1, 1], 1, "a", [[1], [1, 0]], [[1] * 4] * 2):
        with pytest.raises(InputError, match=r"(attention|padding)_mask: got "):
            MASKS[door](model, bad)


# --- seeds and counts -----------------------------------------------------------------------------------------------

SEEDS = {
    "session": lambda m, x: m.session(x),
    "duplex.init_state": lambda m, x: duplex.init_state(m, [x]),
    "Batch.join": lambda m, x: m.batch(1, progress=False).join(x),
    "transcriber": lambda m, x: stt().transcriber(x),
    "Transcribers.join": lambda m, x: stt().transcribers(1).join(x),
    "generate": lambda m, x: generated(m, seed=x),
    "text generation": lambda m, x: m.decoder.generate(TEXT, max_new_tokens=1, do_sample=True, seed=x),
    "depth decoder, generate": lambda m, x: m.depth_decoder.generate(TEXT[:, :1], HIDDEN, do_sample=True, seed=x),
    "MimiModel": lambda m, x: moshi_mlx.MimiModel(m.config.audio_encoder_config, x),
    "MoshiModel": lambda m, x: moshi_mlx.MoshiModel(m.config, x),
    "MoshiForCausalLM": lambda m, x: moshi_mlx.MoshiForCausalLM(m.config, x),
    "MoshiDepthDecoder": lambda m, x: moshi_mlx.MoshiDepthDecoder(m.config.depth_decoder_config, x),
    "Moshi": lambda m, x: moshi_mlx.MoshiForConditionalGeneration(m.config, x),
}


@pytest.mark.parametrize("door", SEEDS)
def test_seeds_are_any_whole_number(model, door):
    for seed in (-1, 2**63, 2**64 - 1, 2**64, -(2**200), np.int64(-5), np.uint64(2**64 - 1), np.array(3), mx.array(3)):
        SEEDS[door](model, seed)
    for seed in (1.0, 0.5, np.nan, "1", None, True, np.float32(2), [1], [1, 2], 1j):
        with pytest.raises(InputError, match=r"^seeds?: got "):
            SEEDS[door](model, seed)


def test_an_export_looks_at_its_seed_first(model, tmp_path):
    with (
        pytest.warns(DeprecationWarning, match="moshi_mlx.export"),
        pytest.raises(InputError, match=r"^seeds: got 1.5"),
    ):
        moshi_mlx.export_step(model, tmp_path / "step.mlxfn", SAMPLING, seed=1.5)
    assert not list(tmp_path.iterdir())


def test_a_seed_is_the_same_seed_whatever_its_kind(model):
    drawn = [np.array(model.session(seed)._state["keys"]).tolist() for seed in (7, np.int64(7), np.array(7), 7 + 2**64)]
    assert drawn == [drawn[0]] * 4


COUNTS = {
    "max_new_tokens": (lambda m, x: generated(m, max_new_tokens=x), 2),
    "max_length": (lambda m, x: m.generate(max_length=x, return_audio_waveforms=False), 3),
    "num_return_sequences": (lambda m, x: generated(m, num_return_sequences=x), 2),
    "text, max_new_tokens": (lambda m, x: m.decoder.generate(TEXT, max_new_tokens=x), 2),
    "text, max_length": (lambda m, x: m.decoder.generate(TEXT, max_length=x), 6),
    "text, num_return_sequences": (
        lambda m, x: m.decoder.generate(TEXT, max_new_tokens=1, num_return_sequences=x), 2
    ),
    "slots": (lambda m, x: m.batch(x, progress=False), 2),
    "num_samples": (lambda m, x: m.get_unconditional_inputs(x), 2),
    "codebooks": (lambda m, x: m.audio_encoder.stream(x), 2),
    "codebooks of MimiStream": (lambda m, x: moshi_mlx.MimiStream(m.audio_encoder, x), 2),
    "num_quantizers": (lambda m, x: m.audio_encoder.encode(SOUND[None, :1920], num_quantizers=x), 2),
    "capacity": (lambda m, x: duplex.init_state(m, [0], capacity=x), 4),
    "room": (lambda m, x: m.decoder.model(TEXT, room=x), 3),
    "logits_to_keep": (lambda m, x: m.decoder(TEXT, logits_to_keep=x), 2),
}  # fmt: skip


@pytest.mark.parametrize("door", COUNTS)
def test_counts_are_whole_numbers_of_every_kind(model, door):
    call, good = COUNTS[door]
    for kind in (int, np.int64, np.uint8, np.array, mx.array):
        call(model, kind(good))
    for bad in (-1, 1.5, 2.0, "2", True, np.float64(2), np.nan, 1j):
        with pytest.raises(InputError, match=r": got |^got .* codebooks"):
            call(model, bad)


@pytest.mark.parametrize("seeds", [3, "12", [], None, 1.5, {1: 2}])
def test_seeds_of_a_state_are_a_list(model, seeds):
    with pytest.raises(InputError, match="seeds: got"):
        duplex.init_state(model, seeds)


@pytest.mark.parametrize("past", [1, (mx.zeros(1),), {}, {"layers": [], "offset": mx.zeros(1)}, "rows"])
def test_what_is_no_state_is_refused(model, past):
    if past == "rows":
        past = model.decoder(np.repeat(TEXT, 2, axis=0)).past_key_values
    with pytest.raises(InputError, match="past_key_values: got"):
        model.decoder(TEXT, past_key_values=past)


@pytest.mark.parametrize("wrong", [None, 3, {}, [], "a", {"offset": 1}])
def test_what_is_no_state_or_sampling_is_refused(model, wrong):
    calls = {
        "step": FRAME[None], "step_codes": COLUMN[None], "hear": FRAME[None], "hear_codes": COLUMN[None],
        "language_step": COLUMN[None], "speak": TEXT[0, :1],
    }  # fmt: skip
    for name, given in calls.items():
        function = getattr(duplex, name)
        if name == "speak" or not (isinstance(wrong, dict) and wrong):
            with pytest.raises(InputError, match="state: got"):
                function(model, given, wrong, SAMPLING)
        state = primed(model) if name != "speak" else duplex.hear(model, FRAME[None], primed(model), SAMPLING)[1]
        with pytest.raises(InputError, match="sampling: got"):
            function(model, given, state, wrong)


@pytest.mark.parametrize("wrong", ["8", 3, 16, 8.5, "all"])
def test_bits_of_a_cache(model, wrong):
    with pytest.raises(InputError, match=r"kv_bits: got .*, only 8"):
        model.session(kv_bits=wrong)
    with pytest.raises(InputError, match="kv_bits: got 8 with heads of 16 values"):
        model.session(kv_bits=np.int64(8))


@pytest.mark.parametrize("wrong", [3, b"a", [1], np.zeros(3)])
def test_what_is_no_prompt_or_config_is_refused(model, wrong):
    for call in (model.session, lambda **given: model.generate(max_new_tokens=1, **given)):
        with pytest.raises(InputError, match="prompt: got a"):
            call(prompt=wrong)
    kinds = ("MimiModel", "MoshiModel", "MoshiForCausalLM", "MoshiDepthDecoder", "MoshiForConditionalGeneration")
    for kind in kinds:
        with pytest.raises(moshi_mlx.ConfigError, match="config: got a"):
            getattr(moshi_mlx, kind)(wrong)


# --- one call at a time ---------------------------------------------------------------------------------------------


def refused(calls):
    """How many of the calls are refused as coming while another runs."""
    count = 0
    for call in calls:
        with pytest.raises(InputError, match="called while another call runs"):
            call()
        count += 1
    return count


def test_a_call_from_inside_a_hook_is_refused_and_harms_nothing(model):
    counts, sound = [], SOUND.reshape(-1, 1920)[:4]

    def meddling(token):
        calls = (lambda: session.step(FRAME), lambda: session.step_codes(COLUMN), session.reset)
        counts.append(refused(calls))

    session, plain = model.session(on_text=meddling), model.session(on_text=lambda token: None)
    for frame in sound:
        assert session.step(frame).text_token == plain.step(frame).text_token
    assert counts == [3] * 4


def test_a_call_from_another_thread_is_refused_and_harms_nothing(model):
    counts, sound = [], SOUND.reshape(-1, 1920)[:4]

    def meddling(token):
        calls = (lambda: session.step(FRAME), lambda: session.step_codes(COLUMN), session.reset)
        thread = threading.Thread(target=lambda: counts.append(refused(calls)))
        thread.start()
        thread.join()

    session, plain = model.session(on_text=meddling), model.session(on_text=lambda token: None)
    for frame in sound:
        assert session.step(frame).text_token == plain.step(frame).text_token
    assert counts == [3] * 4


def on_another_thread(call):
    got = []
    thread = threading.Thread(target=lambda: got.append(call()))
    thread.start()
    thread.join()
    return got[0]


def test_threads_may_take_turns(model):
    """One after the other, which is no second call while one runs: the same as on one thread."""
    frames = SOUND.reshape(-1, 1920)[:4]
    sessions, streams = [model.session(seed=1) for _ in range(2)], [model.audio_encoder.stream(8) for _ in range(2)]
    for n, frame in enumerate(frames):
        turns = on_another_thread if n % 2 == 0 else lambda call: call()
        a, b = turns(lambda: sessions[0].step(frame)), sessions[1].step(frame)  # noqa: B023
        assert a.text_token == b.text_token
        codes = turns(lambda: streams[0].encode(frame))  # noqa: B023
        np.testing.assert_array_equal(codes, streams[1].encode(frame))
        np.testing.assert_array_equal(turns(lambda: streams[0].decode(codes)), streams[1].decode(codes))  # noqa: B023


def test_many_threads_at_once(model):
    """Each call either is taken as a whole or is refused."""
    session, taken, refusals = model.session(seed=1), [], []

    def hammer():
        for _ in range(10):
            try:
                taken.append(session.step(FRAME).text_token)
            except InputError as error:
                refusals.append(str(error))

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) + len(refusals) == 30
    assert all("while another call runs" in refusal for refusal in refusals)
    plain = model.session(seed=1)
    assert taken == [plain.step(FRAME).text_token for _ in taken]


def test_a_stream_takes_one_call_at_a_time(model):
    stream = model.audio_encoder.stream(8)
    encode = stream._encode
    counts = []

    def meddling(frame, state):
        calls = (lambda: stream.encode(FRAME), lambda: stream.decode(CODES[0]), stream.reset)
        counts.append(refused(calls))
        return encode(frame, state)

    stream._encode = meddling
    codes = stream.encode(SOUND[:3840])
    stream._encode = encode
    assert counts == [3, 3]
    np.testing.assert_array_equal(codes, model.audio_encoder.stream(8).encode(SOUND[:3840]))
    stream.reset()
    with pytest.raises(MoshiError):
        stream.encode(COLUMN)
    assert stream.encode(FRAME).shape == (8, 1)
