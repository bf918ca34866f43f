"""Foreign configurations: every key is honoured or refused by name."""

import dataclasses
import json

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS

from moshi_mlx import ConfigError, MimiConfig, MoshiConfig, MoshiDepthConfig
from moshi_mlx.checkpoints.configs.huggingface_config import inexpressible

LM = {
    key: value
    for key, value in json.loads((GOLDENS / "moshi_tiny" / "config.json").read_text()).items()
    if not key.endswith("_name") and key not in ("model_type", "lm_gen_config")
}
HF = json.loads((GOLDENS / "moshi_tiny_hf" / "config.json").read_text())
MIMI = json.loads((GOLDENS / "moshi_tiny" / "mimi_config.json").read_text())
SMALL_MIMI = MimiConfig(codebook_size=32)

# What Kyutai's package has built in for a checkpoint without config.json.
MOSHI_7B = {
    "dim": 4096, "text_card": 32000, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": 2048,
    "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 3000,
    "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 1024, "depformer_dim_feedforward": 4224, "depformer_num_heads": 16, "depformer_num_layers": 6,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0] + ([0] + [1] * 7) * 2,
}  # fmt: skip


def test_defaults_are_moshi_7b_and_its_mimi():
    config = MoshiConfig.from_kyutai(MOSHI_7B, "config.json")
    sizes = (config.num_key_value_heads, config.depth_decoder_config.num_key_value_heads)
    assert sizes == (32, 16)
    assert config.ffn_dim == 22528
    assert config.depth_decoder_config.ffn_dim == 5632
    default = MoshiConfig()
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "sliding_window", "audio_delays", "rms_norm_eps"):
        assert getattr(config, name) == getattr(default, name)
    mimi = MimiConfig()
    assert (mimi.frame_size, mimi.hop_length, mimi.positions_per_frame) == (1920, 960, 2)


def test_gated_width_where_feedforward_is_four_times_dim():
    config = MoshiConfig.from_kyutai({**LM, "hidden_scale": 4, "depformer_dim_feedforward": 64}, "c", SMALL_MIMI)
    assert config.ffn_dim == 2 * (21 * 32 // 8)
    assert config.depth_decoder_config.ffn_dim == 2 * (21 * 16 // 8)


def test_grouped_query_attention():
    config = MoshiConfig.from_kyutai({**LM, "kv_repeat": 2}, "c", SMALL_MIMI)
    assert (config.key_value_heads, config.depth_decoder_config.key_value_heads) == (1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown key 'colour' (its value: 'red')"),
        ({"dim": None}, "key 'dim' is missing"),
        ({"dim": "big"}, "key 'dim' is 'big', expected a whole number"),
        ({"dim": True}, "key 'dim' is True, expected a whole number"),
        ({"cross_attention": True}, "cross_attention is True, but no condition is one to look at"),
        ({"conditioners": {"speaker": {}}}, "conditioners: 'speaker': key 'type' is missing"),
        ({"positional_embedding": "sin"}, "'positional_embedding' is 'sin'; only rope and rope_concat are supported"),
        ({"norm": "layer_norm"}, "key 'norm' is 'layer_norm', expected one of"),
        ({"delays": [0, 1]}, "key 'delays' has 2 values, expected 17"),
        ({"delays": [1] + [0] * 16}, "gives text a delay of 1"),
        ({"delays": [0] + [-1] * 16}, "audio_delays: expected a list of whole numbers from 0"),
        ({"num_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"num_layers": 0}, "num_hidden_layers: expected a positive number, got 0"),
        ({"depformer_weights_per_step": False}, "key 'depformer_weights_per_step' is False"),
        ({"depformer_weights_per_step_schedule": [0, 2] * 4}, "weights_per_step_schedule: expected 8 numbers"),
        ({"depformer_dim_feedforward": [1, 2]}, "key 'depformer_dim_feedforward' is [1, 2], expected a whole number"),
        ({"card": 2048}, "Mimi has 32 of 32"),
    ],
)
def test_keys_that_cannot_be_honoured_are_named(change, message):
    with pytest.raises(ConfigError) as caught:
        MoshiConfig.from_kyutai({**LM, **change}, "config.json", SMALL_MIMI)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["dim", "delays", "depformer_dim", "depformer_multi_linear"])
def test_missing_keys_are_named(key):
    with pytest.raises(ConfigError, match=f"key '{key}' is missing"):
        MoshiConfig.from_kyutai({k: v for k, v in LM.items() if k != key}, "config.json", SMALL_MIMI)


def test_mimi_keys():
    config = MimiConfig.from_kyutai(MIMI, "mimi.json")
    assert (config.num_quantizers, config.codebook_size, config.codebook_dim) == (10, 32, 16)
    for part, change, message in [
        ("seanet", {"activation": "ReLU"}, "mimi.json: seanet: key 'activation' is 'ReLU'"),
        ("seanet", {"ratios": [8, 6, 5, 7]}, "not a whole multiple"),
        ("transformer", {"what": 1}, "mimi.json: transformer: unknown key 'what'"),
        ("quantizer", {"n_q": 1}, "num_quantizers 1 must exceed"),
    ]:
        with pytest.raises(ConfigError) as caught:
            MimiConfig.from_kyutai({**MIMI, part: {**MIMI[part], **change}}, "mimi.json")
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoshiConfig(ffn_dim=3), "ffn_dim: expected an even number, got 3"),
        (lambda: MoshiConfig(hidden_size=64), "hidden_size is 64, but input_size of the depth decoder is 4096"),
        (lambda: MoshiConfig(vocab_size=9), "vocab_size is 9, but that of the depth decoder is 32000"),
        (lambda: MoshiDepthConfig(num_key_value_heads=5), "not a multiple of num_key_value_heads 5"),
        (lambda: MimiConfig(frame_rate=-1), "frame_rate: expected a positive number, got -1"),
    ],
)
def test_configs_that_contradict_themselves(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def huggingface(**changes):
    return MoshiConfig.from_huggingface({**HF, **changes}, "config.json")


def test_huggingface_and_kyutai_files_of_one_model_give_one_config():
    ours = MoshiConfig.from_kyutai(LM, "config.json", MimiConfig.from_kyutai(MIMI, "mimi.json"))
    theirs = huggingface()
    filled = {"num_key_value_heads": 2, "head_dim": 16}
    assert dataclasses.replace(ours.audio_encoder_config, **filled) == theirs.audio_encoder_config
    depth = dataclasses.replace(ours.depth_decoder_config, head_dim=8)
    assert dataclasses.replace(theirs.depth_decoder_config, max_position_embeddings=9) == depth
    same = {"audio_encoder_config": theirs.audio_encoder_config, "depth_decoder_config": theirs.depth_decoder_config}
    assert dataclasses.replace(ours, head_dim=16, **same) == theirs


def test_keys_of_earlier_transformers():
    old = {k: v for k, v in HF.items() if k != "rope_parameters"} | {"rope_theta": 500.0, "torch_dtype": "bfloat16"}
    assert MoshiConfig.from_huggingface(old, "c").rope_theta == 500
    mimi = {**HF["audio_encoder_config"], "frame_rate": 25.0, "upsampling_ratios": [8, 6, 5, 2]}
    assert MimiConfig.from_huggingface(mimi, "c").frame_rate == 25


@pytest.mark.parametrize(
    "config",
    [
        huggingface(),
        huggingface(head_dim=4, initializer_range=0.5, use_cache=False, sliding_window=7, audio_delays=[0] * 16),
        huggingface(
            depth_decoder_config={
                **HF["depth_decoder_config"], "weights_per_step_schedule": [0, 1] * 4, "low_rank_embeddings": 3
            }
        ),
    ],
)  # fmt: skip
def test_to_dict_and_back(config):
    assert MoshiConfig.from_huggingface(json.loads(json.dumps(config.to_dict())), "c") == config
    mimi = config.audio_encoder_config
    assert MimiConfig.from_huggingface(mimi.to_dict(), "c") == mimi
    depth = config.depth_decoder_config
    assert MoshiDepthConfig.from_huggingface(depth.to_dict(), "c") == depth


def test_to_dict_writes_numbers_that_were_left_open():
    config = MoshiConfig()
    wrote = config.to_dict()
    for values, heads in [(wrote, 32), (wrote["depth_decoder_config"], 16), (wrote["audio_encoder_config"], 8)]:
        assert values["num_key_value_heads"] == heads
        assert values["head_dim"] * heads == values["hidden_size"]


def test_what_to_dict_writes_is_what_transformers_writes():
    """Every key of theirs that is not about torch or classifiers, with their value."""
    ours = huggingface().to_dict()
    torch = {"bos_token_id", "dtype", "eos_token_id", "pad_token_id", "transformers_version"}
    for theirs, mine, missing in [
        (HF, ours, set()),
        (HF["depth_decoder_config"], ours["depth_decoder_config"], set()),
        (HF["audio_encoder_config"], ours["audio_encoder_config"],
         {"_frame_rate", "layer_scale_initial_scale", "max_position_embeddings", "tie_word_embeddings", "use_cache",
          "use_streaming"}),
    ]:  # fmt: skip
        assert set(theirs) - set(mine) - torch == missing
        nested = ("depth_decoder_config", "audio_encoder_config")
        assert {k: v for k, v in mine.items() if k in theirs and k not in nested} == {
            k: v for k, v in theirs.items() if k in mine and k not in nested
        }


def test_what_transformers_could_not_honour_is_told():
    assert inexpressible(huggingface()) == []
    assert inexpressible(huggingface(audio_delays=[0] * 16)) == ["audio_delays"]
    low_rank = {**HF["depth_decoder_config"], "low_rank_embeddings": 3}
    assert inexpressible(huggingface(depth_decoder_config=low_rank)) == ["depth_decoder_config.low_rank_embeddings"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "config.json: unknown key 'colour' (its value: 'red')"),
        ({"model_type": "musicgen"}, "key 'model_type' is 'musicgen'; only 'moshi' is supported"),
        ({"hidden_act": "gelu"}, "MoshiConfig.hidden_act: got 'gelu'; only 'silu' is supported"),
        ({"attention_dropout": 0.1}, "MoshiConfig.attention_dropout: got 0.1; only 0.0 is supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: got True"),
        ({"ffn_dim": 177}, "ffn_dim: expected an even number, got 177"),
        ({"rope_theta": 7.0}, "keys 'rope_theta' and 'rope_parameters' contradict: 7.0 and 10000.0"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: key 'rope_type' is 'yarn'"),
        ({"vocab_size": "many"}, "key 'vocab_size' is 'many', expected a whole number"),
        ({"head_dim": 5}, "heads of 5 values"),
        ({"eos_token_id": 2}, "key 'eos_token_id' is 2"),
        ({"audio_encoder_config": {"use_causal_conv": False}}, "audio_encoder_config: key 'use_causal_conv' is False"),
        ({"audio_encoder_config": {"upsample_groups": 1}}, "audio_encoder_config: key 'upsample_groups' is 1"),
        ({"depth_decoder_config": {"sliding_window": 4}}, "MoshiDepthConfig.sliding_window: got 4, expected at least"),
        ({"max_position_embeddings": 0}, "max_position_embeddings: expected a positive number, got 0"),
    ],
)
def test_huggingface_keys_that_cannot_be_honoured_are_named(change, message):
    with pytest.raises(ConfigError) as caught:
        huggingface(**change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_from_audio_encoder_config():
    config = MoshiConfig.from_audio_encoder_config(
        MimiConfig(codebook_size=32), hidden_size=64, num_attention_heads=2, depth_decoder_config={"hidden_size": 32}
    )
    assert config.audio_vocab_size == config.depth_decoder_config.audio_vocab_size == 32
    assert config.depth_decoder_config.input_size == 64
    assert config.sampling_rate == 24000


def test_a_config_saves_itself(tmp_path):
    config = huggingface(sliding_window=9)
    config.save_pretrained(tmp_path / "new")
    read = json.loads((tmp_path / "new" / "config.json").read_text())
    assert MoshiConfig.from_huggingface(read, "c") == config


def test_numbers_of_every_kind_and_lists_are_the_same_config():
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "ffn_dim": 176}
    depth = {"depth_decoder_config": {"hidden_size": 16, "num_attention_heads": 2}}
    plain = MoshiConfig(**sizes, **depth, rms_norm_eps=1e-8, audio_delays=(0, *[1] * 7) * 2, use_cache=True)
    for whole in (np.int64, np.int8, np.uint16, np.array, mx.array):
        same = MoshiConfig(
            **{name: whole(value) if value < 128 or whole is not np.int8 else value for name, value in sizes.items()},
            **depth, rms_norm_eps=np.float64(1e-8), audio_delays=np.array([0, *[1] * 7] * 2), use_cache=np.True_,
        )  # fmt: skip
        assert same == plain
        assert hash(same) == hash(plain)
        assert json.dumps(same.to_dict()) == json.dumps(plain.to_dict())
    ratios = [list(MimiConfig().upsampling_ratios), np.array([8, 6, 5, 4]), [np.int64(n) for n in (8, 6, 5, 4)]]
    assert {hash(MimiConfig(upsampling_ratios=given)) for given in ratios} == {hash(MimiConfig())}
