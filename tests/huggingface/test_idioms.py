"""What programs written for transformers do with a model, its parts, its config and what it returns."""

import copy
import dataclasses
import json
import tempfile

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers import GOLDENS, golden, question
from mlx.utils import tree_flatten

import moshi_mlx
from moshi_mlx import (
    ConfigError,
    InputError,
    MimiConfig,
    MimiModel,
    MoshiConfig,
    MoshiDepthConfig,
    MoshiDepthDecoder,
    MoshiForCausalLM,
    MoshiForConditionalGeneration,
    MoshiModel,
)
from moshi_mlx.huggingface.outputs import GenerateOutput

FORWARD = golden("huggingface_forward")
HF = GOLDENS / "moshi_tiny_hf"
HIDDEN = np.ones((1, 1, 32), np.float32)
DEPTH_IDS = np.array([[5, 1, 2, 3, 4, 5, 6, 7]])
SMALL = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24,
    "sliding_window": 9, "initializer_range": 0.4,
}  # fmt: skip


@pytest.fixture
def fresh():
    """The golden model, to change."""
    return moshi_mlx.load(GOLDENS / "moshi_tiny", dtype=mx.float32)


# --- outputs --------------------------------------------------------------------------------------------------------


def test_outputs_read_as_a_dict_does(model):
    ids = FORWARD["ids"][:1, :4]
    out = model.decoder(ids, labels=ids)
    assert list(out) == out.keys() == [name for name, _ in out.items()]
    assert len(out) == 4
    assert out.keys()[:2] == ["loss", "logits"]
    assert [value is out[name] for name, value in out.items()] == [True] * 4
    assert out.values()[1] is out.logits is out[1] is out["logits"] is out[:2][1]
    assert "logits" in out
    assert "attentions" not in out
    assert out.get("attentions") is None
    assert out.get("attentions", 3) == 3
    assert out.get("loss") is out.loss
    out["logits"] = 7
    assert out.logits == out["logits"] == 7
    with pytest.raises(KeyError):
        out["sound"] = 1
    assert dict(out)["logits"] == 7
    assert bool(GenerateOutput())


def test_the_order_is_transformers(model):
    """By number: loss, logits, and so on, whatever else is returned here."""
    text, codes = np.array([[5, 9]]), np.ones((1, 8, 2), int)
    given = {"input_ids": text, "moshi_audio_codes": codes, "user_audio_codes": codes}
    assert model(**given)[0] is not None
    assert model(**given).keys() == ["logits", "last_hidden_state", "past_key_values"]
    out = model(**given, text_labels=text, audio_labels=codes)
    assert out.keys() == ["loss", "logits", "last_hidden_state", "depth_loss", "audio_logits", "text_loss"]
    assert model.depth_decoder(DEPTH_IDS, HIDDEN).keys() == ["logits", "past_key_values"]
    assert model.audio_encoder(question()[None, :1920]).keys() == ["audio_codes", "audio_values"]
    out = model.generate(max_new_tokens=2, return_audio_codes=True)
    assert out.keys() == ["audio_sequences", "sequences", "audio_codes"]


def test_no_sound_is_a_plain_array(model):
    plain = model.generate(max_new_tokens=2, return_audio_waveforms=False)
    assert isinstance(plain, mx.array)
    assert plain.shape == (1, 3)
    kept = model.generate(max_new_tokens=2, return_audio_waveforms=False, return_dict_in_generate=True)
    np.testing.assert_array_equal(np.array(kept.sequences), np.array(plain))
    assert kept.audio_sequences is None
    codes = model.generate(max_new_tokens=2, return_audio_waveforms=False, return_audio_codes=True)
    assert codes.keys() == ["sequences", "audio_codes"]


# --- calls ----------------------------------------------------------------------------------------------------------


def test_the_codec_takes_codes_in_the_place_of_sound(model):
    mimi, sound = model.audio_encoder, question()[None, :3000]
    whole = mimi(sound, num_quantizers=8)
    again = mimi(sound, audio_codes=whole.audio_codes)
    np.testing.assert_array_equal(np.array(again.audio_values), np.array(whole.audio_values))
    alone = mimi(audio_codes=np.array(whole.audio_codes).tolist())
    assert alone.audio_values.shape == (1, 1, 3840)
    np.testing.assert_array_equal(np.array(alone.audio_values)[..., :3000], np.array(whole.audio_values))
    with pytest.raises(InputError, match="got none of them"):
        mimi()


@pytest.mark.parametrize("samples", [0, 1, 1919, 1920, 1921, 24000])
def test_how_many_frames_sound_is_encoded_as(model, samples):
    mimi = model.audio_encoder
    count = mimi.encode(np.zeros((1, samples), np.float32)).audio_codes.shape[2] if samples else 0
    assert mimi.get_encoded_length(samples) == mimi.get_encoded_length(np.int64(samples)) == count
    assert mimi.get_encoded_length(mx.array([samples, 1])).tolist() == [count, 1]
    for wrong in (-1, 1.5, [2.0], "a"):
        with pytest.raises(InputError, match="input_length"):
            mimi.get_encoded_length(wrong)


def test_the_depth_decoder_takes_its_arguments_in_transformers_order(model):
    depth = model.depth_decoder
    whole = depth(DEPTH_IDS, HIDDEN)
    first = depth(DEPTH_IDS[:, :3], HIDDEN, np.ones((1, 3), int), None, None, True)
    rest = depth(DEPTH_IDS[:, 3:], HIDDEN, None, first.past_key_values)
    np.testing.assert_allclose(np.concatenate([first.logits, rest.logits], axis=1), np.array(whole.logits), atol=1e-4)
    with pytest.raises(InputError, match="never padded"):
        depth(DEPTH_IDS, HIDDEN, np.array([[1] * 7 + [0]]))
    for past in ((), 3, [[1]] * 2, "a", {}):
        with pytest.raises(InputError, match="past_key_values: got no state"):
            depth(DEPTH_IDS[:, 3:], HIDDEN, None, past)


def test_a_config_says_whether_states_are_returned(fresh):
    ids = FORWARD["ids"][:1, :4]
    assert fresh.decoder(ids).past_key_values is not None
    fresh.config.use_cache = False
    assert fresh.decoder(ids).past_key_values is None
    assert fresh(ids).past_key_values is None
    assert fresh.decoder.model(ids).past_key_values is None
    assert fresh.decoder(ids, use_cache=True).past_key_values is not None
    fresh.config.depth_decoder_config.use_cache = False
    assert fresh.depth_decoder(DEPTH_IDS, HIDDEN).past_key_values is None
    fresh.config.use_cache = np.True_
    assert fresh.config.use_cache is True
    assert copy.deepcopy(fresh.config) == fresh.config
    with pytest.raises(ConfigError, match="use_cache: got 'no'"):
        fresh.config.use_cache = "no"
    for config, name in ((fresh.config, "hidden_size"), (fresh.config, "colour"), (MimiConfig(), "use_cache")):
        with pytest.raises(dataclasses.FrozenInstanceError, match=r"dataclasses.replace\(config"):
            setattr(config, name, 1)


# --- methods --------------------------------------------------------------------------------------------------------


def test_parameters_are_counted():
    model = MoshiForCausalLM(MoshiConfig(**SMALL, audio_delays=()))
    table, head = 20 * 16, 16 * 20
    layer = 16 * 48 + 16 * 16 + 16 * 24 + 12 * 16 + 2 * 16
    assert model.num_parameters() == table + head + 2 * layer + 16
    assert model.num_parameters(exclude_embeddings=True) == head + 2 * layer + 16
    model.lm_head.freeze()
    assert model.num_parameters(only_trainable=True) == table + 2 * layer + 16


def test_shared_and_quantized_weights_count_once_and_whole(checkpoint):
    shared = moshi_mlx.load(checkpoint("moshi_schedule"), dtype=mx.float32).depth_decoder
    distinct = {id(value): value.size for _, value in tree_flatten(shared.parameters())}
    assert shared.num_parameters() == sum(distinct.values())
    model = MoshiForCausalLM(MoshiConfig(**{**SMALL, "hidden_size": 64, "ffn_dim": 128}, audio_delays=()))
    before = model.num_parameters()
    model.lm_head = nn.QuantizedLinear(64, 20, bias=False, group_size=64, bits=4)
    assert model.num_parameters() == before


def test_types_and_tables(model):
    parts = (model, model.decoder, model.decoder.model, model.depth_decoder, model.audio_encoder)
    assert [part.dtype for part in parts] == [mx.float32] * 5
    half = MoshiForConditionalGeneration.from_pretrained(HF, dtype="bfloat16")
    assert [half.dtype, half.depth_decoder.dtype, half.audio_encoder.dtype] == [mx.bfloat16, mx.bfloat16, mx.float32]
    ids = FORWARD["ids"][:1, :4]
    embeds = model.get_input_embeddings()(mx.array(ids))
    np.testing.assert_allclose(
        np.array(model.decoder(inputs_embeds=embeds).logits), np.array(model.decoder(ids).logits), atol=1e-5
    )
    assert model.get_output_embeddings() is model.decoder.lm_head
    assert model.decoder.model.get_output_embeddings() is None
    with pytest.raises(InputError, match="has no input embeddings"):
        model.audio_encoder.get_input_embeddings()


@pytest.mark.parametrize("size", [70, 60, 64])
def test_another_vocabulary(model, fresh, size, tmp_path):
    ids = FORWARD["ids"][:1, :6] % 60
    codes = np.ones((1, 8, 6), int)
    assert fresh.resize_token_embeddings(size) is fresh.get_input_embeddings()
    assert fresh.config.vocab_size == fresh.depth_decoder.config.vocab_size == size
    kept, given = min(size, 64), {"moshi_audio_codes": codes, "user_audio_codes": codes}
    before, after = (np.array(m(ids, **given).logits) for m in (model, fresh))
    assert after.shape == (1, 6, size)
    np.testing.assert_allclose(after[..., :kept], before[..., :kept], atol=1e-4)
    if size > 64:  # the mean of all rows gives the mean of all logits
        np.testing.assert_allclose(after[0, :, 64], before.mean(axis=-1)[0], atol=1e-3)
    start = fresh.generate(max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    expected = model.generate(max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    assert start.sequences[0, 0].item() == size  # the initial token is the last row still
    np.testing.assert_allclose(np.array(start.logits[0])[:, :kept], np.array(expected.logits[0])[:, :kept], atol=1e-4)
    fresh.save_pretrained(tmp_path / "resized")
    again = MoshiForConditionalGeneration.from_pretrained(tmp_path / "resized")
    for (name, ours), (_, theirs) in zip(
        tree_flatten(fresh.parameters()), tree_flatten(again.parameters()), strict=True
    ):
        assert mx.array_equal(ours, theirs), name
    np.testing.assert_array_equal(np.array(again(ids, **given).logits), after)
    for wrong in (0, -1, 1.5, "a"):
        with pytest.raises(InputError, match="new_num_tokens"):
            fresh.resize_token_embeddings(wrong)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_checkpointing_changes_no_gradient(frozen):
    model = MoshiForCausalLM(MoshiConfig(**SMALL, audio_delays=()))
    if frozen:
        model.model.transformer.layers[0].freeze()
    ids = np.random.default_rng(0).integers(0, 20, (2, 12))

    def gradients():
        loss, found = nn.value_and_grad(model, lambda m: m(ids, labels=ids, use_cache=False).loss)(model)
        mx.eval(loss, found)
        return loss.item(), dict(tree_flatten(found))

    plain = gradients()
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    less = gradients()
    assert less[0] == pytest.approx(plain[0])
    assert less[1].keys() == plain[1].keys()
    for name, value in plain[1].items():
        np.testing.assert_allclose(np.array(less[1][name]), np.array(value), atol=1e-5, err_msg=name)
    mx.eval(model.parameters())  # the weights are no traces
    model.gradient_checkpointing_disable()
    assert gradients()[0] == pytest.approx(plain[0])


# --- folders --------------------------------------------------------------------------------------------------------


def same_logits(a, b):
    ids = FORWARD["ids"][:, :9]
    np.testing.assert_array_equal(np.array(a(ids).logits), np.array(b(ids).logits))


def saved(part, **settings):
    """A part written into an empty folder, and read again."""
    folder = tempfile.mkdtemp()
    part.save_pretrained(folder)
    return type(part).from_pretrained(folder, **settings), folder


def test_each_part_is_saved_and_loaded_alone(model):
    lm, folder = saved(model.decoder)
    same_logits(lm, model.decoder)
    assert lm.config.to_dict() == model.decoder.config.to_dict()
    assert lm.config == MoshiConfig.from_pretrained(folder)
    again, _ = saved(MoshiForCausalLM.from_pretrained(GOLDENS / "moshi_tiny"))
    assert again.tokenizer.encode("hello") == model.tokenizer.encode("hello")
    tokens = mx.array(golden("lm")["user"][:8, :3].astype(np.int32))
    whole = mx.concatenate([mx.full((1, 1, 3), 5), mx.broadcast_to(tokens[:1, None], (1, 16, 3))], axis=1)
    for a, b in zip(lm.step(whole, lm.model.init_state(1, 3))[:2], model.decoder.step(
        whole, model.decoder.model.init_state(1, 3))[:2], strict=True):  # fmt: skip
        np.testing.assert_array_equal(np.array(a), np.array(b))

    helium, folder = saved(model.decoder.model)
    ids = FORWARD["ids"][:, :9]
    np.testing.assert_array_equal(
        np.array(helium(ids).last_hidden_state), np.array(model.decoder.model(ids).last_hidden_state)
    )
    depth, folder = saved(model.depth_decoder)
    np.testing.assert_array_equal(
        np.array(depth(DEPTH_IDS, HIDDEN).logits), np.array(model.depth_decoder(DEPTH_IDS, HIDDEN).logits)
    )
    assert MoshiDepthConfig.from_pretrained(folder) == depth.config
    assert depth.config.to_dict() == model.depth_decoder.config.to_dict()
    mimi, folder = saved(model.audio_encoder)
    sound = question()[None, : 4 * 1920]
    np.testing.assert_array_equal(
        np.array(mimi.encode(sound).audio_codes), np.array(model.audio_encoder.encode(sound).audio_codes)
    )
    assert MimiConfig.from_pretrained(folder) == mimi.config
    assert mimi.config.to_dict() == model.audio_encoder.config.to_dict()
    whole, _ = saved(model)
    same_logits(whole.decoder, model.decoder)


def names_in(folder):
    return {name for shard in folder.glob("*.safetensors") for name in mx.load(str(shard))}


def test_the_parts_have_transformers_names(model, tmp_path):
    """Those of the whole, which transformers itself wrote, less what stands before them there."""
    theirs = names_in(HF)
    for part, prefix, kind, more in (
        (model.decoder, "decoder.", "moshi", {n for n in theirs if n.startswith("embed_tokens.")}),
        (model.decoder.model, "decoder.model.", "moshi", {n for n in theirs if n.startswith("embed_tokens.")}),
        (model.depth_decoder, "depth_decoder.", "moshi_depth", set()),
        (model.audio_encoder, "audio_encoder.", "mimi", set()),
    ):
        folder = tmp_path / type(part).__name__
        part.save_pretrained(folder)
        assert names_in(folder) == {n.removeprefix(prefix) for n in theirs if n.startswith(prefix)} | more
        config = json.loads((folder / "config.json").read_text())
        assert (config["model_type"], config["architectures"]) == (kind, [type(part).__name__])


def test_a_text_model_that_transformers_wrote_has_no_audio_tables(model, tmp_path):
    model.decoder.save_pretrained(tmp_path / "lm")
    path = tmp_path / "lm" / "model.safetensors"
    tensors = {k: v for k, v in mx.load(str(path)).items() if not k.startswith("embed_tokens.")}
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors)
    same_logits(MoshiForCausalLM.from_pretrained(tmp_path / "lm"), model.decoder)
    same_logits(MoshiForCausalLM.from_pretrained(tmp_path / "lm", torch_dtype="float32"), model.decoder)
    del tensors["model.norm.weight"]
    mx.save_safetensors(str(path), tensors)
    with pytest.raises(moshi_mlx.CheckpointError, match=r"'decoder.model.norm.weight' is missing"):
        MoshiForCausalLM.from_pretrained(tmp_path / "lm")


def test_a_model_of_text_alone_is_saved(tmp_path):
    model = MoshiForCausalLM(MoshiConfig(**SMALL, audio_delays=(), silent_text_tokens=()))
    again, _ = saved(model)
    ids = np.arange(9)[None]
    np.testing.assert_array_equal(np.array(again(ids).logits), np.array(model(ids).logits))
    assert again.config.to_dict() == model.config.to_dict()


def test_an_empty_folder_is_filled_and_another_refused(model, tmp_path):
    with tempfile.TemporaryDirectory() as folder:
        model.depth_decoder.save_pretrained(folder)
        MoshiDepthDecoder.from_pretrained(folder)
        with pytest.raises(InputError, match="is not empty; choose another folder, or replace it: overwrite=True"):
            model.depth_decoder.save_pretrained(folder)
        model.depth_decoder.save_pretrained(folder, overwrite=True)
    (tmp_path / "letter.txt").write_text("dear")
    for part in (model, model.decoder, model.decoder.model, model.depth_decoder, model.audio_encoder):
        for settings in ({}, {"overwrite": True}):
            with pytest.raises(InputError):
                part.save_pretrained(tmp_path, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_the_generation_config_hides_no_column(model, tmp_path):
    """transformers takes columns whose text is pad_token_id for padding: the first one, of initial tokens."""
    model.save_pretrained(tmp_path / "m")
    assert "pad_token_id" not in json.loads((tmp_path / "m" / "generation_config.json").read_text())


CLASSES = [MoshiForConditionalGeneration, MoshiForCausalLM, MoshiModel, MoshiDepthDecoder]


@pytest.mark.parametrize("kind", CLASSES)
def test_types_by_name(kind):
    for settings, expected in (
        ({"dtype": "float16"}, mx.float16), ({"torch_dtype": "bfloat16"}, mx.bfloat16),
        ({"dtype": mx.float16}, mx.float16),
        ({"dtype": "float32", "torch_dtype": mx.float32}, mx.float32), ({"torch_dtype": np.float16}, mx.float16),
    ):  # fmt: skip
        assert kind.from_pretrained(HF, **settings).dtype == expected
    stored = kind.from_pretrained(HF).dtype
    assert kind.from_pretrained(HF, dtype="auto").dtype == kind.from_pretrained(HF, torch_dtype="auto").dtype == stored
    for wrong in (float, 16, "int8", "half", mx.int32, "", ["float16"]):
        for name in ("dtype", "torch_dtype"):
            with pytest.raises(ConfigError, match=r"^dtype: got"):
                kind.from_pretrained(HF, **{name: wrong})
    with pytest.raises(ConfigError, match="as torch_dtype; give one"):
        kind.from_pretrained(HF, dtype="float16", torch_dtype="bfloat16")
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtyp'"):
        kind.from_pretrained(HF, dtyp="float16")


def test_the_codec_has_one_type():
    for same in (None, "auto", "float32", mx.float32):
        assert MimiModel.from_pretrained(HF, dtype=same).dtype == mx.float32
    with pytest.raises(ConfigError, match="the codec runs in float32 alone"):
        MimiModel.from_pretrained(HF, torch_dtype="float16")


EVERY = [*CLASSES, MimiModel, MoshiConfig, MoshiDepthConfig, MimiConfig]


@pytest.mark.parametrize("kind", EVERY)
def test_a_revision_is_passed_to_the_hub(kind, monkeypatch):
    asked = []

    def folder(name, revision=None, **_):
        asked.append((name, revision))
        return HF

    for module in ("pretrained", "config"):
        monkeypatch.setattr(f"moshi_mlx.huggingface.{module}.local_folder", folder)
    kind.from_pretrained("kmhf/hf-moshiko", revision="refs/pr/1")
    kind.from_pretrained("kmhf/hf-moshiko")
    assert set(asked) == {("kmhf/hf-moshiko", "refs/pr/1"), ("kmhf/hf-moshiko", None)}
