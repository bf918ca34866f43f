"""Depth slices of both sides in every layout: those that do not speak are looked at, left out, and never read."""

import re

import mlx.core as mx
import numpy as np
import personaplex
import pytest
from helpers import GREEDY, golden
from moshi_mlx.convert.cli import main as convert
from personaplex import SIZES, STUB

import moshi_mlx
from moshi_mlx import CheckpointError
from moshi_mlx.checkpoints.names import needed

REF = golden("personaplex")
MLX_CONFIG = {"model_type": "personaplex", "moshi_name": "model.safetensors"} | SIZES


def newer(weights):
    """The same under the attention names of newer versions of moshi."""
    renamed = {}
    for name, value in weights.items():
        found = re.fullmatch(r"(.*self_attn)\.(in_proj|out_proj)(?:_weight|\.weight)", name)
        if not found:
            renamed[name] = value
            continue
        sets = SIZES["dep_q"] if name.startswith("depformer") else 1
        for s, part in enumerate(np.split(value, sets)):
            renamed[f"{found[1]}.{found[2]}s.{s}.weight"] = part
    return renamed


def mlx(weights):
    """The same in the MLX layout: one slice for every step."""
    renamed = {}
    for name, value in newer(weights).items():
        name = re.sub(r"^emb\.", "audio_embs.", name)
        if name.endswith("alpha"):
            name, value = name.replace("alpha", "weight"), value.reshape(-1)
        name = re.sub(r"^(transformer.*)(in|out)_projs\.0\.", r"\1\2_proj.", name)
        for pattern, to in (
            (r"depformer_in\.(\d+)\.", "linear_in."),
            (r"linears\.(\d+)\.", "linear_out."),
            (r"depformer\.(layers\.\d+\.gating)\.(\d+)\.", None),
            (r"depformer\.(layers\.\d+\.self_attn\.(?:in|out)_proj)s\.(\d+)\.", None),
        ):
            name = re.sub(
                f"^{pattern}", rf"depformer.slices.\1.{to}" if to else r"depformer.slices.\2.transformer.\1.", name
            )
        name = name.replace("depformer_text_emb.", "depformer.slices.0.emb.")
        name = re.sub(r"^depformer_emb\.(\d+)\.", lambda m: f"depformer.slices.{int(m[1]) + 1}.emb.", name)
        if name.startswith("depformer.layers"):  # the norms that all steps share
            for step in range(SIZES["dep_q"]):
                renamed[name.replace("depformer.layers", f"depformer.slices.{step}.transformer.layers")] = value
        else:
            renamed[name] = value
    return renamed


OTHERS = re.compile(r"(linears|slices|gating|in_projs|out_projs|depformer_in)\.1[0-5]\.")
LAYOUTS = {"older names": lambda weights: weights, "newer names": newer, "MLX": mlx}


def tokens(model, **settings):
    session = model.session(**GREEDY, **settings)
    return np.stack([session.step_codes(column).audio_codes for column in REF["user"][:, :15].T], axis=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_sixteen(layout, tmp_path):
    weights = LAYOUTS[layout](personaplex.language_weights())
    for name in weights:  # whoever reads them gets nonsense
        if re.search(r"linears\.(8|9|1\d)\.|slices\.(8|9|1\d)\.linear_out|depformer_in\.(8|9|1\d)\.", name):
            weights[name] = np.full_like(weights[name], np.nan)
    folder = personaplex.write(tmp_path / "model", MLX_CONFIG, weights=weights)
    model = moshi_mlx.load(folder)
    assert len(model.depth_decoder.slices) == 8
    got = tokens(model, voice=REF["voice"], persona="<system> a wise and friendly teacher <system>")
    np.testing.assert_array_equal(got, REF["codes"][1:, :15])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_slice_that_is_not_whole_is_refused(layout, tmp_path):
    weights = LAYOUTS[layout](personaplex.language_weights())
    names = [name for name, value in weights.items() if value.ndim > 1 and OTHERS.search(name)]
    for n, name in enumerate(names[:: max(1, len(names) // 4)]):
        odd = {**weights, name: weights[name].reshape(-1)}
        with pytest.raises(CheckpointError, match=re.escape(name)):
            moshi_mlx.load(personaplex.write(tmp_path / f"odd {n}", MLX_CONFIG, weights=odd))


def test_a_fine_tune_of_both_sides_is_a_moshi(tmp_path):
    """dep_q 16 alone makes no PersonaPlex of a model that says it is none."""
    config = {"model_type": "moshi", "mimi_config_name": "mimi_config.json"} | SIZES
    model = moshi_mlx.load(personaplex.write(tmp_path / "model", config))
    assert model.voices is None
    assert tokens(model).shape == (8, 15)
    with pytest.raises(moshi_mlx.InputError, match="takes neither"):
        model.session(persona="a teacher")


def test_voices_are_fetched_with_the_rest():
    small = ["config.json", "README.md", "dist.tgz"]
    wanted = ["model.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"]
    voices = ["voices.tgz", "voices/NATF2.pt"]
    assert needed([*small, *wanted, *voices], STUB, []) == [*wanted, *voices]


@pytest.mark.parametrize("bits", [["--q-bits", "4"], ["--q-bits", "8"], ["--quant-predicate", "mixed_4_8"]])
def test_quantized(bits, tmp_path):
    sizes = SIZES | {"dim": 64, "num_heads": 2, "depformer_dim": 64}
    source = personaplex.write(tmp_path / "source", STUB | sizes, sizes)
    path = tmp_path / "quantized"
    assert convert(["--hf-path", str(source), "--mlx-path", str(path), "-q", *bits]) == 0
    model = moshi_mlx.load(path)
    assert model.voices is not None
    live = tokens(model, voice=REF["voice"], persona="a teacher")
    out = model.generate(
        voice=REF["voice"], persona="a teacher", user_audio_codes=REF["user"][None], max_new_tokens=16,
        do_sample=False, return_audio_codes=True,
    )  # fmt: skip
    np.testing.assert_array_equal(np.array(out.audio_codes)[0], live)
    names = mx.load(str(next(path.glob("model*.safetensors"))))
    assert not any("slices.8." in name for name in names)
    assert any(name.endswith(".scales") for name in names)
