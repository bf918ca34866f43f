"""What `convert` exits 0 on loads, and means what it says; what it cannot do is one line and leaves nothing."""

import json
import os
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS, edit_json
from moshi_mlx.convert import cli, inspecting

import moshi_mlx
from moshi_mlx.checkpoints.reading import open_checkpoint
from moshi_mlx.checkpoints.safetensors import as_mx, stored

TARGETS = {
    "mlx": (), "8 bits": ("-q", "--q-bits", 8, "--q-group-size", 32), "kyutai": ("--to", "kyutai"),
    "newer kyutai": ("--to", "kyutai", "--generation", 2), "huggingface": ("--to", "huggingface"),
    "shards": ("--max-shard-size", 0.0001), "float16": ("--dtype", "float16"), "float32": ("--dtype", "float32"),
}  # fmt: skip


def run(source, target, *flags):
    return cli.main(["--hf-path", str(source), "--mlx-path", str(target), *map(str, flags)])


def fails(capsys, source, target, *flags):
    """The one line of a conversion that is refused."""
    capsys.readouterr()
    before = sorted(path.name for path in target.parent.iterdir())
    assert run(source, target, *flags) == 2
    assert sorted(path.name for path in target.parent.iterdir()) == before
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def save_as(path, tensors, dtype):
    """A file of tensors in any type that NumPy has, which MLX need not have."""
    header, data = {}, b""
    for name, value in tensors.items():
        content = value.astype(dtype).tobytes()
        code = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "u1": "U8"}[dtype]
        header[name] = {
            "dtype": code, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(content)],
        }  # fmt: skip
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def as_float32(path):
    return {
        name: np.array(as_mx(tensor.read(), tensor.info.dtype).astype(mx.float32))
        for name, tensor in stored(path).items()
    }


@pytest.fixture
def sources(checkpoint, tmp_path):
    """The same weights in every layout, and the files that hold tensors of each."""
    hugging = shutil.copytree(GOLDENS / "moshi_tiny_hf", tmp_path / "moshi_tiny_hf")
    shutil.copy(GOLDENS / "moshi_tiny" / "tokenizer.model", hugging)
    return {"kyutai": checkpoint(), "mlx": checkpoint("moshi_tiny_mlx"), "huggingface": hugging}


@pytest.mark.parametrize("layout", ["kyutai", "mlx", "huggingface"])
def test_float64_is_converted_and_loads(sources, tmp_path, layout):
    """The type that MLX loads no file with, in every layout and to every target."""
    folder = sources[layout]
    for file in folder.glob("*.safetensors"):
        save_as(file, as_float32(file), "<f8")
    expected = moshi_mlx.load(folder, dtype="float32")
    assert inspecting.readers(open_checkpoint(folder))[0].startswith("moshi_mlx: yes")
    for name, flags in TARGETS.items():
        out = tmp_path / f"out of {name}"
        assert run(folder, out, *flags) == 0
        model = moshi_mlx.load(out, dtype="float32")
        assert inspecting.readers(open_checkpoint(out))[0].startswith("moshi_mlx: yes")
        if name not in ("8 bits", "float16"):
            np.testing.assert_array_equal(model.decoder.lm_head.weight, expected.decoder.lm_head.weight)
            np.testing.assert_array_equal(
                model.audio_encoder.quantizer.embedding, expected.audio_encoder.quantizer.embedding
            )


@pytest.mark.parametrize("layout", ["kyutai", "mlx", "huggingface"])
@pytest.mark.parametrize("dtype", ["<i8", "u1"])
def test_types_that_are_no_weights_are_refused(sources, tmp_path, capsys, layout, dtype):
    file = max(sources[layout].glob("*.safetensors"), key=lambda path: path.stat().st_size)
    save_as(file, as_float32(file), dtype)
    for name, flags in TARGETS.items():
        assert "expected a float" in fails(capsys, sources[layout], tmp_path / "out", *flags), name
    assert cli.main(["inspect", str(sources[layout])]) == 2
    assert "expected a float" in capsys.readouterr().err


def test_values_that_a_narrower_type_cannot_hold(checkpoint, tmp_path, capsys):
    folder = checkpoint("moshi_tiny_mlx")
    tensors = as_float32(folder / "model.safetensors")
    tensors["text_linear.weight"][0, 0] = 1e6
    save_as(folder / "model.safetensors", tensors, "<f4")
    assert "'text_linear.weight' has values beyond the range of F16" in fails(
        capsys, folder, tmp_path / "out", "--dtype", "float16"
    )
    assert run(folder, tmp_path / "out", "--dtype", "bfloat16") == 0
    tensors = {k: v.astype(np.float64) for k, v in tensors.items()}
    tensors["text_linear.weight"][0, 0] = 1e39
    save_as(folder / "model.safetensors", tensors, "<f8")
    assert "cannot hold" in fails(capsys, folder, tmp_path / "no")


def test_a_folder_without_a_tokenizer_is_called_what_it_is(sources, capsys):
    (sources["huggingface"] / "tokenizer.model").unlink()
    assert cli.main(["inspect", str(sources["huggingface"]), "--no-checksum"]) == 0
    assert "without text: it has no sentencepiece tokenizer" in capsys.readouterr().out
    (sources["kyutai"] / "tokenizer.model").write_bytes(b"hello")
    assert cli.main(["inspect", str(sources["kyutai"]), "--no-checksum"]) == 2
    assert "not a sentencepiece model" in capsys.readouterr().err


def test_sizes_in_a_file_of_their_own_are_converted(checkpoint, tmp_path):
    folder = checkpoint()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    sizes = {key: value for key, value in values.items() if not key.endswith("_name")}
    (folder / "moshi_lm_kwargs.json").write_text(json.dumps(sizes))
    (folder / "mimi.safetensors").rename(folder / "tokenizer-e351c8d8-checkpoint125.safetensors")
    (folder / "tokenizer.model").rename(folder / "tokenizer_spm_32k_3.model")
    for n, flags in enumerate(TARGETS.values()):
        assert run(folder, tmp_path / str(n), *flags) == 0
        assert moshi_mlx.load(tmp_path / str(n))


# Adapters.


def adapter(folder, value=1.0, **config):
    folder.mkdir(exist_ok=True)
    tensors = {
        "text_linear.lora_A.weight": mx.full((2, 32), value), "text_linear.lora_B.weight": mx.full((64, 2), value),
    }  # fmt: skip
    mx.save_safetensors(str(folder / "lora.safetensors"), tensors)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "lora.safetensors"


@pytest.mark.parametrize("scaling", ["nan", "inf", "-inf", "1e400", "two", ""])
def test_factors_that_are_none(checkpoint, tmp_path, capsys, scaling):
    path = adapter(tmp_path / "adapter")
    with pytest.raises(SystemExit) as caught:
        run(checkpoint(), tmp_path / "out", "--lora", path, f"--lora-scaling={scaling}")
    assert caught.value.code == 2
    assert "expected a finite number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", "1e999", "1e38", '"two"', "true", "[2]", "1" + "0" * 400]
)
@pytest.mark.parametrize("place", ["beside", "source"])
def test_factors_of_a_config_that_are_none(checkpoint, tmp_path, capsys, text, place):
    folder, path = checkpoint(), adapter(tmp_path / "adapter")
    where = (path.parent if place == "beside" else folder) / "config.json"
    values = json.loads(where.read_text()) if where.exists() else {"lora": True}
    more = {"lora": True, "lora_name": "lora.safetensors", "lora_scaling": "HERE"}
    where.write_text(json.dumps({**values, **more}).replace('"HERE"', text))
    shutil.copy(path, folder)
    error = fails(capsys, folder, tmp_path / "out", "--lora", path)
    assert str(where) in error or "--lora-scaling" in error or "infinite weights" in error
    if place == "beside":
        with pytest.raises(moshi_mlx.MoshiError, match=r"config.json"):
            moshi_mlx.load(checkpoint("moshi_tiny_mlx"), adapter=path.parent)


def test_an_update_that_overflows(checkpoint, tmp_path, capsys):
    path = adapter(tmp_path / "adapter", value=1e20, lora_scaling=1.0)
    error = fails(capsys, checkpoint(), tmp_path / "out", "--lora", path)
    assert "gives NaN or infinite weights" in error


@pytest.mark.parametrize("shape", [(), (2,), (2, 32, 1), (0, 32)])
def test_adapters_of_odd_shapes(checkpoint, tmp_path, capsys, shape):
    path = adapter(tmp_path / "adapter", lora_scaling=1.0)
    tensors = dict(mx.load(str(path))) | {"text_linear.lora_A.weight": mx.zeros(shape)}
    mx.eval(tensors)
    path.unlink()
    mx.save_safetensors(str(path), tensors)
    folder = checkpoint()
    assert "text_linear.lora_A.weight" in fails(capsys, folder, tmp_path / "out", "--lora", path)
    with pytest.raises(moshi_mlx.CheckpointError, match=r"text_linear.lora_A.weight"):
        moshi_mlx.load(folder, adapter=path)


ADAPTER_CONFIGS = (
    '{"lora_parameters": [1]}', '{"lora_parameters": {"scale": NaN}}', '{"lora_parameters": {"scale": "2"}}',
    '{"lora_parameters": {"scale": 1e300}}', "[]", "{",
)  # fmt: skip


@pytest.mark.parametrize("text", ADAPTER_CONFIGS)
def test_configs_of_adapters(checkpoint, tmp_path, text):
    path = adapter(tmp_path / "adapter")
    (path.parent / "adapter_config.json").write_text(text)
    with pytest.raises(moshi_mlx.MoshiError, match=r"adapter_config.json"):
        moshi_mlx.load(checkpoint(), adapter=path)


# What is read is not destroyed, and what can be known is said before the work.


def test_the_source_is_never_overwritten(checkpoint, tmp_path, capsys):
    folder = checkpoint()
    (tmp_path / "link").symlink_to(folder)
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "config.json").write_text("{}")
    inner = shutil.copytree(folder, outer / "inner")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for source, target in (
        (folder, folder), (folder, tmp_path / "link"), (tmp_path / "link", folder), (inner, outer),
        (folder, folder / ".." / folder.name),
    ):  # fmt: skip
        for flags in ((), ("--to", "kyutai"), ("-q", "--q-bits", 8, "--q-group-size", 32)):
            assert "which is read, so it is not overwritten" in fails(capsys, source, target, "--overwrite", *flags)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert run(inner, outer / "new") == 0


def test_weights_that_lie_in_the_folder_to_be_replaced(checkpoint, tmp_path, capsys):
    folder = checkpoint()
    out = tmp_path / "out"
    out.mkdir()
    shutil.move(folder / "model.safetensors", out)
    (folder / "model.safetensors").symlink_to(out / "model.safetensors")
    assert "which is read" in fails(capsys, folder, out, "--overwrite")
    path = adapter(out, lora_scaling=1.0)
    (folder / "model.safetensors").unlink()
    shutil.copy(out / "model.safetensors", folder)
    assert "which is read" in fails(capsys, folder, out, "--overwrite", "--lora", path)


def test_outputs_that_cannot_be(checkpoint, tmp_path, capsys, monkeypatch):
    folder = checkpoint()
    monkeypatch.setattr(cli.hub, "local_folder", lambda *_, **__: pytest.fail("downloads"))
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out", tmp_path / ("x" * 256)):
        assert run(folder, target) == 2
        assert "cannot be written" in capsys.readouterr().err


INTERRUPTED = """
import sys
from moshi_mlx.checkpoints.disk import folders
from moshi_mlx.convert import cli
take = folders._take_place
def interrupted(path):
    take(path)
    raise KeyboardInterrupt
folders._take_place = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""


def test_words_of_an_interrupt_are_true(checkpoint, tmp_path):
    out = tmp_path / "out"
    flags = ["--hf-path", str(checkpoint()), "--mlx-path", str(out)]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == f"moshi_mlx.convert: interrupted, {out} is written and whole\n"
    assert moshi_mlx.load(out)


# Small files beside the weights that are no files, or too much.


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "tokenizer.model"])
def test_what_lies_beside_may_be_anything(sources, tmp_path, capsys, name):
    folder = sources["huggingface"]
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    code = run(folder, tmp_path / "out", "--to", "huggingface")
    assert code == (2 if name == "tokenizer.model" else 0)


@pytest.mark.parametrize(
    "text", [b"a" * 100_000, b"\xff\xfe", b'"a" = ' + b"[" * 100_000, b'"*" = 1' + b"0" * 5000, b"\0"]
)
def test_patterns_that_are_none(checkpoint, tmp_path, capsys, text):
    patterns = tmp_path / "patterns.toml"
    patterns.write_bytes(text)
    error = fails(capsys, checkpoint(), tmp_path / "out", "-q", "--quant-predicate", patterns)
    assert len(error) < 500
    patterns.unlink()
    os.mkfifo(patterns)
    assert "no regular file" in fails(
        capsys, tmp_path / "moshi_tiny", tmp_path / "out", "-q", "--quant-predicate", patterns
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 65504.0])
def test_weights_that_no_quantization_can_say(checkpoint, tmp_path, capsys, value):
    folder = checkpoint("moshi_tiny_mlx")
    tensors = as_float32(folder / "model.safetensors")
    tensors["text_linear.weight"][0, :2] = value, -65504
    save_as(folder / "model.safetensors", tensors, "<f2")
    flags = ("-q", "--q-bits", 2, "--q-group-size", 32)
    if value == 65504.0 and run(folder, tmp_path / "wide", *flags) == 0:
        assert np.isfinite(as_float32(tmp_path / "wide" / "model.safetensors")["text_linear.scales"]).all()
    else:
        error = fails(capsys, folder, tmp_path / "out", *flags)
        assert "NaN or infinite values; is the source damaged?" in error


QUANTIZATION_BLOCKS = (
    {"mode": []}, {"mode": {"a": 1}}, {"mode": 4}, {"bits": 4.0}, {"bits": True}, {"bits": "8"}, {"group_size": 32.0},
    {"bits": 10**30}, {"text_linear": 8}, {"text_linear": "no"}, {"text_linear": [1]}, {"x" * 10**5: {"bits": 8}},
    {"text_linear": {"mode": []}}, {"text_linear": {"bits": "a" * 10**5}},
)  # fmt: skip


@pytest.mark.parametrize("change", QUANTIZATION_BLOCKS, ids=lambda change: str(change)[:40])
def test_blocks_that_say_no_quantization(checkpoint, tmp_path, capsys, change):
    """In config.json, and, as far as they are patterns, in TOML."""
    out = tmp_path / "q8"
    assert run(checkpoint(), out, "-q", "--q-bits", 8, "--q-group-size", 32) == 0
    block = json.loads((out / "config.json").read_text())["quantization"]
    for key in ("quantization", "quantization_config"):
        edit_json(out / "config.json", quantization=None, quantization_config=None)
        edit_json(out / "config.json", **{key: block | change})
        with pytest.raises(moshi_mlx.ConfigError, match=r"config.json") as caught:
            moshi_mlx.load(out)
        assert len(str(caught.value)) < 600


TABLES = (
    "{ mode = [] }", "{ mode = 4 }", "{ bits = 4.0 }", "{ bits = [4] }", "{ group_size = '32' }", "4.0", "'8'", "[8]",
)  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_patterns_of_wrong_kinds(checkpoint, tmp_path, capsys, table):
    patterns = tmp_path / "patterns.toml"
    patterns.write_text(f'"*" = {table}\n')
    assert str(patterns) in fails(capsys, checkpoint(), tmp_path / "out", "-q", "--quant-predicate", patterns)


@pytest.mark.parametrize("leaf", ["weight", "scales", "biases"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2), (0, 0)])
def test_quantized_tensors_of_odd_shapes(checkpoint, tmp_path, leaf, shape):
    out = tmp_path / "q8"
    assert run(checkpoint(), out, "-q", "--q-bits", 8, "--q-group-size", 32) == 0
    tensors = dict(mx.load(str(out / "model.safetensors")))
    name = f"text_linear.{leaf}"
    tensors[name] = mx.zeros(shape, tensors[name].dtype)
    mx.eval(tensors)
    (out / "model.safetensors").unlink()
    mx.save_safetensors(str(out / "model.safetensors"), tensors)
    with pytest.raises(moshi_mlx.MoshiError, match="text_linear"):
        moshi_mlx.load(out)
