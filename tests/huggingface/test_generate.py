"""Offline generation against transformers, against the live step, and what it is asked in vain."""

import mlx.core as mx
import numpy as np
import pytest
from helpers import golden, question

import moshi_mlx
from moshi_mlx import InputError, MoshiForCausalLM

HF = golden("huggingface")

FORWARD = golden("huggingface_forward")


@pytest.fixture(autouse=True)
def eager(request):
    """Compiling takes seconds on a CPU, for every shape anew; one test of generation is left to it."""
    if request.function is not test_from_waveforms:
        mx.disable_compile()
    yield
    mx.enable_compile()


def prompt(length):
    return {name: HF[f"prompt{length}.{name}"] for name in ("input_ids", "user_audio_codes", "moshi_audio_codes")}


def check(out, case):
    np.testing.assert_array_equal(np.array(out.sequences), HF[f"{case}.sequences"])
    np.testing.assert_array_equal(np.array(out.audio_codes), HF[f"{case}.audio_codes"])
    sound, expected = np.array(out.audio_sequences)[..., ::16], HF[f"{case}.audio"]
    np.testing.assert_allclose(sound, expected, atol=1e-4 * np.abs(expected).max())


def greedy(model, new, **given):
    return model.generate(**given, max_new_tokens=new, do_sample=False, return_audio_codes=True)


@pytest.mark.parametrize(
    ("case", "changes", "length", "new", "settings"),
    [
        ("plain", {}, 6, 10, {}),
        ("bare", {}, 6, 10, {"concat_unconditional_inputs": False}),
        ("gqa", {"num_key_value_heads": 1}, 6, 10, {}),
        ("window", {"sliding_window": 12}, 20, 30, {}),
    ],
)
def test_tokens_equal_transformers(variant, case, changes, length, new, settings):
    check(greedy(variant(**changes), new, **prompt(length), **settings), case)


def test_from_waveforms(model):
    sound = question()[: 24 * 1920].reshape(4, 1, -1)
    given = {"user_input_values": sound[:2], "moshi_input_values": sound[2:]}
    check(greedy(model, 6, input_ids=HF["waveforms.input_ids"], **given), "waveforms")


def test_codes_win_over_waveforms(model):
    sound = np.zeros((2, 1, 9 * 1920), np.float32)
    check(greedy(model, 10, **prompt(6), user_input_values=sound, moshi_input_values=sound), "plain")


def test_from_unconditional_inputs(model):
    check(greedy(model, 10, **model.get_unconditional_inputs(2)), "start")


def test_no_prompt_is_one_conversation_from_its_start(model):
    out = greedy(model, 10)
    other = greedy(model, 10, **model.get_unconditional_inputs(), concat_unconditional_inputs=False)
    np.testing.assert_array_equal(np.array(out.sequences), np.array(other.sequences))
    assert out.sequences.shape == (1, 11)
    assert out.audio_codes.shape == (1, 8, 9)
    assert out.audio_sequences.shape == (1, 1, 9 * 1920)


def test_embeddings_in_the_prompts_place(model):
    given = prompt(6)
    text, own, user = (given[name] for name in ("input_ids", "moshi_audio_codes", "user_audio_codes"))
    delayed = [np.concatenate([codes[:, :1], np.pad(codes[:, 1:, :-1], [(0, 0), (0, 0), (1, 0)], constant_values=32)],
                              axis=1) for codes in (own, user)]  # fmt: skip
    embeds = model.decoder.model.embed(mx.array(np.concatenate([text[:, None], *delayed], axis=1)))
    codes = {name: given[name] for name in ("user_audio_codes", "moshi_audio_codes")}
    out = greedy(model, 10, inputs_embeds=embeds, **codes)
    np.testing.assert_array_equal(np.array(out.sequences), HF["bare.sequences"][:, 6:])
    np.testing.assert_array_equal(np.array(out.audio_codes), HF["bare.audio_codes"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_rows_alone(model, side):
    given, lengths = prompt(6), (6, 4)
    rows = {name: np.full_like(value, 3) for name, value in given.items()}
    mask = np.zeros((2, 6), int)
    for row, length in enumerate(lengths):
        span = slice(6 - length, 6) if side == "left" else slice(0, length)
        mask[row, span] = 1
        for name, value in given.items():
            rows[name][row, ..., span] = value[row, ..., :length]
    out = greedy(model, 8, **rows, attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = greedy(model, 8, **{name: value[row : row + 1, ..., :length] for name, value in given.items()})
        np.testing.assert_array_equal(np.array(out.sequences)[row, -8:], np.array(alone.sequences)[0, -8:])
        codes, sound = np.array(alone.audio_codes)[0], np.array(alone.audio_sequences)[0, 0]
        np.testing.assert_array_equal(np.array(out.audio_codes)[row, :, -codes.shape[1] :], codes)
        np.testing.assert_allclose(np.array(out.audio_sequences)[row, 0, -len(sound) :], sound, atol=1e-5)
    assert (np.array(out.audio_codes)[1, :, :2] == -1).all()
    assert (np.array(out.audio_sequences)[1, 0, : 2 * 1920] == 0).all()


@pytest.mark.parametrize(("delay", "settings"), [(1, {"temperature": 0, "text_temperature": 0}), (2, {}), (1, {})])
def test_generation_equals_the_live_step_fed_the_same_streams(checkpoint, delay, settings):
    """A conversation from its start; then its first frames as a prompt, and on from there. Sampled tokens too."""
    delays = [0] + ([0] + [delay] * 7) * 2
    model = moshi_mlx.load(checkpoint(delays=delays, context=10), dtype=mx.float32)
    user = golden("lm")["user"][:, :30]
    session = model.session(seed=4, **settings)
    frames = [session.step_codes(column) for column in user.T]
    text = np.array([frame.text_token for frame in frames])
    codes = np.stack([frame.audio_codes for frame in frames if frame.audio_codes is not None], axis=1)
    sound = np.concatenate([frame.pcm for frame in frames if frame.pcm is not None])
    chosen = {"seed": 4, "do_sample": not settings, "return_audio_codes": True}
    start = model.get_unconditional_inputs()
    later = np.concatenate([np.array(start.user_audio_codes), user[None]], axis=2)
    given = {**start, "user_audio_codes": later}
    del given["attention_mask"]
    out = model.generate(**given, concat_unconditional_inputs=False, max_new_tokens=31, **chosen)
    np.testing.assert_array_equal(np.array(out.sequences)[0, 2:], text)
    np.testing.assert_array_equal(np.array(out.audio_codes)[0], codes)
    np.testing.assert_allclose(np.array(out.audio_sequences)[0, 0], sound, atol=1e-5)
    if not settings:  # a prompt draws no noise: only greedy can go on as the conversation did
        return
    first = np.array(out.sequences)[:, 1:2]  # of priming, which the first frame hands out with its own
    said = np.concatenate([first, text[None, :14]], axis=1)
    out = model.generate(
        input_ids=said, user_audio_codes=user[None], moshi_audio_codes=codes[None, :, :15], max_new_tokens=16, **chosen
    )
    np.testing.assert_array_equal(np.array(out.sequences)[0, 2:], text)
    np.testing.assert_array_equal(np.array(out.audio_codes)[0], codes)


def test_settings_and_seeds(model):
    given = {name: value[:1] for name, value in prompt(6).items()}
    draw = {"max_new_tokens": 6, "return_audio_codes": True}

    def run(**settings):
        out = model.generate(**given, **draw, **settings)
        return np.concatenate([np.array(out.sequences)[:, None, 7:13], np.array(out.audio_codes)[:, :, 5:11]], axis=1)

    three = run(num_return_sequences=3, seed=5)
    assert len(np.unique(three, axis=0)) == 3
    for n in range(3):
        np.testing.assert_array_equal(run(seed=5 + n)[0], three[n])
    greedy_tokens = run(do_sample=False)
    np.testing.assert_array_equal(run(top_k=1, depth_top_k=1), greedy_tokens)
    np.testing.assert_array_equal(run(temperature=0, depth_temperature=0), greedy_tokens)
    np.testing.assert_array_equal(run(top_p=1e-6, depth_min_p=1.0), greedy_tokens)
    np.testing.assert_array_equal(run(min_p=1.0, depth_top_p=1e-6), greedy_tokens)
    half = run(do_sample=False, depth_do_sample=True, depth_temperature=5.0)
    np.testing.assert_array_equal(half[:, 0, :1], greedy_tokens[:, 0, :1])
    assert (half[:, 1:] != greedy_tokens[:, 1:]).any()


def test_what_the_checkpoint_asks_for_is_the_default(model):
    given = prompt(6)
    expected = np.array(greedy(model, 5, **given).sequences)
    model.sampling_defaults = {"text_temperature": 0, "top_k": 1}
    try:
        np.testing.assert_array_equal(np.array(model.generate(**given, max_new_tokens=5).sequences), expected)
    finally:
        model.sampling_defaults = {}


def test_lengths(model):
    given = prompt(6)
    assert model.generate(**given, max_length=9).sequences.shape == (2, 9)
    assert model.generate(**given).sequences.shape == (2, 7 + 20)
    short = model.generate(**given, max_new_tokens=1, return_audio_waveforms=False)
    assert short.shape == (2, 8)
    assert model.generate(max_new_tokens=1).audio_sequences.shape == (1, 1, 0)


def test_a_streamer_gets_every_frame(model):
    class Streamer:
        def __init__(self):
            self.frames, self.ended = [], False

        def put(self, frame):
            assert not self.ended
            self.frames.append(frame)

        def end(self):
            self.ended = True

    streamer, given = Streamer(), {name: value[:1] for name, value in prompt(6).items()}
    out = greedy(model, 10, **given, streamer=streamer)
    assert streamer.ended
    frames = streamer.frames
    np.testing.assert_array_equal([frame.text_token for frame in frames], np.array(out.sequences)[0, 7:])
    assert frames[0].pcm is None
    assert "".join(frame.text for frame in frames)
    np.testing.assert_array_equal(
        np.stack([frame.audio_codes for frame in frames[1:]], axis=1), np.array(out.audio_codes)[0, :, 6:]
    )
    sound = np.concatenate([frame.pcm for frame in frames[1:]])
    np.testing.assert_allclose(sound, np.array(out.audio_sequences)[0, 0, 6 * 1920 :], atol=1e-5)


@pytest.mark.slow
def test_long_prompts_use_memory_linear_in_frames():
    """The largest array of a prefill grows with its frames, not with their square, beyond a block of queries."""
    config = moshi_mlx.MoshiConfig(
        vocab_size=16, hidden_size=16, num_attention_heads=4, num_hidden_layers=2, ffn_dim=32, audio_delays=(),
        sliding_window=5000,
    )  # fmt: skip
    model = MoshiForCausalLM(config)

    def peak(length):
        ids = mx.zeros((1, length), mx.int32)
        mx.eval(model.parameters())
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(model(ids, use_cache=False).logits)
        return mx.get_peak_memory() - before

    peak(512)
    assert peak(4096) < 2.5 * peak(2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, expected 1 or more"),
        ({"max_new_tokens": -3}, "max_new_tokens: got -3, expected 1 or more"),
        ({"max_length": 7}, "max_length: got 7, expected 8 or more (the prompt has 7 columns)"),
        ({"num_return_sequences": 0}, "num_return_sequences: got 0"),
        ({"streamer": object()}, "streamer: got 2 rows to generate, expected one"),
        ({"input_ids": np.zeros((2, 5), int)}, "input_ids: got 2 rows of 5 columns, expected 2 of 6"),
        ({"input_ids": np.zeros((1, 6), int)}, "input_ids: got 1 rows of 6 columns, expected 2 of 6"),
        ({"input_ids": np.full((2, 6), 65)}, "input_ids: got values from 65 to 65, expected -1 to 64"),
        ({"input_ids": np.zeros(6, int)}, "input_ids: got shape [6], expected [any, any]"),
        ({"input_ids": None}, "input_ids or inputs_embeds: got none, expected all three streams"),
        ({"user_audio_codes": None}, "user_input_values or user_audio_codes: got none"),
        ({"moshi_audio_codes": None}, "moshi_input_values or moshi_audio_codes: got none"),
        (
            {"user_audio_codes": np.zeros((2, 8, 5), int)},
            "user_audio_codes: got 2 rows of 5 columns, expected 2 of 6 or",
        ),
        (
            {"user_audio_codes": np.zeros((2, 7, 6), int)},
            "user_audio_codes: got shape [2, 7, 6], expected [any, 8, any]",
        ),
        ({"moshi_audio_codes": np.full((2, 8, 6), 33)}, "moshi_audio_codes: got values from 33 to 33"),
        ({"moshi_audio_codes": np.zeros((2, 8, 6))}, "moshi_audio_codes: got float32, expected whole numbers"),
        ({"attention_mask": np.ones((2, 4))}, "attention_mask: got shape [2, 4], expected [2, 6]"),
        ({"attention_mask": np.zeros((2, 6))}, "attention_mask: got a row that is padding alone"),
        ({"inputs_embeds": mx.zeros((2, 6, 5))}, "inputs_embeds: got shape [2, 6, 5], expected [any, any, 32]"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
    ],
)
def test_bad_input_is_named(model, change, message):
    with pytest.raises(InputError) as caught:
        model.generate(**{**prompt(6), **change})
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_initial_tokens_after_the_start_are_named(model):
    given = prompt(6)
    given["moshi_audio_codes"] = given["moshi_audio_codes"].copy()
    given["moshi_audio_codes"][1, 3, 4] = 32
    with pytest.raises(InputError, match="initial token 32 in row 1 at column 5"):
        model.generate(**given, max_new_tokens=2)


def test_text_alone_equals_transformers(variant):
    model = variant(num_key_value_heads=1, sliding_window=12)
    out = model.decoder.generate(FORWARD["ids"][:, :8], max_new_tokens=12)
    np.testing.assert_array_equal(np.array(out), FORWARD["text.generated"])


def test_text_alone_padded_stopped_and_sampled(model):
    ids = FORWARD["ids"][:, :8]
    alone = np.array(model.decoder.generate(ids[1:, :5], max_new_tokens=6))
    rows, mask = np.full((2, 8), 9), np.zeros((2, 8), int)
    rows[0], mask[0] = ids[0], 1
    rows[1, 3:], mask[1, 3:] = ids[1, :5], 1
    out = np.array(model.decoder.generate(rows, attention_mask=mask, max_length=14))
    np.testing.assert_array_equal(out[1, 8:], alone[0, 5:])
    eos = int(alone[0, 7])
    stopped = np.array(model.decoder.generate(ids[1:, :5], max_new_tokens=6, eos_token_id=eos))
    end = list(alone[0, 5:]).index(eos) + 6
    np.testing.assert_array_equal(stopped, alone[:, :end])
    draws = np.array(model.decoder.generate(ids[:1], max_new_tokens=6, do_sample=True, num_return_sequences=3, seed=1))
    assert len(np.unique(draws, axis=0)) == 3
    again = np.array(model.decoder.generate(ids[:1], max_new_tokens=6, do_sample=True, seed=2))
    np.testing.assert_array_equal(again[0], draws[1])
    with pytest.raises(InputError, match="max_new_tokens: got 0"):
        model.decoder.generate(ids, max_new_tokens=0)
