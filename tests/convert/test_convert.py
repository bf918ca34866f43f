"""Converting: every pair of layouts exactly, the same tokens, quantization, LoRA, whole folders or none, errors."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from family import FAMILY, ROLES
from helpers import GOLDENS, check_tokens, edit_json, golden, run_codes
from moshi_mlx.convert import cli, inspecting, lora

import moshi_mlx
from moshi_mlx.checkpoints import writing
from moshi_mlx.checkpoints.quantization import Quantization
from moshi_mlx.checkpoints.reading import open_checkpoint
from moshi_mlx.checkpoints.safetensors import as_mx, read_header, stored
from moshi_mlx.models.roles import KINDS
from moshi_mlx.models.state import flatten
from moshi_mlx.terminal.sizes import size

LM = golden("lm")
DELAY1 = {"text": LM["delay1.text"][:41], "audio": LM["delay1.audio"][:, :40]}


def convert(source, target, *flags):
    assert cli.main(["--hf-path", str(source), "--mlx-path", str(target), *map(str, flags)]) == 0
    return target


def fails(capsys, source, target, *flags):
    """The one line that a conversion ends with, which has left nothing."""
    before = sorted(Path(target).parent.iterdir())
    assert cli.main(["--hf-path", str(source), "--mlx-path", str(target), *map(str, flags)]) == 2
    assert sorted(Path(target).parent.iterdir()) == before
    error = capsys.readouterr().err
    assert error.startswith("moshi_mlx.convert: error: ")
    assert error.count("\n") == 1
    return error


def contents(folder, pattern="*.safetensors"):
    """Every tensor of a folder: name to type, shape and bytes."""
    tensors = {}
    for file in sorted(Path(folder).glob(pattern)):
        tensors |= {name: (*t.info, t.read().tobytes()) for name, t in stored(file).items()}
    return tensors


def same_folders(a, b):
    files = sorted(file.name for file in a.iterdir())
    assert files == sorted(file.name for file in b.iterdir())
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


def check_tokens_of(folder, dtype=mx.float32):
    check_tokens(run_codes(moshi_mlx.load(folder, dtype=dtype), LM["user"][:, :40]), DELAY1)


@pytest.fixture
def hugging(tmp_path):
    """The Hugging Face golden, with Moshi's tokenizer, as its repositories on the hub would need it."""
    folder = shutil.copytree(GOLDENS / "moshi_tiny_hf", tmp_path / "moshi_tiny_hf")
    shutil.copy(GOLDENS / "moshi_tiny" / "tokenizer.model", folder)
    return folder


@pytest.fixture
def sources(checkpoint, hugging, tmp_path):
    """The same weights in every layout, as others have written it."""
    published = convert(checkpoint(), tmp_path / "published", "--to", "kyutai")
    return {
        "kyutai": checkpoint_of(published), "kyutai2": tmp_path / "moshi_tiny",
        "mlx": checkpoint("moshi_tiny_mlx"), "huggingface": hugging,
    }  # fmt: skip


def checkpoint_of(folder):
    (folder / "README.md").unlink()
    return folder


LAYOUT_FLAGS = {
    "mlx": (), "kyutai": ("--to", "kyutai"), "kyutai2": ("--to", "kyutai", "--generation", 2),
    "huggingface": ("--to", "huggingface"),
}  # fmt: skip


@pytest.mark.parametrize("target", LAYOUT_FLAGS)
def test_every_pair_of_layouts(sources, tmp_path, target):
    """From every layout to this one: all alike, exactly what others have written, and with the same tokens."""
    flags = LAYOUT_FLAGS[target]
    outs = [convert(source, tmp_path / f"out_{name}", *flags) for name, source in sources.items()]
    for out in outs[1:]:
        same_folders(outs[0], out)
    assert contents(outs[0]) == contents(sources[target])
    check_tokens_of(outs[0])


def test_round_trip_of_weights_that_steps_share(checkpoint, tmp_path):
    source = checkpoint("moshi_schedule")
    expected = {"text": LM["schedule.text"][:41], "audio": LM["schedule.audio"][:, :40]}
    out = convert(source, tmp_path / "mlx")
    assert "depformer.slices.7.transformer.layers.1.norm1.weight" in contents(out)
    back = convert(out, tmp_path / "back", "--to", "kyutai", "--generation", 2)
    assert contents(back) == contents(source)
    for folder in (out, back):
        check_tokens(run_codes(moshi_mlx.load(folder, dtype=mx.float32), LM["user"][:, :40]), expected)


def test_norms_that_differ_are_not_lost_silently(checkpoint, tmp_path, capsys):
    folder = checkpoint("moshi_tiny_mlx")
    tensors = dict(mx.load(str(folder / "model.safetensors")))
    name = "depformer.slices.5.transformer.layers.0.norm1.weight"
    tensors[name] = tensors[name] + 1
    (folder / "model.safetensors").unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    convert(folder, tmp_path / "mlx")
    for target in ("kyutai", "huggingface"):
        error = fails(capsys, folder, tmp_path / "out", "--to", target)
        assert f"tensor '{name}' is another than 'depformer.slices.0.transformer.layers.0.norm1.weight'" in error


@pytest.mark.parametrize("generation", [1, 2])
def test_shared_weights_that_differ_are_not_lost_silently(checkpoint, tmp_path, capsys, generation):
    folder = convert(checkpoint("moshi_schedule"), tmp_path / "mlx")
    tensors = dict(mx.load(str(folder / "model.safetensors")))
    name = "depformer.slices.5.transformer.layers.0.self_attn.in_proj.weight"
    tensors[name] = tensors[name] + 1
    mx.eval(tensors)
    (folder / "model.safetensors").unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    error = fails(capsys, folder, tmp_path / "out", "--to", "kyutai", "--generation", generation)
    assert f"tensor '{name}' is another than 'depformer.slices.4." in error


def test_what_hugging_face_cannot_express(checkpoint, tmp_path, capsys):
    error = fails(capsys, checkpoint("moshi_schedule"), tmp_path / "out", "--to", "huggingface")
    assert "no depth_decoder_config.low_rank_embeddings" in error


def test_shards_load_from_every_layout(sources, tmp_path):
    for name, flags in (("mlx", ()), ("huggingface", ("--to", "huggingface"))):
        out = convert(sources[name], tmp_path / f"shards_{name}", *flags, "--max-shard-size", 0.0001)
        index = json.loads((out / "model.safetensors.index.json").read_text())
        shards = sorted(out.glob("model-*.safetensors"))
        assert len(shards) > 2
        assert all(sum(i.nbytes for i in read_header(s).values()) <= 100_000 for s in shards)
        assert sorted(index["weight_map"]) == sorted(n for s in shards for n in read_header(s))
        check_tokens_of(out)
        assert contents(out) == contents(sources[name])
    sharded = tmp_path / "kyutai_sharded"  # Kyutai's own PyTorch names in shards
    shutil.copytree(sources["kyutai"], sharded)
    tensors = dict(mx.load(str(sharded / "model.safetensors")))
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        mx.save_safetensors(str(sharded / file), {name: tensors[name] for name in part})
    (sharded / "model.safetensors").unlink()
    places = {name: file for file, part in parts.items() for name in part}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    edit_json(sharded / "config.json", moshi_name=None)
    same_folders(convert(sharded, tmp_path / "a"), convert(sources["kyutai"], tmp_path / "b"))


def test_metadata_that_other_readers_want(sources, tmp_path):
    for target, form in (("mlx", "mlx"), ("kyutai", "pt"), ("huggingface", "pt")):
        out = convert(sources["mlx"], tmp_path / target, *LAYOUT_FLAGS[target])
        with (out / "model.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        assert header["__metadata__"] == {"format": form}
        assert all(info["data_offsets"][0] % 4 == 0 for n, info in header.items() if info.get("dtype") == "F32")


# --- types and quantization -----------------------------------------------------------------------------------------


def plain(folder):
    tensors = {n: as_mx(t.read(), t.info.dtype) for n, t in stored(folder / "model.safetensors").items()}
    return {name: value.astype(mx.float32) for name, value in tensors.items()}


def test_dtype(sources, tmp_path):
    hugging = convert(sources["kyutai"], tmp_path / "hugging", "--to", "huggingface", "--dtype", "float16")
    assert json.loads((hugging / "config.json").read_text())["torch_dtype"] == "float16"
    out = convert(sources["huggingface"], tmp_path / "out", "--dtype", "float16")
    assert {info.dtype for info in read_header(out / "model.safetensors").values()} == {"F16"}
    assert {info.dtype for info in read_header(out / writing.MIMI_NAME).values()} == {"F32"}
    reference = plain(convert(sources["mlx"], tmp_path / "plain"))
    for name, value in plain(out).items():
        np.testing.assert_array_equal(value, reference[name].astype(mx.float16).astype(mx.float32))


MODES = [
    ("affine", bits, group) for bits, group in [(2, 32), (3, 32), (4, 32), (5, 32), (6, 64), (8, 64), (4, 128)]
] + [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]


def weights_file(folder):
    return next(file for file in folder.glob("model*.safetensors"))


@pytest.mark.parametrize(("mode", "bits", "group_size"), MODES)
def test_every_quantization_is_what_mlx_makes_and_loads(wide, tmp_path, mode, bits, group_size):
    out = convert(wide, tmp_path / "out", "-q", "--q-bits", bits, "--q-group-size", group_size, "--q-mode", mode)
    block = json.loads((out / "config.json").read_text())["quantization"]
    assert block == {"group_size": group_size, "bits": bits, "mode": mode}
    source, made = dict(mx.load(str(wide / "model.safetensors"))), dict(mx.load(str(weights_file(out))))
    for name, value in source.items():
        if value.ndim == 1:
            np.testing.assert_array_equal(made[name].view(mx.uint16), value.view(mx.uint16))
            continue
        parts = mx.quantize(value, group_size=group_size, bits=bits, mode=mode)
        for leaf, part in zip(("weight", "scales", "biases"), parts, strict=False):
            got = made[name.removesuffix("weight") + leaf]
            np.testing.assert_array_equal(got.view(mx.uint8), part.view(mx.uint8), err_msg=name)
    model = moshi_mlx.load(out)
    head = model.decoder.lm_head
    assert (head.bits, head.group_size, head.mode) == (bits, group_size, mode)


def test_default_recipes_have_the_names_that_other_readers_know(wide, tmp_path):
    assert weights_file(convert(wide, tmp_path / "4", "-q")).name == "model.q4.safetensors"
    assert weights_file(convert(wide, tmp_path / "8", "-q", "--q-bits", 8)).name == "model.q8.safetensors"
    assert weights_file(convert(wide, tmp_path / "3", "-q", "--q-bits", 3)).name == "model.safetensors"
    kinds = open_checkpoint(tmp_path / "4").quantized
    assert set(kinds.values()) == {Quantization(4, 32)}


@pytest.mark.parametrize(("recipe", "low", "high"), [("mixed_4_8", 4, 8), ("mixed_3_6", 3, 6), ("mixed_4_6", 4, 6)])
def test_recipes(wide, tmp_path, recipe, low, high):
    out = convert(wide, tmp_path / "out", "-q", "--quant-predicate", recipe)
    for path, kind in open_checkpoint(out).quantized.items():
        assert kind.bits == (low if path.startswith("transformer.layers.") else high), path
    assert len(run_codes(moshi_mlx.load(out), LM["user"][:, :3])) == 3


def test_patterns(wide, tmp_path, capsys):
    patterns = tmp_path / "patterns.toml"
    patterns.write_text(
        '"text_linear" = false\n"transformer.layers.*.gating.*" = 3\n'
        '"depformer.*" = { bits = 8, group_size = 128 }\n"*emb*" = { mode = "mxfp8" }\n'
    )
    out = convert(wide, tmp_path / "out", "-q", "--q-bits", 6, "--quant-predicate", patterns)
    kinds = open_checkpoint(out).quantized
    assert kinds["text_linear"] is None
    assert kinds["transformer.layers.0.gating.linear_in"] == Quantization(3, 64)
    assert kinds["transformer.layers.0.self_attn.in_proj"] == Quantization(6, 64)
    assert kinds["depformer.slices.3.emb"] == Quantization(8, 128)
    assert kinds["audio_embs.2"] == Quantization(8, 32, "mxfp8")
    block = json.loads((out / "config.json").read_text())["quantization"]
    assert (block["bits"], block["group_size"], block["text_linear"]) == (8, 128, False)
    moshi_mlx.load(out)
    bad = {
        '"nothing.*" = 4': "matches no matrix that earlier patterns left",
        '"text_emb" = 8': "read as one table",
        '"*" = 7': "has no bits 7",
        '"*" = { bits = 4, groups = 2 }': "expected a number of bits",
        "* = 4": "cannot be read as TOML",
    }
    for text, message in bad.items():
        patterns.write_text(text)
        assert message in fails(capsys, wide, tmp_path / "no", "-q", "--quant-predicate", patterns)


def test_odd_sizes_stay_and_are_listed(sources, tmp_path, capsys):
    out = convert(sources["mlx"], tmp_path / "out", "-q", "--q-bits", 8, "--q-group-size", 32)
    printed = capsys.readouterr().out
    assert "not quantized, rows are no multiple of the group size: depformer.slices.0-7.linear_out" in printed
    kinds = open_checkpoint(out).quantized
    assert kinds["text_linear"] == Quantization(8, 32)
    assert kinds["depformer.slices.0.linear_out"] is None
    assert json.loads((out / "config.json").read_text())["quantization"]["depformer.slices.0.linear_out"] is False
    assert len(run_codes(moshi_mlx.load(out), LM["user"][:, :3])) == 3


def test_dequantize(wide, tmp_path, capsys):
    q4 = convert(wide, tmp_path / "q4", "-q")
    copied = convert(q4, tmp_path / "copied")
    assert contents(copied) == contents(q4)
    assert (copied / "config.json").read_bytes() == (q4 / "config.json").read_bytes()
    for source, flags in ((q4, ()), (convert(wide, tmp_path / "fp4", "-q", "--q-mode", "mxfp4"), ())):
        back = convert(source, tmp_path / f"back_{source.name}", "-d", *flags)
        assert "quantization" not in json.loads((back / "config.json").read_text())
        assert {info.dtype for info in read_header(back / "model.safetensors").values()} == {"BF16"}
        assert_close(plain(back), plain(wide))
        frames = [run_codes(moshi_mlx.load(f, dtype=mx.float32), LM["user"][:, :3]) for f in (source, back)]
        assert len(frames[0]) == len(frames[1])
    hugging = convert(q4, tmp_path / "hugging", "-d", "--to", "huggingface")
    again = convert(hugging, tmp_path / "again")
    assert contents(again) == contents(tmp_path / "back_q4")
    for flags, message in {
        ("--to", "kyutai"): "add -d",
        ("-q",): "is quantized already",
        ("--lora", GOLDENS / "lm.safetensors"): "merge into the original",
        ("-q", "-d"): "choose one",
    }.items():
        assert message in fails(capsys, q4, tmp_path / "no", *flags)
    assert "is not quantized" in fails(capsys, wide, tmp_path / "no", "-d")


def assert_close(got, expected):
    for name, value in expected.items():
        error = mx.abs(got[name] - value).max() / mx.abs(value).max()
        assert float(error) < 0.2, name


def test_the_config_block_is_held_against_the_tensors(wide, tmp_path):
    out = convert(wide, tmp_path / "out", "-q")
    for block, message in {
        json.dumps({"bits": 8, "group_size": 64}): "affine 8 bits in groups of 64, its tensors affine 4 bits",
        json.dumps({"bits": 4, "group_size": 32, "text_linear": False}): "none, its tensors affine",
        json.dumps({"bits": 4, "group_size": 32, "nowhere": False}): "is no matrix of this model",
        json.dumps({"bits": 7, "group_size": 32}): "has no bits 7",
        json.dumps([1]): "expected an object",
    }.items():
        edit_json(out / "config.json", quantization=json.loads(block))
        with pytest.raises(moshi_mlx.ConfigError, match=message):
            moshi_mlx.load(out)
    plain_folder = convert(wide, tmp_path / "plain")
    edit_json(plain_folder / "config.json", quantization={"bits": 4, "group_size": 32})
    with pytest.raises(moshi_mlx.ConfigError, match="but no tensor is quantized"):
        moshi_mlx.load(plain_folder)


# --- LoRA -----------------------------------------------------------------------------------------------------------

LAYERS = {
    "transformer.layers.0.self_attn.in_projs.0": ("transformer.layers.0.self_attn.in_proj", 96, 32),
    "depformer.layers.1.gating.3.linear_out": ("depformer.slices.3.transformer.layers.1.gating.linear_out", 16, 44),
    "depformer_in.2": ("depformer.slices.2.linear_in", 16, 32),
    "text_linear": ("text_linear", 64, 32),
}


def adapters(folder, rank=4, **changes):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (_, out, width) in LAYERS.items():
        tensors[name + lora.A] = rng.normal(size=(rank, width)).astype(np.float32)
        tensors[name + lora.B] = rng.normal(size=(out, rank)).astype(np.float32)
    tensors["emb.3.weight"] = rng.normal(size=(33, 32)).astype(np.float32)
    tensors |= changes
    path = folder / "adapters.safetensors"
    mx.save_safetensors(str(path), {name: mx.array(value).astype(mx.bfloat16) for name, value in tensors.items()})
    (folder / "config.json").write_text(json.dumps({"lora": True, "lora_rank": 4, "lora_scaling": 2.5}))
    return path


def plain_expected(name, factors, sources):
    base = np.array(dict(mx.load(str(sources["mlx"] / "model.safetensors")))[f"{name}.weight"].astype(mx.float32))
    return base + 2.5 * factors[name + lora.B] @ factors[name + lora.A]


def test_lora_is_merged(sources, tmp_path):
    path = adapters(tmp_path / "adapters")
    base, tensors = plain(convert(sources["mlx"], tmp_path / "plain")), dict(mx.load(str(path)))
    outs = [convert(sources[name], tmp_path / f"merged_{name}", "--lora", path) for name in ("mlx", "huggingface")]
    same_folders(*outs)
    merged, factors = plain(outs[0]), {n: np.array(v.astype(mx.float32)) for n, v in tensors.items()}
    for name, (ours, *_) in LAYERS.items():
        ours += ".weight"
        expected = np.array(base.pop(ours)) + 2.5 * factors[name + lora.B] @ factors[name + lora.A]
        np.testing.assert_allclose(merged[ours], expected, rtol=2**-8, atol=1e-3)
        assert not np.array_equal(np.array(merged[ours]), expected - 2.5)
    wide = plain(convert(sources["mlx"], tmp_path / "wide", "--lora", path, "--dtype", "float32"))
    np.testing.assert_allclose(wide["text_linear.weight"], plain_expected("text_linear", factors, sources), rtol=1e-5)
    np.testing.assert_array_equal(merged["audio_embs.3.weight"], factors["emb.3.weight"])
    del base["audio_embs.3.weight"]
    for name, value in base.items():
        np.testing.assert_array_equal(merged[name], value)
    moshi_mlx.load(outs[0])


def test_a_fine_tune_that_names_its_lora(checkpoint, tmp_path):
    folder = checkpoint(lora=True, lora_name="adapters.safetensors", lora_rank=4, lora_scaling=1.5)
    shutil.move(adapters(tmp_path / "adapters"), folder)
    with pytest.raises(
        moshi_mlx.ConfigError, match=r"merge the LoRA into its base first: python -m moshi_mlx\.convert"
    ):
        moshi_mlx.load(folder)
    named = convert(folder, tmp_path / "named")
    given = convert(folder, tmp_path / "given", "--lora", "adapters.safetensors", "--lora-scaling", 1.5)
    same_folders(named, given)
    assert contents(named) != contents(convert(folder, tmp_path / "other", "--lora-scaling", 1))
    assert moshi_mlx.load(named)


def test_loras_that_do_not_fit(checkpoint, tmp_path, capsys):
    folder = checkpoint()
    cases = [
        ({"rank": 8}, "has the shape [8, 32], but the base wants [4, 32]"),
        ({"text_linear" + lora.B: np.ones((70, 4))}, "has the shape [70, 4], but the base wants [64, 4]"),
        ({"transformer.layers.9.gating.linear_in" + lora.A: np.ones((4, 32))}, "belongs to no layer of this model"),
        ({"linears.0" + lora.A: np.ones((4, 16))}, "has no partner 'linears.0.lora_B.weight'"),
        ({"text_linear.weight": np.ones((64, 32))}, "is there whole and as adapters"),
        ({"emb.3.weight": np.ones((34, 32))}, "has the shape [34, 32], but the base wants [33, 32]"),
    ]
    for changes, message in cases:
        path = adapters(tmp_path / "adapters", **changes)
        assert message in fails(capsys, folder, tmp_path / "out", "--lora", path)
    (tmp_path / "adapters" / "config.json").unlink()
    assert "give the factor by --lora-scaling" in fails(capsys, folder, tmp_path / "out", "--lora", path)
    assert "--lora: no file" in fails(capsys, folder, tmp_path / "out", "--lora", "nowhere.safetensors")


# --- whole folders or none ------------------------------------------------------------------------------------------


def test_an_existing_folder_is_refused_and_replaced_on_request(sources, tmp_path, capsys):
    out = convert(sources["mlx"], tmp_path / "out")
    assert "exists already" in fails(capsys, sources["mlx"], out)
    (out / "note.txt").write_text("old")
    convert(sources["mlx"], out, "--to", "kyutai", "--overwrite")
    assert not (out / "note.txt").exists()
    assert "emb.0.weight" in contents(out)
    before = contents(out)
    (sources["mlx"] / "model.safetensors").write_bytes(b"")
    fails(capsys, sources["mlx"], out, "--overwrite")
    assert contents(out) == before
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("meow")
    assert "is not the folder of a checkpoint" in fails(capsys, sources["kyutai"], other, "--overwrite")
    assert "is not the folder of a checkpoint" in fails(capsys, sources["kyutai"], other / "cat.jpg", "--overwrite")


KILLED = """
import os, signal, sys
from moshi_mlx.checkpoints import safetensors, writing
from moshi_mlx.convert import cli
write = writing.write_file
def killed(path, blocks, metadata, progress):
    seen = [0]
    def count(n):
        seen[0] += 1
        progress(n)
        if seen[0] == 7 and path.name.startswith(sys.argv[1]):
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    write(path, blocks, metadata, count)
writing.write_file = killed
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.mark.parametrize(("name", "at"), [("SIGKILL", "model"), ("SIGKILL", "tokenizer"), ("SIGTERM", "model")])
def test_killed_while_it_writes(sources, tmp_path, name, at):
    out = tmp_path / "work" / "out"
    flags = ["--hf-path", str(sources["mlx"]), "--mlx-path", str(out)]
    run = subprocess.run([sys.executable, "-c", KILLED, at, name, *flags], capture_output=True, text=True, check=False)
    assert run.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130), run.stderr
    assert not out.exists()
    left = [path.name for path in out.parent.iterdir()]
    assert all(path.startswith(".") for path in left)
    assert bool(left) == (name == "SIGKILL")
    convert(sources["mlx"], out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    check_tokens_of(out)


FULL = """
import resource, signal, sys
from moshi_mlx.convert import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_disk_that_takes_no_more(sources, tmp_path, monkeypatch, capsys):
    out = tmp_path / "work" / "out"
    out.parent.mkdir()
    flags = ["--hf-path", str(sources["mlx"]), "--mlx-path", str(out)]
    run = subprocess.run([sys.executable, "-c", FULL, *flags], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "cannot be written: File too large; nothing is left of it" in run.stderr
    assert not list(out.parent.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert re.search(r"no room: 53\d\.\d kB are needed, 0\.0 kB are free", fails(capsys, sources["mlx"], out))


def test_two_at_once(sources, tmp_path, capsys):
    out = tmp_path / "out"
    with writing.new_folder(out):
        assert "another process is writing it" in fails(capsys, sources["mlx"], out)


# --- bad input ------------------------------------------------------------------------------------------------------


def drop_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def name_absent(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["decoder.model.extra.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))


def forget(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["decoder.lm_head.weight"]
    path.write_text(json.dumps(index))


def reshape(folder):
    path = next(f for f in folder.glob("model-*") if "decoder.lm_head.weight" in read_header(f))
    tensors = dict(mx.load(str(path)))
    tensors["decoder.lm_head.weight"] = tensors["decoder.lm_head.weight"][:60]
    path.unlink()
    mx.save_safetensors(str(path), tensors)


BAD_SHARDS = {
    "missing shard": (drop_shard, "model-00002-of-00003.safetensors: no such file; model.safetensors.index.json names"),
    "absent tensor": (name_absent, "tensor 'decoder.model.extra.weight' is missing; the index says that it is there"),
    "not in the index": (forget, "tensor 'decoder.lm_head.weight' is not in the index"),
    "another shape": (reshape, "'decoder.lm_head.weight' has the shape [60, 32], but the config wants [64, 32]"),
    "no index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "not an index"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "the source has no tokenizer_spm_32k_3.model"),
    "two tokenizers": (lambda f: shutil.copy(f / "tokenizer.model", f / "b.model"), "expected one tokenizer"),
    "contradiction": (lambda f: edit_json(f / "config.json", num_hidden_layers=3), "layers.2.input_layernorm.weight'"),
}


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_bad_sources_are_named(hugging, tmp_path, capsys, name):
    spoil, message = BAD_SHARDS[name]
    spoil(hugging)
    assert message in fails(capsys, hugging, tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-q", "--q-bits", 7), "affine quantization has no bits 7, expected 2 or 3 or 4 or 5 or 6 or 8"),
        (("-q", "--q-group-size", 48), "affine quantization has no group size 48, expected 32 or 64 or 128"),
        (("-q", "--q-mode", "mxfp4", "--q-bits", 8), "mxfp4 quantization has no bits 8, expected 4"),
        (("-q", "--q-mode", "nvfp4", "--q-group-size", 32), "nvfp4 quantization has no group size 32, expected 16"),
        (("-q", "--quant-predicate", "mixed_1_2"), "expected auto, mixed_4_8, mixed_3_6, mixed_4_6"),
        (("-q", "--quant-predicate", "mixed_4_8", "--q-bits", 4), "leave out --q-bits"),
        (("-q", "--quant-predicate", "no.toml"), "no.toml: no such file"),
        (("-q", "--to", "kyutai"), "has no quantized tensors"),
        (("--q-bits", 4), "--q-bits: needs -q"),
        (("--q-mode", "mxfp4"), "--q-mode: needs -q"),
        (("--generation", 2), "--generation: needs --to kyutai"),
        (("--to", "kyutai", "--max-shard-size", 1), "is one file"),
        (("--lora-scaling", 2), "there are no adapters"),
        (("--tokenizer", "nowhere.model"), "--tokenizer: no file"),
        (("--dry-run", "--upload-repo", "a/b"), "nothing is written with --dry-run"),
    ],
)
def test_flags_that_cannot_be(checkpoint, tmp_path, capsys, flags, message):
    assert message in fails(capsys, checkpoint(), tmp_path / "out", *flags)


def test_tensors_of_several_types_that_become_one(checkpoint, tmp_path, capsys):
    folder = checkpoint("moshi_tiny_mlx")
    tensors = dict(mx.load(str(folder / "model.safetensors")))
    tensors["depformer.slices.3.linear_in.weight"] = tensors["depformer.slices.3.linear_in.weight"].astype(mx.float32)
    (folder / "model.safetensors").unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    error = fails(capsys, folder, tmp_path / "out", "--to", "huggingface")
    assert "'depformer.slices.3.linear_in.weight' is F32 and 'depformer.slices.0.linear_in.weight' BF16" in error


def test_tables_of_several_quantizations(wide, tmp_path):
    folders = [convert(wide, tmp_path / bits, "-q", "--q-bits", bits) for bits in ("3", "6")]
    three, six = (dict(mx.load(str(folder / "model.safetensors"))) for folder in folders)
    three |= {name: value for name, value in six.items() if name.startswith("audio_embs.5.")}
    mx.eval(three)
    (folders[0] / "model.safetensors").unlink()
    mx.save_safetensors(str(folders[0] / "model.safetensors"), three)
    edit_json(folders[0] / "config.json", quantization=None)
    with pytest.raises(
        moshi_mlx.CheckpointError, match=r"'text_emb' is affine 3 bits .* and 'audio_embs.5' is affine 6"
    ):
        moshi_mlx.load(folders[0])


def test_a_tokenizer_that_does_not_fit(checkpoint, tmp_path, capsys):
    folder = checkpoint()
    other = tmp_path / "other.model"
    other.write_text("hello")
    assert "not a sentencepiece model" in fails(capsys, folder, tmp_path / "out", "--tokenizer", other)
    shutil.move(folder / "tokenizer.model", other)
    shutil.copy(GOLDENS / "question.flac", folder / "tokenizer.model")
    assert "not a sentencepiece model" in fails(capsys, folder, tmp_path / "out")
    out = convert(folder, tmp_path / "out", "--tokenizer", other)
    assert (out / writing.TOKENIZER_NAME).read_bytes() == other.read_bytes()


def test_hugging_faces_other_files_stay_in_its_layout(hugging, tmp_path):
    (hugging / "tokenizer.json").write_text("{}")
    assert (convert(hugging, tmp_path / "a", "--to", "huggingface") / "tokenizer.json").read_text() == "{}"
    assert not (convert(hugging, tmp_path / "b") / "tokenizer.json").exists()


def test_a_source_that_may_not_be_read(checkpoint, tmp_path, capsys, monkeypatch):
    folder = checkpoint()
    monkeypatch.setattr(cli, "open_checkpoint", lambda path: (path / "model").open())
    assert "No such file or directory" in fails(capsys, folder, tmp_path / "out")


def test_flags_are_looked_at_before_anything_is_downloaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.hub, "local_folder", lambda name: pytest.fail("downloads"))
    assert "no bits 7" in fails(capsys, "kyutai/moshiko-pytorch-bf16", tmp_path / "out", "-q", "--q-bits", 7)


def test_wrong_usage_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--hf-path", "x", "--max-shard-size", "0"])
    assert caught.value.code == 2
    assert "expected a number of gigabytes" in capsys.readouterr().err.splitlines()[0]


# --- what it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "least", "most"),
    [((), 16, 16), (("-q",), 5, 5.1), (("-q", "--q-bits", "3", "--q-group-size", "32"), 4, 4.1),
     (("--dtype", "float32", "--to", "huggingface"), 32, 32)],
)  # fmt: skip
def test_bits_per_weight(wide, tmp_path, capsys, flags, least, most):
    """In groups of 32 a scale and a bias of 16 bits make a bit more; norms, which are few, stay as they are."""
    assert cli.main(["--hf-path", str(wide), "--mlx-path", str(tmp_path / "out"), *flags, "--dry-run"]) == 0
    found = re.search(r"language model: ([\d.]+) bits per weight", capsys.readouterr().out)
    assert least <= float(found[1]) <= most


def test_dry_run(wide, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["--hf-path", str(wide), "--mlx-path", str(out), "-q", "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())
    printed = capsys.readouterr().out
    convert(wide, out, "-q")
    count = sum(info.nbytes for info in read_header(out / "model.q4.safetensors").values())
    assert f"model.q4.safetensors  {size(count)}" in printed
    assert "affine 4 bits in groups of 32: text_emb" in printed


def test_card(checkpoint, tmp_path):
    source = checkpoint()
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\nbase_model:\n- kyutai/moshika-pytorch-bf16\n---\nhello")
    text = (convert(source, tmp_path / "out") / "README.md").read_text()
    front = text.split("---")[1].split("\n")
    assert {"license: cc-by-4.0", "base_model: kyutai/moshika-pytorch-bf16", "library_name: mlx"} <= set(front)
    assert "python -m moshi_mlx.local --model" in text
    assert "name Kyutai" in text


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_converted_and_its_card_says_what_runs_it(tmp_path, capsys, role):
    command = KINDS[role][1]
    for target in ("mlx", "kyutai"):
        out = convert(FAMILY / ROLES[role], tmp_path / target, "--to", target)
        text = (out / "README.md").read_text()
        assert (f"python -m moshi_mlx.{command}" in text) == (target == "mlx")
        assert ("tags:\n- moshi\n" in text) == (role == "dialogue")
        now, before = (dict(flatten(moshi_mlx.load(one).parameters())) for one in (out, FAMILY / ROLES[role]))
        assert now.keys() == before.keys()
        assert all(mx.array_equal(now[name], before[name]) for name in now)
        capsys.readouterr()
        assert cli.main(["inspect", str(out), "--no-checksum"]) == 0
        assert f"moshi_mlx: yes, python -m moshi_mlx.{command}" in capsys.readouterr().out


def test_sampling_defaults_go_along(checkpoint, tmp_path):
    source = checkpoint(lm_gen_config={"temp": 0.5, "top_k_text": 3})
    folder = source
    for n, target in enumerate(("mlx", "huggingface", "kyutai")):
        folder = convert(folder, tmp_path / str(n), "--to", target)
        assert moshi_mlx.load(folder).sampling_defaults == {"temperature": 0.5, "text_top_k": 3}


def test_inspect(wide, tmp_path, capsys):
    out = convert(wide, tmp_path / "out", "-q", "--quant-predicate", "mixed_4_8")
    capsys.readouterr()
    assert cli.main(["inspect", str(out)]) == 0
    printed = capsys.readouterr().out
    count = sum(int(np.prod(info.shape)) for info in read_header(wide / "model.safetensors").values())
    assert "layout: Kyutai MLX" in printed
    assert f"{count:,} weights" in printed
    assert "affine 4 bits in groups of 32: transformer.layers.0.self_attn.in_proj" in printed
    assert "moshi_mlx 0.3 and moshi-swift: no, they know 4 bits" in printed
    import hashlib

    for file in out.glob("*.safetensors"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in printed
    assert cli.main(["inspect", str(wide), "--no-checksum"]) == 0
    printed = capsys.readouterr().out
    assert "bits: not quantized" in printed
    assert "moshi-swift: yes" in printed
    assert "sha256" not in printed


def test_who_would_load_it(wide, sources, tmp_path):
    def last(folder):
        return inspecting.readers(open_checkpoint(folder))[-1]

    assert last(convert(wide, tmp_path / "q4", "-q")).endswith("moshi-swift: yes")
    (tmp_path / "q4" / "model.q4.safetensors").rename(tmp_path / "q4" / "other.safetensors")
    edit_json(tmp_path / "q4" / "config.json", moshi_name="other.safetensors")
    assert "does not end in .q4.safetensors" in last(tmp_path / "q4")
    assert "one file" in last(convert(wide, tmp_path / "shards", "--max-shard-size", 0.001))
    assert last(sources["huggingface"]).startswith("transformers: yes")
    assert last(sources["kyutai"]) == "moshi (PyTorch): yes"


def test_upload(sources, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    calls = []

    class Api:
        def whoami(self):
            return {"name": "me"}

        def create_repo(self, repo, exist_ok):
            calls.append((repo, exist_ok))

        def upload_folder(self, repo_id, folder_path, repo_type):
            calls.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir()), repo_type))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    out = convert(sources["mlx"], tmp_path / "out", "--upload-repo", "me/moshi")
    assert calls == [("me/moshi", True), ("me/moshi", sorted(p.name for p in out.iterdir()), "model")]
    assert "uploaded to https://huggingface.co/me/moshi" in capsys.readouterr().out

    def refused(self, repo, exist_ok):
        raise OSError("401: no token\nmore")

    monkeypatch.setattr(Api, "create_repo", refused)
    flags = ["--hf-path", str(sources["mlx"]), "--mlx-path", str(tmp_path / "b"), "--upload-repo", "me/moshi"]
    assert cli.main(flags) == 2
    error = capsys.readouterr().err
    assert "me/moshi: cannot upload (401: no token); what was written is in" in error
    assert f"`hf upload me/moshi {tmp_path / 'b'}`" in error


def test_upload_looks_for_the_login_before_it_converts(checkpoint, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "nobody is logged in" in fails(capsys, checkpoint(), tmp_path / "out", "--upload-repo", "me/moshi")

    def refused(self):
        raise OSError("401 Client Error")

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "old")
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", refused)
    error = fails(capsys, tmp_path / "moshi_tiny", tmp_path / "out", "--upload-repo", "me/moshi")
    assert "--upload-repo: me/moshi" in error
    for name in ("moshi", "me/", "/moshi", "a/b/c"):
        assert "expected OWNER/NAME" in fails(capsys, tmp_path / "moshi_tiny", tmp_path / "out", "--upload-repo", name)


# --- from a model in memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["mlx", "kyutai", "huggingface"])
def test_save_a_model(model, sources, tmp_path, layout):
    loaded = moshi_mlx.load(sources["mlx"])
    writing.save(loaded, tmp_path / "saved", layout)
    saved = contents(tmp_path / "saved")
    reference = contents(convert(sources["mlx"], tmp_path / "reference", *LAYOUT_FLAGS[layout]))
    assert saved.keys() == reference.keys()
    counted = ("embedding_sum", "cluster_usage", "embed_sum")  # of codebooks only the quotient is loaded
    assert all(saved[name] == reference[name] for name in saved if not name.endswith(counted))
    check_tokens_of(tmp_path / "saved")
    pcm = mx.array(np.random.default_rng(0).normal(size=(1, 1920 * 4)).astype(np.float32) * 0.1)
    again = moshi_mlx.load(tmp_path / "saved")
    codes, same = (m.audio_encoder.encode(pcm, num_quantizers=8).audio_codes for m in (loaded, again))
    np.testing.assert_array_equal(codes, same)


def test_save_a_quantized_model(wide, tmp_path):
    q4 = convert(wide, tmp_path / "q4", "-q")
    model = moshi_mlx.load(q4)
    writing.save(model, tmp_path / "saved")
    assert contents(tmp_path / "saved", "model*") == contents(q4, "model*")
    with pytest.raises(moshi_mlx.InputError, match="has no quantized tensors"):
        writing.save(model, tmp_path / "no", "huggingface")
    with pytest.raises(moshi_mlx.InputError, match="expected 'mlx', 'kyutai' or 'huggingface'"):
        writing.save(moshi_mlx.load(wide), tmp_path / "no", "onnx")
