"""docs/huggingface.md: every block runs, against tiny weights, and the tables leave no argument out."""

import inspect
import re
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
import soundfile
from helpers import GOLDENS, question

import moshi_mlx
from moshi_mlx.huggingface import generation, text_generation

PAGE = Path(__file__).parents[2] / "docs" / "huggingface.md"


def blocks():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in which the names of hub repositories are tiny checkpoints."""
    folder = tmp_path / "kmhf" / "hf-moshiko"
    shutil.copytree(GOLDENS / "moshi_tiny_hf", folder)
    shutil.copy(GOLDENS / "moshi_tiny" / "tokenizer.model", folder)
    soundfile.write(tmp_path / "question.wav", question()[: 10 * 1920], 24000)
    monkeypatch.chdir(tmp_path)
    mx.disable_compile()  # compiling takes seconds on a CPU
    yield tmp_path
    mx.enable_compile()


def test_every_example_runs(hub, capsys):
    names = {}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks()) == 12
    assert names["text_tokens"].shape == (1, 36)
    assert names["audio_waveforms"].shape == (1, 1, 34 * 1920)
    assert soundfile.info(hub / "reply.wav").frames == 34 * 1920
    assert names["logits"].shape == (1, 1, 64)
    assert names["stream"].shape == (25,)
    assert names["audio_samples"].shape == (1, 1, 63 * 1920)
    assert names["loss"].item() > 0
    assert names["tokens"].shape[0] == 1
    assert names["frames"] == 10
    assert names["generated"].shape[1] == 30
    assert names["audio_values"].shape == (1, 1, 10 * 1920)
    assert capsys.readouterr().out.endswith("\n")
    assert (hub / "my-moshi" / "config.json").exists()


def test_every_call_that_is_the_same_is_there():
    section = re.search(r"^### Every class\n(.*)", PAGE.read_text(), re.M | re.S)[1]
    rows = re.findall(r"^\| ([^|]+) \| (?:same|better)", section, re.M)
    names = [re.sub(r"\(.*?\)", "", name) for row in rows for name in re.split(r", (?![^(]*\))", row)]
    assert len(names) > 8
    for name in names:
        classes = ["MimiModel"] if name.startswith("MimiModel.") else [
            "MoshiForConditionalGeneration", "MoshiForCausalLM", "MoshiModel", "MoshiDepthDecoder", "MimiModel"
        ]  # fmt: skip
        for one in classes:
            assert hasattr(getattr(moshi_mlx, one), name.removeprefix("MimiModel.")), f"{one}: {name}"


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("MoshiConfig", ["__init__"]),
        ("MoshiDepthConfig", ["__init__"]),
        ("MimiConfig", ["__init__"]),
        ("MoshiModel", ["__init__", "__call__"]),
        ("MoshiForCausalLM", ["__call__"]),
        ("MoshiDepthDecoder", ["__call__", "generate"]),
        ("MimiModel", ["encode", "decode", "__call__"]),
        ("MoshiForConditionalGeneration", ["__call__", "get_unconditional_inputs"]),
    ],
)
def test_the_tables_have_every_argument(name, methods):
    section = re.search(rf"^### {name}\n(.*?)(?=^### |\Z)", PAGE.read_text(), re.M | re.S)[1]
    functions = [getattr(getattr(moshi_mlx, name), method) for method in methods]
    if name == "MoshiForConditionalGeneration":
        functions.append(generation.generate)
    if name == "MoshiForCausalLM":
        functions.append(text_generation.generate_text)
    for function in functions:
        for argument in inspect.signature(function).parameters:
            if argument not in ("self", "model", "flags", "settings", "args"):
                assert re.search(rf"\b{argument}\b", section), f"{name}: {argument}"
