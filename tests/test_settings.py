"""The settings of every call that draws tokens: one idea, typed, spelled out by `help`, and refused by name."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers import golden

import moshi_mlx
from moshi_mlx import DuplexSampling, InputError, Sampling, SamplingSettings

STREAM = {"temperature", "top_k", "top_p", "min_p"}
CONVERSATION = STREAM | {f"text_{name}" for name in STREAM}
GENERATION = STREAM | {f"depth_{name}" for name in STREAM} | {"do_sample", "depth_do_sample"}
IDS = np.array([[1, 2]])

# every public call that draws, what it takes, and a call of it that goes on quickly
CALLS = {
    "Session": (moshi_mlx.Session, CONVERSATION, lambda m, **s: moshi_mlx.Session(m, **s)),
    "session": (moshi_mlx.MoshiForConditionalGeneration.session, CONVERSATION, lambda m, **s: m.session(**s)),
    "generate": (
        moshi_mlx.MoshiForConditionalGeneration.generate, GENERATION,
        lambda m, **s: m.generate(max_new_tokens=1, return_audio_waveforms=False, **s),
    ),
    "text": (
        moshi_mlx.MoshiForCausalLM.generate, STREAM,
        lambda m, **s: m.decoder.generate(IDS, max_new_tokens=1, do_sample=True, **s),
    ),
    "depth": (
        moshi_mlx.MoshiDepthDecoder.generate, STREAM,
        lambda m, **s: m.depth_decoder.generate([[3]], mx.zeros((1, 1, 32)), do_sample=True, **s),
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    mx.disable_compile()  # compiling takes seconds on a CPU
    monkeypatch.setattr("moshi_mlx.Session._build_kernels", lambda self, progress: None)
    yield
    mx.enable_compile()


@EACH
def test_help_shows_every_setting_and_says_its_range(name):
    function, settings, _ = CALLS[name]
    parameters = inspect.signature(function).parameters
    assert settings <= set(parameters)
    assert "settings" not in parameters
    assert all(parameters[s].default is not inspect.Parameter.empty for s in settings)
    words = inspect.getdoc(function)
    for said in ("temperature", "0: greedy", "top_k", "0: no cut", "top_p", "over 0 to 1", "min_p", "0 to 1"):
        assert said in words, said
    defaults = {n: p.default for n, p in parameters.items() if p.default is not None}
    if name == "Session":
        assert (defaults["temperature"], defaults["top_k"], defaults["text_top_k"]) == (0.8, 250, 25)


@EACH
def test_a_name_that_does_not_exist_is_refused_as_python_does(model, name):
    _, settings, call = CALLS[name]
    for setting in settings:
        wrong = setting[:-1] + "q"
        with pytest.raises(TypeError, match=rf"got an unexpected keyword argument '{wrong}'"):
            call(model, **{wrong: 1})
    with pytest.raises(TypeError, match=r"'temprature'. Did you mean 'temperature'\?"):
        call(model, temprature=1)


def test_a_session_made_by_its_model_takes_what_a_session_takes():
    of_class, of_model = (set(inspect.signature(CALLS[name][0]).parameters) for name in ("Session", "session"))
    assert of_model - {"self", "voice", "persona"} == of_class - {"model"}


@EACH
def test_none_is_not_given(model, name):
    _, settings, call = CALLS[name]
    call(model, **dict.fromkeys(settings))


@EACH
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -1), ("temperature", 1e39), ("temperature", 1e-46), ("temperature", np.inf),
        ("temperature", np.float32("nan")), ("temperature", "1"), ("temperature", True), ("temperature", [1.0]),
        ("temperature", 1j), ("top_k", -1), ("top_k", 2.0), ("top_k", np.True_), ("top_p", 0), ("top_p", 1e-50),
        ("top_p", 1.01), ("min_p", -0.1), ("min_p", 2), ("min_p", None.__class__),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named_as_they_were_given(model, name, setting, value):
    _, settings, call = CALLS[name]
    for given in sorted(s for s in settings if s.endswith(setting)):
        with pytest.raises(InputError, match=rf"^{given}: got "):
            call(model, **{given: value})


@EACH
def test_numbers_of_every_kind_are_numbers(model, name):
    _, settings, call = CALLS[name]
    for kind in (np.float32, np.float64, np.float16, np.array, mx.array):
        call(model, **{s: kind(1) for s in settings if "temp" in s or "_p" in s})
    for kind in (np.int64, np.uint8, np.array, mx.array):
        call(model, **{s: kind(2) for s in settings if "top_k" in s})


def test_a_very_low_temperature_is_as_good_as_greedy():
    logits = mx.array(golden("lm")["delay1.text_logits"][:3] * 100)
    noise = mx.random.gumbel(logits.shape, key=mx.random.key(0))
    from moshi_mlx.models.sampling import sample

    for temperature in (1e-20, 1e-31, 2e-38):
        for cut in ({}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_p": 1e-30}):
            got = sample(logits, noise, Sampling(temperature, **cut))
            assert got.tolist() == mx.argmax(logits, axis=-1).tolist()


def test_settings_unpack():
    calm: SamplingSettings = {"temperature": np.float32(0.5), "text_top_k": np.int64(3), "min_p": None}
    sampling = DuplexSampling.of(calm)
    assert sampling == DuplexSampling(Sampling(0.7, 3), Sampling(0.5, 250))
    assert isinstance(sampling.text.top_k, int)
    assert DuplexSampling.of({}) == DuplexSampling()
    with pytest.raises(TypeError, match=r"DuplexSampling.of\(\) got an unexpected keyword argument 'temprature'"):
        DuplexSampling.of({"temprature": 1})


GOOD = """
import numpy as np
import moshi_mlx

model = moshi_mlx.load("miniature")
calm: moshi_mlx.SamplingSettings = {"temperature": 0.4, "text_top_k": np.int64(5)}
session = model.session(seed=1, **calm, kv_bits=8)
frame: moshi_mlx.Frame = moshi_mlx.Session(model, 0, **calm).step(np.zeros(1920, np.float32))
out = model.generate(temperature=np.float32(1), depth_top_k=3, do_sample=True, max_new_tokens=2)
print(out.sequences, model.generate(return_audio_waveforms=False).shape, model.decoder.generate([[1]], top_p=0.5).shape)
print(model.decoder.generate([[1]], return_dict_in_generate=True, output_scores=True).scores)
model.generate(**model.get_unconditional_inputs(), max_new_tokens=64)
model.depth_decoder.generate([[1]], None, min_p=0.5)
moshi_mlx.DuplexSampling.of(calm)
"""
BAD = """
import moshi_mlx

model = moshi_mlx.load("miniature")
model.session(temprature=0.4)
moshi_mlx.Session(model, 0, temprature=0.4)
model.generate(temprature=1.0)
model.decoder.generate([[1]], temprature=1.0)
model.depth_decoder.generate([[1]], None, temprature=1.0)
calm: moshi_mlx.SamplingSettings = {"temprature": 0.4}
model.session(temperature="warm")
model.generate(depth_top_k=2.5)
"""


@pytest.mark.slow
def test_mypy_tells_a_users_program_of_a_wrong_name(tmp_path):
    pytest.importorskip("mypy", reason="pip install mypy")
    for name, program in (("good", GOOD), ("bad", BAD)):
        (tmp_path / f"{name}.py").write_text(program)
    site = tmp_path / "site"  # as pip installs it, not as sources of the program
    site.mkdir()
    (site / "moshi_mlx").symlink_to(Path(moshi_mlx.__file__).parent)
    settings = ["--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), "--config-file", ""]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, "good.py", "bad.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    wrong = {":".join(line.split(":", 2)[:2]) for line in done.stdout.splitlines() if ": error:" in line}
    count = len(BAD.strip().splitlines())
    assert wrong == {f"bad.py:{n}" for n in range(5, count + 2)}, done.stdout
