"""Every kind of model in every layout that can hold it, quantized in every way: loaded, stepped, described."""

import json

import mlx.core as mx
import numpy as np
import pytest
from family import FAMILY, KINDS, Run, loaded
from moshi_mlx.convert import cli

import moshi_mlx
from moshi_mlx import ConfigError
from moshi_mlx.checkpoints import writing
from moshi_mlx.checkpoints.safetensors import read_header, stored
from moshi_mlx.models.state import flatten

LAYOUTS = {"mlx": (), "kyutai": ("--to", "kyutai"), "kyutai2": ("--to", "kyutai", "--generation", "2")}
QUANTIZED = {"q8": ("--q-bits", "8"), "q4": ("--q-bits", "4"), "mxfp4": ("--q-mode", "mxfp4")}
SISTERS = [kind for kind in KINDS if kind != "plain_2026"]
WHOLE = ("condition_provider.", "text_emb.", "depformer.slices.0.emb.")
"""What a speaker's quantized file keeps as it is."""


def convert(source, target, *flags):
    assert cli.main(["--hf-path", str(source), "--mlx-path", str(target), *flags]) == 0
    return target


def described(folder, capsys):
    capsys.readouterr()
    assert cli.main(["inspect", str(folder), "--no-checksum"]) == 0
    return capsys.readouterr().out


def weights(model):
    return dict(flatten(model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_and_back(kind, layout, tmp_path):
    """The same config, weights and tokens; and from there the same files in the other layouts."""
    original = loaded(kind)
    first = convert(FAMILY / kind, tmp_path / "first", *LAYOUTS[layout])
    model = moshi_mlx.load(first, dtype=mx.float32)
    assert model.config == original.config
    assert model.model_id == original.model_id
    assert model.sampling_defaults == original.sampling_defaults
    now, before = weights(model), weights(original)
    assert now.keys() == before.keys()
    assert all(mx.array_equal(now[name], before[name]) for name in now)
    run = Run(model, kind)
    run.check(*run.drawn())
    names = read_header(first / "model.safetensors")
    if layout.startswith("kyutai"):
        assert any("in_projs" in name for name in names) == (layout == "kyutai2")
    back = convert(first, tmp_path / "back", *LAYOUTS["mlx" if layout != "mlx" else "kyutai"])
    assert moshi_mlx.load(back).config == original.config


@pytest.mark.parametrize("layout", ["mlx", "kyutai"])
@pytest.mark.parametrize("kind", SISTERS)
def test_a_model_in_memory_is_saved(kind, layout, tmp_path):
    original = loaded(kind)
    writing.save(original, tmp_path / "saved", layout)
    model = moshi_mlx.load(tmp_path / "saved", dtype=mx.float32)
    assert (model.config, model.model_id) == (original.config, original.model_id)
    run = Run(model, kind)
    run.check(*run.drawn())


@pytest.mark.parametrize("kind", SISTERS)
def test_hugging_face_cannot_hold_them(kind, tmp_path, capsys):
    arguments = ["--hf-path", str(FAMILY / kind), "--mlx-path", str(tmp_path / "out"), "--to", "huggingface"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("moshi_mlx.convert: error: Hugging Face's layout has no ")
    assert error.count("\n") == 1
    assert "role" in error
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"Hugging Face's layout has no .*role"):
        writing.save(loaded(kind), tmp_path / "out", "huggingface")


@pytest.mark.slow
@pytest.mark.parametrize("bits", QUANTIZED)
@pytest.mark.parametrize("kind", KINDS)
def test_every_quantization(kind, bits, tmp_path, capsys):
    flags = ("-q", *QUANTIZED[bits], *(() if bits == "mxfp4" else ("--q-group-size", "32")))
    made = convert(FAMILY / kind, tmp_path / "made", *flags)
    (file,) = made.glob("model*.safetensors")
    names = stored(file)
    scales = {name.removesuffix(".scales") for name in names if name.endswith(".scales")}
    assert "transformer.layers.0.self_attn.in_proj" in scales
    assert ("transformer.layers.0.cross_attention.in_proj" in scales) == (kind == "tts")
    demuxed = loaded(kind).config.demuxed_text
    kept = WHOLE if demuxed else WHOLE[:1]
    assert not [name for name in scales if name.startswith(kept)]
    whole = [name for name, tensor in names.items() if name.startswith(WHOLE[0])]
    assert {names[name].info.dtype for name in whole} <= {"F32"}
    model = moshi_mlx.load(made, dtype=mx.float32)
    assert model.config == loaded(kind).config
    run = Run(model, kind)
    text, more = run.drawn()
    assert text.shape == run.reference["asked" if run.speaks else "text"].shape
    assert np.isfinite(more.astype(np.float32)).all()
    text = described(made, capsys)
    (left,) = [line for line in text.splitlines() if line.startswith("bits: not quantized: ")] or [""]
    assert ("condition_provider" in left) == (kind in ("hibiki", "tts"))
    assert ("text_emb" in left) == demuxed


def test_eight_bits_are_near(tmp_path):
    """Of the hidden states of a first call, quantized and not."""
    made = convert(FAMILY / "stt", tmp_path / "made", "-q", "--q-bits", "8", "--q-group-size", "32")
    exact, near = (Run(moshi_mlx.load(path, dtype=mx.float32), "stt") for path in (FAMILY / "stt", made))
    both = [run.drawn()[1][0] for run in (exact, near)]
    np.testing.assert_allclose(*both, atol=0.05)


# --- what inspect and the card say ----------------------------------------------------------------------------------

SAID = {
    "plain_2026": ("role: dialogue",),
    "hibiki": ("role: translator", "conditions: description (very_bad, bad, neutral, good, very_good)", "4 steps"),
    "hibiki_zero": ("role: translator", "conditions: none", "rotary halves", "2 of keys and values"),
    "stt": ("role: transcriber", "hears 8 codebooks, 0.5 s ahead of the text", "4 extra heads of 6 classes",
            "depth decoder: none"),
    "stt_no_heads": ("role: transcriber", "hears 8 codebooks, 2.5 s ahead of the text, after 1 s of silence",
                     "extra heads: none"),
    "tts": ("role: speaker", "speaks 4 codebooks, 0.32 s behind the text", "two texts in one, 2 words ahead",
            "speaker_wavs (vectors of 8, by cross-attention)", "cfg (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)",
            "control (ok)", "id: 1e68beda@240"),
    "tts_prefix": ("role: speaker", "conditions: none", "of which 5 are asked for", "id: d6ef30c7@1000"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_says_the_role_and_what_goes_with_it(kind, capsys):
    text = described(FAMILY / kind, capsys)
    for line in SAID[kind]:
        assert line in text
    assert "temporal transformer: 2 layers of 32" in text


CARDS = {
    "hibiki": ("conditions: description (very_bad, bad, neutral, good, very_good)", "speech-translation"),
    "stt": ("4 extra heads of 6 classes", "automatic-speech-recognition"),
    "tts": ("by cross-attention", "text-to-speech"),
    "tts_prefix": ("of which 5 are asked for", "text-to-speech"),
}


@pytest.mark.parametrize("kind", CARDS)
def test_the_card_says_it_too(kind, tmp_path):
    text = (convert(FAMILY / kind, tmp_path / "made") / "README.md").read_text()
    for said in (*CARDS[kind], "2 layers of 32", loaded(kind).config.role):
        assert said in text
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["model_type"] in ("hibiki", "stt", "tts")
