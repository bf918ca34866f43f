"""A transcriber equals the reference, frame by frame, in any chunks, beside others, past its context and after a refresh."""

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from helpers import GOLDENS, golden

import moshi_mlx
from moshi_mlx.conversation import duplex
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.errors import AudioError, InputError
from moshi_mlx.roles import listening, steps
from moshi_mlx.roles.hearing import EndWord, Word
from moshi_mlx.roles.listener import Step
from moshi_mlx.roles.transcriber import Transcriber, transcribe
from moshi_mlx.roles.transcribers import Transcribers

FAMILY = GOLDENS / "family"
SIZE = 1920
GREEDY = DuplexSampling.of({"temperature": 0, "text_temperature": 0})


@pytest.fixture(scope="module")
def stt():
    return moshi_mlx.load(FAMILY / "stt", dtype="float32")


@pytest.fixture(scope="module")
def without_heads():
    return moshi_mlx.load(FAMILY / "stt_no_heads", dtype="float32")


@pytest.fixture(params=["stt", "without_heads"])
def either(request):
    return request.getfixturevalue(request.param)


def reference(name):
    return golden(f"family/{name}/ref")


def steps_of(events):
    return [event for event in events if isinstance(event, Step)]


def tokens_of(events):
    return [step.token for step in steps_of(events)]


def noise(frames, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(frames * SIZE)).astype(np.float32)


def codes_of(frames, seed=0):
    return np.random.default_rng(seed).integers(0, 48, (8, frames)).astype(np.int32)


# --- the reference --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stt", "stt_no_heads"])
def test_tokens_and_heads_are_the_references(name):
    expected = reference(name)
    heard = steps_of(Transcriber(moshi_mlx.load(FAMILY / name, dtype="float32")).feed_codes(expected["user"]))
    assert [step.token for step in heard] == expected["text"][1:].tolist()
    if "heads" in expected:
        np.testing.assert_allclose([step.pauses for step in heard], expected["heads"][1:, :, 0], atol=1e-4)
    else:
        assert all(step.pauses == () for step in heard)


def test_all_classes_of_the_heads_are_the_references(stt):
    expected, state = reference("stt"), duplex.init_state(stt, [0])
    _, heads, state = steps.prime(stt, state, GREEDY)
    found = [heads]
    for column in expected["user"].T:
        _, heads, state = steps.listen(stt, mx.array(column[None]), state, GREEDY)
        found.append(heads)
    np.testing.assert_allclose(np.array(mx.concatenate(found)), expected["heads"], atol=1e-4)


def test_fewer_codebooks_are_given_and_nothing_of_the_others(stt):
    sound = noise(40)
    codes = stt.audio_encoder.stream(8).encode(sound)
    some = np.where(np.arange(8)[:, None] < 5, codes, -1)
    expected = tokens_of(Transcriber(stt).feed_codes(some))
    assert tokens_of(Transcriber(stt, codebooks=5).feed(sound)) == expected
    assert expected != tokens_of(Transcriber(stt).feed(sound)) == tokens_of(Transcriber(stt).feed_codes(codes))


# --- sound of any length --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1000], [SIZE], [1, 5000, 77], [20_000]])
def test_chunks_of_any_length(either, sizes):
    sound, transcriber = noise(30.4), Transcriber(either)
    expected = [*transcriber.feed(sound), *transcriber.flush()]
    transcriber.reset()
    events, at = [], 0
    while at < len(sound):
        size = sizes[at % len(sizes)]
        events += transcriber.feed(sound[at : at + size])
        at += size
    assert [*events, *transcriber.flush()] == expected


def test_silence_before_the_sound_takes_no_time(without_heads):
    transcriber = Transcriber(without_heads)
    heard = steps_of(transcriber.feed(noise(3)))
    assert [step.time for step in heard] == [0.0] * 13 + [0.08, 0.16, 0.24]
    sound = np.concatenate([np.zeros(13 * SIZE, np.float32), noise(3)])
    codes = without_heads.audio_encoder.stream(8).encode(sound)
    assert tokens_of(Transcriber(without_heads).feed_codes(codes)) == [step.token for step in heard]


@pytest.mark.parametrize(("name", "frames"), [("stt", 7), ("without_heads", 32)])
def test_a_flush_takes_no_time_and_words_keep_the_times_of_their_sound(request, name, frames):
    model = request.getfixturevalue(name)
    transcriber = Transcriber(model)
    first = transcriber.feed(noise(20.5))
    flushed = transcriber.flush()
    assert len(steps_of(flushed)) == 1 + frames  # half a frame waited
    assert {step.time for step in steps_of(flushed)} == {round(20.5 * 0.08, 3)}
    assert not isinstance(flushed[-1], Step) or not [e for e in [*first, *flushed] if isinstance(e, Word)]
    second = transcriber.feed(noise(40))
    assert steps_of(second)[0].time == round(21.5 * 0.08, 3)
    assert transcriber.seconds == pytest.approx(60.5 * 0.08)
    times = [e.start if isinstance(e, Word) else e.stop for e in [*first, *flushed, *second] if isinstance(e, (Word, EndWord))]
    assert times == sorted(times)
    assert all(0 <= time <= 60.5 * 0.08 for time in times)


def test_a_word_begins_at_its_zero_less_the_delay(stt):
    transcriber = Transcriber(stt)
    events = transcriber.feed_codes(reference("stt")["user"])
    zeros = [step.time for step in steps_of(events) if step.token == 0]
    assert len(zeros) > 1
    starts = {word.start for word in events if isinstance(word, Word)}
    assert {round(max(0.0, time - 0.5), 3) for time in zeros[:-1]} <= starts


def test_nonsense_is_silence(stt):
    sound, quiet = noise(5), noise(5)
    sound[100:200], sound[300] = np.nan, np.inf
    quiet[100:200], quiet[300] = 0, 0
    broken, whole = Transcriber(stt), Transcriber(stt)
    assert broken.feed(sound) == whole.feed(quiet)
    assert broken.nonfinite_samples == 101
    broken.feed(np.full(10, np.nan, np.float32))
    broken.flush()
    assert broken.nonfinite_samples == 111


# --- without end ----------------------------------------------------------------------------------------------------


def replayed(model, text, codes):
    """What the model writes after each frame, all in one pass without a ring: text int [n] before each, codes [8, n]."""
    frames = np.concatenate([text[None], codes])
    embeds = model.embed(mx.array(frames[None].astype(np.int32)))
    helium = model.decoder.model
    hidden, _ = helium.transformer.over_sequence(embeds)
    return np.array(mx.argmax(model.decoder.lm_head(helium.norm(hidden)), axis=-1))[0]


@pytest.mark.slow
def test_ten_thousand_frames_stay_exact_and_flat_in_memory(stt):
    codes, transcriber = codes_of(10_000), Transcriber(stt)
    tokens = tokens_of(transcriber.feed_codes(codes[:, :2000]))
    before = mx.get_active_memory()
    tokens += tokens_of(transcriber.feed_codes(codes[:, 2000:]))
    assert mx.get_active_memory() <= before
    far = 3 * transcriber.context  # two layers look back over two windows
    for end in (1000, 5000, 10_000):
        seen = slice(end - far - 40, end)
        found = replayed(stt, np.array(tokens[seen.start - 1 : end - 1]), codes[:, seen])
        assert found[far:].tolist() == tokens[end - 40 : end]


def test_a_window_that_wraps_is_exact(stt):
    codes = codes_of(200)
    tokens = tokens_of(Transcriber(stt).feed_codes(codes))
    found = replayed(stt, np.array(tokens[99:199]), codes[:, 100:])
    assert found[72:].tolist() == tokens[172:]


def test_a_refreshed_memory_is_that_of_the_last_frames_alone(stt):
    codes, text = codes_of(6).T, np.array([5, 9, 0, 3, 7, 8], np.int32)
    found = listening.remembered(stt, text, codes)
    _, _, state = steps.prime(stt, duplex.init_state(stt, [0]), GREEDY)
    for token, column in zip(text, codes, strict=True):
        state["text"] = mx.array([token])
        _, _, state = steps.listen(stt, mx.array(column[None]), state, GREEDY)
    assert int(found["offset"][0]) == int(state["temporal"]["offset"][0]) == 7
    for ours, theirs in zip(found["layers"], state["temporal"]["layers"], strict=True):
        for name, ring in ours.items():
            np.testing.assert_allclose(np.array(ring), np.array(theirs[name])[:, :, :7], atol=1e-5)


def test_a_refresh_touches_neither_codec_nor_clock(stt):
    sound = noise(30)
    transcriber, codes = Transcriber(stt), stt.audio_encoder.stream(8).encode(sound)
    before = steps_of(transcriber.feed(sound[: 12 * SIZE]))
    word = transcriber._row._words.state
    transcriber.refresh()
    assert transcriber._row._words.state == word
    after = steps_of(transcriber.feed(sound[12 * SIZE :]))
    assert (transcriber.positions, transcriber.refreshed) == (1 + 6 + 18, 1)
    assert [step.number for step in before + after] == list(range(30))
    assert [step.time for step in before + after] == [round(0.08 * n, 3) for n in range(1, 31)]
    found = [step.token for step in before + after]
    state = {
        "temporal": listening.remembered(stt, np.array(found[5:11]), codes[:, 6:12].T), "text": mx.array([found[11]]),
        "offset": mx.array([13]), "keys": mx.zeros((1, 2), mx.uint32), "user": mx.zeros((1, 8, 1), mx.int32),
    }  # fmt: skip
    state["temporal"] = stt.decoder.model.transformer.init_state(1, mx.float32) | {}
    tokens = np.concatenate([[[64], *[[48]] * 8], np.concatenate([np.array(found[5:29])[None], codes[:, 6:]])], axis=1)
    hidden, _ = stt.decoder.model.transformer.over_sequence(stt.embed(mx.array(tokens[None].astype(np.int32))))
    written = np.array(mx.argmax(stt.decoder.lm_head(stt.decoder.model.norm(hidden)), axis=-1))[0]
    assert written[7:].tolist() == found[12:]


def test_without_end_the_memory_is_refreshed_before_it_is_full(either):
    transcriber = Transcriber(either, refresh=True)
    most = 0
    for seed in range(12):
        transcriber.feed(noise(10, seed))
        most = max(most, transcriber.positions)
    assert transcriber.refreshed >= 4
    assert most <= transcriber.context
    assert Transcriber(either, refresh=1.0)._row.refreshed == 0


def test_it_is_refreshed_at_a_pause(stt):
    transcriber = Transcriber(stt, refresh=0.5)
    row, due = transcriber._row, []
    row._pause = lambda heads, spoke: row.frames == 13  # positions: 15
    type(row._pause).paused = property(lambda self: False) if False else None
