"""Voice and persona on the command line."""

import shutil

import numpy as np
import personaplex
import pytest
import soundfile
from helpers import GOLDENS, question

from moshi_mlx.local import __main__ as local

SOUND = [
    "--overwrite",
    "--temperature",
    "0",
    "--text-temperature",
    "0",
    "--tail",
    "0",
    "--steps",
    "6",
    "--input",
    "in.wav",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = personaplex.write(tmp_path_factory.mktemp("local") / "plex")
    (path / "voices").mkdir()
    for name, file in (("NATF2", "bfloat16"), ("VARM4", "float32")):
        shutil.copy(GOLDENS / f"personaplex_{file}.pt", path / "voices" / f"{name}.pt")
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("in.wav", question()[: 10 * 1920], 24000)


def reply(folder, *options, output="out.wav"):
    assert local.main(["--model", str(folder), *SOUND, "--output", output, *options]) == 0
    return soundfile.read(output)[0]


def test_list_voices(folder, capsys):
    assert local.main(["--model", str(folder), "--list-voices"]) == 0
    assert capsys.readouterr().out == "NATF2\nVARM4\n"
    assert local.main(["--model", str(GOLDENS / "moshi_tiny"), "--list-voices"]) == 2
    assert "has no voices" in capsys.readouterr().err


def test_voice_and_persona_change_the_reply(folder, capsys):
    shutil.copy(folder / "voices" / "NATF2.pt", "mine.pt")
    soundfile.write("own.wav", question()[:48000], 24000)
    plain, named, path = reply(folder), reply(folder, "--voice", "NATF2"), reply(folder, "--voice", "./mine.pt")
    assert "prompt of 19 frames read in" in capsys.readouterr().err
    np.testing.assert_array_equal(named, path)
    replies = [plain, named, reply(folder, "--voice", "own.wav"), reply(folder, "--persona", "a wise teacher"),
               reply(folder, "--voice", "NATF2", "--persona", "a wise teacher")]  # fmt: skip
    for n, one in enumerate(replies):
        assert all(not np.array_equal(one, other) for other in replies[:n])


def test_a_prompt_is_kept_and_begun_from(folder, capsys):
    asked = ["--voice", "NATF2", "--persona", "a wise teacher"]
    first = reply(folder, *asked, "--prompt", "teacher.safetensors")
    assert "prompt kept in teacher.safetensors" in capsys.readouterr().err
    for options in ([], asked, ["--voice", "NATF2.pt"]):
        np.testing.assert_array_equal(reply(folder, *options, "--prompt", "teacher.safetensors"), first)
        said = capsys.readouterr().err
        assert "frames from teacher.safetensors" in said
        assert "reading the prompt" not in said
    for options, words in (
        (["--voice", "VARM4"], "keeps the voice NATF2, not VARM4"),
        (["--persona", "a cook"], "another persona"),
    ):
        assert (
            local.main(
                ["--model", str(folder), *SOUND, "--output", "no.wav", "--prompt", "teacher.safetensors", *options]
            )
            == 2
        )
        assert words in capsys.readouterr().err


def test_waiting_for_the_greeting(folder):
    assert not np.array_equal(
        reply(folder, "--voice", "NATF2", "--wait-for-greeting"), reply(folder, "--voice", "NATF2")
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--voice", "NATX9"], "'NATX9' is no voice"),
        (["--voice", "./none.pt"], "none.pt"),
        (["--voice", "in.wav", "--persona", "x " * 200], "context is 90"),
        (["--prompt", "none.safetensors"], "no such file; with --voice or --persona it is made"),
        (["--prompt", "in.txt", "--voice", "NATF2"], "not a safetensors file"),
        (["--context", "20", "--voice", "NATF2", "--persona", "a teacher"], "the context is 20"),
    ],
)
def test_refusals(folder, options, said, capsys, tmp_path):
    (tmp_path / "in.txt").write_text("hello")
    assert local.main(["--model", str(folder), *SOUND, "--output", "out.wav", *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert not (tmp_path / "out.wav").exists()


def test_a_model_that_takes_none(capsys):
    assert local.main(["--model", str(GOLDENS / "moshi_tiny"), *SOUND, "--output", "out.wav", "--persona", "x"]) == 2
    assert "takes neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--voice", "NATF2"], ["--persona", "x"], ["--list-voices"], ["--prompt", "a.safetensors"]],
)
def test_without_a_model(options, capsys):
    with pytest.raises(SystemExit) as caught:
        local.main([*SOUND, "--output", "out.wav", *options])
    assert caught.value.code == 2
    assert "nvidia/personaplex-7b-v1" in capsys.readouterr().err
