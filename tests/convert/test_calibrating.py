"""`--quant-predicate auto`: what is measured is what is written, and bytes go where they buy most."""

import itertools
import json
import re
import shutil

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from family import FAMILY, ROLES
from helpers import GOLDENS
from moshi_mlx.convert import calibrating, cli, comparing, recipes
from moshi_mlx.convert.calibrating import Choice

import moshi_mlx
from miniature.conversations.dialogues import held_out
from moshi_mlx.checkpoints import layouts
from moshi_mlx.checkpoints.filling import language_shapes
from moshi_mlx.checkpoints.names import MINIATURE_FOLDER
from moshi_mlx.checkpoints.quantization import Quantization
from moshi_mlx.checkpoints.reading import open_checkpoint
from moshi_mlx.models.state import flatten

QUESTION = GOLDENS / "question.flac"
MODES = [Quantization(3, 64), Quantization(4, 32), Quantization(8, 32, "mxfp8")]


def run(*arguments):
    return cli.main([*map(str, arguments)])


def auto(source, target, *flags):
    flags = ("-q", "--quant-predicate", "auto", "--calibrate", QUESTION, *flags)
    assert run("--hf-path", source, "--mlx-path", target, *flags) == 0
    return target


def language_bytes(folder):
    return sum(tensor.info.nbytes for tensor in open_checkpoint(folder).language.tensors.values())


@pytest.mark.parametrize("name", ["moshi_tiny", "moshi_schedule", *ROLES.values()])
def test_every_matrix_is_in_one_layer(checkpoint, name):
    config = open_checkpoint(FAMILY / name if name in ROLES.values() else checkpoint(name)).config
    paths = [path for layer in calibrating.layers_of(config) for path in layer.paths]
    wanted = {name.removesuffix(".weight") for name, shape in language_shapes(config).items() if len(shape) == 2}
    assert sorted(paths) == sorted(wanted - layouts.kept_whole(config))


@pytest.mark.parametrize("kind", MODES, ids=str)
def test_what_is_measured_is_what_would_be_loaded(wide, tmp_path, kind):
    flags = ("--q-bits", kind.bits, "--q-group-size", kind.group_size, "--q-mode", kind.mode)
    assert run("--hf-path", wide, "--mlx-path", tmp_path / "out", "-q", *flags) == 0
    assert run("--hf-path", tmp_path / "out", "--mlx-path", tmp_path / "back", "-d", "--dtype", "bfloat16") == 0
    model, back = moshi_mlx.load(wide), moshi_mlx.load(tmp_path / "back")
    before = dict(flatten(model.parameters()))
    rows = [row for layer in calibrating.layers_of(model.config) for row in layer.rows]
    with calibrating.rounded(model, rows, lambda path: kind):
        for (name, ours), (_, theirs) in zip(flatten(model.parameters()), flatten(back.parameters()), strict=True):
            assert mx.array_equal(ours, theirs), name
    assert all(value is before[name] for name, value in flatten(model.parameters()))
    weights = open_checkpoint(wide).language.read()
    assert calibrating.least_bytes([kind], weights, model.config) == language_bytes(tmp_path / "out")


def test_steps_that_share_weights_are_given_back_what_they_had(checkpoint):
    model = moshi_mlx.load(checkpoint("moshi_schedule"), dtype=mx.float32)
    before = dict(flatten(model.parameters()))
    rows = [row for layer in calibrating.layers_of(model.config) for row in layer.rows]
    with calibrating.rounded(model, rows, lambda path: Quantization(8, 32)):
        changed = [name for name, value in flatten(model.parameters()) if value is not before[name]]
    assert len(changed) >= len(rows)
    assert all(value is before[name] for name, value in flatten(model.parameters()))


KINDS = [Quantization(bits, 64) for bits in (3, 4, 6, 8)]


def table(costs):
    """Layers of 100 bytes a bit, whose cost falls by four with every bit, from `costs` at 3."""
    return [[Choice(kind, 100 * kind.bits, nats / 4 ** (kind.bits - 3)) for kind in KINDS] for nats in costs]


def test_bytes_go_where_they_buy_most():
    costs = [1.0, 0.01, 5.0, 0.2]
    for budget in range(1200, 3300, 100):
        chosen = calibrating.spend(table(costs), budget)
        assert sum(choice.nbytes for choice in chosen) <= budget
        best = min(
            sum(choice.nats for choice in each)
            for each in itertools.product(*table(costs))
            if sum(choice.nbytes for choice in each) <= budget
        )
        assert sum(choice.nats for choice in chosen) <= 2.5 * best, budget
    assert [choice.kind.bits for choice in calibrating.spend(table(costs), 1200)] == [3, 3, 3, 3]
    assert [choice.kind.bits for choice in calibrating.spend(table(costs), 1300)] == [3, 3, 4, 3]
    assert [choice.kind.bits for choice in calibrating.spend(table(costs), 10**9)] == [8, 8, 8, 8]


def test_a_layer_that_matters_gets_more_bits_than_the_rest(wide, tmp_path, capsys):
    """Its outputs are a hundred times as large as they were, so its rounding is as well."""
    folder = shutil.copytree(wide, tmp_path / "wide")
    tensors = dict(mx.load(str(wide / "model.safetensors")))
    tensors["text_linear.weight"] = tensors["text_linear.weight"] * 100
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    out = auto(folder, tmp_path / "out")
    said = capsys.readouterr().out
    assert "calibrated: " in said
    assert "nats a token on average with these bits" in said
    kinds = open_checkpoint(out).quantized
    assert kinds["text_linear"].bits > min(kind.bits for kind in kinds.values() if kind)
    usual = language_bytes_of_four_bits(folder, tmp_path)
    assert 0.9 * usual < language_bytes(out) <= usual
    small = auto(folder, tmp_path / "small", "--q-budget", 0.9e-9 * usual)
    assert language_bytes(small) <= 0.9 * usual
    block = json.loads((small / "config.json").read_text())["quantization"]
    assert len({json.dumps(value) for value in block.values() if isinstance(value, dict)}) >= 1


def language_bytes_of_four_bits(folder, tmp_path):
    assert run("--hf-path", folder, "--mlx-path", tmp_path / "q4", "-q") == 0
    return language_bytes(tmp_path / "q4")


@pytest.mark.slow
def test_it_is_no_farther_than_one_width_for_all(wide, tmp_path):
    """What it says it measured is what `compare` measures of what it wrote."""
    model = moshi_mlx.load(wide)
    said = comparing.talk(model, comparing.heard(QUESTION, model.config.audio_encoder_config), 0)
    exact = comparing.distributions(model, said, lambda count: None)

    def far(folder):
        other = comparing.distributions(moshi_mlx.load(folder), said, lambda count: None)
        return np.mean([stream.divergence for stream in comparing.figures(exact, other, said)])

    assert run("--hf-path", wide, "--mlx-path", tmp_path / "q4", "-q") == 0
    assert far(auto(wide, tmp_path / "out")) <= 1.05 * far(tmp_path / "q4")


@pytest.mark.slow
def test_modes_of_their_own_go_beside_a_finer_one(wide, tmp_path):
    mixed = open_checkpoint(auto(wide, tmp_path / "out", "--q-mode", "mxfp4"))
    assert {kind.mode for kind in mixed.quantized.values()} == {"mxfp4", "mxfp8"}
    moshi_mlx.load(tmp_path / "out").session(seed=0).step(np.zeros(1920, np.float32))
    one = auto(wide, tmp_path / "groups", "--q-group-size", 32)
    assert {kind.group_size for kind in open_checkpoint(one).quantized.values() if kind} == {32}
    assert recipes.choices(Quantization(4, 16, "nvfp4"), None)[1] == Quantization(8, 32, "mxfp8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--quant-predicate", "auto"), "--quant-predicate auto: needs --calibrate SOUND"),
        (("--quant-predicate", "auto", "--calibrate", "no.wav"), "--calibrate: no.wav: no such sound file"),
        (("--calibrate", QUESTION), "--calibrate: needs -q --quant-predicate auto"),
        (("--q-budget", 1), "--q-budget: needs -q --quant-predicate auto"),
        (("--quant-predicate", "mixed_4_8", "--q-budget", 1), "--q-budget: needs -q --quant-predicate auto"),
        (("--quant-predicate", "auto", "--calibrate", QUESTION, "--q-mode", "mxfp8"), "mxfp8 has one width"),
        (
            ("--quant-predicate", "auto", "--calibrate", QUESTION, "--q-budget", 1e-5),
            "--q-budget: got 1e-05, expected 0.000",
        ),
        (("--quant-predicate", "auto", "--calibrate", GOLDENS / "README.md"), "README.md"),
    ],
)
def test_flags_that_cannot_be(wide, tmp_path, capsys, flags, message):
    assert run("--hf-path", wide, "--mlx-path", tmp_path / "out", "-q", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("moshi_mlx.convert: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_machine_that_is_too_small_is_said_before_anything_is_read(wide, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("moshi_mlx.machine.preflight.usable_bytes", lambda: 10**5)
    flags = ("-q", "--quant-predicate", "auto", "--calibrate", QUESTION)
    assert run("--hf-path", wide, "--mlx-path", tmp_path / "out", *flags) == 2
    assert "calibrate on a larger machine: what is written there runs here" in capsys.readouterr().err


@pytest.mark.parametrize("role", [role for role in ROLES if role != "dialogue"])
def test_who_does_not_talk_is_refused_by_name(role, tmp_path, capsys):
    flags = ("-q", "--q-group-size", 32, "--quant-predicate", "auto", "--calibrate", QUESTION)
    assert run("--hf-path", FAMILY / ROLES[role], "--mlx-path", tmp_path / "out", *flags) == 2
    assert "expected a" in capsys.readouterr().err


def nats(words):
    """With the bits that were chosen, and with one width throughout."""
    line = next(line for line in words.splitlines() if "calibrated" in line)
    return [float(word) for word in re.findall(r"([0-9.]+(?:e-[0-9]+)?)(?= nats| with affine)", line)]


@pytest.mark.slow
def test_the_miniature_is_nearer_with_the_same_bytes_in_speech_that_chose_nothing(tmp_path, capsys):
    assert run("--hf-path", MINIATURE_FOLDER, "--mlx-path", tmp_path / "plain", "-d") == 0
    questions = np.concatenate([one.sound for one in held_out(3, seed=5)])
    soundfile.write(tmp_path / "questions.wav", questions, 24000)
    out = auto(tmp_path / "plain", tmp_path / "out", "--calibrate", tmp_path / "questions.wav")
    assert language_bytes(out) <= language_bytes_of_four_bits(tmp_path / "plain", tmp_path)
    ours, plain = nats(capsys.readouterr().out)
    assert ours < 0.8 * plain
    assert moshi_mlx.load(out).session(seed=0)


def test_one_width_is_taken_where_it_is_nearer_in_what_chose_nothing(wide, tmp_path, capsys, monkeypatch):
    def least(layers, budget):
        return [min(choices, key=lambda choice: choice.nbytes) for choices in layers]

    monkeypatch.setattr(calibrating, "spend", least)
    out = auto(wide, tmp_path / "out")
    said = capsys.readouterr().out
    ours, plain = nats(said)
    assert plain < ours
    assert "which is taken; half a minute of speech or more" in said
    assert {kind for kind in open_checkpoint(out).quantized.values() if kind} == {Quantization(4, 32)}


def test_what_judges_did_not_choose(checkpoint):
    model = moshi_mlx.load(checkpoint("moshi_tiny"))
    said = comparing.talk(model, comparing.heard(QUESTION, model.config.audio_encoder_config), 0)
    chooses, judges = (part.valid for part in calibrating.apart(said))
    assert not (chooses & judges).any()
    assert ((chooses | judges) == said.valid).all()
    assert 1.9 < chooses.sum() / judges.sum() < 2.1
