"""Every reader of checkpoints is fed damaged files: it reads, or says in one line what is wrong."""

import json
import os
import shutil

import hostile
import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS
from hypothesis import given
from hypothesis import strategies as st
from moshi_mlx.convert import card, cli, lora, recipes

import moshi_mlx
from moshi_mlx.checkpoints import adapters
from moshi_mlx.checkpoints.disk.files import read_json
from moshi_mlx.checkpoints.reading import open_checkpoint, read_tokenizer
from moshi_mlx.checkpoints.safetensors import load_lazily, read_metadata, stored

LAYOUTS = ("kyutai", "mlx", "8 bits", "huggingface")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole checkpoint of every layout."""
    made, tmp = {}, tmp_path_factory.mktemp("whole")
    source = tmp / "kyutai"
    shutil.copytree(GOLDENS / "moshi_tiny", source)
    made["kyutai"] = source
    for name, flags in (("mlx", ()), ("8 bits", ("-q", "--q-bits", "8", "--q-group-size", "32"))):
        assert cli.main(["--hf-path", str(source), "--mlx-path", str(tmp / name), *flags]) == 0
        made[name] = tmp / name
    made["huggingface"] = shutil.copytree(GOLDENS / "moshi_tiny_hf", tmp / "huggingface")
    shutil.copy(GOLDENS / "moshi_tiny" / "tokenizer.model", made["huggingface"])
    for folder in made.values():
        (folder / "README.md").unlink(missing_ok=True)
    return made


def damaged(folders, tmp_path, layout, which, change):
    """A copy of a folder, by links, in which one file is another."""
    source, folder = folders[layout], tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = sorted(path for path in source.iterdir() if path.is_file())
    for path in files:
        (folder / path.name).symlink_to(path)
    chosen = [path for path in files if which(path)]
    for path in chosen[:1]:
        (folder / path.name).unlink()
        (folder / path.name).write_bytes(change(path.read_bytes()))
    return folder


def load_and_speak(folder):
    """All that loading reads, and a frame: nothing of a damaged file may come up only then."""
    model = hostile.read_or_named(moshi_mlx.load, folder)
    if model is not None:
        hostile.read_or_named(model.session(seed=0, temperature=0, text_temperature=0).step, np.zeros(1920, np.float32))


def suffix(*endings):
    return lambda path: path.name.endswith(endings)


@hostile.bounded
@given(st.sampled_from(LAYOUTS), hostile.change(), st.integers(0, 3))
def test_configs(folders, tmp_path, layout, change, skip):
    """config.json, mimi_config.json, generation_config.json and the index, changed as JSON."""

    def which(
        path, names=("config.json", "mimi_config.json", "generation_config.json", "model.safetensors.index.json")
    ):
        return path.name in (names[skip], "config.json")

    load_and_speak(damaged(folders, tmp_path, layout, which, lambda content: hostile.changed_json(content, change)))


@hostile.bounded
@given(st.sampled_from(LAYOUTS), hostile.change(), st.booleans())
def test_headers(folders, tmp_path, layout, change, codec):
    which = (
        suffix("25.safetensors", "mimi.safetensors")
        if codec
        else lambda p: p.name.startswith("model") and p.suffix != ".json"
    )
    load_and_speak(damaged(folders, tmp_path, layout, which, lambda content: hostile.changed_header(content, change)))


@hostile.bounded
@given(st.sampled_from(LAYOUTS), hostile.damage(), st.sampled_from([".json", ".safetensors", ".model"]))
def test_bytes(folders, tmp_path, layout, damage, ending):
    load_and_speak(damaged(folders, tmp_path, layout, suffix(ending), damage))


@hostile.bounded
@given(st.sampled_from(LAYOUTS), hostile.damage(), hostile.change())
def test_what_only_looks(folders, tmp_path, layout, damage, change):
    """`inspect` and the configs by themselves."""
    for which, apply in (
        (suffix(".safetensors"), damage),
        (suffix(".json"), lambda c: hostile.changed_json(c, change)),
    ):
        folder = damaged(folders, tmp_path, layout, which, apply)
        hostile.read_or_named(open_checkpoint, folder)
        for kind in (moshi_mlx.MoshiConfig, moshi_mlx.MimiConfig, moshi_mlx.MoshiDepthConfig):
            hostile.read_or_named(kind.from_pretrained, folder)


@pytest.fixture(scope="module")
def tiny(folders):
    return moshi_mlx.load(folders["kyutai"])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    tensors = {"text_linear.lora_A.weight": mx.ones((2, 32)), "text_linear.lora_B.weight": mx.ones((64, 2))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors, {"format": "mlx"})
    config = {"lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0}, "lora_scaling": 2.0, "lora_rank": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@hostile.bounded
@given(hostile.damage(), hostile.change(), st.sampled_from(["bytes", "header", "adapter_config.json", "config.json"]))
def test_adapters(tiny, adapter, folders, tmp_path, damage, change, kind):
    folder = shutil.copytree(adapter, tmp_path / "copy", dirs_exist_ok=True)
    path = folder / (kind if kind.endswith(".json") else "adapters.safetensors")
    content = path.read_bytes()
    path.write_bytes(
        damage(content) if kind == "bytes"
        else hostile.changed_header(content, change) if kind == "header"
        else hostile.changed_json(content, change)
    )  # fmt: skip
    found = hostile.read_or_named(adapters.read, folder, tiny.config)
    if found is not None:
        hostile.read_or_named(adapters.updates, tiny, found)
    checkpoint = open_checkpoint(folders["kyutai"])
    said = hostile.read_or_named(lora.settings, folder / "adapters.safetensors", folder, {}, None)
    merged = hostile.read_or_named(
        lora.merged, checkpoint.language.read(), tiny.config, folder / "adapters.safetensors", *(said or (1.0, None))
    )
    if merged:
        hostile.read_or_named(merged["text_linear.weight"].read)


@hostile.bounded
@given(hostile.damage())
def test_files_alone(folders, tiny, tmp_path, damage):
    path = tmp_path / "file"
    for source in ("model.safetensors", "config.json", "tokenizer.model"):
        path.write_bytes(damage((folders["kyutai"] / source).read_bytes()))
        for read in (stored, load_lazily, read_metadata, read_json):
            hostile.read_or_named(read, path)
        hostile.read_or_named(read_tokenizer, path, tiny.config)
        card.origin_of("x", tmp_path)
    toml = tmp_path / "patterns.toml"
    toml.write_bytes(damage(b'"text_linear" = false\n"depformer.*" = { bits = 8, group_size = 128 }\n'))
    usual = recipes.general(4, 32, "affine")
    hostile.read_or_named(recipes.rule_of, str(toml), usual, False)
    (tmp_path / "README.md").write_bytes(damage(b"---\nlicense: mit\nbase_model:\n- a/b\n---\n"))
    assert len(card.card("mlx", card.origin_of(os.fspath(tmp_path), tmp_path), {})) < 10_000
