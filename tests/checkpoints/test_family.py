"""Moshi's sister models: published configs read as what they are; every wrong key, value and tensor named."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from family import FAMILY, KINDS
from helpers import GOLDENS
from published import CONFIGS

import moshi_mlx
from moshi_mlx import CheckpointError, ConfigError, MoshiConfig, MoshiError
from moshi_mlx.checkpoints.configs import huggingface_config, kyutai_config, roles
from moshi_mlx.checkpoints.configs.keys import made
from moshi_mlx.checkpoints.finding import config_of_keys
from moshi_mlx.checkpoints.reading import sampling_defaults
from moshi_mlx.checkpoints.safetensors import read_header
from moshi_mlx.models.config import MoshiConfig as Sizes

HERE = Path("somewhere")


def read(values):
    return config_of_keys(HERE, json.loads(json.dumps(values)), HERE / "config.json")


# --- published configs ----------------------------------------------------------------------------------------------

# role, own and user codebooks, delays after the first, context, heads of keys, hidden width of the MLP, depth: sets,
# hidden width of its MLP, rank of its tables
READ = {
    "Hibiki 1B": ("translator", 8, 8, 2, 1500, 16, 5632, 8, 2816, None),
    "Hibiki 1B, MLX": ("translator", 8, 8, 2, 500, 16, 5632, 8, 2816, None),
    "Hibiki 2B": ("translator", 16, 16, 2, 1500, 20, 7040, 9, 2048, 128),
    "Hibiki-Zero 3B": ("translator", 16, 16, 2, 3000, 8, 8192, 9, 4096, None),
    "STT 1B": ("transcriber", 0, 32, 0, 750, 16, 5632, 0, 2816, None),
    "STT 1B, MLX": ("transcriber", 0, 32, 0, 750, 16, 5632, 0, 2816, None),
    "STT 2.6B": ("transcriber", 0, 32, 0, 375, 32, 5632, 0, 2816, None),
    "TTS 1.6B": ("speaker", 32, 0, 2, 500, 16, 5632, 11, 2048, 128),
    "TTS 0.75B": ("speaker", 16, 0, 2, 500, 16, 2816, 9, 2048, 128),
}
ROLE = {
    "Hibiki 1B": {"end_reads_as_padding": True, "rope_theta": 1e5, "vocab_size": 48000, "most_user_code": 2048},
    "Hibiki 1B, MLX": {"end_reads_as_padding": False, "rope_theta": 1e5},
    "Hibiki 2B": {"end_reads_as_padding": True, "hidden_size": 2560, "num_hidden_layers": 24},
    "Hibiki-Zero 3B": {"conditions": (), "rope_interleaved": False, "rope_theta": 2e4, "num_hidden_layers": 28},
    "STT 1B": {"audio_delay_seconds": 0.5, "silence_prefix_seconds": 0, "extra_heads": 4, "extra_head_classes": 6,
               "vocab_size": 8000},
    "STT 1B, MLX": {"audio_delay_seconds": 0.5, "extra_heads": 4},
    "STT 2.6B": {"audio_delay_seconds": 2.5, "silence_prefix_seconds": 1, "extra_heads": 0, "vocab_size": 4000},
    "TTS 1.6B": {"audio_delay_seconds": 1.28, "second_stream_ahead": 2, "audio_start": 16, "demuxed_text": True,
                 "cross_attention": True, "cross_position_scale": 1, "text_vocab_out": None},
    "TTS 0.75B": {"audio_start": 16, "demuxed_text": True, "cross_attention": False, "text_vocab_out": 5,
                  "hidden_size": 1024, "num_hidden_layers": 24},
}  # fmt: skip
SAMPLED = {
    "Hibiki 2B": {"temperature": 0.8, "text_temperature": 0.8, "top_k": 250, "text_top_k": 50},
    "STT 1B": {"temperature": 0, "text_temperature": 0, "top_k": 250, "text_top_k": 50},
    "TTS 1.6B": {"temperature": 0.6, "text_temperature": 0.6},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config(name):
    config = read(CONFIGS[name])
    role, own, user, late, context, heads, hidden, sets, depth_hidden, rank = READ[name]
    depth = config.depth_decoder_config
    assert (config.role, config.num_codebooks, config.user_codebooks) == (role, own, user)
    one_side = [(0, *[late] * (side - 1)) if side else () for side in (own, user)]
    assert config.audio_delays == (*one_side[0], *one_side[1])
    assert (config.sliding_window, config.key_value_heads, config.ffn_dim) == (context, heads, 2 * hidden)
    assert (depth.weight_sets, depth.ffn_dim, depth.low_rank_embeddings) == (sets, 2 * depth_hidden, rank)
    assert depth.output_norm == (name == "Hibiki-Zero 3B")
    assert depth.demuxed_text == config.demuxed_text == (role == "speaker")
    for field, value in ROLE[name].items():
        assert getattr(config, field) == value, field
    said = CONFIGS[name].get("conditioners", {})
    assert {one.name: (one.values, one.is_sequence, one.cross) for one in config.conditions} == {
        key: (tuple(value.get("lut", {}).get("possible_values", ())), value["type"] == "tensor", key == "speaker_wavs")
        for key, value in said.items()
    }


@pytest.mark.parametrize("name", SAMPLED)
def test_how_a_published_model_samples(name):
    assert sampling_defaults(CONFIGS[name]["lm_gen_config"], "here") == SAMPLED[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(name):
    """Our keys say the same again, and so do the keys of those."""
    config = read(CONFIGS[name])
    kind = roles.model_type(config, False)
    values = kyutai_config.moshi_dict(config) | ({"model_type": kind} if kind else {})
    again = read(values)
    assert again == config
    assert kyutai_config.moshi_dict(again) == kyutai_config.moshi_dict(config)


# --- wrong keys -----------------------------------------------------------------------------------------------------

JUNK = (3, -1, 0.5, 10**30, float("nan"), True, "text", "", ["text"], [3], [[]], {"a": 1}, {"a": {"b": None}}, [None])
LUT = CONFIGS["Hibiki 1B"]["conditioners"]["description"]


def lut(**values):
    return {"description": {"type": "lut", "lut": LUT["lut"] | values}}


def fuser(**values):
    return {"sum": ["description"]} | values


def wrong(key, base, *values):
    return [(base, key, value) for value in values]


def of_other_kinds(*right):
    """What of the junk is of another kind than the values that are right."""
    return [value for value in JUNK if value and type(value) not in {type(one) for one in right}]


WRONG = [
    *wrong("conditioners", "Hibiki 1B", *of_other_kinds({})),
    *wrong("conditioners", "Hibiki 1B", *({"description": value} for value in JUNK)),
    *wrong("conditioners", "Hibiki 1B", *({"description": LUT | {"type": value}} for value in (*JUNK, "xlut"))),
    *wrong("conditioners", "Hibiki 1B", *({"description": LUT | {"lut": value}} for value in of_other_kinds({}))),
    *wrong("conditioners", "Hibiki 1B", {"description": {"lut": LUT["lut"]}}, {"description": {"type": "lut"}}),
    *wrong("conditioners", "Hibiki 1B", {"description": {"type": "tensor", "tensor": {"dim": 8}}}),
    *wrong("conditioners", "Hibiki 1B", *(lut(n_bins=value) for value in (*of_other_kinds(3), 0, -1, 4, 10**30))),
    *wrong("conditioners", "Hibiki 1B", *(lut(dim=value) for value in (*of_other_kinds(3), 0, -1, 10**30))),
    *wrong("conditioners", "Hibiki 1B", *(lut(possible_values=value) for value in of_other_kinds([]))),
    *wrong("conditioners", "Hibiki 1B", *(lut(possible_values=v) for v in ([3], ["a", "a"], [["a"]], [{}], [None]))),
    *wrong("conditioners", "Hibiki 1B", *(lut(tokenizer=value) for value in ("whitespace", 3, ["noop"]))),
    *wrong("conditioners", "Hibiki 1B", lut(something=3), {"description": LUT | {"something": 3}}, {"other": LUT}),
    *wrong("conditioners", "TTS 1.6B", {"speaker_wavs": {"type": "tensor", "tensor": {}}}),
    *wrong("conditioners", "TTS 1.6B", *({"speaker_wavs": {"type": "tensor", "tensor": {"dim": v}}} for v in JUNK)),
    *wrong("fuser", "Hibiki 1B", *of_other_kinds({})),
    *wrong("fuser", "Hibiki 1B", *(fuser(sum=value) for value in (*of_other_kinds([]), ["other"], [["description"]]))),
    *wrong("fuser", "Hibiki 1B", fuser(sum=["description"] * 2), fuser(sum=[]), {}, fuser(cross=["description"])),
    *wrong("fuser", "Hibiki 1B", fuser(sum=[], cross=["description"]), fuser(prepend=["description"]), fuser(sum=[{}])),
    *wrong("fuser", "Hibiki 1B", fuser(streaming_sum=["description"]), fuser(input_interpolate=["description"])),
    *wrong("fuser", "Hibiki 1B", *(fuser(cross_attention_pos_emb=value) for value in (3, "yes", [1], {"a": 1}))),
    *wrong(
        "fuser",
        "TTS 1.6B",
        *(
            CONFIGS["TTS 1.6B"]["fuser"] | {"cross_attention_pos_emb_scale": value}
            for value in (-1, 10**400, "1", [1], {})
        ),
    ),
    *wrong("stt_config", "STT 1B", *of_other_kinds({}), {"something": 3}),
    *wrong("stt_config", "STT 1B", *({"audio_delay_seconds": value} for value in ("0.5", [0.5], -1, 1e9, True))),
    *wrong("stt_config", "STT 1B", *({"audio_silence_prefix_seconds": value} for value in ("1", {}, -0.1, 1e30))),
    *wrong("stt_config", "Hibiki 1B", {"audio_delay_seconds": 0.5}),
    *wrong("stt_config", "TTS 1.6B", {"audio_delay_seconds": 0.5}),
    *wrong("tts_config", "TTS 1.6B", *of_other_kinds({}), {"something": 3}, {"multistream": True}),
    *wrong("tts_config", "TTS 1.6B", *({"audio_delay": value} for value in ("1.28", [1], -1, 1e9, True, {"a": 1}))),
    *wrong("tts_config", "TTS 1.6B", *({"second_stream_ahead": value} for value in ("2", 0.5, -1, 10**9, [2]))),
    *wrong("tts_config", "STT 1B", {"audio_delay": 1.28}),
    *wrong("extra_heads_num_heads", "STT 1B", *of_other_kinds(3), -1, 65, 10**30),
    *wrong("extra_heads_dim", "STT 1B", *of_other_kinds(3), -1, 0, 10**30),
    *wrong("demux_second_stream", "TTS 1.6B", *of_other_kinds(True)),
    *wrong("demux_second_stream", "Hibiki 1B", True),
    *wrong("demux_second_stream", "STT 1B", True),
    *wrong("text_card_out", "TTS 0.75B", *of_other_kinds(3), -1, 0, 8001, 10**30),
    *wrong("positional_embedding", "Hibiki-Zero 3B", *of_other_kinds(""), "none", "sin", "rope_halves"),
    *wrong("depformer_norm", "Hibiki-Zero 3B", *of_other_kinds(""), "rms_norm", "real_rms_norm_f32"),
    *wrong("cross_attention", "TTS 1.6B", *of_other_kinds(True), False),
    *wrong("cross_attention", "Hibiki 1B", True),
    *wrong("kv_repeat", "TTS 1.6B", 2),
    *wrong("depformer_weights_per_step_schedule", "TTS 1.6B", "text", 3, [0], [0] * 31, [-1] * 32, [0.5] * 32),
    *wrong("dep_q", "STT 1B", 4),
    *wrong("dep_q", "TTS 1.6B", 16),
    *wrong("dep_q", "Hibiki 1B", 0, 16),
    *wrong("model_type", "STT 1B", "tts", "hibiki"),
    *wrong("model_type", "TTS 1.6B", "stt", "hibiki"),
    *wrong("model_type", "Hibiki 1B", "stt", "tts", 3, ["hibiki"]),
    *wrong("conditioners", "Hibiki 1B", {"reference_with_time": {"type": "multi_arc_encoder"}}),
    *wrong("rag_token_id", "Hibiki 1B", 4),
    *wrong("xa_gating", "TTS 1.6B", "sigmoid"),
]
ALSO = {
    "cross_attention": ("fuser",), "dep_q": ("audio_delays", "num_codebooks", "weights_per_step_schedule"),
    "kv_repeat": ("cross_attention",),
    "demux_second_stream": ("demuxed_text",), "text_card_out": ("text_vocab_out",),
    "extra_heads_num_heads": ("extra_heads",), "extra_heads_dim": ("extra_head_classes",),
    "stt_config": ("audio_delay_seconds", "silence_prefix_seconds"),
    "tts_config": ("audio_delay_seconds", "second_stream_ahead"),
    "conditioners": ("fuser", "description", "speaker_wavs"), "fuser": ("cross_position_scale", "cross_attention"),
    "model_type": ("audio_delays", "tts_config", "stt_config"),
    "depformer_weights_per_step_schedule": ("weights_per_step_schedule",),
}  # fmt: skip
"""What a message may name in the key's place: the field it fills, or the key it contradicts."""


@pytest.mark.parametrize(
    ("base", "key", "value"), WRONG, ids=[f"{base}-{key}-{str(value)[:40]}" for base, key, value in WRONG]
)
def test_a_wrong_value_is_named(base, key, value):
    with pytest.raises(ConfigError) as caught:
        config_of_keys(HERE, CONFIGS[base] | {key: value}, HERE / "config.json")
    text = str(caught.value)
    assert "config.json" in text
    assert any(name in text for name in (key, *ALSO.get(key, ())))
    assert "\n" not in text
    assert len(text) < 600


def places(values, path=()):
    """The path of every key and item, however deep."""
    for key in values if isinstance(values, dict) else range(len(values)):
        yield (*path, key)
        if isinstance(values[key], (dict, list)):
            yield from places(values[key], (*path, key))


def with_junk(values, path, junk):
    values = json.loads(json.dumps(values))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = junk
    return values


@pytest.mark.parametrize("name", CONFIGS)
def test_junk_in_any_place_is_an_error_or_a_config(name):
    """Never another exception, and the message is one line that names the file."""
    named = []
    for path in places(CONFIGS[name]):
        for junk in (*JUNK, None, -(10**400), [{}], {"": {}}):
            try:
                config_of_keys(HERE, with_junk(CONFIGS[name], path, junk), HERE / "config.json")
            except (ConfigError, CheckpointError) as error:
                named.append((path, junk, str(error)))
    wrong = [case for case in named if "config.json" not in case[2] or "\n" in case[2]]
    assert not wrong
    assert len(named) > 500


def test_junk_in_any_place_of_hugging_faces_config():
    values = json.loads((GOLDENS / "moshi_tiny_hf" / "config.json").read_text())
    for path in places(values):
        for junk in (*JUNK, None, -(10**400), 10**400):
            with contextlib.suppress(MoshiError):
                fields = huggingface_config.moshi_fields(with_junk(values, path, junk), "config.json")
                made(Sizes, fields, "config.json")


NULLS = {"conditioners": "Hibiki-Zero 3B", "fuser": "Hibiki-Zero 3B", "stt_config": "Hibiki 1B",
         "tts_config": "Hibiki 1B", "extra_heads_num_heads": "STT 2.6B", "extra_heads_dim": "STT 1B",
         "demux_second_stream": "Hibiki-Zero 3B", "text_card_out": "TTS 1.6B", "positional_embedding": "TTS 1.6B",
         "depformer_norm": "Hibiki 1B", "cross_attention": "Hibiki 2B", "model_id": "TTS 1.6B"}  # fmt: skip


@pytest.mark.parametrize("key", NULLS)
def test_null_says_what_no_key_says(key):
    values = CONFIGS[NULLS[key]]
    without = {name: value for name, value in values.items() if name != key}
    assert read(values | {key: None}) == read(without)


# --- tensors --------------------------------------------------------------------------------------------------------

TENSORS = [
    ("hibiki", "condition_provider.conditioners.description.embed.weight"),
    ("hibiki", "condition_provider.conditioners.description.output_proj.weight"),
    ("hibiki", "condition_provider.conditioners.description.learnt_padding"),
    ("hibiki", "transformer.layers.1.self_attn.in_proj_weight"),
    ("hibiki_zero", "depformer_norms.2.weight"),
    ("hibiki_zero", "depformer_norms.0.bias"),
    ("hibiki_zero", "transformer.layers.0.self_attn.in_projs.0.weight"),
    ("stt", "extra_heads.3.weight"),
    ("stt", "text_linear.weight"),
    ("tts", "transformer.layers.0.cross_attention.in_proj_weight"),
    ("tts", "transformer.layers.1.cross_attention.out_proj.weight"),
    ("tts", "transformer.layers.1.norm_cross.bias"),
    ("tts", "transformer.layers.0.norm_cross.weight"),
    ("tts", "text_emb.weight"),
    ("tts", "text_emb.out2.weight"),
    ("tts", "depformer_text_emb.out1.weight"),
    ("tts", "depformer_text_emb.weight"),
    ("tts", "depformer_emb.1.low_rank.weight"),
    ("tts", "condition_provider.conditioners.speaker_wavs.output_proj.weight"),
    ("tts", "condition_provider.conditioners.cfg.embed.weight"),
    ("tts", "condition_provider.conditioners.control.learnt_padding"),
    ("tts_prefix", "text_linear.weight"),
    ("tts_prefix", "linears.3.weight"),
]


def changed(kind, folder, change):
    """A copy of a kind whose tensors were changed."""
    folder = shutil.copytree(FAMILY / kind, folder / kind)
    tensors = mx.load(str(folder / "model.safetensors"))
    change(tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def refused(folder, name):
    with pytest.raises(CheckpointError) as caught:
        moshi_mlx.load(folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_a_tensor_that_is_missing(kind, name, tmp_path):
    refused(changed(kind, tmp_path, lambda tensors: tensors.pop(name)), name)


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_a_tensor_of_another_shape(kind, name, tmp_path):
    def wider(tensors):
        tensors[name] = mx.concatenate([tensors[name], tensors[name]], axis=-1)

    refused(changed(kind, tmp_path, wider), name)


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_a_tensor_of_another_type(kind, name, tmp_path):
    refused(changed(kind, tmp_path, lambda t: t.update({name: t[name].astype(mx.int32)})), name)


EXTRA = {
    "hibiki": "condition_provider.conditioners.mood.embed.weight", "hibiki_zero": "depformer_norms.4.weight",
    "stt": "extra_heads.4.weight", "stt_no_heads": "extra_heads.0.weight", "plain_2026": "oracle_emb.weight",
    "tts": "transformer.layers.2.cross_attention.in_proj_weight", "tts_prefix": "transformer.layers.0.norm_cross.bias",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_too_many(kind, tmp_path):
    name = EXTRA[kind]
    refused(changed(kind, tmp_path, lambda tensors: tensors.update({name: mx.zeros((4, 4))})), name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_in_the_config_of_another(kind, tmp_path):
    """Never loaded as what it is not, and never a crash."""
    for other in KINDS:
        if other == kind or {kind, other} == {"stt", "stt_no_heads"}:
            continue
        folder = shutil.copytree(FAMILY / kind, tmp_path / f"{kind}-{other}")
        shutil.copy(FAMILY / other / "config.json", folder)
        with pytest.raises(MoshiError) as caught:
            moshi_mlx.load(folder)
        assert "\n" not in str(caught.value)


def damages(content):
    """A file cut, with bytes flipped, emptied, or doubled."""
    random = np.random.default_rng(len(content))
    for _ in range(6):
        at, some = int(random.integers(0, min(len(content), 3000))), random.bytes(5)
        yield content[:at] + some + content[at + 5 :]
    yield from (content[: len(content) // 2], b"", content + content, content[:-1], content[9:])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["hibiki", "hibiki_zero", "stt", "tts", "tts_prefix"])
def test_damaged_files(kind, name, tmp_path):
    folder = shutil.copytree(FAMILY / kind, tmp_path / kind)
    for content in damages((FAMILY / kind / name).read_bytes()):
        (folder / name).write_bytes(content)
        with contextlib.suppress(MoshiError):
            assert isinstance(moshi_mlx.load(folder).config, MoshiConfig)


def test_both_namings_are_covered():
    """Goldens of either generation of attention names."""
    older = {kind: any("in_proj_weight" in name and "cross" not in name for name in read_header(file))
             for kind in KINDS for file in [FAMILY / kind / "model.safetensors"]}  # fmt: skip
    assert set(older.values()) == {True, False}
    assert all(os.path.islink(FAMILY / kind / "mimi.safetensors") for kind in KINDS)
