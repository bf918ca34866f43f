"""A speaker's tokens are the reference's; a row is what it would be alone, however and whenever its text comes."""

import json
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from helpers import GREEDY, golden
from roles_spoken import PREFIX, TTS

import moshi_mlx
from moshi_mlx import InputError
from moshi_mlx.conversation import duplex
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.roles import voices
from moshi_mlx.roles.script import Reader
from moshi_mlx.roles.speaking import step, utterance
from moshi_mlx.roles.speaking.step import Parts
from moshi_mlx.roles.speaking.utterance import Plan

TEXT = "hello big world"
REF = {"tts": golden("family/tts/ref"), "tts_prefix": golden("family/tts_prefix/ref")}
VOICE = {"tts": "voice0", "tts_prefix": REF["tts_prefix"]["prefix"][1:]}
CASES = [("tts", "", None), ("tts", "_fewer", 3), ("tts_prefix", "", None)]
LONG = 'good morning you fox, <break time="0.4s"/> i am fine thank you'


@pytest.fixture(scope="module")
def models():
    return {path.name: moshi_mlx.load(path, dtype="float32") for path in (TTS, PREFIX)}


@pytest.fixture(scope="module")
def speakers(models):
    return {kind: model.speaker(VOICE[kind], seed=3) for kind, model in models.items()}


def stepped(model, plan, state, said, sampling, codebooks):
    """The reference's calls by the pure step: asked, given, columns [1 + codebooks, calls - longest delay]."""
    asked, given, columns = [], [], []
    everyone = mx.ones((1,), mx.bool_)
    while not utterance.done(plan, said):
        token, heard = step.ask(model, state, everyone, sampling)
        decodes, replaced = mx.array([utterance.decodes(plan, said)]), mx.array(utterance.replaced(plan, said)[None])
        silent = utterance.silent(plan, said)
        number, _, said = utterance.answer(plan, said, int(token.item()))
        parts = Parts(everyone, decodes, replaced)
        column, _, state = step.say(model, mx.array([number]), heard, parts, sampling, codebooks, silent)
        asked.append(int(token.item()))
        given.append(number)
        columns.append(np.array(column)[0])
    longest = max(plan.delays)
    return asked, given, np.stack([[text, *column] for text, column in zip(given, columns[longest:], strict=False)], 1)


@pytest.mark.parametrize(("kind", "suffix", "codebooks"), CASES)
def test_every_call_is_the_references(models, kind, suffix, codebooks):
    model, reference = models[kind], REF[kind]
    count = codebooks or model.config.num_codebooks
    coefficient = 2.0 if kind == "tts_prefix" else 1.0
    plan = Plan.of(model.config, Reader(model.tokenizer, speakers=kind == "tts"), turns=False)
    given = voices.voices_of(model, VOICE[kind])
    sampling = DuplexSampling(
        *(getattr(DuplexSampling.of(GREEDY), side) for side in ("text", "audio")), coefficient, False
    )
    state = duplex.init_state(model, [0], conditions=voices.condition(model, given), guidance=coefficient)
    if coefficient != 1:
        state["unseen"] = mx.array([6 + plan.audio_start])
    said = utterance.close(plan, utterance.add(plan, utterance.begin(plan, given[0].codes), TEXT))
    asked, numbers, frames = stepped(model, plan, state, said, sampling, count)
    np.testing.assert_array_equal(asked, reference[f"asked{suffix}"])
    np.testing.assert_array_equal(numbers, reference[f"given{suffix}"])
    np.testing.assert_array_equal(frames, reference[f"frames{suffix}"])


def expected_frames(kind, suffix=""):
    """The reference's columns that are heard: behind the text, and behind the recording."""
    skipped = 4 + (6 if kind == "tts_prefix" else 0)
    return REF[kind][f"frames{suffix}"][1:, skipped:]


@pytest.mark.parametrize(("kind", "suffix", "codebooks"), CASES)
def test_a_text_is_the_references_and_its_words_have_times(models, kind, suffix, codebooks):
    model = models[kind]
    speaker = model.speaker(VOICE[kind], codebooks=codebooks, **GREEDY)
    frames = list(speaker.stream(TEXT))
    codes = np.stack([frame.codes for frame in frames], axis=1)
    np.testing.assert_array_equal(codes, expected_frames(kind, suffix))
    script = json.loads((model.folder / "script.json").read_text())[f"result{suffix}"]
    prefix = 6 if kind == "tts_prefix" else 0
    starts = [(step - prefix) / 12.5 for _, step in script["transcript"]] + [(script["end_step"] - prefix) / 12.5]
    assert [word for word, _, _ in speaker.words] == [word for word, _ in script["transcript"]]
    np.testing.assert_allclose([times for _, *times in speaker.words], list(pairwise(starts)))
    assert [word for frame in frames for word in frame.words] == speaker.words
    np.testing.assert_array_equal(speaker.say(TEXT), np.concatenate([frame.pcm for frame in frames]))
    decoded = model.audio_encoder.stream(model.config.num_codebooks)
    heard = REF[kind][f"frames{suffix}"][1:, 4:]
    if codebooks is None:
        sound = np.clip(decoded.decode(heard), -1, 1)[prefix * 1920 :]
        np.testing.assert_allclose(speaker.say(TEXT), sound, atol=1e-5)


@pytest.mark.parametrize("kind", ["tts", "tts_prefix"])
def test_letter_by_letter_is_the_same_sound_and_begins_before_the_text_ends(speakers, kind):
    speaker, taken = speakers[kind], []

    def letters():
        for letter in LONG:
            taken.append(letter)
            yield letter

    whole = speaker.say(LONG)
    words = list(speaker.words)
    frames, known = [], []
    for frame in speaker.stream(letters()):
        frames.append(frame.pcm)
        known.append(len(taken))
    np.testing.assert_array_equal(np.concatenate(frames), whole)
    assert speaker.words == words
    assert known[0] < len(LONG) == known[-1]


def test_rows_are_what_they_are_alone(models):
    model = models["tts"]
    other = 2 * np.array(mx.load(str(TTS / "voice0.wav.1e68beda@240.safetensors"))["speaker_wavs"])
    said = {
        "hello big world": {"voice": None, "seed": 1},  # that of the batch
        LONG: {"voice": other, "seed": 2, "temperature": 0.9},
        "you can talk": {"voice": (), "seed": 3, "text_temperature": 0},
        "it's past seven\ni am fine": {"voice": ["voice0", other], "seed": 4, "guidance": 3.0},
    }
    alone = {
        text: list(
            model.speaker(**{**given, "voice": "voice0" if given["voice"] is None else given["voice"]}).stream(text)
        )
        for text, given in said.items()
    }
    batch = model.speakers(3, voice=VOICE["tts"], progress=False)
    waiting, rows, frames = list(said.items()), {}, {text: [] for text in said}
    late = 0
    while waiting or rows:
        while waiting and batch.free:
            text, given = waiting.pop(0)
            rows[batch.join(**given)] = (text, iter(text))
        for row, (_, letters) in rows.items():
            late += 1
            if not row.ready and late % 3:  # every third time it waits, and the others go on
                letter = next(letters, None)
                row.end() if letter is None else row.add(letter)
        for row, spoken in batch.step().items():
            frames[rows[row][0]].append(spoken)
            if row.done:
                batch.leave(row)
                del rows[row]
    for text in said:
        heard = [frame for frame in frames[text] if frame.pcm is not None]
        np.testing.assert_array_equal([f.codes for f in heard], [f.codes for f in alone[text]])
        np.testing.assert_allclose([f.pcm for f in heard], [f.pcm for f in alone[text]], atol=1e-5)
        words = [word for frame in frames[text] for word in frame.words]
        assert words == [word for frame in alone[text] for word in frame.words]


def test_rows_with_and_without_a_recording(models):
    model = models["tts_prefix"]
    given = [{"voice": VOICE["tts_prefix"], "seed": 1}, {"seed": 2}]
    alone = [np.stack([f.codes for f in model.speaker(**each).stream(TEXT)]) for each in given]
    batch = model.speakers(2, progress=False)
    rows = [batch.join(**each) for each in given]
    for row in rows:
        row.add(TEXT)
        row.end()
    frames = {row: [] for row in rows}
    while not all(row.done for row in rows):
        for row, spoken in batch.step().items():
            frames[row] += [] if spoken.codes is None else [spoken.codes]
    for row, codes in zip(rows, alone, strict=True):
        np.testing.assert_array_equal(np.stack(frames[row]), codes)
    assert not np.array_equal(alone[0][:20], alone[1][:20])


def test_many_texts_at_once(models):
    model = models["tts"]
    speaker = model.speaker("voice0", seed=5)
    texts = [TEXT, LONG, "you", "can talk", "am"]
    for text, speech in zip(texts, speaker.say_all(texts, at_once=2, progress=False), strict=True):
        np.testing.assert_allclose(speech.pcm, speaker.say(text), atol=1e-5)
        assert speech.words == speaker.words
    assert speaker.say_all([]) == []


@pytest.mark.slow
def test_the_seed_guidance_voice_and_settings_matter(models):
    model = models["tts"]
    same = {"voice": "voice0", "seed": 1}
    sound = model.speaker(**same).say(LONG)
    speaker = model.speaker(**same)
    np.testing.assert_array_equal(speaker.say(LONG), sound)
    np.testing.assert_array_equal(speaker.say(LONG), sound)
    speaker.reset(seed=2)
    others = [speaker.say(LONG)] + [
        model.speaker(**{**same, **change}).say(LONG)
        for change in (
            {"guidance": 4.0}, {"voice": None}, {"padding_between": 4}, {"padding_bonus": 200}, {"temperature": 0},
            {"text_temperature": 5.0}, {"codebooks": 2}, {"voice": ["voice0", "voice0"]},
        )
    ]  # fmt: skip
    for other in others:
        assert other.shape != sound.shape or not np.allclose(other, sound, atol=1e-6)


def test_guidance_that_asks_twice(models):
    model = models["tts_prefix"]
    sounds = [model.speaker(VOICE["tts_prefix"], guidance=g, **GREEDY).say(TEXT) for g in (1, 2, 3)]
    assert len({sound.tobytes() for sound in sounds}) == 3
    np.testing.assert_array_equal(sounds[1], model.speaker(VOICE["tts_prefix"], **GREEDY).say(TEXT))


def test_turns_are_lines_where_there_are_two_voices(models):
    def firsts(speaker, text):
        row = speaker._begin(speaker._speakers)
        row.add(text)
        row.end()
        waiting = row._utterance.words.waiting
        speaker._speakers.leave(row)
        return [word.tokens[0] for word in waiting]

    text = "you can\n\n  \ntalk\nyou"
    model = models["tts"]
    one = firsts(model.speaker("voice0"), text)
    assert (one[0], 2 in one) == (1, False)
    for speaker in (model.speaker(["voice0", "voice0"]), model.speaker("voice0", turns=True)):
        two = firsts(speaker, text)
        assert (two[0], two[2], two[3]) == (1, 2, 1)
    assert firsts(model.speaker(["voice0", "voice0"], turns=False), text) == one


def test_one_text_at_a_time(models):
    speaker = models["tts"].speaker("voice0", seed=3)
    whole = speaker.say(TEXT)
    stream = speaker.stream(TEXT)
    next(stream)
    with pytest.raises(InputError, match="in the middle of another text"):
        speaker.say(TEXT)
    speaker.reset()
    with pytest.raises(InputError, match="given up by reset"):
        next(stream)
    np.testing.assert_array_equal(speaker.say(TEXT), whole)
    half = speaker.stream(TEXT)
    next(half)
    half.close()
    np.testing.assert_array_equal(speaker.say(TEXT), whole)


NOTHING = ["", "  \n", ":", "()"]


@pytest.mark.parametrize("text", NOTHING)
def test_nothing_to_say(speakers, text):
    for said in (text, list(text), iter([])):
        with pytest.raises(InputError, match="got nothing to say"):
            list(speakers["tts"].stream(said))
    with pytest.raises(InputError, match=r"texts\[1\]: got nothing to say"):
        speakers["tts"].say_all(["you", text], progress=False)
    assert len(speakers["tts"].say("you"))


@pytest.mark.parametrize("text", [None, 7, b"hello", ["hello", 7], [b"x"]])
def test_what_is_no_text(speakers, text):
    with pytest.raises(InputError, match="text"):
        list(speakers["tts"].stream(text))
    with pytest.raises(InputError, match="text"):
        speakers["tts"].say(text)
    assert len(speakers["tts"].say("you"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"guidance": 2.2}, "expected one of 1.0, 1.5"),
        ({"guidance": -1}, "guidance"),
        ({"guidance": "much"}, "guidance"),
        ({"codebooks": 0}, "codebooks: got 0"),
        ({"codebooks": 5}, "codebooks: got 5"),
        ({"context": 25}, "context: got 25"),
        ({"kv_bits": 3}, "kv_bits"),
        ({"padding_between": -1}, "padding_between"),
        ({"padding_bonus": float("nan")}, "padding_bonus"),
        ({"temperature": -1}, "temperature"),
        ({"kv_bits": 8}, "kv_bits"),
        ({"seed": 1.5}, "seed"),
        ({"voice": "/no/such/voice"}, "no such file"),
    ],
    ids=str,
)
def test_settings_out_of_range(models, setting, said):
    with pytest.raises(InputError, match=said):
        models["tts"].speaker(**setting)


def test_settings_that_there_are_not(models):
    with pytest.raises(TypeError, match="Did you mean 'voice'"):
        models["tts"].speaker(voices="voice0")
    alike = models["tts"].speakers(1, progress=False, sampling={"temperature": 0})
    assert alike.join().sampling.audio.greedy
    with pytest.raises(InputError, match="join: got top_k, but all rows have the settings"):
        alike.join(top_k=3)
    with pytest.raises(InputError, match="all rows of this model have 2"):
        models["tts_prefix"].speakers(1, progress=False).join(guidance=3.0)


def test_a_model_that_does_not_speak():
    model = moshi_mlx.load("miniature", dtype="float32")
    for make in (lambda: model.speaker(), lambda: model.speakers(2)):
        with pytest.raises(
            InputError, match=r"got a dialogue model .*, expected a speaker .*python -m moshi_mlx\.local"
        ):
            make()


def test_slots(models):
    batch = models["tts"].speakers(1, progress=False)
    row = batch.join()
    with pytest.raises(InputError, match="all 1 slots are taken"):
        batch.join()
    assert batch.step() != {}  # the first frames need no text
    while row.ready:
        batch.step()
    assert batch.step() == {}
    batch.leave(row)
    with pytest.raises(InputError, match="has not left"):
        batch.leave(row)
    assert (batch.free, batch.rows) == (1, [])


@pytest.mark.slow
def test_ten_thousand_frames_are_exact_and_flat_in_memory(models, monkeypatch):
    """A window that wraps over and over: what is asked for is what a young state asks that saw the window alone."""
    model, seen, columns, memory = models["tts"], [], [], []
    batch = model.speakers(1, progress=False)
    row = batch.join("voice0", **GREEDY)
    row.add("good morning you fox i am fine thank you " * 1000)
    answer = utterance.answer

    def watched(plan, said, asked):
        number, words, after = answer(plan, said, asked)
        seen.append((asked, number))
        return number, words, after

    monkeypatch.setattr(utterance, "answer", watched)
    for n in range(10_000):
        spoken = batch.step()[row]
        columns += [] if spoken.codes is None else [spoken.codes]
        if n in (2_000, 9_999):
            memory.append(mx.get_active_memory())
    assert memory[1] - memory[0] < 200_000
    config = model.config
    reach, end = 2 * config.sliding_window + 10, 10_000 - max(config.audio_delays)  # both layers' windows
    tokens = np.zeros((1, 1 + config.num_codebooks, reach), np.int32)
    for at, position in enumerate(range(end - reach, end)):
        tokens[0, 0, at] = seen[position - 1][1]
        for codebook, delay in enumerate(config.audio_delays):
            tokens[0, 1 + codebook, at] = columns[position - 1 - delay - config.audio_start][codebook]
    told = voices.condition(model, voices.voices_of(model, "voice0"))
    state, asked = duplex.init_state(model, [0], conditions=told)["temporal"], []
    for at in range(reach):
        _, logits, state = model.decoder.step(mx.array(tokens[:, :, at : at + 1]), state)
        asked.append(int(logits[0, 0].argmax().item()))
    assert asked[-10:] == [token for token, _ in seen[end - 10 : end]]
    assert len(set(asked[-10:])) > 1


DOORS = {
    "speaker": lambda model, seed: model.speaker("voice0", seed, progress=False),
    "Speakers.join": lambda model, seed: model.speakers(1, progress=False).join("voice0", seed),
    "reset": lambda model, seed: model.speaker("voice0", progress=False).reset(seed),
}


@pytest.mark.parametrize("door", DOORS)
def test_seeds_are_any_whole_number(models, door):
    for seed in (-1, 2**64, np.int64(-5), np.array(3), mx.array(3)):
        DOORS[door](models["tts"], seed)
    for seed in (1.0, "1", True, [1], 1j):
        with pytest.raises(InputError, match=r"^seed: got "):
            DOORS[door](models["tts"], seed)


COUNTS = {
    "slots": lambda model, count: model.speakers(count, progress=False),
    "codebooks": lambda model, count: model.speaker(codebooks=count, progress=False),
    "at_once": lambda model, count: model.speaker(progress=False).say_all(["you"], count, progress=False),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole_numbers_of_every_kind(models, name):
    for count in (2, np.int64(2), np.array(2), mx.array(2)):
        COUNTS[name](models["tts"], count)
    for count in (0, -1, 1.0, "2", True, [2]):
        with pytest.raises(InputError, match=f"^{name}: got "):
            COUNTS[name](models["tts"], count)


def test_a_call_from_inside_a_call_is_refused_and_harms_nothing(models):
    """Text that asks the same speaker to speak, while it waits for that text."""
    speaker = models["tts"].speaker("voice0", seed=3)
    whole = speaker.say("hello big world")

    def pieces():
        yield "hello "
        with pytest.raises(InputError, match="in the middle of another text"):
            speaker.say("you")
        yield "big world"

    np.testing.assert_array_equal(np.concatenate([frame.pcm for frame in speaker.stream(pieces())]), whole)


def test_a_step_that_fails_ends_the_text_and_no_other(models, monkeypatch):
    speaker = models["tts"].speaker("voice0", seed=3)
    whole = speaker.say(TEXT)
    stream, answer = speaker.stream(TEXT), utterance.answer
    next(stream)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(utterance, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    monkeypatch.setattr(utterance, "answer", answer)
    np.testing.assert_array_equal(speaker.say(TEXT), whole)
