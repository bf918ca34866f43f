"""Forward passes, masks and files under Hugging Face's names, against transformers."""

import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers import GOLDENS, edit_json, golden, question
from mlx.utils import tree_flatten

from moshi_mlx import (
    CheckpointError,
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
from moshi_mlx.huggingface.config import TEXT_PRESETS
from moshi_mlx.huggingface.outputs import CausalLMOutput
from moshi_mlx.models.layers import sequence
from moshi_mlx.models.layers.cache import create

FORWARD = golden("huggingface_forward")
FOLDER = GOLDENS / "moshi_tiny_hf"
TINY = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "ffn_dim": 24, "sliding_window": 9, "initializer_range": 0.4, "audio_delays": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def grouped(variant):
    """One head of keys and values, a window of 12, as the forward goldens have it."""
    return variant(num_key_value_heads=1, sliding_window=12)


@pytest.fixture(scope="module")
def tiny():
    """A small model of text with random weights, two groups of heads, a window of 9."""
    return MoshiForCausalLM(MoshiConfig(**TINY))


def ids_of(batch, length, seed=0):
    return np.random.default_rng(seed).integers(0, 20, (batch, length))


def close(got, expected, atol=1e-4):
    np.testing.assert_allclose(np.array(got), np.array(expected), atol=atol)


# --- against transformers -------------------------------------------------------------------------------------------


def test_decoder_equals_transformers(grouped):
    flags = {"output_hidden_states": True, "output_attentions": True}
    out = grouped.decoder(FORWARD["ids"], labels=FORWARD["labels"], **flags)
    close(out.last_hidden_state, FORWARD["text.hidden"])
    close(out.logits, FORWARD["text.logits"], 1e-3)  # their standard deviation is near 8
    close(out.loss, FORWARD["text.loss"])
    assert len(out.hidden_states) == 3
    assert len(out.attentions) == 2
    close(out.hidden_states[1], FORWARD["text.layer1"])
    close(out.hidden_states[2], FORWARD["text.hidden"])
    close(out.attentions[1], FORWARD["text.attention1"])
    model = grouped.decoder.model(FORWARD["ids"])
    close(model.last_hidden_state, FORWARD["text.hidden"])
    assert model.hidden_states is None


def test_three_streams_equal_transformers(grouped):
    out = grouped(FORWARD["ids"], user_audio_codes=FORWARD["user"], moshi_audio_codes=FORWARD["moshi"])
    close(out.logits, FORWARD["both.logits"], 1e-3)
    assert out.loss is None
    assert out.keys() == ["logits", "last_hidden_state", "past_key_values"]


def test_depth_decoder_equals_transformers(grouped):
    depth, given = grouped.depth_decoder, {"last_hidden_state": mx.array(FORWARD["depth.hidden"])}
    out = depth(FORWARD["depth.ids"], **given, labels=FORWARD["depth.labels"])
    close(out.logits, FORWARD["depth.logits"], 1e-3)
    close(out.loss, FORWARD["depth.loss"])
    codes = depth.generate(FORWARD["depth.ids"][:, :1], **given)
    np.testing.assert_array_equal(np.array(codes), FORWARD["depth.generated"])


def test_codec_equals_transformers(model):
    sound = question()[: 20 * 1920].reshape(2, 1, -1)
    out = model.audio_encoder(sound, num_quantizers=8)
    np.testing.assert_array_equal(np.array(out.audio_codes), FORWARD["mimi.codes"])
    peak = np.abs(FORWARD["mimi.audio"]).max()
    close(out.audio_values[..., ::16], FORWARD["mimi.audio"], 1e-4 * peak)
    assert out.audio_values.shape == sound.shape


# --- padding, positions, caches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_rows_alone(tiny, side):
    lengths, ids = (14, 6, 1), ids_of(3, 14)
    spans = [slice(14 - n, 14) if side == "left" else slice(0, n) for n in lengths]
    mask = np.zeros((3, 14), int)
    for row, span in enumerate(spans):
        mask[row, span] = 1
    out = tiny(ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    for row, (span, length) in enumerate(zip(spans, lengths, strict=True)):
        alone = tiny(ids[row : row + 1, span], output_attentions=True, output_hidden_states=True)
        close(out.logits[row : row + 1, span], alone.logits)
        for a, b in zip(out.attentions, alone.attentions, strict=True):
            close(np.array(a)[row : row + 1, :, span, span], b)
        for a, b in zip(out.hidden_states, alone.hidden_states, strict=True):
            close(np.array(a)[row : row + 1, span], b)
        after = tiny(ids[row : row + 1, :3], past_key_values=alone.past_key_values)
        both = tiny(ids[:, :3], past_key_values=out.past_key_values)
        longer = np.concatenate([ids[row : row + 1, span], ids[row : row + 1, :3]], axis=1)
        close(both.logits[row : row + 1], tiny(longer).logits[:, length:])
        close(after.logits, both.logits[row : row + 1])


@pytest.mark.parametrize("parts", [(5, 25), (12, 1, 17), (1,) * 30, (29, 1)])
def test_any_split_equals_the_whole(tiny, parts):
    ids = ids_of(2, 30)
    whole, state, pieces, weights = tiny(ids, output_attentions=True), None, [], None
    for start, length in zip(np.cumsum((0, *parts)), parts, strict=False):
        out = tiny(ids[:, start : start + length], past_key_values=state, output_attentions=True)
        state, weights = out.past_key_values, out.attentions[1]
        pieces.append(np.array(out.logits))
    close(np.concatenate(pieces, axis=1), whole.logits)
    count = min(weights.shape[-1], 9 if parts[-1] == 1 else parts[-1])
    close(weights[..., -count:], whole.attentions[1][:, :, -parts[-1] :, -count:])


def test_the_live_path_goes_on_from_a_sequence_and_a_sequence_from_it(tiny):
    ids = ids_of(2, 20)
    whole = tiny(ids).logits
    state = tiny(ids[:, :12], room=8).past_key_values
    for n in range(12, 16):
        _, logits, state = tiny.step(mx.array(ids[:, None, n : n + 1]), state)
        close(logits[:, 0], whole[:, n])
    close(tiny(ids[:, 16:], past_key_values=state).logits, whole[:, 16:])


def test_a_mask_of_the_whole_length_beside_a_cache(tiny):
    ids, mask = ids_of(2, 12), np.ones((2, 12), int)
    mask[1, :3] = 0
    whole = tiny(ids, attention_mask=mask).logits
    state = tiny(ids[:, :7], attention_mask=mask[:, :7]).past_key_values
    close(tiny(ids[:, 7:], attention_mask=mask, past_key_values=state).logits, whole[:, 7:])


def test_blocks_of_queries_change_nothing(tiny, monkeypatch):
    ids, wide = ids_of(2, 30), MoshiForCausalLM(MoshiConfig(**{**TINY, "sliding_window": 20}))
    for model in (tiny, wide):

        def loss(m):
            return m(ids, labels=ids, use_cache=False).loss

        whole, gradients = nn.value_and_grad(model, loss)(model)
        monkeypatch.setattr(sequence, "BLOCK", 7)
        again, same = nn.value_and_grad(model, loss)(model)
        monkeypatch.undo()
        close(again, whole)
        for (name, a), (_, b) in zip(tree_flatten(gradients), tree_flatten(same), strict=True):
            np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-5, err_msg=name)


def test_positions_that_do_not_count_on(tiny):
    ids = ids_of(1, 8)
    close(tiny(ids, position_ids=np.arange(8) + 5).logits, tiny(ids).logits)  # rotary positions are relative
    apart = tiny(ids, position_ids=np.arange(8) * 2).logits
    assert np.abs(np.array(apart - tiny(ids).logits)).max() > 0.01
    mask = np.array([[0, 0, 1, 1, 1, 1, 1, 1]])
    shifted = tiny(ids, attention_mask=mask, position_ids=[[9, 9, 0, 1, 2, 3, 4, 5]]).logits
    close(shifted[:, 2:], tiny(ids[:, 2:]).logits)


@pytest.mark.parametrize("flags", [{}, {"output_attentions": True}])
def test_positions_that_start_again_are_sequences_apart(tiny, flags):
    """Packed sequences: each as it is alone, in every row, across blocks of queries and beside a mask."""
    ids, lengths = ids_of(2, 30), (11, 1, 18)
    positions = np.concatenate([np.arange(n) for n in lengths])
    out = tiny(ids, position_ids=positions[None], **flags)
    assert out.past_key_values is None
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        close(out.logits[:, start:end], tiny(ids[:, start:end]).logits)
    mask = np.ones((2, 30), int)
    mask[0, :3] = 0
    masked = tiny(ids, attention_mask=mask, position_ids=np.stack([np.pad(positions[:27], (3, 0)), positions]), **flags)
    close(masked.logits[0, 3:14], tiny(ids[:1, 3:14]).logits[0])
    close(masked.logits[1], out.logits[1])
    compiled = mx.compile(lambda i, p: tiny(i, position_ids=p, use_cache=False).logits)
    close(compiled(mx.array(ids), mx.array(positions[None])), out.logits)
    with pytest.raises(InputError, match="use_cache: got True with position_ids that start again"):
        tiny(ids, position_ids=positions, use_cache=True)


def test_new_sequences_behind_a_state_do_not_see_it(tiny):
    ids = ids_of(1, 12)
    past = tiny(ids[:, :4]).past_key_values
    out = tiny(ids[:, 4:], past_key_values=past, position_ids=[4, 5, 6, 0, 1, 2, 3, 4])
    close(out.logits[:, :3], tiny(ids[:, :7]).logits[:, 4:])
    close(out.logits[:, 3:], tiny(ids[:, 7:]).logits)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_cache_in_few_bits_is_refused(model, bits):
    state = model.decoder.model.init_state(1)
    state["layers"] = [create(1, 1, 64, 32, mx.float32, bits) for _ in state["layers"]]
    with pytest.raises(InputError, match=r"got a cache in \d+ bits, expected one in full precision"):
        model.decoder(np.zeros((1, 2), int), past_key_values=state)


def test_use_cache_and_logits_to_keep(tiny):
    ids = ids_of(2, 10)
    whole = tiny(ids)
    assert tiny(ids, use_cache=False).past_key_values is None
    assert MoshiModel(MoshiConfig(**TINY, use_cache=False))(ids).past_key_values is None
    close(tiny(ids, logits_to_keep=2).logits, whole.logits[:, -2:])
    close(tiny(ids, logits_to_keep=np.array([3, 0])).logits, whole.logits[:, mx.array([3, 0])])


def test_depth_steps_one_by_one_equal_all_at_once(model):
    rng, depth = np.random.default_rng(1), model.depth_decoder
    tokens = rng.integers(0, 32, (3, 8))
    hidden = mx.array(rng.standard_normal((3, 32)).astype(np.float32))
    flags = {"output_hidden_states": True, "output_attentions": True}
    whole = depth(tokens, hidden, **flags)
    assert [tuple(a.shape) for a in whole.attentions] == [(3, 2, 8, 8)] * 2
    assert [tuple(h.shape) for h in whole.hidden_states] == [(3, 8, 16)] * 3
    close(whole.attentions[0].sum(axis=-1), np.ones((3, 2, 8)))
    assert (np.triu(np.array(whole.attentions[1]), 1) == 0).all()
    past = None
    for step in range(8):
        out = depth(tokens[:, step : step + 1], hidden[:, None], past_key_values=past)
        past = out.past_key_values
        close(out.logits[:, 0], whole.logits[:, step], 1e-3)
    embeds = mx.stack(depth.embed(mx.array(tokens)), axis=1)
    close(
        depth(inputs_embeds=embeds, last_hidden_state=mx.repeat(hidden[:, None], 8, axis=1)).logits, whole.logits, 1e-3
    )
    draws = [np.array(depth.generate(tokens[:, :1], hidden, do_sample=True, seed=s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_codec_rows_of_unlike_length_equal_rows_alone(model):
    mimi, lengths = model.audio_encoder, (9 * 1920 + 500, 4 * 1920, 100)
    sound = np.stack([question()[n : n + lengths[0]] for n in (0, 9000, 30000)])
    mask = (np.arange(lengths[0]) < np.array(lengths)[:, None]).astype(int)
    out = mimi(sound, padding_mask=mask, num_quantizers=8)
    for row, length in enumerate(lengths):
        alone = mimi(sound[row : row + 1, :length], num_quantizers=8)
        frames = alone.audio_codes.shape[2]
        np.testing.assert_array_equal(np.array(out.audio_codes)[row, :, :frames], np.array(alone.audio_codes)[0])
        assert (np.array(out.audio_codes)[row, :, frames:] == -1).all()
        values = np.array(out.audio_values)[row, 0]
        close(values[:length], np.array(alone.audio_values)[0, 0], 1e-5)
        assert (values[length:] == 0).all()
    np.testing.assert_array_equal(
        np.array(mimi.encode(sound[:, None], mask[:, None], 8).audio_codes), np.array(out.audio_codes)
    )


def test_large_batches_are_taken_in_groups(model, monkeypatch):
    mimi, sound = model.audio_encoder, question()[: 15 * 1920].reshape(5, -1)
    whole = mimi(sound, num_quantizers=8)
    monkeypatch.setattr("moshi_mlx.huggingface.mimi.ROWS_PER_CALL", 2)
    groups = mimi(sound, num_quantizers=8)
    np.testing.assert_array_equal(np.array(groups.audio_codes), np.array(whole.audio_codes))
    close(groups.audio_values, whole.audio_values, 1e-5)


# --- outputs and bad input ------------------------------------------------------------------------------------------


def test_outputs_are_read_by_name_key_number_and_star():
    out = CausalLMOutput(logits=mx.zeros(1), past_key_values={})
    assert out[0] is out["logits"] is out.logits
    assert out.to_tuple() == (out.logits, {})
    assert dict(**out).keys() == {"logits", "past_key_values"}
    assert list(out) == ["logits", "past_key_values"]
    with pytest.raises(KeyError):
        out["loss"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.decoder(), "input_ids and inputs_embeds: got none of them, expected one"),
        (lambda m: m.decoder([[1]], inputs_embeds=mx.zeros((1, 1, 32))), "got all of them, expected one"),
        (lambda m: m.decoder([1, 2]), "input_ids: got shape [2], expected [any, any]"),
        (lambda m: m.decoder([[65]]), "input_ids: got values from 65 to 65, expected -1 to 64"),
        (lambda m: m.decoder([[0.5]]), "input_ids: got float32, expected whole numbers"),
        (lambda m: m.decoder([[1, 2]], labels=[[1]]), "labels: got shape [1, 1], expected [1, 2]"),
        (lambda m: m.decoder([[1, 2]], labels=[[1, 64]]), "labels: got values from 1 to 64, expected -100 to 63"),
        (
            lambda m: m.decoder([[1, 2]], labels=[[1, 2]], logits_to_keep=1),
            "logits_to_keep: got 1 together",
        ),
        (lambda m: m.decoder([[1]], logits_to_keep=-1), "logits_to_keep: got -1, expected a whole number of 0 or more"),
        (lambda m: m.decoder([[1, 2]], attention_mask=[1, 1]), "attention_mask: got shape [2], expected [1, 2]"),
        (lambda m: m(), "got none of them, expected one or more"),
        (lambda m: m([[1]], user_audio_codes=np.zeros((1, 8, 2), int)), "expected streams of one length"),
        (lambda m: m.depth_decoder([[1]]), "last_hidden_state: got None, expected [1, 1 or 1, 32]"),
        (lambda m: m.depth_decoder([[1] * 9], mx.zeros((1, 32))), "input_ids: got 9 steps after 0, expected 8 in all"),
        (lambda m: m.depth_decoder([[1, 40]], mx.zeros((1, 32))), "after the text token: got values from 40 to 40"),
        (lambda m: m.depth_decoder([[1]], mx.zeros((2, 32))), "last_hidden_state: got shape [2, 1, 32]"),
        (lambda m: m.depth_decoder([[1]], mx.zeros((1, 32)), labels=[[1, 2]]), "labels: got shape [1, 2]"),
        (lambda m: m.audio_encoder.encode(mx.zeros((1, 9)), mx.ones((1, 8))), "padding_mask: got shape [1, 8]"),
        (lambda m: m.audio_encoder.encode(mx.zeros((1, 2)), [[0, 1]]), "got padding before or inside a row"),
        (lambda m: m.audio_encoder.decode(np.full((1, 8, 1), 32)), "audio_codes: got values from 32 to 32"),
    ],
)
def test_bad_input_is_named(model, call, message):
    with pytest.raises(InputError) as caught:
        call(model)
    assert message in str(caught.value)


def test_fresh_models_have_seeded_random_weights():
    first, again, other = (MoshiModel(MoshiConfig(**TINY), seed=seed).embed_tokens.weight for seed in (1, 1, 2))
    assert mx.array_equal(first, again)
    assert not mx.array_equal(first, other)
    assert abs(np.array(first).std() - 0.4) < 0.05
    mimi = MimiModel(MimiConfig(hidden_size=8, num_filters=1, codebook_size=8, codebook_dim=4, num_quantizers=3,
                                num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))  # fmt: skip
    close(mimi.quantizer.half_norms, (np.array(mimi.quantizer.embedding) ** 2).sum(-1) / 2)


# --- files ----------------------------------------------------------------------------------------------------------


def logits_of(model):
    given = {"user_audio_codes": FORWARD["user"], "moshi_audio_codes": FORWARD["moshi"]}
    return np.array(model(FORWARD["ids"], **given).logits)


def test_save_and_load_again(model, tmp_path):
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    again = MoshiForConditionalGeneration.from_pretrained(folder)
    np.testing.assert_array_equal(logits_of(again), logits_of(model))
    assert MoshiConfig.from_pretrained(folder) == again.config
    theirs = {k for shard in FOLDER.glob("*.safetensors") for k in mx.load(str(shard))}
    assert {k for shard in folder.glob("*.safetensors") for k in mx.load(str(shard))} == theirs
    with pytest.raises(InputError, match="overwrite"):
        model.save_pretrained(folder)
    model.save_pretrained(folder, overwrite=True)


def test_every_layout_gives_the_same_model(model):
    for folder in (FOLDER, GOLDENS / "moshi_tiny"):
        np.testing.assert_array_equal(
            logits_of(MoshiForConditionalGeneration.from_pretrained(folder, dtype=mx.float32)), logits_of(model)
        )


def test_another_config_of_the_same_sizes(model):
    config = MoshiConfig.from_pretrained(FOLDER)
    narrow = MoshiConfig.from_huggingface({**config.to_dict(), "sliding_window": 3}, "c")
    other = MoshiForConditionalGeneration.from_pretrained(FOLDER, config=narrow, dtype=mx.float32)
    assert np.abs(logits_of(other) - logits_of(model)).max() > 0.1
    wrong = MoshiConfig.from_huggingface({**config.to_dict(), "num_hidden_layers": 3}, "c")
    with pytest.raises(ConfigError, match="expected a config of the checkpoint's sizes"):
        MoshiForConditionalGeneration.from_pretrained(FOLDER, config=wrong)


def test_parts_of_a_whole_checkpoint(model):
    ids = FORWARD["ids"]
    lm = MoshiForCausalLM.from_pretrained(GOLDENS / "moshi_tiny", dtype=mx.float32)
    np.testing.assert_array_equal(np.array(lm(ids).logits), np.array(model.decoder(ids).logits))
    assert lm.tokenizer.vocab_size() == 64
    bare = MoshiModel.from_pretrained(FOLDER, dtype=mx.float32)
    np.testing.assert_array_equal(np.array(bare(ids).last_hidden_state), np.array(model.decoder.model(ids)[0]))
    hidden = mx.array(FORWARD["depth.hidden"])
    depth = MoshiDepthDecoder.from_pretrained(FOLDER, dtype=mx.float32)
    np.testing.assert_array_equal(
        np.array(depth(FORWARD["depth.ids"], hidden).logits),
        np.array(model.depth_decoder(FORWARD["depth.ids"], hidden).logits),
    )
    codes = mx.array(FORWARD["mimi.codes"])
    for folder in (FOLDER, GOLDENS / "moshi_tiny"):
        mimi = MimiModel.from_pretrained(folder)
        assert mx.array_equal(mimi.decode(codes).audio_values, model.audio_encoder.decode(codes).audio_values)
    assert MimiConfig.from_pretrained(FOLDER).codebook_size == 32
    assert MoshiDepthConfig.from_pretrained(FOLDER).hidden_size == 16


def test_a_codec_alone_in_hugging_faces_layout(model, tmp_path):
    tensors = {k: v for shard in FOLDER.glob("*.safetensors") for k, v in mx.load(str(shard)).items()}
    prefix = "audio_encoder."
    mx.save_safetensors(
        str(tmp_path / "model.safetensors"), {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    )
    config = json.loads((FOLDER / "config.json").read_text())["audio_encoder_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    mimi = MimiModel.from_pretrained(tmp_path)
    assert MimiConfig.from_pretrained(tmp_path) == mimi.config
    sound = question()[None, : 5 * 1920]
    assert mx.array_equal(mimi.encode(sound).audio_codes, model.audio_encoder.encode(sound).audio_codes)


@pytest.fixture
def helium(tmp_path):
    """A tiny Helium-1 in the layout of Kyutai's MLX files, and the model that its weights are of."""
    model = MoshiForCausalLM(MoshiConfig(**{**TINY, "num_key_value_heads": None}, silent_text_tokens=()))
    names = {"model.transformer": "transformer", "model.embed_tokens": "text_emb", "model.norm": "out_norm",
             "lm_head": "text_linear"}  # fmt: skip
    tensors = {}
    for name, value in tree_flatten(model.parameters()):
        theirs = next(new + name[len(old) :] for old, new in names.items() if name.startswith(old))
        matrix = value.ndim == 2 and "emb" not in theirs
        tensors[theirs] = mx.contiguous(value.T) if matrix else value
    mx.save_safetensors(str(tmp_path / "helium-1-tiny-bf16.safetensors"), tensors)
    config = {
        "dim": 16, "text_card": 20, "n_q": 0, "dep_q": 0, "delays": [0], "num_heads": 4, "num_layers": 2, "context": 9,
        "max_period": 10000, "norm": "rms_norm_f32", "gating": "silu", "positional_embedding": "rope",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path, model


def test_helium_is_a_model_of_text_alone(helium):
    folder, model = helium
    loaded = MoshiForCausalLM.from_pretrained(folder)
    assert loaded.config.ffn_dim == 24
    ids = ids_of(2, 12)
    np.testing.assert_array_equal(np.array(loaded(ids).logits), np.array(model(ids).logits))
    out = loaded.generate(ids, max_new_tokens=5)
    np.testing.assert_array_equal(np.array(out), np.array(model.generate(ids, max_new_tokens=5)))
    assert MoshiConfig.from_pretrained(folder) == loaded.config
    with pytest.raises(InputError, match="input_ids: got values from 20 to 20, expected -1 to 19"):
        loaded([[20]])
    with pytest.raises(InputError, match="a model of text alone"):
        MoshiForConditionalGeneration(loaded.config)


def test_helium_files_that_cannot_be_read_are_named(helium):
    folder, _ = helium
    edit_json(folder / "config.json", colour="red")
    with pytest.raises(ConfigError, match="unknown key 'colour'"):
        MoshiForCausalLM.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="no known model of text has these sizes"):
        MoshiForCausalLM.from_pretrained(folder)
    shutil.copy(folder / "helium-1-tiny-bf16.safetensors", folder / "helium-2.safetensors")
    with pytest.raises(CheckpointError, match="expected one file"):
        MoshiForCausalLM.from_pretrained(folder)


def test_helium_1_preview_is_known_by_its_sizes():
    config = TEXT_PRESETS["helium-1-preview-2b"]
    assert (config.vocab_size, config.hidden_size, config.ffn_dim // 2, config.rope_theta) == (48000, 2560, 7040, 1e5)
    assert config.table_rows == (48000,)
