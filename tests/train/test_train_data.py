"""Training data: recordings found and checked, encoded once, resumed, and drawn as batches."""

import contextlib
import gzip
import json

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from helpers import GOLDENS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_ins import RATE, SIZE, moment
from training import tones

import moshi_mlx
from moshi_mlx import ConfigError, InputError
from moshi_mlx.audio.recorder import Recorder
from moshi_mlx.local.options import DEMO_MODEL
from moshi_mlx.train import dataset, prepare, recordings, sounds, timings
from moshi_mlx.train.__main__ import main

MAIN = "SPEAKER_MAIN"


def test_folders_and_manifests_list_the_same(tmp_path):
    folder = tones(tmp_path / "sub", pairs=(1,))
    lines = [{"path": f"sub/{n}.wav", "duration": 2.0} for n in (0, 2, 3)]
    lines.insert(1, {"moshi": "sub/1.moshi.wav", "user": "sub/1.user.flac"})
    (tmp_path / "all.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    found = recordings.find(tmp_path)
    assert found == recordings.find(tmp_path / "all.jsonl")
    assert [conversation.name for conversation in found] == [f"sub/{n}" for n in range(4)]
    assert found[1] == ("sub/1", folder / "1.moshi.wav", folder / "1.user.flac", folder / "1.json")
    script = recordings.check(found, "SPEAKER_MAIN").scripts["sub/1"]
    assert script == ([("time", 1.0, 1.3), ("is", 1.7, 1.9)], 0, False, ())


def test_sound_is_resampled_in_blocks_as_at_once(tmp_path, monkeypatch):
    (conversation,) = recordings.find(tones(tmp_path, 1, rate=16000))
    (whole,) = recordings.sound(conversation, 24000)
    monkeypatch.setattr(sounds, "BLOCK", 16000)
    blocks = list(recordings.sound(conversation, 24000))
    assert len(blocks) > 1
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
    monkeypatch.setattr(prepare, "_streams", lambda *a: (encoded.append(a[1].name), streams(*a))[1])
    np.testing.assert_array_equal(prepared(model, tmp_path / "data", source).rows(range(4)), expected)
    assert encoded == ["2", "3"]
    tones(source, 1, seconds=1.0)  # another recording under an old name is encoded again
    assert (prepared(model, tmp_path / "data", source).rows([0])[0, :, 13:] == -1).all()
    assert encoded == ["2", "3", "0", "1"]


def test_data_for_another_codec_is_refused(model, tmp_path):
    prepared(model, tmp_path / "data", tones(tmp_path / "recordings", 1))
    wanted = prepare.settings_of(moshi_mlx.load(DEMO_MODEL))
    with pytest.raises(
        ConfigError, match=r"key 'codec' is .*, but the model's is .*; prepare the data with this model"
    ):
        dataset.load(tmp_path / "data", wanted, 1000)


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
        (write_text("0.wav", "no sound"), r"0.wav: not a sound file that can be read, but text"),
        (write_text("0.json", "no JSON"), r"0.json: not a JSON file of word timings"),
        (write_text("0.json", '{"words": []}'), r"0.json: expected a list of \[word, \[start, end\], speaker\]"),
        (write_text("0.json", '[["a", ["2", 3], "b"]]'), r"0.json: word 0 is \['a', \['2', 3\], 'b'\], expected"),
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


# --- what there is besides Kyutai's plain case


def names_of(source):
    return sorted(conversation.name for conversation in recordings.find(source))


@pytest.mark.parametrize(
    "files",
    [
        ("A.moshi.WAV", "A.user.WAV", "A.json"),
        ("A.MOSHI.WAV", "A.USER.wav", "A.json"),
        ("a.Moshi.wav", "a.user.FLAC", "a.json"),
        ("A.WAV", "A.JSON"),
    ],
)
def test_capitals_make_no_difference(tmp_path, files):
    for name in files[:-1]:
        channels = 1 if len(files) == 3 else 2
        soundfile.write(tmp_path / name, np.zeros((2400, channels)), 24000)
    (tmp_path / files[-1]).write_text("[]")
    (found,) = recordings.find(tmp_path)
    assert (found.name.lower(), found.moshi.name, found.user.name) == ("a", files[0], files[-2])
    assert recordings.check([found], "SPEAKER_MAIN").scripts[found.name].words == []
    assert recordings.find(tmp_path / files[0]) == [found]  # a file of it is given
    (tmp_path / "all.jsonl").write_text(json.dumps({"moshi": files[0], "user": files[-2]}))
    assert names_of(tmp_path / "all.jsonl") == names_of(tmp_path)


def test_manifests_as_kyutais_annotation_takes_them(tmp_path):
    """Gzipped; and with U+2028, which JSON may hold as it is, in a name."""
    tones(tmp_path, 1)
    for suffix in (".wav", ".json"):
        (tmp_path / "0").with_suffix(suffix).rename(tmp_path / f"a\u2028b{suffix}")
    text = json.dumps({"path": "a\u2028b.wav", "duration": 2.0}, ensure_ascii=False) + "\r\n\n"
    (tmp_path / "all.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "all.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert names_of(tmp_path / "all.jsonl") == names_of(tmp_path / "all.jsonl.gz") == ["a\u2028b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"\xff\xfe\x00", "not a text file in UTF-8"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:20], "cannot be read"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'{"path": ""}', "line 1: expected"),
        ("a.jsonl", b'{"path": 3}', "line 1: expected"),
        ("a.jsonl", b'{"path": "a\\u0000.wav"}', "no such sound file"),
        ("a.jsonl", b'{"path": "\\ud800.wav"}', "no such sound file"),
        ("a.jsonl", b'{"path": "' + b"n" * 9999 + b'.wav"}', "no such sound file"),
        ("a.csv", b"path\na.wav", "line 1: not JSON"),
    ],
)
def test_manifests_that_are_none_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        recordings.check(recordings.find(tmp_path / name), "SPEAKER_MAIN")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["0.wav", "..", "/", "a.moshi.wav"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["path", "moshi", "user"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(JSON, max_size=3), st.binary(max_size=6), st.booleans())
def test_manifests_of_any_kind_are_read_or_named(tmp_path, lines, noise, packed):
    tones(tmp_path, 1, seconds=0.1)
    content = "\n".join(json.dumps(line) for line in lines).encode() + noise
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    with contextlib.suppress(moshi_mlx.MoshiError):
        found = recordings.find(path)
        assert recordings.check(found, MAIN, warn=lambda line: None).scripts.keys() == {one.name for one in found}


def test_a_manifest_of_endless_size_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "LARGEST_MANIFEST", 10**6)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * 10**7))
    with pytest.raises(InputError, match="unpacks to more than 1000000 bytes"):
        recordings.find(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([["a", [1, 2], MAIN], ["b", [0.5, 0.7], MAIN]], ["b", "a"]),  # in any order, whole seconds
        ([["a", [1, 1], MAIN], ["b", [3, 2], MAIN], ["c", [-1, 1], MAIN]], ["c"]),
        ([["a", [1, 2, 3], MAIN], ["b", [1, 2], None], ["c", [1, 2], 5]], ["a"]),
        ([["", [1, 2], MAIN], [" ", [2, 3], MAIN]], ["", " "]),  # they cut off the word before them
        ([["a", [float("nan"), 2], MAIN], ["b", [1, 2], MAIN]], ["b"]),
    ],
)
def test_timings_that_kyutais_loader_takes_are_taken(tmp_path, words, kept):
    (tmp_path / "a.json").write_text(json.dumps({"text_conditions": None, "alignments": words}))
    assert [word for word, *_ in timings.read(tmp_path / "a.json", MAIN).words] == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not a JSON file of word timings"),
        ('{"alignments": 3}', "expected a list of"),
        ('[["a", [1, Infinity], "SPEAKER_MAIN"]]', "word 0 is"),
        ('[["a", [1, 1e999], "SPEAKER_MAIN"]]', "word 0 is"),
        (f'[["a", [1, {"9" * 999}], "SPEAKER_MAIN"]]', "word 0 is"),
        ('[["a", ["1", "2"], "SPEAKER_MAIN"]]', "word 0 is"),
        ('[["a", null, "SPEAKER_MAIN"]]', "word 0 is"),
        ('[["a", {"start": 1}, "SPEAKER_MAIN"]]', "word 0 is"),
        ("[3]", "word 0 is 3"),
        ('[["' + "x" * 9999 + '", 1, 2]]', "word 0 is"),
        ('{"words": [], "channels": ["left", "right"]}', "key 'channels' is"),
        ('{"words": 3, "channels": ["user", "moshi"]}', "key 'words' is 3"),
        ('{"words": [["a", 1, 2]], "channels": ["user", "moshi"]}', "word 0 is"),
        ('{"words": [], "channels": ["user", "moshi"], "resets": 3}', "key 'resets' is 3"),
        ('{"words": [], "channels": ["user", "moshi"], "resets": [1, "2"]}', "key 'resets' is"),
        ('{"words": [], "channels": ["user", "moshi"], "resets": [NaN]}', "key 'resets' is"),
        ('{"words": [{"word": 1, "start": 1, "end": 2}], "channels": ["user", "moshi"]}', "word 0 is"),
    ],
)  # fmt: skip
def test_timings_that_are_none_are_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        timings.read(tmp_path / "a.json", MAIN)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.sampled_from([MAIN, "words"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["alignments", "words", "channels", "word", "start", "end"]), inner, max_size=3
            )
        ),
        max_leaves=12,
    )
)
def test_timings_of_any_kind_are_read_or_named(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    with contextlib.suppress(InputError):
        for word, start, end in timings.read(tmp_path / "a.json", MAIN).words:
            assert isinstance(word, str)
            assert start < end < float("inf")


def test_words_beyond_the_sound_are_told(tmp_path):
    found = recordings.find(tones(tmp_path, 1))
    (tmp_path / "0.json").write_text(
        json.dumps([["late", [7.5, 8], MAIN], ["a", [1, 2.1], MAIN], ["b", [9, 9.5], MAIN]])
    )
    said = []
    recordings.check(found, MAIN, warn=said.append)
    assert len(said) == 1
    assert "0.json: 2 words end after the sound, which has 2.0 s: 'late' at 7.5 s" in said[0]


def test_words_on_a_silent_channel_are_told(model, tmp_path, capsys):
    source = tones(tmp_path / "recordings", 2)
    sound, rate = soundfile.read(source / "0.wav")
    soundfile.write(source / "0.wav", np.stack([np.zeros(len(sound)), sound[:, 0]], axis=1), rate)
    prepared(model, tmp_path / "data", source)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "side is silent" in line]
    assert (
        "0.wav: Moshi's side is silent at 2 of its 2 words; the other channel is not: Moshi belongs on the left" in line
    )


def test_what_the_recorder_writes_is_trained_on(model, tmp_path):
    """The user is on its left; a word stands beside the sound that it belongs to, a frame after it was printed."""
    (tmp_path / "recordings").mkdir()
    record = Recorder(tmp_path / "recordings" / "talk.wav", RATE, SIZE)
    for n in range(12):
        record(moment(n, {3: " time", 4: "s", 7: " is"}.get(n, "")))
    record.close()
    sound, _ = soundfile.read(tmp_path / "recordings" / "talk.wav", dtype="float32")
    (row,) = prepared(model, tmp_path / "data", tmp_path / "recordings").rows([0])
    for channel, streams in ((1, row[1:9]), (0, row[9:])):
        encoded = model.audio_encoder.encode(mx.array(sound[None, :, channel]), num_quantizers=8)
        np.testing.assert_array_equal(streams, np.array(encoded.audio_codes)[0])
    first, second = model.tokenizer.encode("times"), model.tokenizer.encode("is")
    expected = np.full(12, 3)
    expected[3], expected[4 : 4 + len(first)] = 0, first
    expected[8 : 8 + len(second)] = second
    if expected[7] == 3:
        expected[7] = 0
    np.testing.assert_array_equal(row[0], expected)


def test_a_recorded_conversation_that_began_anew_is_two(model, tmp_path):
    (tmp_path / "recordings").mkdir()
    record = Recorder(tmp_path / "recordings" / "talk.wav", RATE, SIZE)
    for n in range(12):
        record(moment(n, {3: " time", 5: " is", 9: " is"}.get(n, ""), reset=n == 5))
    record.close()
    data = prepared(model, tmp_path / "data", tmp_path / "recordings")
    first, second = data.rows([0, 1])[:, :, :7]
    assert (first[:, 5:] == -1).all()
    assert (second[:, :7] != -1).all()
    token = model.tokenizer.encode("is")
    assert len(token) == 1
    np.testing.assert_array_equal(second[0], [0, *token, 3, 3, 0, *token, 3])
    assert first[0, 4] == model.tokenizer.encode("time")[0]  # the rest of the word is cut off with the conversation


def test_a_second_prepare_leaves_nothing_stale(checkpoint, tmp_path):
    source, out = tones(tmp_path / "recordings", 4, seconds=0.5), tmp_path / "data"
    arguments = ["prepare", "--model", str(GOLDENS / "moshi_tiny"), "--data", str(source), "--output", str(out)]
    assert main([*arguments, "--valid-percent", "50"]) == 0
    assert (out / "valid" / "prepared.json").is_file()
    before = (out / "train" / "prepared.json").read_text()
    assert main(arguments) == 0
    assert not (out / "valid").exists()
    assert (out / "train" / "prepared.json").read_text() != before
    shard = (out / "train" / "shard-00000.safetensors").read_bytes()
    model = checkpoint(existing_text_padding_id=5)
    assert main([*arguments, "--keep-and-shift"]) == 0  # another alignment is made anew
    assert json.loads((out / "train" / "prepared.json").read_text())["alignment"] == "shifted"
    assert main([*arguments, "--model", str(model)]) == 0  # other padding too
    assert (out / "train" / "shard-00000.safetensors").read_bytes() != shard
    with pytest.raises(ConfigError, match=r"key 'padding' is \[0, 5\], but the model's is \[0, 3\]"):
        dataset.load(out / "train", prepare.settings_of(moshi_mlx.load(GOLDENS / "moshi_tiny")), 100)


@pytest.mark.parametrize("field", ["vocab_size", "codebook"])
def test_tokens_that_the_model_has_no_row_for_are_never_prepared(model, tmp_path, field):
    from types import SimpleNamespace

    config = SimpleNamespace(
        role="dialogue", vocab_size=model.config.vocab_size, audio_vocab_size=model.config.audio_vocab_size,
        silent_text_tokens=(0, model.config.vocab_size) if field == "vocab_size" else (0, 3),
        audio_encoder_config=SimpleNamespace(codebook_size=model.config.audio_vocab_size + (field == "codebook")),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="but the model knows only 0 to"):
        prepare.check_fits(SimpleNamespace(config=config, tokenizer=model.tokenizer))
