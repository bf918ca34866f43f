"""Adapters: Kyutai's own files give its package's losses; what fits not is named; merged, beside and in a session."""

import contextlib
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers import GOLDENS, golden, run_codes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from training import TRAINING, check_losses, losses, quantize

import moshi_mlx
from moshi_mlx import CheckpointError, ConfigError, MoshiError
from moshi_mlx.checkpoints import adapters
from moshi_mlx.local import __main__ as local


@pytest.fixture
def adapter(tmp_path):
    """A function that copies Kyutai's adapter, its tensors edited by `change`."""

    def copy(change=lambda tensors: tensors):
        folder = tmp_path / "adapter"
        shutil.copytree(GOLDENS / "lora_tiny", folder)
        mx.save_safetensors(str(folder / "lora.safetensors"), change(dict(mx.load(str(folder / "lora.safetensors")))))
        return folder

    return copy


def tiny(case="tiny", checkpoint=None, **arguments):
    folder = GOLDENS / "moshi_tiny" if case == "tiny" else checkpoint("moshi_schedule")
    return moshi_mlx.load(folder, dtype=mx.float32, **arguments)


@pytest.mark.parametrize("case", ["tiny", "schedule"])
def test_kyutais_file_gives_kyutais_losses(case, checkpoint):
    model = tiny(case, checkpoint, adapter=GOLDENS / f"lora_{case}")
    check_losses(model, f"{case}.lora")
    assert not any(isinstance(module, adapters.LoRALinear) for module in model.modules())  # merged


def test_unmerged_layers_are_the_same(checkpoint):
    model = tiny("schedule", checkpoint)
    for path, update in adapters.updates(
        model, adapter := adapters.read(GOLDENS / "lora_schedule", model.config)
    ).items():
        adapters.attach(model, path, *update, adapter.scale)
    check_losses(model, "schedule.lora")


def test_a_file_survives_the_way_there_and_back():
    model = tiny()
    adapter = adapters.read(GOLDENS / "lora_tiny", model.config)
    updates = adapters.updates(model, adapter)
    ours = {f"{path}.lora_{leaf}": pair["ab".index(leaf)] for path, pair in updates.items() for leaf in "ab"}
    back = adapters.to_kyutai(ours, model.config)
    assert set(back) == set(adapter.tensors)
    for name, tensor in back.items():
        assert mx.array_equal(tensor, adapter.tensors[name].astype(tensor.dtype)), name


def test_every_linear_layer_can_be_adapted():
    model = tiny()
    linear = {name.removesuffix(".weight") for name, value in tree_flatten(model.parameters())
              if value.ndim == 2 and name.startswith("de") and "emb" not in name}  # fmt: skip
    assert set(adapters.layers(model.config)) == linear


def test_earlier_names_of_attention(adapter):
    def fuse(tensors):
        """One tensor for all steps, as the reference's loader splits."""
        fused = {}
        for name, tensor in tensors.items():
            path, _, rest = name.partition(".self_attn.")
            stem, number, *leaf = rest.split(".") if rest else ("", "", "")
            key = f"{path}.self_attn.{stem.removesuffix('s')}.{'.'.join(leaf)}" if rest else name
            fused.setdefault(key, {})[int(number or 0)] = tensor
        return {key: mx.concatenate([parts[n] for n in sorted(parts)]) for key, parts in fused.items()}

    check_losses(tiny(adapter=adapter(fuse)), "tiny.lora")


def test_a_quantized_base_keeps_the_update_beside_it():
    model = quantize(tiny())
    adapters.load(model, GOLDENS / "lora_tiny")
    kept = [module for module in model.modules() if isinstance(module, adapters.LoRALinear)]
    assert kept
    assert all(isinstance(module.base, nn.QuantizedLinear) for module in kept)
    check_losses(model, "tiny.lora", tolerance=0.05)  # eight bits are near, and far from the base alone
    assert abs(losses(tiny())["acoustic"] / TRAINING["tiny.lora.acoustic"] - 1) > 0.08


def test_several_adapters_add_up():
    def twice(model):
        for _ in range(2):
            adapters.load(model, GOLDENS / "lora_tiny")
        return losses(model)["loss"]

    np.testing.assert_allclose(twice(quantize(tiny())), twice(tiny()), rtol=0.05)


def test_tuned_embedding_tables_replace_the_models(adapter):
    tensors = mx.load(str(GOLDENS / "moshi_tiny" / "model.safetensors"))
    doubled = {name: 2 * tensor for name, tensor in tensors.items() if "emb" in name}
    model, plain = tiny(adapter=adapter(lambda tensors: tensors | doubled)), tiny()
    for path in ("decoder.model.embed_tokens", "depth_decoder.slices.0.emb", "depth_decoder.slices.7.emb"):
        tables = [np.array(adapters.layer_at(m, path).weight) for m in (model, plain)]
        np.testing.assert_array_equal(tables[0], 2 * tables[1])


def test_low_rank_tables_keep_their_projection(checkpoint):
    model = tiny("schedule", checkpoint)
    table = adapters.layer_at(model, "depth_decoder.slices.1.emb")
    tensors = {"depformer_emb.0.weight": mx.zeros_like(table.weight)}
    folder = checkpoint("moshi_tiny")
    files = dict(mx.load(str(GOLDENS / "lora_schedule" / "lora.safetensors")))
    mx.save_safetensors(str(folder / "lora.safetensors"), files | tensors)
    adapters.load(model, folder / "lora.safetensors")
    replaced = adapters.layer_at(model, "depth_decoder.slices.1.emb")
    assert "low_rank" in replaced
    assert not replaced.weight.any()


def test_conversations_with_an_adapter_differ_and_repeat():
    codes = golden("lm")["user"][:, :8]
    one, two, without = (
        [frame.audio_codes for frame in run_codes(tiny(**arguments), codes)]
        for arguments in ({"adapter": GOLDENS / "lora_tiny"}, {"adapter": GOLDENS / "lora_tiny"}, {})
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, without)


def test_the_command_line_hands_the_adapter_on(monkeypatch, tmp_path, capsys):
    def load(name, **settings):
        raise CheckpointError(f"asked for {settings}")

    monkeypatch.setattr(moshi_mlx, "load", load)
    assert (
        local.main(["--demo", "--output-device", "none", "--adapter", "mine", "--output", str(tmp_path / "reply.wav")])
        == 2
    )
    assert "asked for {'adapter': 'mine'}" in capsys.readouterr().err


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def with_shape(name, *shape):
    return lambda tensors: tensors | {name: mx.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("linears.3.lora_B.weight"), "tensor 'linears.3.lora_B.weight' is missing"),
        (with_shape("linears.3.lora_B.weight", 31, 2), r"'linears.3.lora_B.weight' has the shape \[31, 2\], expected"),
        (with_shape("text_linear.lora_A.weight", 2, 33), r"'text_linear.lora_A.weight' has the shape \[2, 33\]"),
        (with_shape("depformer_in.1.lora_A.weight", 3, 32), r"'depformer_in.1.lora_A.weight' has the shape \[3, 32\]"),
        (with_shape("transformer.layers.2.linear1.lora_A.weight", 2, 32), "'transformer.layers.2.*has no place"),
        (with_shape("emb.0.weight", 33, 32), "has the tensor 'emb.0.weight' but not 'emb.1.weight'"),
        (with_shape("depformer_emb.0.weight", 33, 15), r"'depformer_emb.0.weight' gives the shape \[33, 15\]"),
        (lambda tensors: {"x": mx.zeros((2,), mx.int32)}, "tensor 'x' has the type I32, expected a float"),
        (with_shape("linears.3.lora_B.weight"), r"'linears.3.lora_B.weight' has the shape \[\], expected a matrix"),
        (with_shape("linears.3.lora_B.weight", 31), r"'linears.3.lora_B.weight' has the shape \[31\], expected a mat"),
        (with_shape("emb.0.weight", 0, 32), r"'emb.0.weight' has the shape \[0, 32\], expected a matrix"),
        (lambda t: t | {"linears.3.lora_B.weight": t["linears.3.lora_B.weight"] * float("nan")},
         "tensor 'linears.3.lora_B.weight' holds values that are no numbers"),
        (lambda tensors: {}, "holds no adapter's tensors"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(adapter, change, message):
    with pytest.raises(CheckpointError, match=message):
        tiny(adapter=adapter(change))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no adapter, expected adapters.safetensors or Kyutai's"):
        tiny(adapter=tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        tiny(adapter=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("files", "scale"),
    [
        ({}, 2.0),
        ({"config.json": '{"lora_scaling": 3}'}, 3.0),
        ({"adapter_config.json": '{"lora_parameters": {"rank": 8, "scale": 20.0}}', "config.json": "{}"}, 20.0),
    ],
)
def test_the_scale_stands_beside_the_tensors(adapter, files, scale):
    folder = adapter()
    (folder / "config.json").unlink()
    for name, text in files.items():
        (folder / name).write_text(text)
    assert adapters.read(folder, tiny().config).scale == scale


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", '{"lora_scaling": "two"}', "key 'lora_scaling' is 'two', expected a number"),
        ("config.json", '{"lora_scaling": true}', "key 'lora_scaling' is True"),
        ("config.json", '{"lora_scaling": NaN}', "expected a number|is no number"),
        ("config.json", '{"lora_scaling": -Infinity}', "expected a number|is no number"),
        ("config.json", '{"lora_scaling": 1e39}', "key 'lora_scaling' is 1e.39"),
        ("adapter_config.json", '{"lora_parameters": {"scale": 1e999}}', "expected a number|too large"),
        ("adapter_config.json", '{"lora_parameters": [2]}', "key 'lora_parameters' is \\[2\\]"),
        ("adapter_config.json", '{"lora_parameters": {"scale": [2]}}', "key 'scale' is"),
        ("adapter_config.json", "[]", "got a JSON list, expected an object"),
        ("adapter_config.json", "{", "not a JSON file"),
    ],
)
def test_a_wrong_scale_is_named(adapter, file, text, message):
    folder = adapter()
    (folder / file).write_text(text)
    with pytest.raises(ConfigError, match=message):
        tiny(adapter=folder)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(start=st.integers(0, 6000), drop=st.integers(0, 30), insert=st.binary(max_size=8), length=st.integers(0, 9000))
def test_adapters_damaged_in_any_way_are_read_or_named(model, tmp_path, start, drop, insert, length):
    content = (GOLDENS / "lora_tiny" / "lora.safetensors").read_bytes()
    content = content[:start] + insert + content[start + drop :]
    (tmp_path / "lora.safetensors").write_bytes(content[:length] if length < 4500 else content)
    with contextlib.suppress(MoshiError):
        found = adapters.updates(model, adapters.read(tmp_path, model.config))
        assert all(bool(mx.isfinite(part).all()) for update in found.values() for part in update)
