"""What regenerates the miniature: speech, dialogues, the codec's training, the scores. Everything tiny."""

import csv
import dataclasses
import json
import os
import random
import shutil
import sys

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
import soundfile
from mlx.utils import tree_flatten, tree_map

import moshi_mlx
from miniature import language, live, ship
from miniature.__main__ import main as miniature_main
from miniature.codec import data as codec_data
from miniature.codec import losses
from miniature.codec import train as codec
from miniature.codec.model import causal_conv, elu, initialize, reconstruct, strided_conv
from miniature.conversations import asking, dialogues, questions, streams
from miniature.conversations.dialogues import cut
from miniature.conversations.questions import Question
from miniature.evaluate import Heard, aligned, ask, gave_way, is_silent, plain, score
from miniature.files import load_whole, save_whole
from miniature.sizes import CLIP_FRAMES, CODEC, LANGUAGE
from miniature.talk import script
from miniature.talk.speech import Voice, speak
from miniature.training import Curve, Recipe, plot_curves, read_curve
from moshi_mlx import MimiConfig, MimiModel
from moshi_mlx.checkpoints import writing
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.errors import MoshiError
from moshi_mlx.models.layers import activations
from moshi_mlx.models.layers.conv import CausalConv, StridedConv
from moshi_mlx.models.sampling import Sampling
from moshi_mlx.models.state import flatten

TINY = MimiConfig(
    num_filters=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, codebook_size=16,
    codebook_dim=8, num_quantizers=3, sliding_window=24,
)  # fmt: skip
RECIPE = Recipe(steps=12, batch=2, warm_up=2, rate=3e-3, save_every=4, report_every=2)

speaking = pytest.mark.skipif(
    not (shutil.which("espeak-ng") or os.environ.get("CI")), reason="needs espeak-ng, which CI installs"
)


@pytest.fixture
def eager():
    """Without compilation: its kernels would take longer than these few steps."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def tones(seconds=8):
    """int16 [T]: notes that a codec can tell from each other."""
    t = np.arange(int(seconds * 24000)) / 24000
    return codec_data.to_int16(0.5 * np.sin(2 * np.pi * (200 + 150 * np.floor(4 * t)) * t) * np.sin(9 * t) ** 2)


# --- the codec in training --------------------------------------------------------------------------------------------


def randomized(module, seed=0):
    """Every parameter random, biases too."""
    mx.random.seed(seed)
    module.update(tree_map(lambda value: 0.3 * mx.random.normal(value.shape), module.parameters()))
    return module


def test_training_computes_what_the_codec_computes():
    model = MimiModel(TINY)
    initialize(model, 0)
    mx.random.seed(1)
    for layer in model.modules():
        if "bias" in layer:
            layer.bias = 0.1 * mx.random.normal(layer.bias.shape)
    model.quantizer.embedding = 0.5 * mx.random.normal(model.quantizer.embedding.shape)
    sound = 0.3 * mx.random.normal((2, CLIP_FRAMES * TINY.frame_size))
    coded = reconstruct(model, sound)
    codes = codec.ready(model).encode(sound).audio_codes
    np.testing.assert_array_equal(np.array(coded.codes), np.array(codes))
    np.testing.assert_allclose(np.array(coded.sound), np.array(model.decode(codes).audio_values[:, 0]), atol=1e-4)
    assert len(np.unique(np.array(codes))) > 4


def test_elu_and_its_slope():
    x = mx.array(np.linspace(-200, 20, 2001, dtype=np.float32))
    np.testing.assert_allclose(np.array(elu(x)), np.array(activations.elu(x)), atol=1e-5)
    slope = mx.grad(lambda x: elu(x).sum())(x)
    np.testing.assert_allclose(np.array(slope), np.exp(np.minimum(np.array(x), 0)), atol=1e-5)


@pytest.mark.parametrize(("inputs", "kernel", "dilation"), [(1, 7, 1), (3, 3, 1), (3, 3, 2), (4, 1, 1)])
def test_convolution_and_its_gradient(inputs, kernel, dilation):
    layer = randomized(CausalConv(inputs, 5, kernel, dilation))
    check_layer(layer, lambda x: causal_conv(layer, x), inputs)


def test_strided_convolution_and_its_gradient():
    layer = randomized(StridedConv(3, 5, 4))
    check_layer(layer, lambda x: strided_conv(layer, x), 3)


def check_layer(layer, ours, inputs):
    x, weights = mx.random.normal((2, 16, inputs)), layer.trainable_parameters()

    def total(function):
        def loss(weights, x):
            layer.update(weights)
            return (function(x) * mx.arange(function(x).size).reshape(function(x).shape) / 10).sum()

        return [np.array(leaf) for _, leaf in tree_flatten(mx.value_and_grad(loss, argnums=(0, 1))(weights, x))]

    theirs = total(lambda x: layer(x, layer.init_state(2))[0])
    for a, b in zip(total(ours), theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_spectral_distance_tells_sounds_apart():
    sound = mx.array(tones(1)[None].astype(np.float32) / 32767)
    assert losses.spectral_distance(sound, sound).item() == 0
    near, far = (losses.spectral_distance(factor * sound, sound).item() for factor in (0.9, 0.1))
    assert 0 < near < far
    for window, bands in losses.WINDOWS.items():
        filters = losses.mel_filters(window, bands)
        assert filters.shape == (window // 2 + 1, bands)
        assert (filters >= 0).all()


def test_envelope_distance_hears_when_something_is_said():
    rng = np.random.default_rng(0)
    sound = np.repeat(rng.uniform(0, 1, 40), 576) * rng.normal(0, 0.1, 23_040)
    said, louder, noisy = (
        mx.array(x[None].astype(np.float32)) for x in (sound, 2 * sound, sound + rng.normal(0, 0.1, 23_040))
    )
    assert losses.envelope_distance(said, said).item() < 1e-3
    assert losses.envelope_distance(louder, said).item() < 1e-3
    later = losses.envelope_distance(said[:, ::-1], said).item()
    assert 0.05 < losses.envelope_distance(noisy, said).item() < later
    silence = mx.zeros(said.shape)
    assert losses.envelope_distance(silence, silence).item() == 1


@pytest.mark.slow
def test_codec_learns(eager):
    trainer = codec.CodecTrainer(RECIPE, tones(), TINY)
    trainer.begin()
    seen = [trainer.advance()["loss"] for _ in range(12)]
    assert np.mean(seen[-3:]) < 0.9 * np.mean(seen[:3])


@pytest.mark.slow
def test_codec_resumes_exactly(eager, tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "RESTART_EVERY", 3)
    path, sound = tmp_path / "codec.safetensors", tones()
    whole = codec.CodecTrainer(RECIPE, sound, TINY)
    whole.begin()
    expected = [whole.advance() for _ in range(8)]
    first = codec.CodecTrainer(RECIPE, sound, TINY)
    first.begin()
    assert [first.advance() for _ in range(4)] == expected[:4]
    first.save(path)
    second = codec.CodecTrainer(RECIPE, sound, TINY)
    second.resume(path)
    assert second.step_number == 4
    assert [second.advance() for _ in range(4)] == expected[4:]


@pytest.mark.slow
def test_codec_then_decoder_alone(eager, tmp_path, monkeypatch):
    """The second phase changes nothing of what makes codes; what was ended in it goes on there."""
    monkeypatch.setattr(codec, "RECIPE", dataclasses.replace(RECIPE, steps=2))
    monkeypatch.setattr(codec, "DECODER_RECIPE", dataclasses.replace(RECIPE, steps=4, report_every=1))
    monkeypatch.setattr(codec, "SCORE_EVERY", 2)
    save_whole(tmp_path / "codec-data" / "000.safetensors", {"sound": mx.array(tones())})
    save_whole(tmp_path / "codec-data" / "heldout.safetensors", {"0": mx.array(tones(2))})
    said = []
    made = codec.train(tmp_path, said.append)
    assert [line.split()[1] for line in said if line.startswith("step")] == ["2", "1", "2", "3", "4"]
    first, last = MimiModel(CODEC), codec.load(tmp_path)
    tensors, _ = load_whole(tmp_path / "codec.safetensors")
    first.load_weights([(k.removeprefix("model."), v) for k, v in tensors.items() if k.startswith("model.")])
    codec.as_shipped(first)
    same = {name: bool(mx.array_equal(value, dict(flatten(last.parameters()))[name]))
            for name, value in flatten(first.parameters())}  # fmt: skip
    hearing = (*codec.HEARING, "quantizer.input_proj", "quantizer.embedding", "quantizer.half_norms")
    assert all(same[name] for name in same if name.startswith(hearing))
    assert not any(same[name] for name in same if name.startswith("decoder.layers") and name.endswith("taps.0"))
    sound = mx.array(tones(1)[None].astype(np.float32) / 32767)
    np.testing.assert_array_equal(*(np.array(model.encode(sound).audio_codes) for model in (first, last)))
    np.testing.assert_array_equal(*(np.array(model.decoder.layers[0].bias) for model in (made, last)))
    codec.train(tmp_path, said.append)
    assert len(said) == 8


def test_codebooks_are_running_means():
    rng, centres = np.random.default_rng(0), np.array([[[-1.0, 0], [1, 0]], [[0, 1], [0, -1]]], np.float32)
    books = codec.Codebooks(np.ones((2, 2), np.float32), rng.normal(size=(2, 2, 2)).astype(np.float32))
    for _ in range(400):
        codes = rng.integers(0, 2, (3, 2, 5))
        residuals = np.stack([centres[k][codes[:, k]] for k in range(2)])
        books.learn(codes, residuals + rng.normal(0, 0.01, residuals.shape).astype(np.float32))
    np.testing.assert_allclose(np.array(books.entries()), centres, atol=0.02)
    np.testing.assert_allclose(books.usage, 7.5, rtol=0.3)


def test_unused_entries_are_put_where_the_sound_is():
    books = codec.Codebooks(np.zeros((3, 16), np.float32) + 1e-6, np.full((3, 16, 8), 1e-4, np.float32))
    books.usage[:, 0] = 1
    books.sums[:, 0] = 100
    residuals = np.random.default_rng(0).normal(size=(3, 2, 12, 8)).astype(np.float32)
    books.restart(residuals, np.random.default_rng(0))
    entries = np.array(books.entries())
    assert (entries[:, 0] == 100).all()
    for k in range(3):
        distances = np.abs(entries[k, 1:, None] - residuals[k].reshape(-1, 8)).max(axis=-1).min(axis=-1)
        assert (distances < 1e-5).all()


def test_rate_warms_up_and_falls():
    recipe = Recipe(steps=100, rate=1.0, warm_up=10, floor=0.1)
    rates = [recipe.rate_at(step) for step in range(101)]
    assert rates[0] == 0.1
    assert max(rates) == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert rates[11:] == sorted(rates[11:], reverse=True)


def test_curve_goes_on_where_training_does(tmp_path):
    path = tmp_path / "curve.csv"
    curve = Curve(path, 2, 0)
    rows = [curve.add(step, {"loss": float(step)}) for step in range(1, 7)]
    assert [row and row["loss"] for row in rows] == [None, 1.5, None, 3.5, None, 5.5]
    again = Curve(path, 2, 4)  # what came after the last save is done again
    again.add(5, {"loss": 7.0})
    again.add(6, {"loss": 8.0})
    assert [(row["step"], row["loss"]) for row in read_curve(path)] == [("2", "1.5"), ("4", "3.5"), ("6", "7.5")]
    plot_curves({"loss": ["loss"]}, path, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


# --- speech and dialogues ---------------------------------------------------------------------------------------------


@speaking
def test_words_are_timed():
    from miniature.talk.speech import PEAK, SAMPLE_RATE

    said = speak("Good morning, Moshi. It is 42 degrees.", Voice("en-us", 160, 50))
    assert [word.text for word in said.words] == ["Good", "morning,", "Moshi.", "It", "is", "42", "degrees."]
    assert np.abs(said.sound).max() == pytest.approx(PEAK, abs=1e-4)
    bounds = [time for word in said.words for time in (word.start, word.end)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == pytest.approx(len(said.sound) / SAMPLE_RATE, abs=0.02)
    moshi, it = said.words[2:4]
    pause = said.sound[int((moshi.end + 0.02) * SAMPLE_RATE) : int((it.start - 0.02) * SAMPLE_RATE)]
    assert it.start - moshi.end > 0.1
    assert np.abs(pause).max() < 0.05
    with pytest.raises(MoshiError, match="no voice 'nobody'"):
        speak("Hello", Voice("nobody", 160, 50))


@speaking
def test_codec_data_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(codec_data, "SHARD_SECONDS", 2)
    monkeypatch.setattr(codec_data.shard, "__defaults__", (2,))
    monkeypatch.setattr(codec_data.held_out_utterances, "__defaults__", (2,))
    said = []
    codec_data.prepare(tmp_path, 2, said.append)
    assert len(said) == 2
    sound = codec_data.training_sound(tmp_path)
    assert sound.dtype == np.int16
    assert len(sound) > 2 * 2 * 24000
    assert len(codec_data.held_out_sound(tmp_path)) == 2
    codec_data.prepare(tmp_path, 2, said.append)
    assert len(said) == 2
    with pytest.raises(MoshiError, match="data command"):
        codec_data.training_sound(tmp_path / "elsewhere")


def test_held_out_voices_are_not_trained_on():
    for draw in (codec_data.user_voice, asking.asking_voice):
        train, held_out = ([draw(random.Random(i), kind) for i in range(300)] for kind in (False, True))
        for of in ("speed", "pitch"):
            trained, others = ({getattr(voice, of) for voice in voices} for voices in (train, held_out))
            assert not trained & others
            assert min(trained) <= min(others) <= max(others) <= max(trained)


@speaking
def test_dialogues_keep_the_rules(monkeypatch):
    monkeypatch.setattr(dialogues, "INTERRUPTED", 0.5)
    interrupted = 0
    for seed in range(12):
        made = dialogues.conversation(random.Random(seed), False)
        moshi, user = made.sound
        assert made.sound.shape == (2, 16 * 24000)
        for turn, following in zip(made.turns, [*made.turns[1:], None], strict=True):
            assert user[turn.start : turn.start + 2400].any()
            assert not user[turn.end : following.start if following else None].any()
            assert turn.reply % 1920 == 0
            assert 0.4 <= (turn.reply - turn.end) / 24000 < 0.4 + 0.08
            assert not moshi[turn.start + int((dialogues.STOP_AFTER + 0.08) * 24000) : turn.reply].any()
            assert moshi[turn.reply : turn.reply + 4800].any()
            said = [w for w in made.words if w[3] == "SPEAKER_MAIN" and turn.reply / 24000 <= w[1]]
            assert said[0][0] == turn.asked.exchange.answer.split()[0]
            if not turn.whole:
                interrupted += 1
                assert following.start < turn.reply + 2 * 24000
                assert not moshi[following.start + int((dialogues.STOP_AFTER + 0.08) * 24000) :][:2400].any()
        assert all(0 <= start < end <= 16 for _, start, end, _ in made.words)
    assert interrupted


@speaking
def test_somebody_who_hesitates_says_the_same_words_later():
    said = speak("Hello, Moshi. how are you?", Voice("en-us", 165, 50))
    slowly = asking.hesitate(said, 3, 0.5)
    assert len(slowly.sound) == len(said.sound) + 12_000
    assert [word.text for word in slowly.words] == [word.text for word in said.words]
    assert slowly.words[:3] == said.words[:3]
    assert slowly.words[4].start == pytest.approx(said.words[4].start + 0.5)
    at = int(said.words[3].start * 24_000)
    assert not slowly.sound[at : at + 12_000].any()
    np.testing.assert_array_equal(slowly.sound[at + 12_000 + asking.FADE :], said.sound[at + asking.FADE :])


@pytest.mark.parametrize(
    ("question", "text", "places"),
    [
        ("how are you today", "Please, how are you today?", [1, 2, 3]),
        ("what is two plus three", "What is two plus three please?", [1, 2, 3, 4]),
        ("hello", "Hello, Moshi. hello.", [2]),
        ("goodbye", "Goodbye.", []),
    ],
)
def test_nobody_hesitates_where_the_question_could_be_over(question, text, places):
    exchange = next(exchange for exchange in script.exchanges() if exchange.question == question)
    assert asking.thoughtful(exchange, text) == places


@speaking
def test_questions_are_asked_with_pauses_and_without(monkeypatch):
    texts, lengths = [], []
    monkeypatch.setattr(asking, "speak", lambda text, voice: texts.append(text) or speak(text, voice))
    exchange, voice = script.exchanges()[1], Voice("en-us", 165, 50)
    for seed in range(40):
        said = asking.ask(exchange, random.Random(seed), voice)
        pauses = np.diff(np.flatnonzero(np.abs(said.sound) > 0.01)).max() / 24_000
        lengths.append(pauses)
    assert any(". How" in text for text in texts)
    assert any(". how" in text for text in texts)
    assert 4 <= sum(length > 0.4 for length in lengths) < 20


@speaking
def test_dialogues_are_written_in_kyutais_format(tmp_path):
    said = []
    dialogues.write(tmp_path, 2, said.append)
    folder = tmp_path / "dialogues"
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["00000.flac", "00000.json", "00001.flac", "00001.json"]
    sound, rate = soundfile.read(folder / "00000.flac")
    assert (sound.shape, rate) == ((16 * 24000, 2), 24000)
    word, (start, end), speaker = json.loads((folder / "00000.json").read_text())[0]
    assert (type(word), speaker) == (str, "SPEAKER_USER")
    assert 0 < start < end
    before = (folder / "00000.flac").stat().st_mtime_ns
    (folder / "00001.flac").unlink()
    dialogues.write(tmp_path, 2, said.append)
    assert (folder / "00000.flac").stat().st_mtime_ns == before
    assert (folder / "00001.flac").exists()


@speaking
@pytest.mark.slow
def test_conversations_of_codes_are_those_of_their_sound(monkeypatch):
    """Where what comes next comes late enough: random weights forget slowly."""
    monkeypatch.setattr(questions, "TAIL", 26)
    monkeypatch.setattr(dialogues, "PAUSE", (2.0, 3.0))
    codebooks = randomized_codec()
    codebooks.quantizer.embedding = 0.5 * mx.random.normal(codebooks.quantizer.embedding.shape)
    model, rng = language.new(codec.ready(codebooks)), random.Random(0)
    voice, places = asking.asking_voice(rng, False), {0: 0, 21: 700, 30: 1919}
    said = {n: np.pad(speak(script.spoken(script.exchanges()[n], rng), voice).sound, (places[n], 0)) for n in places}
    codes = questions.encode(model.audio_encoder, list(said.values()))
    parts = zip(places.items(), said.values(), codes, strict=True)
    few = {script.exchanges()[n].answer: dialogues.replies()[script.exchanges()[n].answer] for n in places}
    monkeypatch.setattr(dialogues, "replies", lambda: few)
    material = streams.Material(model, [Question(n, at, len(sound) - at, part) for (n, at), sound, part in parts])
    monkeypatch.setattr(streams, "NOISE", 0)
    monkeypatch.setattr(dialogues, "INTERRUPTED", 0.5)
    whole = set()
    for seed in range(3):
        made = material.conversation(random.Random(seed))
        rng, sound = random.Random(seed), np.zeros((2, streams.LENGTH), np.float32)
        turns = dialogues.plan(rng, lambda rng=rng: rng.choice(material.asked).asked(), streams.LENGTH)
        for turn in turns:
            index = script.exchanges().index(turn.asked.exchange)
            sound[1, turn.start : turn.end] = said[index][places[index] :]
            sound[0, turn.reply : turn.until] = cut(
                dialogues.replies()[turn.asked.exchange.answer], turn.until - turn.reply
            )
        heard = np.array(model.audio_encoder.encode(mx.array(sound)).audio_codes)
        assert made.shape == (17, 200)
        assert (made[1:9] == heard[0]).mean() > 0.95
        assert (made[9:] == heard[1]).mean() > (0.95 if all(turn.whole for turn in turns) else 0.9)
        assert len(np.unique(heard[1], axis=1).T) > 20
        text = model.tokenizer.decode([int(token) for token in made[0] if token not in model.config.silent_text_tokens])
        assert text.startswith(turns[0].asked.exchange.answer[:6])
        assert len(text.split()) <= sum(len(turn.asked.exchange.answer.split()) for turn in turns)
        whole |= {turn.whole for turn in turns}
    assert whole == {True, False}


@pytest.mark.slow
@speaking
def test_questions_are_encoded_once_in_two_processes(tmp_path):
    save_codec(tmp_path)
    said = []
    questions.write(tmp_path, 2, 3, said.append)
    found = questions.read(tmp_path)
    assert [question.exchange for question in found] == list(range(6))
    assert all(question.codes.shape == (8, -(-(question.place + question.length) // 1920) + 8) for question in found)
    questions.write(tmp_path, 2, 3, said.append)
    assert len(said) == 2
    with pytest.raises(MoshiError, match="questions command"):
        streams.write(language.new(codec.load(tmp_path)), tmp_path / "elsewhere", tmp_path / "prepared")


def test_noise_spares_the_first_codebook():
    codes = np.full((8, 500), 300, np.uint16)
    disturbed = streams._disturbed(codes, np.random.default_rng(0))
    assert (disturbed[0] == 300).all()
    assert 0.08 < (disturbed[1:] != 300).mean() < 0.12


def test_every_question_has_one_answer():
    asked = script.exchanges()
    assert len({exchange.question for exchange in asked}) == len(asked)
    assert 36 <= len(script.answers()) <= len(asked)
    rng = random.Random(0)
    texts = [script.spoken(exchange, rng) for exchange in asked]
    assert all(text[0].isupper() and text[-1] in ".?" for text in texts)


def test_tokenizer_has_the_words_of_every_answer():
    model = language.tokenizer()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert model == language.tokenizer()
    assert pieces.vocab_size() == LANGUAGE.vocab_size
    assert (pieces.unk_id(), pieces.pad_id()) == LANGUAGE.silent_text_tokens
    for answer in script.answers():
        tokens = pieces.encode(answer)
        assert pieces.decode(tokens) == answer
        assert len(tokens) == len(answer.replace(",", " ,").replace(".", " .").split())


def test_like_sounds_get_like_embeddings():
    """All acoustic codebooks are embedded by one projection of their entries, and a frame's sum has variance 1."""
    made = randomized_codec()
    made.quantizer.embedding = 0.5 * mx.random.normal(made.quantizer.embedding.shape)
    model = language.new(codec.ready(made))
    first, weight = LANGUAGE.table_rows[0], np.array(model.decoder.model.embed_tokens.weight)
    entries = np.array(made.quantizer.embedding)
    tables = [weight[first + n * 257 :][:256] for n in range(16)]
    for moshi, user in zip(tables[:8], tables[8:], strict=True):
        np.testing.assert_array_equal(moshi, user)
    projection = np.linalg.lstsq(entries[1], tables[1], rcond=None)[0]
    np.testing.assert_allclose(entries[7] @ projection, tables[7], atol=1e-4)
    assert np.abs(entries[0] @ projection - tables[0]).max() > 0.1
    rows = np.random.default_rng(0).integers(0, 256, (16, 500))
    assert sum(table[row] for table, row in zip(tables, rows, strict=True)).var() == pytest.approx(16 / 17, rel=0.1)


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained():
    model = language.new(randomized_codec())
    mx.eval(model.parameters())
    return model


def randomized_codec():
    model = MimiModel(CODEC)
    initialize(model, 0)
    return codec.ready(model)


@speaking
@pytest.mark.slow
def test_right_answers_are_told_from_wrong_ones(untrained):
    renderings = dialogues.held_out(4)
    assert [(r.exchange, r.start) for r in renderings] == [(r.exchange, r.start) for r in dialogues.held_out(4)]
    perfect = [answering(untrained, r, 0.5) for r in renderings]
    scores = score(untrained, renderings, perfect)
    assert (scores.asked, scores.answered, scores.silent, scores.wrong) == (4, 4, 4, [])
    assert scores.stoi > 0.98
    early = [answering(untrained, r, -0.5) for r in renderings]
    assert score(untrained, renderings, early).silent == 0
    mute = [Heard(np.full_like(one.tokens, 3), np.zeros_like(one.sound)) for one in perfect]
    scores = score(untrained, renderings, mute)
    assert (scores.answered, scores.silent, scores.stoi) == (0, 4, 0.0)
    assert scores.wrong[0] == (renderings[0].exchange.question, renderings[0].exchange.answer, "")


def answering(model, rendering, after):
    """What a perfect model would say, `after` seconds after the question."""
    answer, at = rendering.exchange.answer, int((rendering.end + after) * 24000)
    sound = np.random.default_rng(0).normal(0, 1e-4, len(rendering.sound)).astype(np.float32)
    reply = dialogues.replies()[answer].sound
    sound[at : at + len(reply)] += reply
    tokens = np.full(1 + len(sound) // 1920, 3)
    words = model.tokenizer.encode(answer)
    tokens[at // 1920 : at // 1920 + len(words)] = words
    return Heard(tokens, sound)


@speaking
def test_who_gives_way_is_told_from_who_does_not(untrained):
    for rendering in dialogues.interruptions(3):
        good = answering(untrained, rendering, 0.5)
        assert gave_way(untrained, good, rendering)
        talking = good.sound.copy()
        talking[int((rendering.start + 0.8) * 24000) :][:2400] += 0.1
        assert not gave_way(untrained, Heard(good.tokens, talking), rendering)
        before = good.sound.copy()
        before[int((rendering.start - 0.3) * 24000) : int((rendering.start + 0.3) * 24000)] += 0.1
        assert gave_way(untrained, Heard(good.tokens, before), rendering)
        assert not gave_way(untrained, Heard(np.full_like(good.tokens, 3), good.sound), rendering)


def test_alignment_finds_the_reply():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=12000).astype(np.float32) * np.repeat(rng.random(10), 1200).astype(np.float32)
    sound = np.zeros(60000, np.float32)
    sound[31000:43000] = reference
    np.testing.assert_array_equal(aligned(sound, reference, 0.5), reference)


def test_plain_text():
    assert plain(" Sorry, I have no CLOCK.") == "sorry i have no clock"


@speaking
def test_model_is_asked_frame_by_frame(untrained, eager):
    """The same as in a session of its own."""
    rendering = dialogues.held_out(1)[0]
    rendering = rendering._replace(sound=rendering.sound[: 6 * 1920])
    greedy = DuplexSampling(Sampling(0.0), Sampling(0.0))
    one = ask(untrained, [rendering], greedy)[0]
    session = untrained.session(temperature=0, text_temperature=0)
    frames = [session.step(part) for part in rendering.sound.reshape(-1, 1920)]
    assert one.tokens[1:].tolist() == [frame.text_token for frame in frames]
    assert not is_silent(one, rendering._replace(end=0.4), untrained.config.silent_text_tokens)
    heard = np.concatenate([np.zeros(1920) if frame.pcm is None else frame.pcm for frame in frames])
    np.testing.assert_allclose(one.sound, heard, atol=1e-4)


@speaking
def test_live_answers_are_those_of_a_session(untrained, tmp_path):
    """Through the command line, one rendering after the other."""
    renderings = [r._replace(sound=r.sound[: n * 1920]) for n, r in zip((5, 3), dialogues.held_out(2), strict=True)]
    writing.save(untrained, tmp_path / "model")
    heard = live.ask(tmp_path / "model", renderings)
    session = moshi_mlx.load(tmp_path / "model").session(seed=0)
    frames = [session.step(part) for r in renderings for part in r.sound.reshape(-1, 1920)]
    assert [len(one.tokens) for one in heard] == [6, 4]
    assert [token for one in heard for token in one.tokens[1:]] == [frame.text_token for frame in frames]
    said = np.concatenate([np.zeros(1920) if frame.pcm is None else frame.pcm for frame in frames])
    np.testing.assert_allclose(np.concatenate([one.sound for one in heard]), said, atol=1e-4)
    with pytest.raises(MoshiError, match="nowhere"):
        live.ask(tmp_path / "nowhere", renderings)


def test_curve_is_a_plain_table(tmp_path):
    Curve(tmp_path / "a.csv", 1, 0).add(1, {"loss": 0.5, "norm": 2.0})
    with (tmp_path / "a.csv").open() as file:
        assert next(csv.reader(file)) == ["step", "seconds", "loss", "norm"]


# --- from the codec to the shipped folder -----------------------------------------------------------------------------


def save_codec(folder):
    trainer = codec.CodecTrainer(RECIPE, tones(), CODEC)
    trainer.begin()
    trainer.save(folder / "decoder.safetensors")
    trainer.close()


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder with a codec, and a recipe and dialogues of which a test can be made."""
    save_codec(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(ship.RECIPE.read_text() + "\niters: 2\nbatch_size: 2\nduration_sec: 4\ncompile: false\n")
    monkeypatch.setattr(ship, "RECIPE", recipe)
    monkeypatch.setattr(ship, "_launch", lambda arguments: ship._run(ship.trainer.main, arguments))
    questions.write(tmp_path, 1, 4, lambda line: None)
    dialogues.write(tmp_path, 1, lambda line: None)
    monkeypatch.setattr(streams.write, "__defaults__", (4, print))
    save_whole(tmp_path / "codec-data" / "heldout.safetensors", {"0": mx.array(tones(1))})
    for phase in codec.PHASES:
        Curve(tmp_path / f"{phase}.csv", 1, 0).add(1, {"loss": 1.0, "spectral": 0.5, "wave": 0.1})
        Curve(tmp_path / f"{phase}-scores.csv", 1, 0).add(1, {"stoi": 0.5})
    return tmp_path


@speaking
@pytest.mark.slow
def test_from_codec_to_shipped_folder(trained, eager, monkeypatch):
    said = []
    ship.train(trained, said.append)
    ship.train(trained, said.append)  # nothing is left to do
    rendering = dialogues.held_out(1)[0]
    short = rendering._replace(sound=rendering.sound[: 4 * 1920], end=0.2)
    monkeypatch.setattr(dialogues, "held_out", lambda count: [short])
    monkeypatch.setattr(dialogues, "interruptions", lambda: [short._replace(start=-0.7)])
    found = ship.scores(trained, said.append)
    assert list(found) == ["float32 greedy", "float32", "q8 live", "q4 live", "codec"]
    assert json.loads((trained / "scores.json").read_text())["q4 live"]["asked"] == 1
    for picture in ("spectrograms.png", "codec.png", "decoder-stoi.png"):
        assert (trained / picture).read_bytes().startswith(b"\x89PNG")
    assets = trained / "assets"
    assets.mkdir()
    ship.export(trained, assets, said.append)
    assert "MB with the question" in said[-1]
    assert sorted(path.name for path in assets.iterdir()) == ["miniature", "question.flac", "question.txt"]
    assert sum(file.stat().st_size for file in assets.rglob("*")) < ship.MOST_BYTES
    full, shipped = (moshi_mlx.load(path) for path in (trained / "language" / "checkpoint", assets / "miniature"))
    sound = 0.1 * mx.random.normal((1, 4 * 1920), key=mx.random.key(0))
    codes = [np.array(model.audio_encoder.encode(sound).audio_codes) for model in (full, shipped)]
    np.testing.assert_array_equal(*codes)
    monkeypatch.setattr(ship, "MOST_BYTES", 1000)
    with pytest.raises(MoshiError, match="at most 1000"):
        ship.export(trained, assets, said.append)


@pytest.mark.slow
def test_processes_end_together(monkeypatch, capfd):
    ship._launch(["--help"])
    assert capfd.readouterr().out.count("usage: ") == ship.PROCESSES
    with pytest.raises(MoshiError, match="status 2"):
        ship._launch(["--model=nowhere", "--data=nowhere"])


def test_command_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["miniature", "codec", str(tmp_path)])
    assert miniature_main() == 2
    assert capsys.readouterr().err == (
        f"miniature: error: {tmp_path}/codec-data: no shards; run the data command first\n"
    )
