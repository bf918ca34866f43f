"""Foreign configurations: every key is honoured or refused by name."""

import json

import pytest
from conftest import GOLDENS

from moshi_mlx import ConfigError, MimiConfig, MoshiConfig, MoshiDepthConfig

LM = {
    key: value
    for key, value in json.loads((GOLDENS / "moshi_tiny" / "config.json").read_text()).items()
    if not key.endswith("_name") and key not in ("model_type", "lm_gen_config")
}
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
        ({"dim": None}, "key 'dim' is None, expected int"),
        ({"dim": "big"}, "key 'dim' is 'big', expected int"),
        ({"dim": True}, "key 'dim' is True, expected int"),
        ({"cross_attention": True}, "key 'cross_attention' is True; only False is supported"),
        ({"conditioners": {"speaker": {}}}, "key 'conditioners'"),
        ({"positional_embedding": "sin"}, "key 'positional_embedding' is 'sin'; only 'rope' is supported"),
        ({"norm": "layer_norm"}, "key 'norm' is 'layer_norm', expected one of"),
        ({"delays": [0, 1]}, "key 'delays' has 2 values, expected 17"),
        ({"delays": [1] + [0] * 16}, "gives text a delay of 1"),
        ({"delays": [0] + [-1] * 16}, "expected a delay of 0 or more"),
        ({"num_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"num_layers": 0}, "num_hidden_layers: expected a positive number, got 0"),
        ({"depformer_weights_per_step": False}, "key 'depformer_weights_per_step' is False"),
        ({"depformer_weights_per_step_schedule": [0, 2] * 4}, "weights_per_step_schedule: expected 8 numbers"),
        ({"depformer_dim_feedforward": [1, 2]}, "key 'depformer_dim_feedforward' is [1, 2], expected int"),
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
