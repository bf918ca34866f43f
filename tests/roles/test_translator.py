"""Translators: exact as the reference, told and guided, in every way that they are run; ended as they were trained."""

import asyncio
import dataclasses
import shutil

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from batching import check_equal, sound
from family import FAMILY, loaded, reference
from helpers import GREEDY, edit_json
from moshi_mlx.convert.cli import main as convert

import moshi_mlx
from moshi_mlx import AudioError, InputError
from moshi_mlx.checkpoints import writing
from moshi_mlx.conversation.told import against
from moshi_mlx.models.state import flatten
from moshi_mlx.roles import translator as translators
from moshi_mlx.roles.translator import Translator

CASES = {"hibiki": ("hibiki", "", {}), "guided": ("hibiki", "_cfg3", {"guidance": 3}), "zero": ("hibiki_zero", "", {})}


@pytest.fixture(scope="module")
def models():
    return {kind: loaded(kind) for kind in ("hibiki", "hibiki_zero", "plain_2026")}


@pytest.fixture(params=CASES)
def case(request, models):
    kind, suffix, settings = CASES[request.param]
    said = reference(kind)
    return models[kind], settings, said["user"], said[f"text{suffix}"], said[f"frames{suffix}"]


@pytest.fixture
def hibiki(models):
    return models["hibiki"]


def quiet(model, **settings):
    return model.session(progress=False, **settings)


def longest_delay(model):
    return max(model.config.audio_delays[: model.config.num_codebooks])


def tokens(session, columns):
    return [session.step_codes(column).text_token for column in columns.T]


# --- exact ----------------------------------------------------------------------------------------------------------


def test_a_session_is_the_reference(case):
    model, settings, user, text, frames = case
    said = [session.step_codes(column) for session in [quiet(model, **GREEDY, **settings)] for column in user.T]
    assert [frame.text_token for frame in said] == text[1:].tolist()
    codes = [frame.audio_codes for frame in said if frame.audio_codes is not None]
    np.testing.assert_array_equal(np.stack(codes, axis=1), frames[1:])


def test_generate_is_the_reference(case):
    model, settings, user, text, frames = case
    begun = dict(model.get_unconditional_inputs())
    begun["user_audio_codes"] = np.concatenate([np.array(begun["user_audio_codes"]), user[None]], axis=2)
    out = model.generate(
        **begun, concat_unconditional_inputs=False, do_sample=False, max_new_tokens=len(text),
        return_audio_codes=True, **settings,
    )  # fmt: skip
    assert np.array(out.sequences)[0, 1:].tolist() == text.tolist()
    np.testing.assert_array_equal(np.array(out.audio_codes)[0], frames[1:])


def test_generate_goes_on_from_a_prompt_as_the_reference(case):
    model, settings, user, text, frames = case
    half = frames.shape[1] // 2
    out = model.generate(
        input_ids=frames[None, 0, :half], moshi_audio_codes=frames[None, 1:, :half], user_audio_codes=user[None],
        do_sample=False, max_new_tokens=15, return_audio_waveforms=False, **settings,
    )  # fmt: skip
    assert np.array(out)[0, 1:].tolist() == text[: half + 15].tolist()


def test_guidance_changes_what_is_said_and_one_does_not(hibiki):
    columns = reference("hibiki")["user"]
    plain = tokens(quiet(hibiki, **GREEDY), columns)
    assert tokens(quiet(hibiki, guidance=1, **GREEDY), columns) == plain
    assert tokens(quiet(hibiki, guidance=3, **GREEDY), columns) != plain


def test_conditions_change_what_is_said_and_the_usual_one_does_not(hibiki):
    columns = reference("hibiki")["user"]
    plain = tokens(quiet(hibiki, **GREEDY), columns)
    assert tokens(quiet(hibiki, conditions={"description": "very_good"}, **GREEDY), columns) == plain
    others = [tokens(quiet(hibiki, conditions={"description": value}, **GREEDY), columns) for value in ("bad", None)]
    assert plain not in others
    assert others[0] != others[1]


@pytest.mark.parametrize("kv_bits", [None, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("guidance", [None, 3])
def test_rows_of_a_batch_are_conversations_alone(guidance, kv_bits):
    model = loaded("hibiki") if kv_bits is None else wide()
    batch = model.batch(3, guidance=guidance, kv_bits=kv_bits, progress=False)
    told = [None, {"description": "bad"}, {"description": None}]
    rows = [batch.join(seed=n, conditions=one) for n, one in enumerate(told)]
    sounds, frames = [sound(n, 30) for n in range(3)], [[], [], []]
    places = [iter(each) for each in sounds]
    for n in range(40):  # one of them pauses now and then, the window wraps
        given = {row: next(places[k], None) for k, row in enumerate(rows) if (n + k) % 4}
        for row, frame in batch.step({row: pcm for row, pcm in given.items() if pcm is not None}).items():
            frames[rows.index(row)].append(frame)
    batch.leave(rows[1])
    rows[1] = batch.join(seed=5)  # who comes after is told the usual again
    late = [batch.step({rows[1]: pcm})[rows[1]] for pcm in sounds[1]]
    for n, one in enumerate(told):
        alone = quiet(model, seed=n, conditions=one, guidance=guidance, kv_bits=kv_bits)
        check_equal(frames[n], [alone.step(pcm) for pcm in sounds[n][: len(frames[n])]])
    alone = quiet(model, seed=5, guidance=guidance, kv_bits=kv_bits)
    check_equal(late, [alone.step(pcm) for pcm in sounds[1]])


def wide():
    """A Hibiki with heads of 32 values, as kv_bits wants them."""
    model = moshi_mlx.MoshiForConditionalGeneration(dataclasses.replace(loaded("hibiki").config, head_dim=32), seed=3)
    model.tokenizer = loaded("hibiki").tokenizer
    return model


def test_a_row_with_infinities_leaves_no_trace(hibiki):
    batch = hibiki.batch(2, guidance=3, progress=False)
    row = batch.join(seed=1)
    batch.step({row: sound(0, 1)[0]})
    batch.leave(row)
    batch._unfit.add(0)
    row = batch.join(seed=2, conditions={"description": "bad"})
    frames = [batch.step({row: pcm})[row] for pcm in sound(1, 5)]
    alone = quiet(hibiki, seed=2, conditions={"description": "bad"}, guidance=3)
    check_equal(frames, [alone.step(pcm) for pcm in sound(1, 5)])


def test_a_conversation_is_told_as_a_session(hibiki):
    told = {"guidance": 3, "conditions": {"description": "bad"}, "seed": 2}

    async def talked():
        async with hibiki.conversation(progress=False, **told) as talk:
            return [await talk.step(pcm) for pcm in sound(5, 6)]

    alone = quiet(hibiki, **told)
    check_equal(asyncio.run(talked()), [alone.step(pcm) for pcm in sound(5, 6)])


@pytest.mark.slow
def test_ten_thousand_frames_stay_exact_and_flat(hibiki):
    config, count, guidance = hibiki.config, 10_000, 3
    user = np.random.default_rng(1).integers(0, config.audio_vocab_size, (count, config.user_codebooks))
    talk = quiet(hibiki, guidance=guidance, **GREEDY)
    text, own, before = [0], [np.zeros(config.num_codebooks, int)], 0
    for n, column in enumerate(user):
        text.append(talk.step_codes(column).text_token)
        own.append(np.array(talk._state["own"])[0, :, -1])
        if n == 1000:
            mx.clear_cache()
            before = mx.get_active_memory()
    mx.clear_cache()
    assert mx.get_active_memory() - before < 1e5
    # What the last positions saw, as one sequence: the window of each layer forgets what was before it.
    last, delays = range(count - 300, count + 1), config.audio_delays[config.num_codebooks :]
    seen = [
        [text[p - 1], *own[p - 1], *(user[p - 1 - delay, k] for k, delay in enumerate(delays))] for p in last
    ]  # fmt: skip
    seen = mx.array(np.array(seen).T[None].astype(np.int32))
    said, null = (hibiki.decoder(inputs_embeds=hibiki.embed(seen, side)).logits for side in ({}, against(hibiki)))
    likeliest = np.array((null + (said - null) * guidance).argmax(-1))[0]
    field = config.num_hidden_layers * config.sliding_window
    assert likeliest[field:].tolist() == text[count - 300 :][field:]


@pytest.mark.parametrize("guidance", [1, 3])
def test_a_saved_one_goes_on(hibiki, tmp_path, guidance):
    told = {"guidance": guidance, "conditions": {"description": "neutral"}}
    session, other = quiet(hibiki, **told), quiet(hibiki, seed=9, **told)
    heard = sound(3, 20)
    for pcm in heard[:10]:
        session.step(pcm)
    session.save(tmp_path / "talk.safetensors")
    other.restore(tmp_path / "talk.safetensors")
    check_equal([other.step(pcm) for pcm in heard[10:]], [session.step(pcm) for pcm in heard[10:]])
    for name, value in (("guidance", 2.5), ("conditions", {"description": "bad"})):
        with pytest.raises(InputError, match=f"{name}: the conversation was saved with"):
            quiet(hibiki, **(told | {name: value})).restore(tmp_path / "talk.safetensors")


def test_the_window_wraps_and_the_context_fills_with_two_rows(hibiki):
    session = quiet(hibiki, guidance=3, context=10, **GREEDY)
    session.fill_context()
    assert session.step(sound(0, 1)[0]).pcm.shape == (1920,)


# --- what is refused ------------------------------------------------------------------------------------------------

DOORS = {
    "session": lambda model, **told: quiet(model, **told),
    "generate": lambda model, **told: model.generate(max_new_tokens=2, **told),
    "translator": lambda model, **told: model.translator(progress=False, **told),
    "batch": lambda model, conditions=None, **told: model.batch(1, progress=False, **told).join(conditions=conditions),
}
WRONG = {
    "words": ({"guidance": "much"}, "guidance: got 'much', expected a number"),
    "nan": ({"guidance": float("nan")}, "guidance: got nan, expected a number"),
    "true": ({"guidance": True}, "guidance: got True, expected a number"),
    "a name": ({"conditions": {"mood": "good"}}, "conditions: got 'mood', expected one of description"),
    "a value": ({"conditions": {"description": "great"}}, "'description' got 'great', expected one of very_bad, bad"),
    "a list": ({"conditions": ["good"]}, "conditions: got a list, expected values by name"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_it_cannot_be_told_is_named(hibiki, door, wrong):
    told, message = WRONG[wrong]
    with pytest.raises(InputError, match=message):
        DOORS[door](hibiki, **told)


@pytest.mark.parametrize("kind", ["plain_2026", "hibiki_zero"])
@pytest.mark.parametrize("door", DOORS)
def test_a_model_without_conditions_takes_none(models, door, kind):
    if door == "translator" and kind == "plain_2026":
        return
    with pytest.raises(InputError, match="guidance: got 3, but this model takes no conditions"):
        DOORS[door](models[kind], guidance=3)
    with pytest.raises(InputError, match="got 'description', expected one of none: this model takes no conditions"):
        DOORS[door](models[kind], conditions={"description": "good"})


@pytest.mark.parametrize("given", [{"persona": "a pirate"}, {"voice": "NATF0"}, {"wait_for_greeting": True}])
def test_it_is_nobody(hibiki, given):
    with pytest.raises(InputError, match=r"takes neither|a translator takes none"):
        hibiki.session(progress=False, **given)


def test_embeddings_say_what_the_model_is_told(hibiki):
    columns = reference("hibiki")["frames"][None, :, :4]
    silent = np.zeros((1, hibiki.config.user_codebooks, 4), np.int32)
    given = {"moshi_audio_codes": columns[:, 1:], "user_audio_codes": silent}
    embeds = mx.zeros((1, 4, hibiki.config.hidden_size))
    for told in ({"guidance": 3}, {"conditions": {"description": "bad"}}):
        with pytest.raises(InputError, match=f"{next(iter(told))}: got it together with inputs_embeds"):
            hibiki.generate(inputs_embeds=embeds, **given, max_new_tokens=2, **told)


# --- the end --------------------------------------------------------------------------------------------------------


class Golden(Translator):
    """Hears after its source what the golden has there in the place of silence."""

    def _silence(self):
        return self.session.step_codes(next(self.later))


@pytest.mark.parametrize("kind", ["hibiki", "hibiki_zero"])
def test_it_ends_where_the_reference_ends_and_is_drained(models, kind):
    model, longest = models[kind], longest_delay(models[kind])
    user = reference(kind)["user"].copy()
    there = (user == model.config.audio_vocab_size).all(axis=0)
    source = int(there.argmax()) if there.any() else user.shape[1] * 3 // 4  # Zero's has no end
    user[:, source] = model.config.audio_vocab_size
    columns = [*user.T, *np.random.default_rng(0).integers(0, model.config.audio_vocab_size, (340, len(user)))]
    session = quiet(model, **GREEDY)
    text = [int(np.array(session._state["text"])[0]), *(session.step_codes(column).text_token for column in columns)]
    if kind == "hibiki":
        assert there.any()
        assert text[: user.shape[1] + 1] == reference(kind)["text"].tolist()
    one = Golden(model, progress=False, **GREEDY)
    for column in columns[:source]:
        one.step_codes(column)
    one.later = iter(columns[source + 1 :])
    frames = list(one.finish())
    # Call source + 1 hears the end, and column j comes with call j + longest.
    ends = next(call for call in range(source + 1, len(text)) if text[call - longest] == 2)
    assert one.said_end
    assert len(frames) == ends - source + longest
    assert [frame.text_token for frame in frames] == text[source + 1 :][: len(frames)]
    assert one.done
    with pytest.raises(InputError, match="reset"):
        one.step(np.zeros(1920, np.float32))
    assert list(one.finish()) == []


def test_the_end_is_heard_once_and_only_by_who_knows_it(tmp_path):
    folder = tmp_path / "mlx"
    shutil.copytree(FAMILY / "hibiki", folder)
    edit_json(folder / "config.json", model_type=None)  # as in Kyutai's files for MLX
    for model, ends in ((loaded("hibiki"), 1), (moshi_mlx.load(folder, dtype=mx.float32), 0)):
        heard = []
        one = model.translator(progress=False, tail=1)
        inner = one.session.step_codes
        one.session.step_codes = lambda codes, inner=inner, heard=heard: (heard.append(codes.tolist()), inner(codes))[1]
        for pcm in sound(0, 3):
            one.step(pcm)
        frames = list(one.finish())
        assert heard == [[model.config.audio_vocab_size] * model.config.user_codebooks] * ends
        assert len(frames) <= 13 + longest_delay(model)


def test_it_comes_to_an_end_in_any_case(hibiki, monkeypatch):
    monkeypatch.setattr(translators, "END", -7)
    one = hibiki.translator(progress=False, tail=0.8)
    one.step(sound(0, 1)[0])
    assert len(list(one.finish())) == 10 + longest_delay(hibiki)
    assert not one.said_end
    one.reset()
    assert not one.over
    with pytest.raises(InputError, match="tail: got -1"):
        hibiki.translator(progress=False, tail=-1)


def test_a_whole_source_is_its_frames(hibiki, tmp_path):
    heard = sound(4, 12).reshape(-1)[:-500]
    settings = {"seed": 3, "guidance": 2, "tail": 2, "progress": False}
    said, text = hibiki.translate(heard, **settings)
    one = hibiki.translator(**settings)
    frames = [one.step(pcm) for pcm in np.pad(heard, (0, 500)).reshape(-1, 1920)] + list(one.finish())
    silent = np.zeros(1920, np.float32)
    np.testing.assert_array_equal(said, np.concatenate([silent if f.pcm is None else f.pcm for f in frames]))
    assert text == "".join(frame.text for frame in frames).strip()
    soundfile.write(tmp_path / "talk.wav", np.stack([heard, heard], axis=1), 24000, subtype="FLOAT")
    from_file = hibiki.translate(tmp_path / "talk.wav", **settings)
    assert from_file.text == text
    np.testing.assert_allclose(from_file.sound, said, atol=1e-4)


def test_a_source_that_is_too_long_for_zero_is_told_once(models):
    lines = []
    one = models["hibiki_zero"].translator(progress=False, say=lines.append)
    one._heard = 1498
    for pcm in sound(0, 4):
        one.step(pcm)
    assert len(lines) == 1
    assert "longer than 120 s" in lines[0]
    one = models["hibiki"].translator(progress=False, say=lines.append)
    one._heard = 1499
    one.step(sound(0, 1)[0])
    assert len(lines) == 1


@pytest.mark.parametrize("wrong", [np.zeros(1920, np.int16), np.zeros((2, 1920), np.float32), "no/such/file.wav", None])
def test_what_is_no_sound_is_named(hibiki, wrong):
    with pytest.raises((InputError, AudioError), match=r"sound: got|no/such/file.wav: cannot be read"):
        hibiki.translate(wrong, progress=False)


def test_broken_samples_are_heard_as_silence(hibiki):
    one, other = (hibiki.translator(seed=1, progress=False) for _ in range(2))
    heard = sound(0, 1)[0]
    heard[7:9] = np.nan, np.inf
    assert one.step(heard).text_token == other.step(np.nan_to_num(heard, posinf=0)).text_token
    assert one.nonfinite_samples == 2


def test_one_in_four_bits_translates_as_it_was_told(tmp_path):
    config = loaded("hibiki").config
    depth = dataclasses.replace(config.depth_decoder_config, input_size=64, hidden_size=64, ffn_dim=256)
    sizes = {"hidden_size": 64, "ffn_dim": 512, "depth_decoder_config": depth}
    model = moshi_mlx.MoshiForConditionalGeneration(dataclasses.replace(config, **sizes), seed=1)
    model.tokenizer = loaded("hibiki").tokenizer
    writing.save(model, tmp_path / "plain", "kyutai")
    assert convert(["--hf-path", str(tmp_path / "plain"), "--mlx-path", str(tmp_path / "q4"), "-q"]) == 0
    quantized = moshi_mlx.load(tmp_path / "q4")
    assert quantized.config == model.config
    for name, value in flatten(model.conditions.parameters()):
        assert mx.array_equal(dict(flatten(quantized.conditions.parameters()))[name], value)
    said = [quantized.translate(sound(0, 20).reshape(-1), tail=1, progress=False, guidance=g).text for g in (1, 3)]
    assert said[0] != said[1]
