"""`compare`: the figures are those of their definitions, over positions that are the reference's."""

import numpy as np
import pytest
import soundfile
from helpers import GOLDENS, delays, edit_json, golden
from moshi_mlx.convert import cli, comparing

LM = golden("lm")
COUNT = 70  # more than a call's positions, more than the context


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return (
        logits
        - np.log(np.sum(np.exp(logits - logits.max(-1, keepdims=True)), -1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def reference_talk(model):
    """The golden conversation: what was drawn at every position; codebook 0 is a column ahead of the delayed ones."""
    audio = LM["delay1.audio"]
    codes = np.concatenate([audio[:1, :COUNT], np.pad(audio[1:, : COUNT - 1], ((0, 0), (1, 0)))])
    return comparing._talk(model, LM["delay1.text"][:COUNT], codes, LM["user"])


def test_positions_see_and_say_what_the_reference_did(model):
    said = reference_talk(model)
    logs = comparing.distributions(model, said, lambda count: None)
    assert [part.shape for part in logs] == [(COUNT, 64)] + [(COUNT, 32)] * 8
    expected = log_softmax(LM["delay1.text_logits"][:COUNT])
    np.testing.assert_allclose(logs[0], expected, atol=2e-3)
    for part, tokens, valid in zip(logs, [said.text, *said.codes], said.valid, strict=True):
        np.testing.assert_array_equal(part.argmax(-1)[valid], tokens[valid])  # the reference was greedy
    assert said.valid.sum() == 9 * COUNT - 7


def test_figures_are_their_definitions():
    p, q = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), np.array([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]])
    said = comparing.Talk(
        np.zeros((2, 2)), np.array([0, 1]), np.array([[2, 1]]), np.array([[True, True], [False, True]])
    )
    logs = [np.log(each).astype(np.float32) for each in (p, q)]
    text, code = comparing.figures([logs[0]] * 2, [logs[1]] * 2, said)
    assert text.divergence == pytest.approx(np.mean(np.sum(p * np.log(p / q), axis=1)))
    assert text.agreement == 0.5
    assert text.perplexity_a == pytest.approx(1 / np.sqrt(0.5 * 0.8))
    assert text.perplexity_b == pytest.approx(1 / np.sqrt(0.25 * 0.7))
    assert (code.agreement, code.perplexity_a) == (1.0, pytest.approx(1 / 0.8))  # of the valid position alone


@pytest.fixture
def speech(tmp_path):
    sound, rate = soundfile.read(GOLDENS / "question.flac")
    soundfile.write(tmp_path / "speech.wav", sound[: rate * 2], rate)
    return tmp_path / "speech.wav"


def test_compare(checkpoint, speech, tmp_path, capsys):
    a, b = checkpoint(), tmp_path / "q8"
    flags = ["-q", "--q-bits", "8", "--q-group-size", "32"]
    assert cli.main(["--hf-path", str(a), "--mlx-path", str(b), *flags]) == 0
    capsys.readouterr()
    picture = tmp_path / "compare.png"
    rows, verdicts = {}, {}
    for other in (a, b):
        assert cli.main(["compare", str(a), str(other), "--input", str(speech), "--plot", str(picture)]) == 0
        lines = capsys.readouterr().out.splitlines()
        rows[other] = {line[:12].strip(): line[12:].split() for line in lines[1:10]}
        assert "64 positions; weights A" in lines[10]
        assert picture.read_bytes().startswith(b"\x89PNG")
        verdicts[other] = lines[-1]
    assert list(rows[a]) == ["text", *(f"codebook {n}" for n in range(8))]
    assert all(row[:2] == ["0.00000", "100.0%"] and row[2] == row[3] for row in rows[a].values())
    assert 0 < float(rows[b]["text"][0]) < 0.1
    assert rows[b]["text"][3] != rows[b]["text"][2]
    assert verdicts[a].startswith("verdict: B says the same as A: 0 nats on average")
    assert "100.0%" in verdicts[a]
    assert verdicts[b].startswith("verdict: B is ")


def test_a_verdict_is_of_all_streams_and_names_the_worst():
    streams = [comparing.Stream("text", 0.01, 0.9, 2, 2), comparing.Stream("codebook 0", 0.05, 0.7, 2, 2)]
    line = comparing.verdict(streams)
    assert line == (
        "verdict: B is close to A: 0.03 nats on average, the likeliest token the same in 80.0%; "
        "farthest in codebook 0 (0.05 nats)"
    )
    assert "far from" in comparing.verdict([streams[0]._replace(divergence=2.0)])


def test_compare_says_what_is_wrong(checkpoint, speech, tmp_path, capsys, monkeypatch):
    a = str(checkpoint())
    for flags, message in (
        ([a, a, "--input", "nowhere.wav"], "nowhere.wav: no such sound file"),
        ([a, a, "--input", str(speech), "--plot", "x.gif"], "expected a name that ends in .png, .svg, .pdf"),
        ([a, a, "--input", str(speech), "--seed", "-1"], "--seed: got -1"),
        ([a, str(tmp_path / "none"), "--input", str(speech), "--plot", str(tmp_path / "a.png")], "no such folder"),
    ):
        assert cli.main(["compare", *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["compare", a, a, "--input", str(speech), "--plot", "x.png"]) == 2
    assert "--plot: needs matplotlib; pip install 'moshi-duplex[plot]'" in capsys.readouterr().err
    soundfile.write(speech, np.zeros(100), 24000)  # less than a frame
    assert cli.main(["compare", a, a, "--input", str(speech)]) == 0
    assert "no picture: that needs pip install 'moshi-duplex[plot]'" in capsys.readouterr().out


@pytest.mark.slow
def test_the_answer_is_heard_too(checkpoint, speech, tmp_path, capsys):
    """Silence after the question: what a copy says there counts, and it may be as long as is asked for."""
    a = str(checkpoint())
    for tail, positions in (("0", 26), ("1.6", 46), ("3", 64)):
        flags = ["--input", str(speech), "--tail", tail, "--plot", str(tmp_path / "p.png")]
        assert cli.main(["compare", a, a, *flags]) == 0
        assert f"{positions} positions" in capsys.readouterr().out
    for tail in ("-1", "nan", "inf", "601", "long"):
        with pytest.raises(SystemExit) as caught:
            cli.main(["compare", a, a, "--input", str(speech), "--tail", tail])
        assert caught.value.code == 2
        assert "expected a number of seconds from 0 to 600" in capsys.readouterr().err


def test_the_picture_s_place_is_looked_at_first(speech, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(comparing, "load", lambda name: pytest.fail("loads"))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("x")
    for place in ("nowhere/a.png", "folder.png", "file/a.png"):
        assert cli.main(["compare", "a", "b", "--input", str(speech), "--plot", str(tmp_path / place)]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_models_of_other_streams_are_not_compared(checkpoint, speech, tmp_path, capsys):
    a, b = checkpoint(), tmp_path / "b"
    checkpoint("moshi_schedule").rename(b)
    edit_json(b / "config.json", delays=delays(2))
    assert cli.main(["compare", str(a), str(b), "--input", str(speech), "--plot", str(tmp_path / "p.png")]) == 2
    assert "has other streams or vocabularies" in capsys.readouterr().err


def test_a_talk_is_seeded_and_keeps_the_models_settings(model):
    sound = np.random.default_rng(0).normal(size=1920 * 5).astype(np.float32) * 0.1
    one, same, other = (comparing.talk(model, sound, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.codes, same.codes)
    assert not np.array_equal(one.codes, other.codes)
    assert one.inputs.shape == (17, 6)
    model.sampling_defaults = {"temperature": 0, "text_temperature": 0}
    try:
        greedy = [comparing.talk(model, sound, seed).codes for seed in (0, 1)]
    finally:
        model.sampling_defaults = {}
    np.testing.assert_array_equal(*greedy)
