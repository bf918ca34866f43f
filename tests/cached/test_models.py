"""The models on this disk: listed with sizes, removed for good, the miniature among them and by name everywhere."""

import shutil
import sys

import numpy as np
import pytest
from helpers import GOLDENS
from moshi_mlx.convert import cli, inspecting

import moshi_mlx
from moshi_mlx import CheckpointError, MimiModel, MoshiConfig
from moshi_mlx.cached.__main__ import main
from moshi_mlx.checkpoints.hub import local_folder
from moshi_mlx.checkpoints.names import MINIATURE_FOLDER
from moshi_mlx.machine import preflight

COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub's cache with two repositories: one that loads, one that is only half there."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, whole in (("kyutai--moshi-tiny", True), ("somebody--moshi-broken", False), ("x--gpt", False)):
        repo = tmp_path / "hub" / f"models--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(COMMIT)
        snapshot = repo / "snapshots" / COMMIT
        if whole:
            shutil.copytree(GOLDENS / "moshi_tiny", snapshot)
        else:
            snapshot.mkdir(parents=True)
            (snapshot / "config.json").write_text("{}")
    return tmp_path / "hub"


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_what_is_there_is_listed_with_its_size_and_kind(cache, capsys):
    assert main([]) == 0
    miniature, tiny, broken, total = lines(capsys)
    assert miniature.startswith("miniature")
    assert "Kyutai MLX, 8 bits  (in the package)" in miniature
    assert tiny.startswith("kyutai/moshi-tiny")
    assert "not quantized  (used today)" in tiny
    assert "cannot be loaded" in broken
    assert "in the hub's cache" in total


def test_removed_is_gone(cache, capsys):
    assert main(["remove", "kyutai/moshi-tiny"]) == 0
    assert "removed" in lines(capsys)[0]
    assert not (cache / "models--kyutai--moshi-tiny").exists()
    assert (cache / "models--x--gpt").exists()  # whose commit has the same name
    assert (cache / "models--somebody--moshi-broken").exists()
    for name, said in (("kyutai/moshi-tiny", "is not in the cache"), ("miniature", "comes with the package")):
        assert main(["remove", name]) == 2
        assert said in capsys.readouterr().err


def test_without_a_cache_there_is_the_miniature(tmp_path, monkeypatch, capsys):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert main(["list"]) == 0
    assert lines(capsys)[-1] == "nothing in the hub's cache yet"
    assert main(["remove", "kyutai/moshi"]) == 2


def test_fetch_says_where_it_is_or_why_not(monkeypatch, capsys):
    assert main(["fetch", "miniature"]) == 0
    assert lines(capsys) == [str(MINIATURE_FOLDER)]
    assert main(["fetch", "/no/such"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_miniature_by_name_is_taken_wherever_a_model_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "miniature").mkdir()  # as in a checkout of this project
    assert local_folder("miniature") == MINIATURE_FOLDER
    model = moshi_mlx.load("miniature")
    session = model.session(seed=0)
    assert session.step(np.zeros(session.frame_size, np.float32)).text == ""
    assert MoshiConfig.from_pretrained("miniature") == model.config
    assert MimiModel.from_pretrained("miniature").config == model.config.audio_encoder_config
    assert str(preflight.plan("miniature")) == "miniature: 11.9 MB from this folder"
    assert inspecting.main(["miniature"]) == 0
    assert cli.main(["--hf-path", "miniature", "--mlx-path", str(tmp_path / "out"), "-d", "--dry-run"]) == 0
    with pytest.raises(CheckpointError):
        moshi_mlx.load("./miniature")


if sys.platform != "darwin":  # a Mac's folders do not tell capitals apart

    def test_it_is_that_name_alone():
        with pytest.raises(CheckpointError, match="no such folder"):
            local_folder("Miniature")
