"""What training reads again and writes: shards and states damaged in any way; disks that are full; two at once."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS, edit_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training import FEW, command, tones

from moshi_mlx import CheckpointError, ConfigError, InputError, MoshiError
from moshi_mlx.checkpoints import adapters
from moshi_mlx.train import dataset, files, options, prepare, saving, trainer
from moshi_mlx.train.__main__ import main
from moshi_mlx.train.curves import CSV_NAME

SHARD = "shard-00000.safetensors"
ONE = {"iters": 1, "save_every": 1, "steps_per_eval": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    source = tones(folder / "recordings", 2)
    arguments = ["--model", GOLDENS / "moshi_tiny", "--data", source, "--output", folder / "prepared"]
    assert main(["prepare", *map(str, arguments)]) == 0
    return folder / "prepared"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of one iteration."""
    folder = tmp_path_factory.mktemp("run")
    assert main(command(data, folder, **ONE)) == 0
    return folder


def error_of(arguments, capsys):
    """The one line that a command ends with, and that its status is 2."""
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


# --- prepared shards


@pytest.fixture
def shard(data, tmp_path):
    """A function that writes the golden shard anew, its tensors changed, and loads the folder."""

    def load(model, change):
        folder = tmp_path / "copy"
        shutil.copytree(data / "train", folder)
        tensors, metadata = mx.load(str(folder / SHARD), return_metadata=True)
        mx.save_safetensors(str(folder / SHARD), change(dict(tensors)), metadata)
        return dataset.load(folder, prepare.settings_of(model), 25)

    return load


def with_token(row, token):
    def change(tensors):
        streams = np.array(tensors["00000"])
        streams[row, 3] = token
        return tensors | {"00000": mx.array(streams)}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_token(0, 64), "has a token 64 of text, but the model knows 0 to 63"),
        (with_token(1, 32), "has a token 32 of sound, but the model knows 0 to 31"),
        (with_token(16, 65535), "has a token 65535 of sound"),
        (lambda tensors: {n: t.astype(mx.int32) for n, t in tensors.items()}, r"is I32 \[17, 25\], expected U16"),
        (lambda tensors: {n: t.astype(mx.float32) for n, t in tensors.items()}, "is F32"),
        (lambda tensors: {n: t[:9] for n, t in tensors.items()}, r"is U16 \[9, 25\], expected U16 \[17, frames\]"),
        (lambda tensors: {n: t[0] for n, t in tensors.items()}, r"is U16 \[25\]"),
        (lambda tensors: {n: t[None] for n, t in tensors.items()}, r"is U16 \[1, 17, 25\]"),
        (lambda tensors: {n: t[:, :0] for n, t in tensors.items()}, r"is U16 \[17, 0\]"),
        (lambda tensors: {}, "holds no conversations"),
    ],
)
def test_shards_of_other_tensors_are_named(model, shard, change, message):
    with pytest.raises(CheckpointError, match=message):
        shard(model, change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shards": "one"}, "key 'shards' is 'one', expected a whole number"),
        ({"shards": True}, "key 'shards' is True"),
        ({"shards": 7}, "has 1 shards, expected 7"),
        ({"vocabularies": [65, 32]}, "key 'vocabularies' is"),
        ({"streams": "x" * 9999}, "key 'streams' is"),
    ],
)
def test_indices_that_do_not_fit_are_named(model, data, tmp_path, values, message):
    shutil.copytree(data / "train", tmp_path / "copy")
    edit_json(tmp_path / "copy" / "prepared.json", **values)
    with pytest.raises(MoshiError, match=message) as caught:
        dataset.load(tmp_path / "copy", prepare.settings_of(model), 25)
    assert len(str(caught.value)) < 400


DAMAGE = {"start": st.integers(0, 2500), "drop": st.integers(0, 30), "insert": st.binary(max_size=8),
          "length": st.integers(0, 4000)}  # fmt: skip
BOUNDED = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def damaged(source, target, start, drop, insert, length):
    content = source.read_bytes()
    content = content[:start] + insert + content[start + drop :]
    target.write_bytes(content[:length] if length < 2000 else content)


@BOUNDED
@given(**DAMAGE)
def test_shards_damaged_in_any_way_are_read_or_named(model, data, tmp_path, **damage):
    folder = tmp_path / "copy"
    shutil.copytree(data / "train", folder, dirs_exist_ok=True)
    damaged(data / "train" / SHARD, folder / SHARD, **damage)
    with contextlib.suppress(MoshiError):
        rows = dataset.load(folder, prepare.settings_of(model), 25).rows([0])
        assert rows[:, 0].max() < 64
        assert rows[:, 1:].max() < 32


# --- states


@pytest.fixture
def state(run, tmp_path):
    """A function that copies a run with its state changed: tensors, metadata."""

    def copy(change):
        folder = tmp_path / "copy"
        shutil.copytree(run, folder)
        tensors, metadata = mx.load(str(run / saving.STATE_NAME), return_metadata=True)
        tensors, metadata = change(dict(tensors), dict(metadata))
        mx.save_safetensors(str(folder / saving.STATE_NAME), tensors, metadata)
        return folder

    return copy


def metadata(**values):
    def change(tensors, before):
        return tensors, {key: text for key, text in (before | values).items() if text is not None}

    return change


def tensors(edit):
    return lambda before, metadata: (edit(before), metadata)


def first(kind, edit):
    """Change the first tensor whose name begins so."""

    def change(before):
        name = min(name for name in before if name.startswith(kind))
        return before | {name: edit(before[name])}

    return tensors(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (metadata(done=None), "is damaged, or not the state of a run: 'done'"),
        (metadata(done="many"), "is damaged, or not the state of a run"),
        (metadata(done="-1"), "key 'done' is -1, expected a whole number"),
        (metadata(done="1.5"), "key 'done' is 1.5"),
        (metadata(options=None), "is damaged, or not the state of a run: 'options'"),
        (metadata(options="{"), "is damaged, or not the state of a run"),
        (metadata(options="[" * 100_000), "is damaged, or not the state of a run"),
        (metadata(options="[]"), "key 'options' is []"),
        (metadata(options="{}"), "the run had batch_size 4, not 2"),
        (tensors(lambda before: {}), "is missing"),
        (tensors(lambda before: before | {"more": mx.zeros((2,))}), "tensor 'more' has no place"),
        (tensors(lambda before: before | {"optimizer/step/x/y": mx.zeros((2,))}), "has no place"),
        (tensors(lambda before: {k.replace("/", ".", 1): v for k, v in before.items()}), "has no place"),
        (first("weights/", lambda value: value[:, :1]), "expected float32 ["),
        (first("weights/", lambda value: value.astype(mx.bfloat16)), "is bfloat16"),
        (first("weights/", lambda value: value * float("nan")), "holds values that are no numbers"),
        (first("optimizer/de", lambda value: value + float("inf")), "holds values that are no numbers"),
        (first("optimizer/step", lambda value: value.astype(mx.float32)), "is float32 [], expected uint64 []"),
    ],
)
def test_damaged_states_are_named(state, data, capsys, change, message):
    folder = state(change)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = error_of(command(data, folder, resume_adapter_file=folder / saving.STATE_NAME, **ONE), capsys)
    assert message in said
    assert len(said) < len(str(folder)) + 400
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_new_run_does_not_begin_over_a_damaged_state(state, data, capsys):
    said = error_of(command(data, state(metadata(done="x")), **ONE), capsys)
    assert "is damaged, or not the state of a run" in said


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """What a new run begins with, and its options."""
    chosen = options.read(command(data, tmp_path_factory.mktemp("new"), **ONE))
    return trainer.Trainer(chosen).progress, chosen


@BOUNDED
@given(**DAMAGE)
def test_states_damaged_in_any_way_are_read_or_named(begun, run, tmp_path, **damage):
    new, chosen = begun
    damaged(run / saving.STATE_NAME, tmp_path / saving.STATE_NAME, **damage)
    again = {**vars(chosen), "resume_adapter_file": str(tmp_path / saving.STATE_NAME)}
    with contextlib.suppress(MoshiError):
        progress = saving.like(saving.resume(options.Options(**again)), new)
        assert saving.is_finite(progress)
        assert progress.done >= 0


# --- writing


def test_no_room_is_one_line_and_leaves_nothing_half(data, tmp_path):
    """A file may not grow beyond 20 kB, which is what a full disk comes to."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    program = [sys.executable, "-m", "moshi_mlx.train", *command(data, tmp_path / "run", **ONE)]
    done = subprocess.run(program, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "training_state.safetensors: cannot be written: File too large" in done.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [CSV_NAME]


def test_no_room_keeps_the_save_before(run, data, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    before = (folder / saving.STATE_NAME).read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_file", full)
    said = error_of(command(data, folder, resume_adapter_file=folder / saving.STATE_NAME, **FEW | {"iters": 2}), capsys)
    assert "training_state.safetensors: cannot be written: No space left on device" in said
    assert (folder / saving.STATE_NAME).read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_is_saved_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """The file, then the name, then the folder; with what a Mac has for that where it is there."""
    done = []
    monkeypatch.setattr(files, "sync", lambda number: done.append(os.fstat(number).st_ino))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (done.append("name"), os.rename(a, b)))
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert done == [(tmp_path / "a.json").stat().st_ino, "name", tmp_path.stat().st_ino]


@pytest.mark.parametrize("refused", [False, True])
def test_a_mac_is_asked_for_more_than_fsync(tmp_path, monkeypatch, refused):
    asked = []

    def control(number, what):
        asked.append(what)
        if refused:
            raise OSError(errno.ENOTSUP, "no such thing")

    monkeypatch.setattr(files.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(files.fcntl, "fcntl", control)
    monkeypatch.setattr(files.os, "fsync", lambda number: asked.append("fsync"))
    with (tmp_path / "a").open("wb") as file:
        files.sync(file.fileno())
    assert asked == ([51, "fsync"] if refused else [51])


def test_two_at_once_are_told(data, tmp_path, capsys):
    for arguments in (
        command(data, tmp_path, **ONE),
        ["prepare", "--model", GOLDENS / "moshi_tiny", "--data", data.parent / "recordings", "--output", tmp_path],
    ):
        with files.claimed(tmp_path):
            said = error_of([str(argument) for argument in arguments], capsys)
        assert f"{tmp_path}: another process is writing there; wait for its end" in said
    assert list(tmp_path.iterdir()) == []
    with files.claimed(tmp_path):  # let go of at the end
        pass


def test_a_share_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def none(*arguments):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with files.claimed(tmp_path / "new"):
        files.write_json(tmp_path / "new" / "a.json", {})
    assert (tmp_path / "new" / "a.json").is_file()


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path):
    mine = [".0123abcd.adapters.safetensors", "train/.89ef0123.shard-00000.safetensors"]
    others = [".keep", ".0123abcd", ".0123abcd.mine.txt", "a.txt", ".git/.0123abcd.config.json"]
    for name in mine + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with files.claimed(tmp_path):
        pass
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(others)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "n" * 300, "a\0b"])
def test_places_that_cannot_be_written_are_one_line(data, tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for arguments in (
        command(data, place, **ONE),
        ["prepare", "--model", GOLDENS / "moshi_tiny", "--data", data.parent / "recordings", "--output", place],
    ):
        assert ": cannot be written: " in error_of([str(argument) for argument in arguments], capsys)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("stream", ["/dev/full", "closed", "none"])
def test_a_standard_error_that_nobody_reads_stops_nothing(monkeypatch, tmp_path, stream):
    if stream == "none":
        monkeypatch.setattr(sys, "stderr", None)
        files.say("gone")
        return
    with open("/dev/full" if stream == "/dev/full" else tmp_path / "x", "w") as file:
        if stream == "closed":
            file.close()
        monkeypatch.setattr(sys, "stderr", file)
        files.say("gone")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            file.close()


# --- runs that go wrong


@pytest.mark.parametrize("at", [1, 3])
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_save(data, tmp_path, capsys, monkeypatch, at):
    from moshi_mlx.train import steps

    train = steps.Steps.train

    def spoiled(self, weights, state, batches, rate):
        weights, state, kinds = train(self, weights, state, batches, rate)
        if len((tmp_path / "run" / CSV_NAME).read_text().splitlines()) == at:
            kinds = kinds * float("nan")
        return weights, state, kinds

    monkeypatch.setattr(steps.Steps, "train", spoiled)
    said = error_of(command(data, tmp_path / "run", iters=6, save_every=2, steps_per_eval=9), capsys)
    assert f"iteration {at}: the train loss is nan, so the run ends; " in said
    kept = "nothing was saved yet" if at == 1 else f"iteration 2 is kept in {tmp_path / 'run'}"
    assert kept in said
    if at == 3:
        tensors, about = mx.load(str(tmp_path / "run" / saving.STATE_NAME), return_metadata=True)
        assert about["done"] == "2"
        assert all(bool(mx.isfinite(value).all()) for value in tensors.values())
    else:
        assert not (tmp_path / "run" / saving.STATE_NAME).exists()


def test_weights_that_are_no_numbers_are_never_saved(data, tmp_path, capsys, monkeypatch):
    """The loss of an iteration is from before its update, which may be the one that fails."""
    from moshi_mlx.train import steps

    train = steps.Steps.train

    def spoiled(self, weights, *arguments):
        weights, state, kinds = train(self, weights, *arguments)
        return {name: value * float("inf") for name, value in weights.items()}, state, kinds

    monkeypatch.setattr(steps.Steps, "train", spoiled)
    said = error_of(command(data, tmp_path / "run", **ONE), capsys)
    assert "iteration 1: the weights are no numbers any more, so the run ends; nothing was saved yet" in said
    assert not (tmp_path / "run" / adapters.FILE_NAME).exists()


def test_buffers_of_an_iteration_are_kept_for_the_next(monkeypatch):
    """Up to what the peak had and nobody uses now; never less than before."""
    limits = [512]
    monkeypatch.setattr(trainer.mx, "get_peak_memory", lambda: 9000)
    monkeypatch.setattr(trainer.mx, "get_active_memory", lambda: 2000)
    monkeypatch.setattr(trainer.mx, "set_cache_limit", lambda size: (limits.append(size), limits[-2])[1])
    trainer.keep_buffers()
    assert limits[-1] == 7000
    monkeypatch.setattr(trainer.mx, "get_peak_memory", lambda: 2100)
    trainer.keep_buffers()
    assert limits[-1] == 7000


def test_a_training_iteration_finds_its_buffers_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "bound_memory", lambda: mx.set_cache_limit(0))
    before = mx.set_cache_limit(0)
    try:
        mx.reset_peak_memory()
        run = trainer.Trainer(options.read(command(data, tmp_path / "run", **ONE)))
        run._iterate(None)
        spare = mx.get_peak_memory() - mx.get_active_memory()
        assert mx.get_cache_memory() < 0.01 * spare
        run._iterate(None)
        assert mx.get_cache_memory() > 0.5 * spare
    finally:
        mx.set_cache_limit(before)


# --- settings


def test_a_learning_rate_on_the_command_line_wins_over_the_files_schedule(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(
        "model: m\ndata: d\nlearning_rate: 1e-4\nlr_schedule: {name: cosine_decay, arguments: [1e-4, 100]}\n"
    )
    config = ["--config", str(tmp_path / "a.yaml")]
    np.testing.assert_allclose(options.read(config).schedule()(50), 5e-5, rtol=0.02)
    assert options.read([*config, "--iters", "9"]).lr_schedule is not None
    chosen = options.read([*config, "--learning-rate", "3e-5"])
    assert [chosen.schedule()(done) for done in (0, 50)] == [3e-5, 3e-5]
    assert "--learning-rate 3e-05 in place of the lr_schedule of" in capsys.readouterr().err


BASE = "model: m\ndata: d\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", BASE + "a: &x [1]\nb: *x\n", "has an alias"),
        ("a.yaml", BASE + "a: " + "[" * 5000, "a.yaml: "),
        ("a.toml", "a = " + "[" * 5000, "a.toml: "),
        ("a.yaml", BASE + "? {a: 1}\n: 2\n", "a.yaml: "),
        ("a.yaml", BASE + "1: 2\nx: 3\n", "unknown key 1 (its value: 2)"),
        ("a.yaml", BASE + "x: " + "y" * 9999, "unknown key 'x' (its value: 'yyy"),
        ("a.yaml", "#" * 2_000_000, "is larger than 1000000 bytes"),
        ("a.yaml", BASE + "rank: 100000000", "rank is 100000000, expected 16384 or less"),
        ("a.yaml", BASE + "batch_size: 70000", "make 70000 segments an iteration, expected 65536 at most"),
        ("a.yaml", BASE + "seed: 99999999999999999999999", "seed is 99999999999999999999999, expected"),
        ("a.yaml", BASE + "duration_sec: 1e308", "duration_sec is 1e+308, expected"),
        ("a.yaml", BASE + "scale: .nan", "scale is nan, expected more than 0"),
        ("a.yaml", BASE + "optimizer_config: {adamw: 3}", "optimizer_config: adamw is 3"),
        ("a.yaml", BASE + "optimizer_config: {adamw: {betas: [a, b]}}", "optimizer_config: "),
        ("a.yaml", BASE + "optimizer_config: {adamw: {betas: [.nan, 0.9]}}", "optimizer_config: Adam beta1 should be"),
        ("a.yaml", BASE + "optimizer_config: {adamw: {weight_decay: .nan}}", "an update with these settings gives no"),
        ("a.yaml", BASE + "optimizer_config: {adamw: {betas: 3}}", "optimizer_config: "),
        ("a.yaml", BASE + "lr_schedule: {name: cosine_decay, arguments: 3}", "lr_schedule: "),
        ("a.yaml", BASE + "lr_schedule: {name: cosine_decay, arguments: [.nan, 3]}", "it gives nan after 0"),
        ("a.yaml", BASE + "lr_schedule: {name: cosine_decay, arguments: [1, 0]}", "lr_schedule: "),
        ("a.yaml", BASE + "lr_schedule: {name: step_decay, arguments: [1, 2, 0]}", "lr_schedule: "),
        ("a.yaml", BASE + "lr_schedule: {name: cosine_decay, warmup: x, arguments: [1, 9]}", "lr_schedule: "),
        ("a.yaml", BASE + "lr_schedule: {name: [1], arguments: [1, 9]}", "lr_schedule: "),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_one_line(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    said = error_of(["--config", str(tmp_path / name)], capsys)
    assert message in said
    assert len(said) < len(str(tmp_path)) + 400


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from([*(f for f in options.Options.__dataclass_fields__), "lora_parameters", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["name", "arguments", "warmup", "adamw", "betas", "rank"]), inner, max_size=3
                )
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_settings_of_any_kind_are_read_or_named(tmp_path, values):
    (tmp_path / "a.yaml").write_text(json.dumps({"model": "m", "data": "d"} | values))
    with contextlib.suppress(ConfigError, InputError):
        options.read(["--config", str(tmp_path / "a.yaml")])
