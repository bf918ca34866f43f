"""A person's own settings: a file, then the environment, then flags; what is wrong is named with its place."""

import pytest

from moshi_mlx.terminal.arguments import Parser


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("MOSHI_MLX_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config").mkdir()
    return tmp_path


def parser():
    made = Parser("python -m moshi_mlx.local", table="local")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--model")
    which.add_argument("--demo", action="store_true")
    made.add_argument("--top-k", type=int, default=250)
    made.add_argument("--kv-bits", type=int, choices=(8,))
    made.add_argument("--echo-cancel", action="store_true")
    return made


def write(home, text):
    (home / ".config" / "moshi_mlx.toml").write_text(text)


def test_flags_win_over_the_environment_and_that_over_the_file(home, monkeypatch):
    assert parser().parse_args([]).top_k == 250
    write(home, '[local]\nmodel = "a"\ntop-k = 7\necho_cancel = true\n[convert]\nq-bits = 3\n')
    got = parser().parse_args([])
    assert (got.model, got.top_k, got.echo_cancel) == ("a", 7, True)
    assert got.from_settings == {"model", "top_k", "echo_cancel"}
    monkeypatch.setenv("MOSHI_MLX_LOCAL_TOP_K", "9")
    monkeypatch.setenv("MOSHI_MLX_LOCAL_ECHO_CANCEL", "no")
    got = parser().parse_args([])
    assert got.top_k == 9
    got = parser().parse_args(["--top-k", "11", "--mod=b"])
    assert (got.model, got.top_k) == ("b", 11)
    assert not got.from_settings & {"model", "top_k"}


def test_what_excludes_a_given_flag_is_left_out(home):
    write(home, '[local]\nmodel = "a"\n')
    assert parser().parse_args(["--demo"]).model is None


def test_another_file(home, monkeypatch):
    other = home / "mine.toml"
    monkeypatch.setenv("MOSHI_MLX_CONFIG", str(other))
    with pytest.raises(SystemExit):
        parser().parse_args([])
    other.write_text("[local]\nkv-bits = 8\n")
    assert parser().parse_args([]).kv_bits == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[local]\ntopk = 3\n",
            "of local; expected one of demo, echo-cancel, kv-bits, model, top-k",
        ),
        ("[local]\ntop-k = 'many'\n", "argument --top-k: invalid int value: 'many'"),
        ("[local]\nkv-bits = 5\n", "argument --kv-bits: invalid choice: 5"),
        ("[local]\necho-cancel = 3\n", "is 3, expected true or false"),
        ("[local]\nmodel = [1]\n", "is [1], expected one value"),
        ("[local]\nmodel = true\n", "is True, expected one value"),
        ("[local]\nversion = true\n", "unknown key 'version'"),
        ("local = 3\n", "key 'local' is 3, expected a table [local] of flags"),
        ("[local\n", "not a TOML file"),
        ("\udcff", "not a TOML file"),
        ("a=" + "[" * 5000, "not a TOML file"),
        ("#" * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_what_is_wrong_is_one_line(home, capsys, text, said):
    (home / ".config" / "moshi_mlx.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert error.startswith("moshi_mlx.local: error: ")
    assert said in error


def read_by(command, arguments):
    """What a command makes of arguments and a person's settings."""
    from moshi_mlx.convert import cli

    from moshi_mlx.export.__main__ import parser as of_export
    from moshi_mlx.local import options as of_local
    from moshi_mlx.serve import options as of_serve

    if command == "convert":
        made = cli._parser()
        return cli._without_idle_settings(made.parse_args(arguments), made)
    made = {"export": of_export, "serve": of_serve.parser, "local": of_local._parser}[command]()
    return made.parse_args(arguments)


@pytest.mark.parametrize(
    ("command", "given", "key", "value"),
    [("local", [], "kv-bits", 8), ("serve", [], "port", 9000), ("export", ["a", "b"], "kv-bits", 8),
     ("convert", ["--model", "a", "-q"], "q-bits", 3)],
)  # fmt: skip
def test_the_commands_that_have_a_table(home, monkeypatch, command, given, key, value):
    write(home, f"[{command}]\n{key} = {value}\n")
    name = key.replace("-", "_")
    assert getattr(read_by(command, given), name) == value
    monkeypatch.setenv(f"MOSHI_MLX_{command.upper()}_{name.upper()}", "8")
    assert getattr(read_by(command, given), name) == 8
    write(home, f"[{command}]\nloudness = 3\n")
    with pytest.raises(SystemExit) as ended:
        read_by(command, given)
    assert ended.value.code == 2


def test_a_flag_that_must_be_given_may_stand_in_the_file(home):
    write(home, '[convert]\nmodel = "a"\n')
    assert read_by("convert", []).hf_path == "a"
    assert read_by("convert", ["--hf-path", "b"]).hf_path == "b"
    write(home, "")
    with pytest.raises(SystemExit):
        read_by("convert", [])


def test_settings_that_mean_nothing_beside_the_flags_are_left_out(home):
    write(home, '[convert]\nq-bits = 8\nquantize = true\ngeneration = 2\nupload-repo = "me/mine"\n')
    got = read_by("convert", ["--model", "a", "-d", "--dry-run"])
    assert (got.quantize, got.dequantize, got.q_bits, got.generation, got.upload_repo) == (False, True, None, 1, None)
    got = read_by("convert", ["--model", "a"])
    assert (got.quantize, got.q_bits, got.upload_repo) == (True, 8, "me/mine")
    write(home, "[convert]\ndequantize = true\n")
    got = read_by("convert", ["--model", "a", "-q"])
    assert (got.quantize, got.dequantize) == (True, False)
