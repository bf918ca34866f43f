"""A transcriber equals the reference: in any chunks, beside others, past its context and after a refresh."""

import doctest
import inspect
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from helpers import GOLDENS, golden

import moshi_mlx
from moshi_mlx.conversation import duplex
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.errors import AudioError, InputError
from moshi_mlx.roles import hearing, listening, pauses, steps, transcriber, transcript
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
    return np.random.default_rng(seed).integers(0, 32, (8, frames)).astype(np.int32)


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
    times = [
        e.start if isinstance(e, Word) else e.stop
        for e in [*first, *flushed, *second]
        if isinstance(e, (Word, EndWord))
    ]
    assert times == sorted(times)
    assert all(0 <= time <= 60.5 * 0.08 for time in times)


def test_a_word_begins_at_its_zero_less_the_delay(stt):
    transcriber = Transcriber(stt)
    events = transcriber.feed_codes(reference("stt")["user"])
    heard = steps_of(events)
    begun = [one.time for one, after in pairwise(heard) if one.token == 0 and after.token not in (0, 3)]
    assert len(begun) > 1
    starts = {word.start for word in events if isinstance(word, Word)}
    assert {round(max(0.0, time - 0.5), 3) for time in begun[:-1]} <= starts


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
    """What it writes after each frame, all in one pass without a ring: text int [n] before each, codes [8, n]."""
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
        state["text"] = mx.array([int(token)])
        _, _, state = steps.listen(stt, mx.array(column[None]), state, GREEDY)
    assert int(found["offset"][0]) == int(state["temporal"]["offset"][0]) == 7
    for ours, theirs in zip(found["layers"], state["temporal"]["layers"], strict=True):
        for name, ring in ours.items():
            np.testing.assert_allclose(np.array(ring), np.array(theirs[name])[..., :7, :], atol=1e-5)


def test_a_refresh_touches_neither_codec_nor_clock(stt):
    sound, transcriber = noise(30), Transcriber(stt)
    codes = stt.audio_encoder.stream(8).encode(sound)
    before = transcriber.feed(sound[: 12 * SIZE])
    word = transcriber._row._words.state
    transcriber.refresh()
    assert transcriber._row._words.state == word
    heard = steps_of([*before, *transcriber.feed(sound[12 * SIZE :])])
    assert (transcriber.positions, transcriber.refreshed) == (1 + 7 - 1 + 18, 1)  # context 24: six frames are kept
    assert [step.number for step in heard] == list(range(30))
    assert [step.time for step in heard] == [round(0.08 * n, 3) for n in range(1, 31)]
    tokens = np.array([step.token for step in heard])
    first = np.array([stt.config.vocab_size] + [stt.config.audio_vocab_size] * 8)
    seen = replayed(stt, np.append(first[0], tokens[5:29]), np.concatenate([first[1:, None], codes[:, 6:]], axis=1))
    assert seen[7:].tolist() == tokens[12:].tolist()


def test_without_end_the_memory_is_refreshed_before_it_is_full(either):
    transcriber, most = Transcriber(either, refresh=True), 0
    for seed in range(12):
        transcriber.feed(noise(10, seed))
        most = max(most, transcriber.positions)
    assert transcriber.refreshed >= 4
    assert most <= transcriber.context


@pytest.mark.parametrize(("paused", "expected"), [(True, 13), (False, 24)])
def test_at_a_pause_earlier_than_otherwise(stt, monkeypatch, paused, expected):
    monkeypatch.setattr("moshi_mlx.roles.listener.Listener.paused", property(lambda self: paused))
    transcriber, seen = Transcriber(stt, refresh=0.51), []
    for frame in noise(40).reshape(-1, SIZE):
        before = transcriber.refreshed
        seen.append(transcriber.positions + 1)
        transcriber.feed(frame)
        if transcriber.refreshed > before:
            break
    assert seen[-1] == expected
    assert transcriber.positions == 7


# --- several people -------------------------------------------------------------------------------------------------


def frames_of(sound):
    return sound.reshape(-1, SIZE)


def alone(model, sound, seed=0, **settings):
    return Transcriber(model, seed, **settings).feed(sound)


def check_same(events, others):
    """The same tokens, words and times; probabilities as near as sums of another order are."""
    assert [event[:3] for event in events] == [event[:3] for event in others]
    both = [[(*step.pauses, step.pause) for step in steps_of(side)] for side in (events, others)]
    np.testing.assert_allclose(*both, atol=1e-5)


def test_rows_equal_rows_alone_whoever_comes_and_goes(either):
    first, second, third = noise(40, 1), noise(40, 2), noise(40, 3)
    people = Transcribers(either, 3)
    anna, heard = people.join(), {"anna": [], "bert": [], "cleo": []}
    for n in range(40):
        if n == 5:
            bert = people.join(seed=7, temperature=0.9, top_k=20)
        if n == 12:
            cleo = people.join()
        given = {anna: frames_of(first)[n]}
        if n >= 5 and n % 3:  # bert pauses now and then
            given[bert] = frames_of(second)[max(0, bert.frames - bert_prefix(either))]
        if 14 <= n < 30:
            given[cleo] = frames_of(third)[n - 14]
        if n == 30:
            people.leave(cleo)
            dora = people.join(seed=3)
            assert dora._place == cleo._place
        events = people.step(given)
        heard["anna"] += events[anna]
        heard["bert"] += events.get(bert, []) if n >= 5 else []
        heard["cleo"] += events.get(cleo, []) if 14 <= n < 30 else []
    check_same(heard["anna"], alone(either, first))
    count = bert.frames - bert_prefix(either)
    check_same(heard["bert"], alone(either, second[: count * SIZE], 7, temperature=0.9, top_k=20))
    check_same(heard["cleo"], alone(either, third[: 16 * SIZE]))


def bert_prefix(model):
    return 13 if model.config.silence_prefix_seconds else 0


def test_who_is_flushed_refreshed_or_reset_touches_nobody_else(stt):
    sound, other = noise(30, 1), noise(30, 2)
    people, events = Transcribers(stt, 2), []
    anna, bert = people.join(), people.join(seed=5)
    for n in range(30):
        if n == 6:
            people.flush(bert, other[:500])
        if n == 9:
            people.refresh(bert)
        if n == 12:
            bert = people.reset(bert)
            after = []
        step = people.step({anna: frames_of(sound)[n], bert: frames_of(other)[n]})
        events += step[anna]
        if n >= 12:
            after += step[bert]
    check_same(events, alone(stt, sound))
    check_same(after, alone(stt, other[12 * SIZE :], 5))


def test_a_place_that_broke_is_whole_again(stt):
    people = Transcribers(stt, 1)
    row = people.join()
    people.step({row: noise(1)})
    people._state["temporal"]["layers"][0]["pairs"] += mx.inf
    people.step({row: noise(1)})
    row = people.reset(row)
    sound = noise(6)
    assert [event for frame in frames_of(sound) for event in people.step({row: frame})[row]] == alone(stt, sound)


def test_a_full_house(stt):
    people = Transcribers(stt, 1)
    row = people.join()
    with pytest.raises(InputError, match="slots are taken"):
        people.join()
    people.leave(row)
    with pytest.raises(InputError, match="has not left"):
        people.step({row: np.zeros(SIZE, np.float32)})
    assert people.free == 1
    assert people.step({}) == {}


# --- seeds, settings, refusals --------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same(stt):
    sound = noise(30)
    drawn = [tokens_of(alone(stt, sound, seed, temperature=1.0)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert tokens_of(alone(stt, sound)) == tokens_of(alone(stt, sound, 9, temperature=0))


def test_a_reset_is_a_new_transcriber(stt):
    transcriber, sound = Transcriber(stt, 4, temperature=0.8), noise(12)
    expected = transcriber.feed(sound)
    transcriber.feed(sound[:700])
    transcriber.reset()
    assert transcriber.feed(sound) == expected
    transcriber.reset(seed=5)
    assert transcriber.feed(sound) == alone(stt, sound, 5, temperature=0.8)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"codebooks": 0}, "codebooks"), ({"codebooks": 9}, "codebooks"), ({"codebooks": 2.5}, "codebooks"),
        ({"refresh": 1.5}, "refresh"), ({"refresh": "a"}, "refresh"), ({"context": 25}, "context"),
        ({"temperature": -1}, "temperature"), ({"seed": 0.5}, "seed"), ({"kv_bits": 3}, "kv_bits"),
    ],
)  # fmt: skip
def test_settings_out_of_range(stt, settings, name):
    with pytest.raises(InputError, match=name):
        Transcriber(stt, **settings)


def test_a_setting_that_does_not_exist(stt):
    with pytest.raises(TypeError, match="temprature"):
        Transcriber(stt, temprature=0)


@pytest.mark.parametrize("sound", [np.zeros((2, 10), np.float32), np.zeros(10, np.int16), "a.wav", None, [[0.5]]])
def test_what_is_no_sound(stt, sound):
    with pytest.raises(InputError, match="sound"):
        Transcriber(stt).feed(sound)


@pytest.mark.parametrize("codes", [np.zeros((7, 3), int), np.full((8, 3), 32), np.full((8, 1), -2), np.zeros((8, 1))])
def test_what_are_no_codes(stt, codes):
    with pytest.raises(InputError, match="codes"):
        Transcriber(stt).feed_codes(codes)


def test_codes_after_a_part_of_a_frame(stt):
    transcriber = Transcriber(stt)
    transcriber.feed(noise(0.5))
    with pytest.raises(InputError, match="part of a frame"):
        transcriber.feed_codes(codes_of(1))


def test_other_roles_are_refused(model):
    with pytest.raises(InputError, match=r"dialogue.*expected a transcriber.*moshi_mlx.local runs it"):
        Transcriber(model)
    with pytest.raises(InputError, match="got a NoneType, expected a transcriber"):
        Transcriber(None)


# --- whole sounds ---------------------------------------------------------------------------------------------------


def test_a_file_is_transcribed_to_its_last_word(either, tmp_path):
    sound = noise(40.25)
    soundfile.write(tmp_path / "in.wav", sound, 24_000, subtype="FLOAT")
    from_file = transcribe(Transcriber(either), tmp_path / "in.wav")
    assert from_file == transcribe(Transcriber(either), sound)
    assert from_file.seconds == pytest.approx(40.25 * 0.08)
    assert from_file.words
    assert all(word.start <= word.end <= from_file.seconds for word in from_file.words)
    assert len(from_file.probabilities) == (41 if either.config.extra_heads else 0)


def test_a_file_that_is_missing(stt):
    with pytest.raises(AudioError, match=r"no\.wav: cannot be read"):
        transcribe(Transcriber(stt), "no.wav")


def test_nothing_is_nothing(stt):
    transcriber = Transcriber(stt)
    assert transcriber.feed(np.zeros(0, np.float32)) == transcriber.feed_codes(np.zeros((8, 0), int)) == []
    assert transcribe(transcriber, np.zeros(0, np.float32)).seconds == transcriber.seconds == 0


def test_help_spells_the_settings_out(stt):
    for door in (stt.transcriber, stt.transcribe):
        assert {"temperature", "top_k", "codebooks", "refresh"} <= set(inspect.signature(door).parameters)


@pytest.mark.parametrize("module", [hearing, pauses, transcript, transcriber], ids=lambda module: module.__name__)
def test_examples(stt, module):
    found = doctest.DocTestFinder(exclude_empty=True).find(
        module, globs={"moshi_mlx": moshi_mlx, "np": np, "model": stt}
    )
    ran = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(one.attempted for one in ran)
    assert not any(one.failed for one in ran)


def test_the_doors_of_a_model(stt, model):
    sound = noise(30)
    assert stt.transcriber(temperature=0).feed(sound) == alone(stt, sound)
    people = stt.transcribers(2, codebooks=6)
    assert (people.slots, people.codebooks) == (2, 6)
    assert stt.transcribe(sound, refresh=False) == transcribe(Transcriber(stt), sound)
    assert stt.transcribe(sound) == transcribe(Transcriber(stt, refresh=True), sound)
    for door in (model.transcriber, lambda: model.transcribers(1), lambda: model.transcribe(sound)):
        with pytest.raises(InputError, match="expected a transcriber"):
            door()
