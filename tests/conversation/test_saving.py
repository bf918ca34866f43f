"""A conversation in a file goes on as it would have; a file that does not fit is refused by name."""

import asyncio

import mlx.core as mx
import numpy as np
import pytest
from helpers import GREEDY, delays, question
from mlx.utils import tree_map

import moshi_mlx
from moshi_mlx import InputError
from moshi_mlx.conversation import saving

FRAMES = np.tile(question().reshape(-1, 1920), (3, 1))[:80]


@pytest.fixture(autouse=True)
def small_rings(monkeypatch):
    monkeypatch.setattr("moshi_mlx.conversation.session.FIRST_CAPACITY", 4)


def spoken(session, frames):
    return [session.step(frame) for frame in frames]


def check_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.text, a.text_token, a.speaking) == (b.text, b.text_token, b.speaking)
        np.testing.assert_array_equal(a.audio_codes, b.audio_codes)
        np.testing.assert_array_equal(a.pcm, b.pcm)


def check_goes_on(make, path, before, after=5):
    """What follows a saved conversation, in another session that was elsewhere, is what follows it in its own."""
    session = make(3)
    spoken(session, FRAMES[:before])
    session.save(path)
    expected = spoken(session, FRAMES[before : before + after])
    other = make(8)
    spoken(other, FRAMES[:2])
    other.restore(path)
    check_same(spoken(other, FRAMES[before : before + after]), expected)
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    return session, other


@pytest.mark.parametrize("settings", [GREEDY, {}, {"context": 7}, {"wait_for_greeting": True}])
@pytest.mark.parametrize("before", [0, 11])  # 11: the first ring of 4 slots grew twice
def test_it_goes_on_frame_for_frame(model, tmp_path, settings, before):
    session, other = check_goes_on(lambda seed: model.session(seed, **settings), tmp_path / "talk", before)
    session.reset()
    other.reset()  # to the seed of the conversation that it took
    check_same(spoken(other, FRAMES[:2]), spoken(session, FRAMES[:2]))


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_keys_and_a_full_ring(tmp_path, bits):
    model = moshi_mlx.load("miniature", dtype=mx.float32)
    check_goes_on(lambda seed: model.session(seed, kv_bits=bits, context=6), tmp_path / "talk", 9, after=3)


def test_a_ring_of_another_machine_grows_to_one_of_this(model, tmp_path, monkeypatch):
    session = model.session(3)
    spoken(session, FRAMES[:2])
    session.save(tmp_path / "talk")
    expected = spoken(session, FRAMES[2:8])
    monkeypatch.setattr("moshi_mlx.conversation.session.FIRST_CAPACITY", 64)
    other = model.session()
    other.restore(tmp_path / "talk")
    assert [a.text_token for a in spoken(other, FRAMES[2:8])] == [a.text_token for a in expected]


class Bytes:
    """A tokenizer whose pieces are bytes: 4 and 5 are an e with an acute accent."""

    is_control = staticmethod(lambda token: False)
    is_byte = staticmethod(lambda token: True)
    id_to_piece = staticmethod({4: "<0xC3>", 5: "<0xA9>"}.__getitem__)


def test_half_a_character_waits_in_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "tokenizer", None)
    session, other = (model.session(on_text=lambda token: said) for _ in range(2))
    for one in (session, other):
        one._text_of._tokenizer = Bytes
    said = 4
    assert session.step(FRAMES[0]).text == ""
    session.save(tmp_path / "talk")
    other.restore(tmp_path / "talk")
    said = 5
    assert [one.step(FRAMES[1]).text for one in (session, other)] == ["\u00e9", "\u00e9"]


def test_what_a_prompt_still_says_comes_along(checkpoint, tmp_path):
    from moshi_mlx.conversation.prompt import Columns, prefill

    model = moshi_mlx.load(checkpoint(delays=delays(3)), dtype=mx.float32)
    columns = np.random.default_rng(0).integers(0, 8, (1, len(model.config.table_rows), 6))
    prompt = prefill(model, Columns(columns, np.array([6])))
    session, other = model.session(3, prompt=prompt), model.session()
    spoken(session, FRAMES[:1])
    session.save(tmp_path / "talk")
    other.restore(tmp_path / "talk")
    for a, b in zip(spoken(session, FRAMES[1:7]), spoken(other, FRAMES[1:7]), strict=True):
        assert a.text_token == b.text_token
        assert (a.pcm is None) == (b.pcm is None)
        assert a.pcm is None or np.array_equal(a.pcm, b.pcm)


def test_other_settings_are_refused_by_name(model, tmp_path):
    path = tmp_path / "talk"
    model.session().save(path)
    for name, value, saved in (("context", 5, 64), ("wait_for_greeting", True, False)):
        session = model.session(3, **{name: value})
        with pytest.raises(InputError, match=f"{name}: the conversation was saved with {saved}, .* has {value}; make"):
            session.restore(path)
        check_same(spoken(session, FRAMES[:2]), spoken(model.session(3, **{name: value}), FRAMES[:2]))


def test_other_bits_are_refused_by_name(tmp_path):
    model = moshi_mlx.load("miniature", dtype=mx.float32)
    model.session(kv_bits=8, context=4).save(tmp_path / "talk")
    with pytest.raises(InputError, match="kv_bits: the conversation was saved with 8, this session has None"):
        model.session(context=4).restore(tmp_path / "talk")


@pytest.mark.parametrize("part", ["decoder", "depth_decoder", "audio_encoder"])
def test_another_model_is_refused(model, checkpoint, tmp_path, part):
    path = tmp_path / "talk"
    model.session().save(path)
    other = moshi_mlx.load(checkpoint(), dtype=mx.float32)
    other.session().restore(path)  # the same one from another folder
    tuned = getattr(other, part)
    tuned.update(tree_map(lambda leaf: leaf * 1.001, tuned.parameters()))
    with pytest.raises(InputError, match="a conversation of another model"):
        other.session().restore(path)


def broken(path, how):
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[:-100])
    elif how == "flipped":
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 64]) + whole[-8:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "missing":
        path.unlink()
    else:
        arrays, about = mx.load(str(path), format="safetensors", return_metadata=True)
        if how == "an array less":
            arrays.pop(next(iter(arrays)))
        elif how == "a shape":
            arrays["state.text"] = mx.zeros((2,), mx.int32)
        elif how == "said":
            about["conversation"] = about["conversation"].replace('"steps": 2', '"steps": 3')
        elif how == "said nothing":
            about["conversation"] = "{}"
        elif how == "said too deep":
            about["conversation"] = "[" * 10_000
        else:
            about = {"kind": "moshi_mlx conversation 99"}
        if how in ("a shape", "said nothing", "said too deep"):  # made with care, yet no conversation
            about["checksum"] = saving._checksum(arrays, about["conversation"])
        mx.save_safetensors(str(path.with_suffix(".safetensors")), arrays, about)
        path.with_suffix(".safetensors").replace(path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "not a safetensors file|damaged"),
        ("flipped", "damaged"),
        ("empty", "not a safetensors file"),
        ("missing", "no such file"),
        ("an array less", "damaged"),
        ("a shape", "damaged"),
        ("said", "damaged"),
        ("said nothing", "damaged"),
        ("said too deep", "damaged"),
        ("version", "of another version"),
    ],
)
def test_a_damaged_file_is_refused_and_changes_nothing(model, tmp_path, how, words):
    path = tmp_path / "talk"
    session = model.session(3)
    spoken(session, FRAMES[:2])
    session.save(path)
    broken(path, how)
    with pytest.raises(InputError, match=words) as raised:
        session.restore(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    other = model.session(3)
    spoken(other, FRAMES[:2])
    check_same(spoken(session, FRAMES[2:4]), spoken(other, FRAMES[2:4]))


def test_where_it_cannot_be_written_nothing_is_left(model, tmp_path):
    session = model.session()
    for path in (tmp_path / "no" / "talk", tmp_path, 3):
        with pytest.raises(InputError, match=r"cannot be written|expected the path"):
            session.save(path)
    assert not list(tmp_path.iterdir())


def test_the_same_in_an_event_loop(model, tmp_path):
    async def main():
        async with model.conversation(3) as talk:
            for frame in FRAMES[:3]:
                await talk.send(frame)
            await talk.save(tmp_path / "talk")  # after those
            expected = await talk.step(FRAMES[3])
        async with model.conversation() as talk:
            with pytest.raises(InputError, match="no such file"):
                await talk.restore(tmp_path / "nothing")
            await talk.restore(tmp_path / "talk")
            check_same([await talk.step(FRAMES[3])], [expected])
            await talk.reset(seed=3)
            again = [await talk.step(frame) for frame in FRAMES[:4]]
            check_same(again[3:], [expected])

    asyncio.run(asyncio.wait_for(main(), 60))


def test_the_end_of_a_sound_is_filled_up_with_silence(model):
    sound = question()[: 3 * 1920 + 700]
    stream = model.audio_encoder.stream(8)
    codes = np.concatenate([stream.encode(sound), stream.flush()], axis=1)
    whole = model.audio_encoder.stream(8).encode(np.pad(sound, (0, 1920 - 700)))
    np.testing.assert_array_equal(codes, whole)
    assert stream.flush().shape == (8, 0)
