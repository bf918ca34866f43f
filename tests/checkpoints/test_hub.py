"""The hub: only what loading needs is fetched, the cache is enough, and every refusal says what to do."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import GOLDENS, edit_json
from hub_stand_in import COMMIT, served

import moshi_mlx
from moshi_mlx import CheckpointError, InputError
from moshi_mlx.checkpoints import hub as hubs
from moshi_mlx.checkpoints.names import MIMI_NAME, TOKENIZER_NAME
from moshi_mlx.machine import preflight

NAME = "somebody/moshi"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with served(monkeypatch, tmp_path / "cache") as stand_in:
        yield stand_in


@pytest.fixture
def repository(hub, checkpoint):
    """Kyutai's layout as a training run leaves it: with much beside it that loading does not need."""
    folder = checkpoint()
    more = {
        "README.md": b"# card", "training/state.safetensors": b"x" * 1000, "optimizer.safetensors": b"x" * 1000,
        "checkpoints/100/config.json": b"{}", "logs.json": b"[1]", "tokenizer_of_something.model": b"no",
    }  # fmt: skip
    hub.add(NAME, folder, **more)
    return folder


NEEDED = {"config.json", "mimi_config.json", "model.safetensors", "mimi.safetensors", "tokenizer.model"}


def test_only_what_loading_needs_is_fetched(hub, repository):
    assert moshi_mlx.load(NAME).config == moshi_mlx.load(repository).config
    assert set(hub.fetched) == NEEDED


def test_what_lies_in_the_cache_is_not_fetched_again(hub, repository):
    moshi_mlx.load(NAME)
    hub.fetched.clear()
    moshi_mlx.load(NAME)
    assert hub.fetched == []


def layouts(checkpoint, tmp_path):
    """Every layout, with the files that loading it needs."""
    from moshi_mlx.convert import cli

    hugging = shutil.copytree(GOLDENS / "moshi_tiny_hf", tmp_path / "hugging")
    shutil.copy(GOLDENS / "moshi_tiny" / "tokenizer.model", hugging)
    shards = {file.name for file in hugging.glob("*.safetensors")}
    yield hugging, {"config.json", "model.safetensors.index.json", "tokenizer.model", *shards}
    for to in ("mlx", "kyutai"):
        out = tmp_path / to
        assert cli.main(["--hf-path", str(checkpoint()), "--mlx-path", str(out), "--to", to]) == 0
        shutil.rmtree(tmp_path / "moshi_tiny")
        yield out, {"config.json", "mimi_config.json", "model.safetensors", MIMI_NAME, TOKENIZER_NAME}


@pytest.mark.slow
def test_every_layout_comes_from_the_hub(hub, checkpoint, tmp_path):
    for folder, needed in layouts(checkpoint, tmp_path):
        name = f"somebody/{folder.name}"
        hub.add(name, folder, **{"sub/model.safetensors": b"x", "other.safetensors": b"x"})
        hub.fetched.clear()
        config = moshi_mlx.MoshiConfig.from_pretrained(name)
        assert not any(file.endswith(".safetensors") for file in hub.fetched), folder.name
        assert moshi_mlx.load(name).config == config == moshi_mlx.load(folder).config
        assert set(hub.fetched) - {"generation_config.json"} == needed
        moshi_mlx.MimiConfig.from_pretrained(name)
        moshi_mlx.MoshiDepthConfig.from_pretrained(name)


def test_a_repository_without_a_config(hub, checkpoint, monkeypatch):
    """Kyutai's own: the sizes are those of Moshi 7B (here: of the tiny one)."""
    from moshi_mlx.checkpoints import finding
    from moshi_mlx.models import config as configs

    folder = checkpoint()
    tiny = moshi_mlx.load(folder).config
    monkeypatch.setitem(configs.PRESETS, "moshi-7b", tiny)
    monkeypatch.setattr(finding, "MimiConfig", lambda: tiny.audio_encoder_config)
    (folder / "config.json").unlink()
    (folder / "mimi_config.json").unlink()
    (folder / "mimi.safetensors").rename(folder / MIMI_NAME)
    (folder / "tokenizer.model").rename(folder / TOKENIZER_NAME)
    hub.add(NAME, folder, **{"notes.json": b"[]", "model.bin": b"x"})
    assert moshi_mlx.load(NAME).config == moshi_mlx.MoshiConfig.from_pretrained(NAME) == tiny
    assert set(hub.fetched) == {"model.safetensors", MIMI_NAME, TOKENIZER_NAME}


def test_an_adapter_comes_without_the_rest_of_its_repository(hub, repository, tmp_path):
    import mlx.core as mx

    folder = tmp_path / "adapter"
    folder.mkdir()
    tensors = {"text_linear.lora_A.weight": mx.ones((2, 32)), "text_linear.lora_B.weight": mx.ones((64, 2))}
    mx.save_safetensors(str(folder / "lora.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps({"lora_scaling": 2.0}))
    hub.add("somebody/adapter", folder, **{"consolidated.safetensors": b"x", "runs/lora.safetensors": b"x"})
    moshi_mlx.load(repository, adapter="somebody/adapter")
    assert set(hub.fetched) == {"config.json", "lora.safetensors"}


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["offline", "no network", "the hub is down", "no longer allowed", "gone"])
def cut_off(request, hub, monkeypatch):
    """A function after which the hub is not to be had, in one of the ways in which that happens."""

    def cut():
        if request.param == "offline":
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        elif request.param == "no network":
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        elif request.param == "the hub is down":
            hub.refuse(503)
        elif request.param == "no longer allowed":
            hub.refuse(401, "GatedRepo", "Access to model is restricted.")
        else:
            hub.repositories.clear()

    return cut


def test_a_cache_with_what_loading_needs_is_enough(hub, repository, cut_off):
    moshi_mlx.load(NAME)
    cut_off()
    assert moshi_mlx.load(NAME).config.num_codebooks == 8


def snapshot(tmp_path):
    return tmp_path / "cache" / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT


@pytest.mark.slow
def test_lists_of_other_programs_do_not_matter(hub, repository, tmp_path, cut_off):
    """A program that fetched less has left its list of the whole repository, or none of the branches."""
    import huggingface_hub

    for name in NEEDED:
        huggingface_hub.snapshot_download(NAME, allow_patterns=[name])
    cut_off()
    moshi_mlx.load(NAME)
    shutil.rmtree(snapshot(tmp_path).parents[1] / "refs")
    moshi_mlx.load(NAME)


def test_a_cache_that_misses_something_is_told(hub, repository, tmp_path, cut_off):
    moshi_mlx.load(NAME)
    (snapshot(tmp_path) / "model.safetensors").unlink()
    cut_off()
    with pytest.raises(CheckpointError, match=NAME) as caught:
        moshi_mlx.load(NAME)
    assert "\n" not in str(caught.value)


# --- what the hub may answer ----------------------------------------------------------------------------------------

ANSWERS = {
    "gated": ((403, "GatedRepo", "restricted"), None, f"is gated: .*huggingface.co/{NAME}.*log in"),
    "gated, logged in": ((403, "GatedRepo", "restricted"), "hf_x", "is gated: ask for access .* with the account"),
    "missing or private": ((401, "RepoNotFound", ""), None, "no such repository on the hub; check the name; .*log in"),
    "a wrong token": ((401, "", "Invalid credentials in Authorization header"), "hf_old", "refuses your token"),
    "a token that may not": ((403, "", "Forbidden"), "hf_x", "refuses your token"),
    "down": ((500, "", ""), None, "answers with an error .*try again later"),
    "too many requests": ((429, "", "Too many"), None, "answers with an error .*try again later"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_refusals_are_told_apart(hub, name, monkeypatch):
    answer, token, message = ANSWERS[name]
    hub.refuse(*answer)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(CheckpointError, match=message) as caught:
        moshi_mlx.load(NAME)
    assert "\n" not in str(caught.value)


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"no such folder, and the hub cannot be reached .*check the network"):
        moshi_mlx.load(NAME)


def test_offline(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="not all in the hub's cache; unset HF_HUB_OFFLINE"):
        moshi_mlx.load(NAME)


def test_revisions(hub, repository):
    moshi_mlx.load(NAME, revision=COMMIT)
    moshi_mlx.load(NAME, revision="main")
    with pytest.raises(CheckpointError, match="has no revision 'v9'"):
        moshi_mlx.load(NAME, revision="v9")


def test_repositories_that_hold_no_moshi(hub, repository, tmp_path):
    hub.repositories["somebody/notes"] = {"README.md": b"hello", "notes.txt": b"x"}
    with pytest.raises(CheckpointError, match="has no file that Moshi is loaded from"):
        moshi_mlx.load("somebody/notes")
    edit_json(repository / "config.json", mimi_name="elsewhere.safetensors")
    hub.add("somebody/half", repository)
    with pytest.raises(CheckpointError, match=r"has no elsewhere.safetensors, which its config.json names"):
        moshi_mlx.load("somebody/half")


def test_files_of_other_repositories(hub, repository):
    hub.add("kyutai/other", repository)
    edit_json(repository / "config.json", mimi_name="hf://kyutai/other/mimi.safetensors")
    moshi_mlx.load(repository)
    edit_json(repository / "config.json", mimi_name="hf://kyutai/other/none.safetensors")
    with pytest.raises(CheckpointError, match=r"none.safetensors: no such file in that repository"):
        moshi_mlx.load(repository)
    edit_json(repository / "config.json", mimi_name=(repository / "mimi.safetensors").as_uri())
    moshi_mlx.load(repository)


@pytest.mark.parametrize(
    "name", ["a b/c", "kyutai/../x", "a/b/c", "https://huggingface.co/a/b", "a/", "", "~x/y", "\0/x"]
)
def test_names_that_are_neither_a_folder_nor_a_repository(hub, name):
    with pytest.raises(CheckpointError, match=r"no such folder|is a file"):
        moshi_mlx.load(name)


@pytest.mark.parametrize("name", [None, 3, ["a"], b"x/y"])
def test_what_is_no_path(name):
    with pytest.raises((InputError, CheckpointError)):
        moshi_mlx.load(name)


def test_a_name_that_is_too_long(hub):
    for name in ("x" * 5000, "x" * 300 + "/" + "y" * 300):
        with pytest.raises(CheckpointError) as caught:
            moshi_mlx.load(name)
        assert len(str(caught.value)) < 1000


def test_an_interrupted_download_says_so_and_goes_on(hub, repository, monkeypatch):
    import huggingface_hub

    whole = huggingface_hub.snapshot_download

    def interrupted(*given, **named):
        if "model.safetensors" in named["allow_patterns"]:
            raise KeyboardInterrupt
        return whole(*given, **named)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupted)
    with pytest.raises(KeyboardInterrupt, match="what has is kept for the next time"):
        moshi_mlx.load(NAME)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", whole)
    hub.fetched.clear()
    moshi_mlx.load(NAME)
    assert "config.json" not in hub.fetched


def test_sizes_count_what_is_missing_only(hub, repository, tmp_path):
    files = hub.repositories[NAME]
    total = sum(len(files[name]) for name in NEEDED)
    large = total - len(files["config.json"]) - len(files["mimi_config.json"])
    assert hubs.sizes(NAME) == (total, large)  # the small ones have come, to know which others are needed
    hubs._snapshot(NAME, ["model.safetensors"], None)
    assert hubs.sizes(NAME) == (total, large - len(files["model.safetensors"]))
    plan = preflight.plan(NAME)
    assert (plan.size, plan.to_fetch) == (total, large - len(files["model.safetensors"]))
    moshi_mlx.load(NAME)
    assert str(snapshot(tmp_path)) in preflight.plan(NAME).where
    assert preflight.plan(NAME).size == total
    assert hubs.sizes("no/body") is None


def test_the_tokenizer_of_moshi_comes_from_kyutai(hub, tmp_path, monkeypatch):
    """Hugging Face's layout has no sentencepiece file; one of Moshi's vocabulary gets Kyutai's."""
    from moshi_mlx.checkpoints import reading

    folder = shutil.copytree(GOLDENS / "moshi_tiny_hf", tmp_path / "hugging")
    with pytest.warns(UserWarning, match="there will be no text"):
        assert moshi_mlx.load(folder).tokenizer is None
    monkeypatch.setattr(reading, "MOSHI_PIECES", 64)
    with pytest.warns(UserWarning, match="there will be no text: hf://kyutai/moshiko-pytorch-bf16"):
        moshi_mlx.load(folder)
    content = (GOLDENS / "moshi_tiny" / "tokenizer.model").read_bytes()
    hub.repositories["kyutai/moshiko-pytorch-bf16"] = {TOKENIZER_NAME: content}
    assert moshi_mlx.load(folder).tokenizer.vocab_size() == 64
    assert hub.fetched == [TOKENIZER_NAME]


def test_quiet(hub, repository, capfd, monkeypatch):
    import huggingface_hub

    huggingface_hub.utils.enable_progress_bars()
    hubs.be_quiet()
    moshi_mlx.load(NAME)
    assert capfd.readouterr() == ("", "")
    assert Path(hubs.cached(NAME)).is_dir()
