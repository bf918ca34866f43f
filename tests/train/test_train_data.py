"""Training data: recordings found and checked, encoded once, resumed, and drawn as batches."""

import json

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from training import tones

import moshi_mlx
from moshi_mlx import ConfigError, InputError
from moshi_mlx.local.options import DEMO_MODEL
from moshi_mlx.train import dataset, prepare, recordings


def test_folders_and_manifests_list_the_same(tmp_path):
    folder = tones(tmp_path / "sub", pairs=(1,))
    lines = [{"path": f"sub/{n}.wav", "duration": 2.0} for n in (0, 2, 3)]
    lines.insert(1, {"moshi": "sub/1.moshi.wav", "user": "sub/1.user.flac"})
    (tmp_path / "all.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    found = recordings.find(tmp_path)
    assert found == recordings.find(tmp_path / "all.jsonl")
    assert [conversation.name for conversation in found] == [f"sub/{n}" for n in range(4)]
    assert found[1] == ("sub/1", folder / "1.moshi.wav", folder / "1.user.flac", folder / "1.json")
    words = recordings.check(found, "SPEAKER_MAIN")
    assert words["sub/1"] == [("time", 1.0, 1.3), ("is", 1.7, 1.9)]


def test_sound_is_resampled_in_blocks_as_at_once(tmp_path, monkeypatch):
    (conversation,) = recordings.find(tones(tmp_path, 1, rate=16000))
    (whole,) = recordings.sound(conversation, 24000)
    monkeypatch.setattr(recordings, "BLOCK_SECONDS", 1)
    blocks = list(recordings.sound(conversation, 24000))
    assert len(blocks) == 2
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), whole, atol=1e-6)
    assert whole.shape == (2, 48000)


def test_of_a_pair_the_shorter_half_ends_in_silence(tmp_path):
    (conversation,) = recordings.find(tones(tmp_path, 1, pairs=(0,)))
    (sound,) = recordings.sound(conversation, 24000)
    assert sound.shape == (2, 48000)
    assert sound[1, 20000:21000].any()
    assert not sound[1, 21600:].any()


def prepared(model, folder, source, **more):
    prepare.prepare(model, recordings.find(source), folder, more.pop("speaker", "SPEAKER_MAIN"))
    return dataset.load(folder, prepare.settings_of(model), more.pop("frames", 1000))


def test_prepared_streams_are_mimis_codes_and_the_aligned_text(model, tmp_path):
    source = tones(tmp_path / "recordings", pairs=(1,))
    data = prepared(model, tmp_path / "data", source)
    rows = data.rows(range(4))
    assert rows.shape == (4, 17, 25)
    sound, _ = soundfile.read(source / "2.wav", dtype="float32")
    for channel, streams in ((0, rows[2, 1:9]), (1, rows[2, 9:])):
        encoded = model.audio_encoder.encode(mx.array(sound[None, :, channel]), num_quantizers=8)
        expected = np.array(encoded.audio_codes)[0]
        np.testing.assert_array_equal(streams, expected)
    said = [model.tokenizer.id_to_piece(int(t)) for t in rows[2, 0] if t not in (0, 3)]
    assert "".join(said).replace("\u2581", " ").split() == ["time", "is"]
    assert (rows[2, 0] == 0).sum() == 2  # the end of the padding before each word
    assert list(rows[2, 0, :11]) == [3] * 11


def test_preparing_resumes_with_whole_shards(model, tmp_path, monkeypatch):
    source = tones(tmp_path / "recordings")
    monkeypatch.setattr(prepare, "SHARD_SECONDS", 3)
    expected = prepared(model, tmp_path / "data", source).rows(range(4))
    shards = sorted((tmp_path / "data").glob("shard-*"))
    assert len(shards) == 2
    shards[1].unlink()
    (tmp_path / "data" / "prepared.json").unlink()
    with pytest.raises(InputError, match="preparing was interrupted"):
        dataset.load(tmp_path / "data", prepare.settings_of(model), 1000)
    encoded, streams = [], prepare._streams
    monkeypatch.setattr(prepare, "_streams", lambda *a: (encoded.append(a[2].name), streams(*a))[1])
    np.testing.assert_array_equal(prepared(model, tmp_path / "data", source).rows(range(4)), expected)
    assert encoded == ["2", "3"]
    tones(source, 1, seconds=1.0)  # another recording under an old name is encoded again
    assert (prepared(model, tmp_path / "data", source).rows([0])[0, :, 13:] == -1).all()
    assert encoded == ["2", "3", "0", "1"]


def test_data_for_another_codec_is_refused(model, tmp_path):
    prepared(model, tmp_path / "data", tones(tmp_path / "recordings", 1))
    settings = prepare.settings_of(moshi_mlx.load(DEMO_MODEL))
    with pytest.raises(
        ConfigError, match=r"key 'codec' is .*, but the model's is .*; prepare the data with this model"
    ):
        dataset.load(tmp_path / "data", settings, 1000)


def test_segments_are_drawn_once_an_epoch_and_seeded(model):
    streams = [np.full((17, 25), n, np.uint16) for n in range(3)]
    data = dataset.Dataset(streams, 10)
    assert len(data) == 9
    assert (data.rows([2])[0, :, 5:] == -1).all()
    firsts = data.draw(0, 18, seed=1)[:, 0, 0]
    assert sorted(firsts[:9]) == sorted(firsts[9:]) == sorted([0, 1, 2] * 3)
    np.testing.assert_array_equal(data.draw(4, 5, seed=1), data.draw(0, 9, seed=1)[4:])
    assert not np.array_equal(data.draw(0, 9, seed=1), data.draw(0, 9, seed=2))


def broken(folder, change):
    tones(folder, 2, pairs=(1,))
    change(folder)
    return folder


def rewrite(name, sound, rate=24000):
    return lambda folder: soundfile.write(folder / name, sound, rate)


def write_text(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "0.json").unlink(), r"0.wav: has no word timings, expected them in .*0.json"),
        (lambda folder: (folder / "1.user.flac").unlink(), "1.moshi.wav: the other half of the pair, 1.user, is"),
        (lambda folder: (folder / "1.moshi.wav").unlink(), r"1.user.flac: the other half of the pair, 1.moshi, is mis"),
        (rewrite("1.user.flac", np.zeros(9), 16000), r"1.user.flac: has a sample rate of 16000 Hz, but .*0.wav has"),
        (rewrite("0.wav", np.zeros(9)), r"0.wav: has 1 channels, expected stereo: Moshi on the left"),
        (rewrite("1.moshi.wav", np.zeros((9, 2))), r"1.moshi.wav: has 2 channels, expected mono, as one side"),
        (write_text("0.wav", "no sound"), r"0.wav: not a sound file that can be read"),
        (write_text("0.json", "no JSON"), r"0.json: not a JSON file of word timings"),
        (write_text("0.json", '{"words": []}'), r"0.json: expected a list of \[word, \[start, end\], speaker\]"),
        (write_text("0.json", '[["a", [2, 1], "b"]]'), r"0.json: word 0 is \['a', \[2, 1\], 'b'\], expected"),
        (write_text("0.json", '[["a", [1, 2], "THEM"]]'), r"0.json: no word is said by 'SPEAKER_MAIN', only by THEM"),
        (rewrite("x.wav", np.zeros((9, 2))), r"x.wav: has no word timings"),
    ],
)  # fmt: skip
def test_recordings_that_cannot_be_used_are_named_before_anything_is_encoded(tmp_path, model, change, message):
    source = broken(tmp_path / "recordings", change)
    with pytest.raises(moshi_mlx.MoshiError, match=message):
        prepare.prepare(model, recordings.find(source), tmp_path / "data", "SPEAKER_MAIN")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no sound files"),
        ("{", "all.jsonl, line 1: not JSON"),
        ('{"file": "a.wav"}', r'line 1: expected {"path": FILE}, or {"moshi": FILE, "user": FILE} of a pair'),
        ('{"path": "a.wav"}\n{"path": "a.wav"}', "two conversations have the name 'a'"),
    ],
)
def test_manifests_that_cannot_be_used_are_named(tmp_path, text, message):
    (tmp_path / "all.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        recordings.find(tmp_path / "all.jsonl")


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="no such folder or manifest"):
        recordings.find(tmp_path / "nowhere")
    (tmp_path / "all.jsonl").write_text('{"path": "a.wav"}')
    found = recordings.find(tmp_path / "all.jsonl")
    with pytest.raises(InputError, match=r"a.wav: no such sound file"):
        recordings.check(found, "SPEAKER_MAIN")
