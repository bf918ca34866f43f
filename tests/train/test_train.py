"""Training: Kyutai's loss and gradients, recordings to batches, exact resuming, data-parallel equality, its errors."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS
from training import FEW, KYUTAI, SETTINGS, TRAINING, check_losses, command, quantize, tones

import moshi_mlx
from moshi_mlx.checkpoints import adapters, writing
from moshi_mlx.train import options, saving, weights
from moshi_mlx.train.__main__ import main
from moshi_mlx.train.curves import CSV_NAME, PNG_NAME, SMOOTHED, Curve, Losses, moving_average
from moshi_mlx.train.loss import batches, loss

MODEL = GOLDENS / "moshi_tiny"
NAMES = {  # Kyutai's names of the golden gradients, and ours
    "out_norm.alpha": "decoder.model.norm.weight",
    "depformer.layers.1.norm2.alpha": "depth_decoder.slices.0.transformer.layers.1.norm2.weight",
    "depformer_emb.2.weight": "depth_decoder.slices.3.emb.weight",
}


def test_the_moving_average_is_of_the_last_ones():
    assert moving_average([4.0, 2.0, 6.0, 1.0], 2) == [4.0, 3.0, 4.0, 3.5]
    assert moving_average([3.0], 20) == [3.0]


def test_the_picture_shows_it(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn = {}
    monkeypatch.setattr(pyplot, "close", lambda figure: drawn.update(
        {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}))  # fmt: skip
    rows = [Losses(n, "train", float(n), 1.0, 1.0, 1.0, 0.0) for n in range(1, 2 * SMOOTHED + 1)]
    curve = Curve(tmp_path)
    for row in rows:
        curve.add(row)
    curve.draw()
    assert (tmp_path / PNG_NAME).read_bytes().startswith(b"\x89PNG")
    assert drawn[f"mean of {SMOOTHED}"] == moving_average([row.loss for row in rows])


@pytest.mark.parametrize("case", ["tiny", "schedule"])
def test_loss_is_kyutais(case, checkpoint):
    check_losses(moshi_mlx.load(checkpoint(f"moshi_{case}"), dtype=mx.float32), case)


def gradients(model, again=False, kind="full", **settings):
    chosen = weights.choose(model, kind, **{"num_layers": -1, "rank": 2, "scale": 2.0, "seed": 0, **settings})
    (batch,), _ = batches(TRAINING["codes"], model.config, KYUTAI, 1)

    def objective(values):
        with weights.placed(model, values):
            return loss(model, batch, values if again else None)[0]

    return mx.grad(objective)(chosen)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("case", ["tiny", "schedule"])
def test_gradients_are_kyutais_also_where_layers_run_twice(case, again, checkpoint):
    found = gradients(moshi_mlx.load(checkpoint(f"moshi_{case}"), dtype=mx.float32), again)
    norm = np.sqrt(sum(float(np.square(np.array(gradient, np.float64)).sum()) for gradient in found.values()))
    np.testing.assert_allclose(norm, TRAINING[f"{case}.norm"], rtol=1e-4)
    if case == "tiny":
        for theirs, ours in NAMES.items():
            expected = TRAINING[f"tiny.gradient.{theirs}"].squeeze()
            np.testing.assert_allclose(np.array(found[ours]), expected, rtol=1e-3, atol=1e-4, err_msg=ours)
        text_rows = np.array(found["decoder.model.embed_tokens.weight"])[:65]
        np.testing.assert_allclose(text_rows, TRAINING["tiny.gradient.text_emb.weight"], rtol=1e-3, atol=1e-4)


def nodes(arrays):
    """The names of the operations that compute them."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return re.findall(r'label ="([^"]+)"', text.getvalue())


@pytest.mark.parametrize("again", [False, True])
def test_a_deterministic_gradient_is_the_same_and_adds_nothing_as_it_comes(checkpoint, again):
    """A plain lookup's gradient is a scatter, which Metal adds up in any order. The other case has low-rank tables."""
    for case in ("tiny", "schedule"):
        model = moshi_mlx.load(checkpoint(f"moshi_{case}"), dtype=mx.float32)
        plain = gradients(model, again)
        assert "Scatter Sum" in nodes(plain.values())
        weights.order_gradients(model)
        ordered = gradients(model, again)
        assert "Scatter Sum" not in nodes(ordered.values())
        for name, gradient in plain.items():
            np.testing.assert_allclose(np.array(ordered[name]), np.array(gradient), rtol=1e-4, atol=1e-5, err_msg=name)


def test_adapters_gradients_are_the_same_where_layers_run_twice():
    one, two = (gradients(quantize(moshi_mlx.load(MODEL, dtype=mx.float32)), again, "lora") for again in (False, True))
    assert any(gradient.any() for gradient in one.values())
    for name, gradient in one.items():
        np.testing.assert_allclose(np.array(two[name]), np.array(gradient), rtol=1e-4, atol=1e-5, err_msg=name)


def test_parts_of_a_batch_add_up_to_it(model):
    tokens = TRAINING["codes"]
    whole, _ = batches(tokens, model.config, KYUTAI, 1)
    halves, _ = batches(tokens, model.config, KYUTAI, 2)
    np.testing.assert_allclose(
        loss(model, whole[0])[0].item(), sum(loss(model, half)[0].item() for half in halves), rtol=1e-5
    )


def test_what_is_filled_up_teaches_nothing(model):
    padded = [
        np.pad(TRAINING["codes"], [(0, rows), (0, 0), (0, frames)], constant_values=-1)
        for rows, frames in ((0, 1), (1, 7))
    ]  # the first of them for what the delays push past the end
    values = [loss(model, batches(tokens, model.config, KYUTAI, 1)[0][0])[0].item() for tokens in padded]
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_layers_that_run_twice_save_memory():
    """A toy deep enough that what lies between the layers is most of it."""
    tokens = np.random.default_rng(0).integers(4, 32, (4, 17, 128)).astype(np.int32)

    def peak(again):
        model = moshi_mlx.load(MODEL, dtype=mx.float32)
        layers = model.decoder.model.transformer.layers
        layers += layers * 4  # ten layers
        chosen = weights.choose(model, "lora", -1, 2, 2.0, 0)
        (batch,), _ = batches(tokens, model.config, KYUTAI, 1)

        def objective(values):
            with weights.placed(model, values):
                return loss(model, batch, values if again else None)[0]

        mx.eval(model.parameters(), chosen, batch)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()  # other tests' models are there too
        mx.eval(mx.grad(objective)(chosen))
        return mx.get_peak_memory() - before

    assert peak(True) < 0.6 * peak(False)


# --- runs


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The golden checkpoint in float32, in which parts add up to the whole."""
    folder = tmp_path_factory.mktemp("model") / "float32"
    shutil.copytree(MODEL, folder)
    tensors = {name: tensor.astype(mx.float32) for name, tensor in mx.load(str(MODEL / "model.safetensors")).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared tones: four conversations of 25 frames to train on, one to validate with."""
    folder = tmp_path_factory.mktemp("data")
    source, held = tones(folder / "recordings"), tones(folder / "held", 1)
    arguments = ["--model", MODEL, "--data", source, "--valid-data", held, "--output", folder / "prepared"]
    assert main(["prepare", *map(str, arguments)]) == 0
    return folder / "prepared"


def rows(folder):
    """The rows of losses.csv as text: the same only where every digit is."""
    return (folder / CSV_NAME).read_text().splitlines()


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert main(command(data, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def great(exact, data, tmp_path_factory):
    """Four iterations in float32, for others to be compared with."""
    folder = tmp_path_factory.mktemp("great")
    assert main(command(data, folder, model=exact, **FEW)) == 0
    return folder


@pytest.mark.slow
def test_a_run_learns_and_says_what_it_does(uninterrupted, data, capsys, tmp_path):
    assert main(command(data, tmp_path / "run")) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("iteration 4: train loss ") and "peak memory" in line for line in lines)
    assert any(line.startswith("iteration 0: valid loss ") for line in lines)
    losses = [row.split(",") for row in rows(uninterrupted)[1:]]
    assert [(row[0], row[1]) for row in losses if row[1] == "valid"] == [("0", "valid"), ("4", "valid"), ("8", "valid")]
    trained = [float(row[2]) for row in losses if row[1] == "train"]
    assert len(trained) == 8
    assert np.mean(trained[-2:]) < 0.9 * np.mean(trained[:2])
    for number, split, loss_, text, semantic, acoustic, _ in losses:
        audio = (100 * 25 * float(semantic) + 7 * 24 * float(acoustic)) / (100 * 25 + 7 * 24)
        if split == "valid":
            np.testing.assert_allclose(float(loss_), float(text) + audio, rtol=0.02, err_msg=number)
    assert rows(tmp_path / "run") == rows(uninterrupted)  # a seed is a seed
    assert (uninterrupted / PNG_NAME).read_bytes().startswith(b"\x89PNG")
    assert not [path for path in uninterrupted.iterdir() if path.name.startswith(".")]


def test_what_is_written_is_read_by_load_and_fits_kyutais_names(uninterrupted):
    saved = json.loads((uninterrupted / adapters.CONFIG_NAME).read_text())
    assert saved["lora_parameters"] == {"rank": 2, "scale": 2.0, "dropout": 0.0}
    kyutai = json.loads((uninterrupted / "config.json").read_text())
    assert (kyutai["lora_rank"], kyutai["lora_scaling"], kyutai["dim"]) == (2, 2.0, 32)
    names = set(mx.load(str(GOLDENS / "lora_tiny" / "lora.safetensors")))
    assert set(mx.load(str(uninterrupted / adapters.FILE_NAME))) == names
    assert (uninterrupted / "0000008_adapters.safetensors").read_bytes() == (
        uninterrupted / adapters.FILE_NAME
    ).read_bytes()
    codes = TRAINING["codes"]
    model, base = (moshi_mlx.load(MODEL, dtype=mx.float32, **more) for more in ({"adapter": uninterrupted}, {}))
    (batch,), _ = batches(codes, model.config, KYUTAI, 1)
    assert loss(model, batch)[0].item() != loss(base, batch)[0].item()


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(uninterrupted, data, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "moshi_mlx.train", *command(data, folder, iters=100000)])
    try:
        while not (folder / CSV_NAME).is_file() or len(rows(folder)) < 5:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = rows(folder)
    if not (folder / adapters.FILE_NAME).is_file():  # killed between the state and the result of the first save
        shutil.copy(uninterrupted / adapters.FILE_NAME, folder)
    # However far it came, the state is that of a whole save; the test goes on from the first of them.
    assert (
        main(command(data, folder, iters=max(8, len(before) + 2), resume_adapter_file=folder / adapters.FILE_NAME)) == 0
    )
    trained, expected = ([row for row in rows(f) if ",train," in row] for f in (folder, uninterrupted))
    assert trained[:8] == expected
    assert len({row.split(",")[0] for row in trained}) == len(trained)


def test_an_unfinished_run_is_not_overwritten(uninterrupted, data, capsys):
    before = {path: path.read_bytes() for path in uninterrupted.iterdir()}
    assert main(command(data, uninterrupted)) == 2
    assert "holds a run of 8 iterations; --resume-adapter-file" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in uninterrupted.iterdir()} == before


@pytest.mark.parametrize(("name", "value"), [("batch_size", 1), ("learning_rate", 1e-4), ("seed", 5), ("rank", 4)])
def test_another_run_cannot_be_continued(uninterrupted, data, tmp_path, capsys, name, value):
    file = uninterrupted / adapters.FILE_NAME
    assert main(command(data, tmp_path / "run", resume_adapter_file=file, **{name: value})) == 2
    assert f"the run had {name} {SETTINGS.get(name, 0)!r}, not {value!r}" in capsys.readouterr().err


def test_other_weights_can_be_begun_with(uninterrupted, data, tmp_path, capsys):
    """Kyutai's file, or a numbered one of a run: its weights, a new optimizer and a new schedule."""
    file = uninterrupted / f"0000008_{adapters.FILE_NAME}"
    assert main(command(data, tmp_path / "run", resume_adapter_file=file, iters=1)) == 0
    first, last = rows(tmp_path / "run")[1].split(","), rows(uninterrupted)[-1].split(",")
    np.testing.assert_allclose([float(x) for x in first[2:6]], [float(x) for x in last[2:6]], rtol=0.02)  # BF16
    kyutai = GOLDENS / "lora_tiny" / "lora.safetensors"
    assert main(command(data, tmp_path / "next", resume_adapter_file=kyutai, iters=1)) == 2
    assert "was trained with scale 1.5, not 2" in capsys.readouterr().err
    assert main(command(data, tmp_path / "next", resume_adapter_file=kyutai, iters=1, scale=1.5, rank=3)) == 2
    assert "has rank 2, not 3" in capsys.readouterr().err
    assert main(command(data, tmp_path / "next", resume_adapter_file=kyutai, iters=1, scale=1.5)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_the_run_goes_on(uninterrupted, data, tmp_path, number):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "moshi_mlx.train", *command(data, folder, save_every=1000,
                                iters=100000)])  # fmt: skip
    while not (folder / CSV_NAME).is_file() or len(rows(folder)) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == 130
    done = len([row for row in rows(folder) if ",train," in row])
    assert (folder / adapters.FILE_NAME).is_file()
    assert main(command(data, folder, resume_adapter_file=folder / adapters.FILE_NAME, iters=done + 2)) == 0
    trained, expected = ([row for row in rows(f) if ",train," in row] for f in (folder, uninterrupted))
    assert len(trained) == done + 2
    assert trained[:8] == expected[: len(trained)]


def check_same(folder, expected):
    for split in ("train", "valid"):
        one, two = (
            np.array([row.split(",")[2:6] for row in rows(f) if f",{split}," in row], np.float64)
            for f in (expected, folder)
        )
        np.testing.assert_allclose(two, one, rtol=2e-4, err_msg=split)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 1, "grad_accumulation_steps": 2},
        {"grad_checkpoint": True},
        {"compile": True, "grad_checkpoint": True},
    ],
    ids=["accumulated", "checkpointed", "compiled"],
)
def test_however_it_is_computed_the_losses_are_the_same(great, exact, data, tmp_path, settings):
    assert main(command(data, tmp_path / "run", model=exact, **FEW | settings)) == 0
    check_same(tmp_path / "run", great)


def free_ports():
    """The first of two neighbouring ports that nobody listens on."""
    while True:
        with socket.socket() as one, socket.socket() as two, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", one.getsockname()[1] + 1))
            return one.getsockname()[1]


def launch(*arguments):
    launcher = os.path.join(os.path.dirname(sys.executable), "mlx.launch")
    together = ["-n", "2", "--starting-port", str(free_ports()), "--python", sys.executable, "-m", "moshi_mlx.train"]
    subprocess.run([launcher, *together, *arguments], check=True, timeout=120)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_doubled_batch(great, exact, data, tmp_path):
    launch(*command(data, tmp_path / "run", model=exact, batch_size=1, **FEW))
    check_same(tmp_path / "run", great)


@pytest.mark.slow
def test_two_processes_go_on_from_what_the_first_has(great, exact, data, tmp_path):
    folder = tmp_path / "run"
    launch(*command(data, folder, model=exact, batch_size=1, **FEW | {"iters": 2, "save_every": 2}))
    launch(*command(data, folder, model=exact, batch_size=1, resume_adapter_file=folder / adapters.FILE_NAME, **FEW))
    check_same(folder, great)


def loss_of(model):
    (batch,), _ = batches(TRAINING["codes"], model.config, KYUTAI, 1)
    return loss(model, batch)[0].item()


def test_all_weights_can_be_trained(exact, data, tmp_path):
    """The result is a checkpoint; it holds the weights that the losses are of, and the run goes on from its state."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {"model": exact, "fine_tune_type": "full", "learning_rate": 3e-4, "deterministic": True, **FEW}
    assert main(command(data, whole, **settings)) == 0
    assert main(command(data, parts, **settings | {"iters": 2})) == 0
    assert main(command(data, parts, resume_adapter_file=parts / saving.STATE_NAME, **settings)) == 0
    assert [row for row in rows(parts) if ",train," in row] == [row for row in rows(whole) if ",train," in row]
    one, two = (moshi_mlx.load(folder / "checkpoint") for folder in (whole, parts))
    assert loss_of(one) == loss_of(two) != loss_of(moshi_mlx.load(exact))
    valid = [float(row.split(",")[2]) for row in rows(whole) if ",valid," in row]
    assert valid[-1] < valid[0] - 1
    trained = mx.load(str(whole / saving.STATE_NAME))[
        "weights/depth_decoder.slices.0.transformer.layers.0.norm1.weight"
    ]
    for part in one.depth_decoder.slices:
        assert mx.array_equal(part.transformer.layers[0].norm1.weight, trained)


def test_a_quantized_base_is_trained_by_adapters_alone(data, tmp_path, capsys):
    model = quantize(moshi_mlx.load(MODEL))
    writing.save(model, tmp_path / "quantized")
    settings = {"model": tmp_path / "quantized", "iters": 4, "save_every": 4, "learning_rate": 1e-2}
    assert main(command(data, tmp_path / "run", **settings)) == 0
    losses = [float(row.split(",")[2]) for row in rows(tmp_path / "run") if ",valid," in row]
    assert losses[-1] < losses[0] - 1
    adapted = moshi_mlx.load(tmp_path / "quantized", adapter=tmp_path / "run")
    assert any(isinstance(module, adapters.LoRALinear) for module in adapted.modules())
    assert main(command(data, tmp_path / "full", fine_tune_type="full", **settings)) == 2
    assert "a quantized model takes adapters only" in capsys.readouterr().err


def test_the_converter_merges_what_was_trained(uninterrupted, tmp_path):
    from moshi_mlx.convert.cli import main as convert

    arguments = ["--model", MODEL, "--mlx-path", tmp_path / "merged", "--lora", uninterrupted / adapters.FILE_NAME]
    assert convert([str(argument) for argument in arguments]) == 0
    merged, loaded = moshi_mlx.load(tmp_path / "merged"), moshi_mlx.load(MODEL, adapter=uninterrupted)
    np.testing.assert_allclose(loss_of(merged), loss_of(loaded), rtol=1e-3)


# --- settings


def test_settings_come_from_flags_over_a_file_over_defaults(tmp_path):
    yaml, toml = tmp_path / "a.yaml", tmp_path / "a.toml"
    yaml.write_text(
        "model: m\ndata: d\nlearning_rate: 1e-4\niters: 7\ngrad_checkpoint: true\nnum_layers: 8\n"
        "lora_parameters: {rank: 16, scale: 20.0, dropout: 0.0}\noptimizer: adam\n"
        "optimizer_config:\n  adam: {betas: [0.8, 0.99]}\n"
        "lr_schedule: {name: cosine_decay, warmup: 10, warmup_init: 0.0, arguments: [1e-4, 100, 1e-6]}\n"
    )
    toml.write_text(
        'model = "m"\ndata = "d"\nlearning_rate = 1e-4\niters = 7\ngrad_checkpoint = true\nnum_layers = 8\n'
        'optimizer = "adam"\n[lora_parameters]\nrank = 16\nscale = 20.0\n[optimizer_config.adam]\nbetas = [0.8, 0.99]\n'
        '[lr_schedule]\nname = "cosine_decay"\nwarmup = 10\nwarmup_init = 0.0\narguments = [1e-4, 100, 1e-6]\n'
    )
    found = options.read(["--config", str(yaml), "--iters", "9", "--no-grad-checkpoint"])
    assert (found.iters, found.grad_checkpoint, found.rank, found.scale, found.seed) == (9, False, 16, 20.0, 0)
    assert found.make_optimizer().betas == [0.8, 0.99]
    rate = found.schedule()
    assert rate(0) == 0
    np.testing.assert_allclose([rate(5), rate(10), rate(1000)], [5e-5, 1e-4, 1e-6], rtol=0.02)
    assert options.read(["-c", str(toml), "--iters", "9", "--no-grad-checkpoint"]) == found


BASE = "model: m\ndata: d\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: d", "model is missing: pass --model or put it into the configuration file"),
        (BASE + "learning_rat: 1", "unknown key 'learning_rat' (its value: 1)"),
        (BASE + "iters: many", "iters is 'many', expected a whole number"),
        (BASE + "iters: 0", "iters is 0, expected 1 or more"),
        (BASE + "grad_checkpoint: 1", "grad_checkpoint is 1, expected true or false"),
        (BASE + "learning_rate: -1", "learning_rate is -1, expected more than 0"),
        (BASE + "fine_tune_type: dora", "fine_tune_type is 'dora', expected one of lora, full"),
        (BASE + "lora_parameters: {dropout: 0.1}", "expected rank and scale, and no dropout"),
        (BASE + "lora_parameters: {alpha: 1}", "unknown key 'alpha'"),
        (BASE + "optimizer_config: {adamw: {beta: 1}}", "optimizer_config: "),
        (BASE + "optimizer_config: {lion: {}}", "no optimizer is called 'lion'"),
        (BASE + "lr_schedule: {name: linear}", "lr_schedule: got {'name': 'linear'}, expected name (one of"),
        (BASE + "lr_schedule: {name: cosine_decay}", "lr_schedule: "),
        (BASE + "resume_adapter_file: 3", "resume_adapter_file is 3, expected text"),
        ("- a", "expected settings, one `name: value` on a line"),
        ("a: [", "a.yaml: "),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, capsys, text, message):
    (tmp_path / "a.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "a.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("moshi_mlx.train: error: ")
    assert error.count("\n") == 1


def test_wrong_commands_are_one_line(data, tmp_path, capsys):
    for arguments, message in [
        (["--config", str(tmp_path / "none.yaml")], "none.yaml: no such configuration file"),
        (command(data, tmp_path / "run", num_layers=3), "num_layers is 3, but the model has 2 temporal layers"),
        (command(data, tmp_path / "run", duration_sec=0.08), "duration_sec is 0.08, expected two frames"),
        (command(tmp_path, tmp_path / "run"), "no prepared data"),
        (["prepare", "--model", str(MODEL), "--data", "x", "--output", "o"], "x: no such folder or manifest"),
    ]:  # fmt: skip
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as caught:
        main(["--iterations", "5"])
    assert caught.value.code == 2


def test_held_out_recordings_stay_held_out(tmp_path):
    source = tones(tmp_path / "recordings", 12, seconds=0.5)
    arguments = ["prepare", "--model", str(MODEL), "--data", str(source), "--output", str(tmp_path / "data")]
    assert main([*arguments, "--valid-percent", "30"]) == 0
    names = {
        part: [name for shard in (tmp_path / "data" / part).glob("shard*") for name in json.loads(names_of(shard))]
        for part in ("train", "valid")
    }
    assert sorted(names["train"] + names["valid"]) == sorted(str(n) for n in range(12))
    assert 1 <= len(names["valid"]) <= 8
    assert main([*arguments, "--valid-percent", "0.001"]) == 2


def names_of(shard):
    return mx.load(str(shard), return_metadata=True)[1]["names"]


def test_the_last_layers_alone_can_be_trained(model):
    chosen = weights.choose(moshi_mlx.load(MODEL), "lora", 1, 2, 2.0, 0)
    assert any("transformer.layers.1.self_attn" in name and name.startswith("decoder") for name in chosen)
    assert not any(name.startswith("decoder.model.transformer.layers.0.") for name in chosen)
    assert any(name.startswith("depth_decoder.") for name in chosen)


@pytest.mark.parametrize(
    "damage", [b"3,train,3,", b"3", b"3,train,1,2,3,4,x\n4,train,1,1,1,1,1", b"\xff\xfe\x00", b'"']
)
def test_a_damaged_row_ends_the_curve(tmp_path, damage):
    (tmp_path / CSV_NAME).write_bytes(b"head\n1,train,1,1,1,1,1\n2,train,2,2,2,2,2\n" + damage)
    assert [row.iteration for row in Curve(tmp_path, after=9).rows] == [1, 2]
    assert rows(tmp_path)[1:] == ["1,train,1.0,1.0,1.0,1.0,1.0", "2,train,2.0,2.0,2.0,2.0,2.0"]
