"""Every layout gives the reference's tokens; whatever is wrong with a checkpoint is one line that names it."""

import json
import os
import re
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers import GOLDENS, check_tokens, delays, edit_json, golden, run_codes

import moshi_mlx
from moshi_mlx import CheckpointError, ConfigError, MoshiError
from moshi_mlx.checkpoints import finding
from moshi_mlx.checkpoints.filling import module_at
from moshi_mlx.checkpoints.layouts import kyutai_mlx, linear
from moshi_mlx.models import config as configs

LM = golden("lm")
DELAY1 = {key: LM[f"delay1.{key}"] for key in ("text", "audio")}


def tensors(path):
    return dict(mx.load(str(path)))


def save(path, values):
    path.unlink(missing_ok=True)
    mx.save_safetensors(str(path), values)


def check_delay1(folder, dtype=mx.float32, count=60):
    model = moshi_mlx.load(folder, dtype=dtype)
    expected = {"text": DELAY1["text"][: count + 1], "audio": DELAY1["audio"][:, :count]}
    check_tokens(run_codes(model, LM["user"][:, :count]), expected)
    return model


def first_generation(values):
    """Kyutai's published names: one projection tensor of all the depth decoder's steps, concatenated."""
    old, steps = {}, {}
    for name, value in values.items():
        match = re.fullmatch(r"(.*self_attn\.)(in|out)_projs\.(\d+)\.weight", name)
        if match:
            stem = f"{match[1]}in_proj_weight" if match[2] == "in" else f"{match[1]}out_proj.weight"
            steps.setdefault(stem, {})[int(match[3])] = value
        else:
            old[name] = value
    return old | {stem: mx.concatenate([parts[i] for i in sorted(parts)]) for stem, parts in steps.items()}


def test_pytorch_layout_of_both_generations(checkpoint):
    folder = checkpoint()
    assert "transformer.layers.0.self_attn.in_projs.0.weight" in tensors(folder / "model.safetensors")
    check_delay1(folder)
    save(folder / "model.safetensors", first_generation(tensors(folder / "model.safetensors")))
    check_delay1(folder)


def test_mlx_layout(checkpoint):
    check_delay1(checkpoint("moshi_tiny_mlx"))


def test_float32_file(checkpoint):
    folder = checkpoint()
    values = tensors(folder / "model.safetensors")
    assert {v.dtype for v in values.values()} == {mx.bfloat16}
    save(folder / "model.safetensors", {k: v.astype(mx.float32) for k, v in values.items()})
    check_delay1(folder, dtype=None)


def test_dtype_none_keeps_the_stored_type(checkpoint):
    model = moshi_mlx.load(checkpoint())
    stored = {v.dtype for _, v in nn.utils.tree_flatten(model.decoder.parameters())}
    assert stored == {mx.bfloat16}
    assert model.audio_encoder.dtype == mx.float32
    assert run_codes(model, LM["user"][:, :3])[-1].pcm.dtype == np.float32


def shared_mlx_layout(checkpoint):
    """The schedule model in the MLX layout, which repeats shared weights in every slice."""
    folder = checkpoint("moshi_schedule")
    model = moshi_mlx.load(folder, dtype=mx.float32)
    values = {}
    streams, dim = len(model.config.audio_delays), model.config.depth_decoder_config.hidden_size
    for row in kyutai_mlx(model.config):
        module, leaf = module_at(model, row.ours)
        sizes = [65] + [33] * streams if row.ours.endswith("embed_tokens.weight") else [dim] * len(row.theirs)
        value = module[leaf].T if row.build is linear else module[leaf]
        parts = mx.split(value, np.cumsum(sizes)[:-1].tolist()) if len(row.theirs) > 1 else [value]
        values |= dict(zip(row.theirs, parts, strict=True))
    schedule = model.config.depth_decoder_config.schedule
    for step, weights in enumerate(schedule):
        first = f"depformer.slices.{schedule.index(weights)}."
        repeated = {k: v for k, v in values.items() if k.startswith((f"{first}transformer.", f"{first}linear_in."))}
        values |= {k.replace(first, f"depformer.slices.{step}."): v for k, v in repeated.items()}
    save(folder / "model.safetensors", values)
    return folder


def test_mlx_layout_with_shared_depth_weights(checkpoint):
    model = moshi_mlx.load(shared_mlx_layout(checkpoint))
    expected = {"text": LM["schedule.text"], "audio": LM["schedule.audio"]}
    check_tokens(run_codes(model, LM["user"][:, :100]), expected)


def wide_config(dim=64):
    depth = moshi_mlx.MoshiDepthConfig(
        vocab_size=64, hidden_size=64, input_size=dim, num_hidden_layers=1, num_attention_heads=2, ffn_dim=128,
        audio_vocab_size=32,
    )  # fmt: skip
    return moshi_mlx.MoshiConfig(
        vocab_size=64, hidden_size=dim, num_hidden_layers=2, num_attention_heads=2, sliding_window=16, ffn_dim=256,
        audio_vocab_size=32, depth_decoder_config=depth,
        audio_encoder_config=moshi_mlx.MimiConfig.from_kyutai(
            json.loads((GOLDENS / "moshi_tiny" / "mimi_config.json").read_text()), "mimi_config.json"
        ),
    )  # fmt: skip


WIDE_KYUTAI = {
    "dim": 64, "num_heads": 2, "num_layers": 2, "hidden_scale": 3.0, "context": 16, "depformer_dim": 64,
    "depformer_num_layers": 1, "depformer_dim_feedforward": 96,
}  # fmt: skip


def unpacked(packed, scales, biases, bits):
    """An affine matrix by hand: every word holds its values from the lowest bits up, each scale * q + bias."""
    packed, scales, biases = (np.array(a) for a in (packed, scales, biases))
    as_bits = (packed[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    q = as_bits.reshape(len(packed), -1, bits) @ (1 << np.arange(bits))
    groups = q.reshape(*scales.shape, -1) * scales[..., None] + biases[..., None]
    return mx.array(groups.reshape(len(packed), -1).astype(np.float32))


def quantized_checkpoint(checkpoint, bits, group_size, seed=0):
    """Random weights, wide enough to quantize, in the MLX layout, quantized; and the same, unpacked by hand."""
    folder = checkpoint("moshi_tiny_mlx", **WIDE_KYUTAI)
    config, values, plain = wide_config(), {}, {}
    model = moshi_mlx.MoshiForConditionalGeneration(config)
    mx.random.seed(seed)
    for row in kyutai_mlx(config):
        module, leaf = module_at(model, row.ours)
        shape = module[leaf].shape[::-1] if row.build is linear else module[leaf].shape
        rows = row.rows or [shape[0] // len(row.theirs)] * len(row.theirs)
        for name, count in zip(row.theirs, rows, strict=True):
            value = mx.random.normal((count, *shape[1:])) * 0.2 + (len(shape) == 1)
            if value.ndim == 1:
                values[name] = plain[name] = value
                continue
            parts = mx.quantize(value, group_size, bits)
            values |= dict(zip((name, *(name.replace("weight", s) for s in ("scales", "biases"))), parts, strict=True))
            plain[name] = unpacked(*parts, bits)
    save(folder / "model.safetensors", values)
    return folder, plain


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 64), (3, 64), (6, 32)])
def test_quantized_files_load_by_their_tensors(checkpoint, bits, group_size):
    folder, plain = quantized_checkpoint(checkpoint, bits, group_size)
    model = moshi_mlx.load(folder)
    head, table = model.decoder.lm_head, model.decoder.model.embed_tokens
    assert (head.bits, head.group_size, table.bits, table.group_size) == (bits, group_size, bits, group_size)
    np.testing.assert_array_equal(np.array(table(mx.array([-1, 0])))[0], np.zeros(64))
    save(folder / "model.safetensors", plain)
    reference = moshi_mlx.load(folder)
    tokens = mx.array(np.random.default_rng(0).integers(-1, 32, (1, 17, 12)))
    logits = [
        np.array(m.decoder.step(tokens, m.decoder.model.init_state(1, positions=12))[1]) for m in (model, reference)
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4 * np.abs(logits[1]).max())
    frames = [run_codes(m, LM["user"][:, :8]) for m in (model, reference)]
    for got, expected in zip(*frames, strict=True):
        assert got.text_token == expected.text_token
        np.testing.assert_array_equal(got.audio_codes, expected.audio_codes)


def test_sizes_without_config_come_from_tensors_and_a_preset(checkpoint, monkeypatch):
    folder, _ = quantized_checkpoint(checkpoint, 4, 32)
    expected = run_codes(moshi_mlx.load(folder), LM["user"][:, :5])
    names = {
        "model.q4": "model",
        finding.MIMI_NAME: "mimi.safetensors",
        finding.TOKENIZER_NAME: "tokenizer.model",
    }
    (folder / "model.safetensors").rename(folder / "model.q4.safetensors")
    for ours in list(names)[1:]:
        (folder / names[ours]).rename(folder / ours)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no known model has these sizes \(hidden_size 64, num_hidden_layers 2"):
        moshi_mlx.load(folder)
    monkeypatch.setitem(configs.PRESETS, "tiny", wide_config())
    monkeypatch.setattr(finding, "MimiConfig", lambda: wide_config().audio_encoder_config)
    for got, frame in zip(run_codes(moshi_mlx.load(folder), LM["user"][:, :5]), expected, strict=True):
        np.testing.assert_array_equal(got.audio_codes, frame.audio_codes)


def test_sampling_defaults_of_the_checkpoint_are_used(checkpoint):
    folder = checkpoint(lm_gen_config={"temp": 0.5, "temp_text": 0.25, "top_k": 7, "top_k_text": 3, "cfg_coef": 1.0})
    model = moshi_mlx.load(folder)
    sampling = model.session()._sampling
    assert (sampling.audio.temperature, sampling.audio.top_k) == (0.5, 7)
    assert (sampling.text.temperature, sampling.text.top_k) == (0.25, 3)
    assert model.session(top_k=9)._sampling.audio.top_k == 9
    edit_json(folder / "config.json", lm_gen_config={"use_sampling": False})
    assert moshi_mlx.load(folder).session()._sampling.audio.greedy


def rewrite(folder, change, file="model.safetensors"):
    values = tensors(folder / file)
    change(values)
    save(folder / file, values)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


EMB = "emb.3.weight"
BAD = {
    "no model": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
    "no mimi": (lambda f: (f / "mimi.safetensors").unlink(), "mimi.safetensors: no such file"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model: no such file"),
    "empty file": (lambda f: cut(f / "model.safetensors", 0), "cut short or not a safetensors file (0 bytes)"),
    "not safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"x" * 500),
        "its header does not parse",
    ),
    "cut in the header": (lambda f: cut(f / "model.safetensors", 100), "cut short"),
    "cut in a tensor": (lambda f: cut(f / "model.safetensors", 200_000), "is incomplete; download the file again"),
    "missing tensor": (lambda f: rewrite(f, lambda v: v.pop(EMB)), f"tensor '{EMB}' is missing"),
    "extra tensor": (lambda f: rewrite(f, lambda v: v.update(odd=mx.zeros(3))), "tensor 'odd' has no place"),
    "wrong type": (
        lambda f: rewrite(f, lambda v: v.update({EMB: v[EMB].astype(mx.int32)})),
        f"tensor '{EMB}' has the type I32, expected a float",
    ),
    "wrong shape": (
        lambda f: rewrite(f, lambda v: v.update({"text_linear.weight": v["text_linear.weight"][:60]})),
        "tensor 'text_linear.weight' has the shape [60, 32], but the config wants [64, 32]",
    ),
    "wrong width": (
        lambda f: rewrite(f, lambda v: v.update({EMB: v[EMB][:, :30]})),
        "tensor 'emb.3.weight' has the shape [33, 30]",
    ),
    "unknown layout": (
        lambda f: save(f / "model.safetensors", {"a.b": mx.zeros(2)}),
        "tensors of an unknown layout (the first is 'a.b')",
    ),
    "missing mimi tensor": (
        lambda f: rewrite(f, lambda v: v.pop("downsample.conv.conv.conv.weight"), "mimi.safetensors"),
        "tensor 'downsample.conv.conv.conv.weight' is missing",
    ),
    "config contradicts tensors": (
        lambda f: edit_json(f / "config.json", num_layers=3),
        "layers.2.norm1.alpha' is missing",
    ),
    "config contradicts width": (lambda f: edit_json(f / "config.json", hidden_scale=3.0), "but the config wants"),
    "unknown key": (lambda f: edit_json(f / "config.json", colour=1), "config.json: unknown key 'colour'"),
    "lora": (
        lambda f: edit_json(f / "config.json", lora_name="lora.safetensors"),
        "key 'lora_name' is 'lora.safetensors'",
    ),
    "helium": (lambda f: edit_json(f / "config.json", model_type="helium"), "key 'model_type' is 'helium'"),
    "tts": (lambda f: edit_json(f / "config.json", tts_config={"a": 1}), "key 'tts_config'"),
    "cfg": (lambda f: edit_json(f / "config.json", lm_gen_config={"cfg_coef": 2.0}), "key 'cfg_coef' is 2.0"),
    "bad json": (lambda f: (f / "config.json").write_text("{"), "config.json: not a JSON file"),
    "json list": (lambda f: (f / "config.json").write_text("[]"), "got a JSON list, expected an object"),
    "no sentencepiece": (
        lambda f: (f / "tokenizer.model").write_text("hello"),
        "tokenizer.model: not a sentencepiece model",
    ),
    "no mimi config": (lambda f: (f / "mimi_config.json").unlink(), "mimi_config.json: no such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints_are_named(checkpoint, name):
    folder = checkpoint()
    spoil, message = BAD[name]
    spoil(folder)
    with pytest.raises(MoshiError) as caught:
        moshi_mlx.load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_file_is_told(checkpoint):
    folder = checkpoint()
    size = (folder / "model.safetensors").stat().st_size
    for keep in (1, 7, 8, 9, size // 2, size - 1):
        shutil.copy(GOLDENS / "moshi_tiny" / "model.safetensors", folder)
        cut(folder / "model.safetensors", keep)
        with pytest.raises(CheckpointError, match="cut short"):
            moshi_mlx.load(folder)


def test_a_tokenizer_that_does_not_fit(checkpoint):
    folder = checkpoint()
    path = folder / "tokenizer.model"
    import sentencepiece

    text = folder / "text.txt"
    text.write_text("one two three four five six seven eight nine ten\n" * 20)
    sentencepiece.SentencePieceTrainer.Train(
        input=str(text), model_prefix=str(folder / "other"), vocab_size=30, hard_vocab_limit=False, minloglevel=9
    )
    os.replace(folder / "other.model", path)
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ pieces, but the model's text vocabulary has 64"):
        moshi_mlx.load(folder)


def test_quantized_widths_that_no_quantization_has(checkpoint):
    folder, _ = quantized_checkpoint(checkpoint, 4, 32)
    rewrite(folder, lambda v: v.update({"text_linear.weight": v["text_linear.weight"][:, :7]}))
    with pytest.raises(CheckpointError, match="config and tensors contradict"):
        moshi_mlx.load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", 'no such folder; expected one, "miniature", or a hub id'),
        ("nowhere", "no such folder"),
        ("./kyutai/moshiko", "no such folder"),
        ("kyutai/no-such-repository", "or give the path of a folder that holds the checkpoint"),
        (__file__, "is a file, expected a folder"),
    ],
)
def test_unknown_places_are_named(name, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as caught:
        moshi_mlx.load(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dtype_must_be_a_float(checkpoint):
    with pytest.raises(ConfigError, match="expected a floating type"):
        moshi_mlx.load(checkpoint(), dtype=mx.int32)


def test_delays_come_from_the_config(checkpoint):
    assert moshi_mlx.load(checkpoint(delays=delays(2))).config.audio_delays == tuple(delays(2)[1:])
