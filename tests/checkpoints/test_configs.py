"""Configurations as people have them: what says nothing is no reason to refuse a folder, what says something is."""

import contextlib
import json
import os
import shutil

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS
from moshi_mlx.convert import cli

import moshi_mlx
from moshi_mlx import CheckpointError, ConfigError, MimiConfig, MoshiConfig, MoshiDepthConfig, MoshiError
from moshi_mlx.checkpoints import reading


def update(path, values):
    """Change keys of a JSON file, null ones included; (key, key) is a key of an object within."""
    config = json.loads(path.read_text()) if path.exists() else {}
    for key, value in values.items():
        *outer, last = key if isinstance(key, tuple) else (key,)
        place = config
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    path.write_text(json.dumps(config))


@pytest.fixture
def hugging(tmp_path):
    folder = shutil.copytree(GOLDENS / "moshi_tiny_hf", tmp_path / "moshi_tiny_hf")
    shutil.copy(GOLDENS / "moshi_tiny" / "tokenizer.model", folder)
    return folder


# Kyutai's config.json: every key that may be null, and what else says nothing.

KYUTAI_NULLS = (
    "text_card_out", "kv_repeat", "depformer_kv_repeat", "hidden_scale", "conditioners", "fuser", "lora", "quantize",
    "cross_attention", "demux_second_stream", "extra_heads_num_heads", "extra_heads_dim", "layer_scale", "norm_emb",
    "depformer_weights_per_step_schedule", "depformer_low_rank_embeddings", "existing_text_padding_id", "model_type",
    "stt_config", "tts_config", "lm_gen_config", "model_id", "lora_name", "lora_rank", "lora_scaling", "moshi_name",
    "quantization", "quantization_config", "existing_text_end_padding_id", "gradient_checkpointing", "causal",
    "depformer_norm", "something_new",
)  # fmt: skip
FUSER = {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [], "prepend": [], "cross": []}
KYUTAI_NOTHING = {
    "an empty fuser": {"fuser": FUSER},
    "a fuser with lists of newer versions": {"fuser": {**FUSER, "streaming_sum": []}},
    "a fuser of nothing": {"fuser": {}},
    "no conditioners": {"conditioners": {}},
    "text_card_out equal": {"text_card_out": 64},
    "unknown, but false": {"use_something": False},
    "unknown, but empty": {"list_of_something": [], "map_of_something": {}, "text_of_something": ""},
    "empty settings": {"lm_gen_config": {}, "stt_config": {}, "tts_config": {}, "model_id": {}},
    "settings of null": {"lm_gen_config": {"temp": None, "top_k": None, "cfg_coef": None, "use_sampling": None}},
    "settings of one": {"lm_gen_config": {"cfg_coef": 1, "temp": 0.8}},
    "a merged fine-tune": {"lora": True, "lora_rank": 128, "lora_scaling": 2.0},
}  # fmt: skip


def test_null_says_nothing_in_kyutais_config(checkpoint):
    """Every key at once, and each alone where it has a value: the same config as without."""
    folder = checkpoint()
    plain, path = moshi_mlx.load(folder).config, folder / "config.json"
    before = path.read_text()
    absent = {key: None for key in KYUTAI_NULLS if key not in json.loads(before)}
    update(path, absent)
    assert moshi_mlx.load(folder).config == plain
    for key in KYUTAI_NULLS:
        path.write_text(before)
        without = {k: v for k, v in json.loads(before).items() if k != key}
        path.write_text(json.dumps(without))
        expected = _config(folder)
        update(path, {key: None})
        assert _config(folder) == expected, key


def _config(folder):
    try:
        return MoshiConfig.from_pretrained(folder)
    except MoshiError as error:
        return str(error)


@pytest.mark.parametrize("name", KYUTAI_NOTHING)
def test_what_says_nothing_in_kyutais_config(checkpoint, name):
    folder = checkpoint()
    plain = moshi_mlx.load(folder).config
    update(folder / "config.json", KYUTAI_NOTHING[name])
    assert moshi_mlx.load(folder).config == plain


KYUTAI_SOMETHING = {
    "a fuser with a condition": ({"fuser": {**FUSER, "sum": ["speaker"]}}, "key 'fuser'"),
    "conditioners": ({"conditioners": {"speaker": {"type": "lut"}}}, "'speaker': key 'lut' is missing"),
    "a condition that goes nowhere": (
        {"conditioners": {"speaker": {"type": "tensor", "tensor": {"dim": 4}}}}, "says nothing of the condition",
    ),
    "unknown": ({"use_something": True}, "unknown key 'use_something'"),
    "unknown number": ({"use_something": 0}, "unknown key 'use_something'"),
    "guidance": ({"lm_gen_config": {"cfg_coef": 3}}, "key 'cfg_coef'"),
    "another model": ({"model_type": "helium"}, "key 'model_type'"),
    "an adapter by name": ({"lora": True, "lora_name": "hf://a/b/lora.safetensors"}, "merge the LoRA"),
    "contradicting blocks": (
        {"quantization": {"bits": 4, "group_size": 32}, "quantization_config": {"bits": 8, "group_size": 32}},
        "contradict",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KYUTAI_SOMETHING)
def test_what_says_something_in_kyutais_config(checkpoint, name):
    folder = checkpoint()
    change, message = KYUTAI_SOMETHING[name]
    update(folder / "config.json", change)
    with pytest.raises(ConfigError, match=message):
        moshi_mlx.load(folder)


def test_an_adapter_that_lies_beside_is_not_forgotten(checkpoint):
    folder = checkpoint(lora=True, lora_scaling=2.0)
    moshi_mlx.load(folder)
    mx.save_safetensors(str(folder / "lora.safetensors"), {"a": mx.ones((1, 1))})
    with pytest.raises(ConfigError, match="merge the LoRA into its base first"):
        moshi_mlx.load(folder)


@pytest.mark.parametrize(
    "names", [{}, {"moshi_name": "model.safetensors"}, {"moshi_name": None, "lora_name": "gone.safetensors"}]
)
def test_a_fine_tune_that_is_merged_already(checkpoint, tmp_path, names):
    folder = checkpoint(lora=True, lora_rank=4, lora_scaling=2.0)
    update(folder / "config.json", names)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert moshi_mlx.load(folder).config.num_codebooks == 8
    out = tmp_path / "out"
    assert cli.main(["--hf-path", str(folder), "--mlx-path", str(out)]) == 0
    assert moshi_mlx.load(out)


def test_sizes_in_a_file_of_their_own(checkpoint):
    """moshi_lm_kwargs.json in the place of config.json: the language model's keys, the usual names of files."""
    folder = checkpoint()
    expected = moshi_mlx.load(folder).config
    values = json.loads((folder / "config.json").read_text())
    sizes = {key: value for key, value in values.items() if not key.endswith("_name")}
    (folder / "config.json").unlink()
    (folder / "moshi_lm_kwargs.json").write_text(json.dumps(sizes))
    (folder / "mimi.safetensors").rename(folder / "tokenizer-e351c8d8-checkpoint125.safetensors")
    (folder / "tokenizer.model").rename(folder / "tokenizer_spm_32k_3.model")
    assert moshi_mlx.load(folder).config == expected
    (folder / "config.json").write_text(json.dumps({"model_type": "moshi"}))  # a stub beside it
    assert moshi_mlx.load(folder).config == MoshiConfig.from_pretrained(folder)
    update(folder / "moshi_lm_kwargs.json", {"dim": "big"})
    with pytest.raises(ConfigError, match="key 'dim' is 'big'"):
        moshi_mlx.load(folder)


# Hugging Face's.

HF_NOTHING = {
    "null everywhere": dict.fromkeys((
        "torch_dtype", "dtype", "eos_token_id", "attn_implementation", "quantization_config", "rope_scaling",
        "something_new",
    )),
    "of the codec": {("audio_encoder_config", key): None for key in (
        "_frame_rate", "frame_rate", "chunk_in_sec", "chunk_length_s", "overlap", "normalize", "something_new",
        "vector_quantization_hidden_dimension", "upsample_groups",
    )},
    "words of other readers": {
        "auto_map": {"AutoModel": "modeling.Moshi"}, "attn_implementation": "eager", "_attn_implementation": "sdpa",
        ("audio_encoder_config", "normalize"): False, ("audio_encoder_config", "attn_implementation"): "sdpa",
        ("depth_decoder_config", "attn_implementation"): "sdpa",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HF_NOTHING)
def test_what_says_nothing_in_hugging_faces_config(hugging, name):
    plain = moshi_mlx.load(hugging).config
    update(hugging / "config.json", HF_NOTHING[name])
    assert moshi_mlx.load(hugging).config == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({("audio_encoder_config", "normalize"): True}, "unknown key 'normalize'"),
        ({("audio_encoder_config", "chunk_in_sec"): 1.0}, "unknown key 'chunk_in_sec'"),
        ({"quantization_config": {"load_in_4bit": True}}, "unknown key 'quantization_config'"),
        ({"rope_scaling": {"type": "linear"}}, "key 'rope_scaling'"),
    ],
)
def test_what_says_something_in_hugging_faces_config(hugging, change, message):
    update(hugging / "config.json", change)
    with pytest.raises(ConfigError, match=message):
        moshi_mlx.load(hugging)


@pytest.mark.parametrize(("ratios", "rate"), [((8, 6, 5, 4), 12.5), ((4, 5), 600.0), ((8, 5, 4), 75.0)])
def test_a_frame_rate_that_is_not_said_is_derived(ratios, rate):
    values = {"model_type": "mimi", "_frame_rate": None, "frame_rate": None, "upsampling_ratios": list(ratios)}
    config = MimiConfig.from_huggingface(values, "config.json")
    assert (config.frame_rate, config.positions_per_frame) == (rate, 2)


def test_generation_config(hugging):
    path = hugging / "generation_config.json"
    path.write_text(json.dumps({
        "do_sample": None, "temperature": None, "top_k": None, "top_p": None,
        "depth_decoder_config": {"do_sample": True, "temperature": 0.5, "top_k": None, "max_length": 9},
    }))  # fmt: skip
    assert moshi_mlx.load(hugging).sampling_defaults == {"temperature": 0.5}
    for values in ({}, {"depth_decoder_config": None}, {"depth_decoder_config": {}}, {"temperature": 3}):
        path.write_text(json.dumps(values))
        assert moshi_mlx.load(hugging).sampling_defaults == {}
    for change in ({"temperature": "hot"}, {"top_k": 2.5}, {"temperature": -1.0}, {"top_k": -3}, {"do_sample": "yes"}):
        path.write_text(json.dumps({"depth_decoder_config": {"temperature": 0.8, **change}}))
        with pytest.raises(ConfigError, match=r"generation_config.json|lm_gen_config"):
            moshi_mlx.load(hugging)
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"generation_config.json: got a JSON list"):
        moshi_mlx.load(hugging)


def test_dicts_in_the_place_of_a_part_s_config():
    mimi, depth = MimiConfig(num_quantizers=16), MoshiDepthConfig(num_hidden_layers=2)
    for audio in ({"model_type": "mimi", "num_quantizers": 16}, {"num_quantizers": 16}, mimi.to_dict(), mimi):
        for decoder in ({"model_type": "moshi_depth", "num_hidden_layers": 2}, depth.to_dict(), depth):
            config = MoshiConfig(audio_encoder_config=audio, depth_decoder_config=decoder)
            assert config.audio_encoder_config.to_dict() == mimi.to_dict()
            assert config.depth_decoder_config.to_dict() == depth.to_dict()
    for wrong in ({"model_type": "encodec"}, {"colour": 1}, {"num_quantizers": "8"}, "mimi", 3, [1]):
        with pytest.raises(ConfigError):
            MoshiConfig(audio_encoder_config=wrong)
    for wrong in ({"model_type": "mimi"}, {"colour": 1}, "depth"):
        with pytest.raises(ConfigError):
            MoshiConfig(depth_decoder_config=wrong)


# Values of the wrong kind, and absurd ones: every key of every config.

WRONG = ("a", -1, 0, 1.5, True, [], [1], ["a"], {}, {"a": 1}, 10**30, 1e300, -1e-300)


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("file", ["config.json", "mimi_config.json"])
def test_every_key_of_kyutais_configs(checkpoint, file, value):
    folder = checkpoint(lm_gen_config={"temp": 0.8, "top_k": 3})
    _try_every_key(folder, folder / file, value)


@pytest.mark.slow  # a model is read for every key
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_every_key_of_hugging_faces_config(hugging, value):
    _try_every_key(hugging, hugging / "config.json", value)


def _try_every_key(folder, path, value):
    """A value in the place of every other: a named error of one line, or a config that a model can be made of."""
    before = json.loads(path.read_text())
    for place in _places(before):
        values = json.loads(json.dumps(before))
        inner = values
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path.write_text(json.dumps(values))
        told = ""
        with contextlib.suppress(MoshiError):
            told = str(folder)
            reading.open_checkpoint(folder)
            told = ""
        assert not told or _message(folder).startswith(told), place


def _message(folder):
    with pytest.raises(MoshiError) as caught:
        reading.open_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def _places(values, before=()):
    for key, value in values.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from _places(value, (*before, key))


ABSURD = [
    {"num_layers": 10**6}, {"dep_q": 2**31}, {"n_q": 2**31}, {"delays": [0] + [10**8] * 16}, {"dim": 2**30},
    {"card": 2**30}, {"text_card": 2**31}, {"context": 2**40}, {"depformer_num_layers": 10**6},
    {"depformer_dim": 2**29},
    {"hidden_scale": 1e300}, {"max_period": 1e300}, {"max_period": 1e-300}, {"kv_repeat": 10**9}, {"num_heads": 2**31},
    {"depformer_dim_feedforward": 2**31}, {"depformer_low_rank_embeddings": 2**31}, {"existing_text_padding_id": 64},
    {"existing_text_end_padding_id": -1}, {"depformer_weights_per_step_schedule": [0] * 7 + [10**9]},
]  # fmt: skip


@pytest.mark.parametrize("change", ABSURD, ids=str)
def test_a_kilobyte_of_config_takes_no_gigabytes(checkpoint, change):
    with pytest.raises(ConfigError, match=r"config.json"):
        moshi_mlx.load(checkpoint(**change))


ABSURD_CODECS = [
    {("seanet", "ratios"): [8, 0, 5, 4]}, {("seanet", "ratios"): []}, {("seanet", "ratios"): [1] * 10**5},
    {("seanet", "ratios"): [2**31, 1]}, {("seanet", "n_filters"): 2**30}, {("seanet", "n_residual_layers"): 10**6},
    {("seanet", "kernel_size"): 10**9}, {("seanet", "dilation_base"): 10**9}, {("quantizer", "bins"): 2**31},
    {("quantizer", "n_q"): 2**31}, {("transformer", "num_layers"): 10**6}, {("transformer", "context"): 2**40},
    {"frame_rate": 1e-300}, {"frame_rate": 1e300}, {"sample_rate": 2**40}, {("transformer", "max_period"): 1e300},
    {("seanet", "compress"): 10**6}, {("transformer", "num_heads"): 10**6},
]  # fmt: skip


@pytest.mark.parametrize("change", ABSURD_CODECS, ids=str)
def test_nor_of_the_codecs(checkpoint, change):
    folder = checkpoint()
    update(folder / "mimi_config.json", change)
    with pytest.raises(MoshiError, match=r"mimi_config.json|mimi.safetensors"):
        moshi_mlx.load(folder)


# Files of JSON.

TEXTS = {
    "NaN": b'{"dim": NaN}', "infinite": b'{"dim": Infinity}', "too large": b'{"dim": 1e999}', "cut": b'{"dim": 3',
    "deep": b'{"a":' * 60 + b"1" + b"}" * 60, "deeper": b"[" * 10**6, "not UTF-8": b'{"a": "\xff"}',
    "binary": bytes(100),
    "many digits": b'{"dim": ' + b"9" * 10**5 + b"}", "a megabyte of text": b'{"' + b"a" * 10**6 + b'": 1}',
    "a megabyte of value": b'{"dim": "' + b"a" * 10**6 + b'"}', "too large a file": b" " * (2**25 + 1),
    "a list": b"[1]", "nothing": b"", "null": b"null", "UTF-16": '{"dim": 3}'.encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_no_config(checkpoint, hugging, name):
    for folder, file in (
        (checkpoint(), "config.json"), (checkpoint("moshi_tiny_mlx"), "mimi_config.json"), (hugging, "config.json"),
        (hugging, "generation_config.json"), (hugging, "model.safetensors.index.json"),
    ):  # fmt: skip
        path = folder / file
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(TEXTS[name])
        if file == "generation_config.json" and name.startswith("a megabyte"):  # says nothing of Moshi
            moshi_mlx.load(folder)
        else:
            with pytest.raises(MoshiError, match=str(folder)) as caught:
                moshi_mlx.load(folder)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 500
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


def test_a_byte_order_mark(checkpoint):
    folder = checkpoint()
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert moshi_mlx.load(folder)


# Names of files.

NAMES = ("/etc/passwd", "../other.safetensors", "a/../../b", "..", "", ".", "a\0b", "x" * 300, "file://relative", "file:///none",
         "hf://kyutai", "hf://a/b", "hf:///a/b", "fifo")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name"])
def test_names_that_leave_the_folder(checkpoint, tmp_path, key, name):
    folder = checkpoint()
    os.mkfifo(folder / "fifo")
    (tmp_path / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    update(folder / "config.json", {key: name})
    if name == "" and key in ("moshi_name", "mimi_config_name"):
        return  # none is named
    with pytest.raises(MoshiError) as caught:
        moshi_mlx.load(folder)
    assert str(folder) in str(caught.value) or "file:///none" in str(caught.value) or "/none" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if "://" not in name])
def test_an_index_names_files_of_its_folder(hugging, name):
    os.mkfifo(hugging / "fifo")
    path = hugging / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    tensor = min(index["weight_map"])
    index["weight_map"][tensor] = name
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=str(hugging)):
        moshi_mlx.load(hugging)


def test_links_of_the_hubs_cache_are_followed(checkpoint, tmp_path):
    folder = checkpoint()
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for n, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(n))
        path.symlink_to(blobs / str(n))
    assert moshi_mlx.load(folder)


# Kinds of tensors that files may have.


def test_packed_words_are_words(checkpoint, tmp_path):
    out = tmp_path / "q8"
    flags = ["-q", "--q-bits", "8", "--q-group-size", "32"]
    assert cli.main(["--hf-path", str(checkpoint()), "--mlx-path", str(out), *flags]) == 0
    tensors = dict(mx.load(str(out / "model.safetensors")))
    for name, kind in (
        ("text_linear.weight", mx.int32),
        ("text_linear.scales", mx.uint32),
        ("text_linear.biases", mx.uint8),
    ):
        (out / "model.safetensors").unlink()
        mx.save_safetensors(str(out / "model.safetensors"), tensors | {name: tensors[name].astype(kind)})
        with pytest.raises(CheckpointError, match=name):
            moshi_mlx.load(out)


def test_one_tensor_in_two_shards(hugging):
    shards = sorted(hugging.glob("model-*.safetensors"))
    tensors = [dict(mx.load(str(shard))) for shard in shards]
    name = min(tensors[0])
    mx.eval(tensors)
    shards[1].unlink()
    mx.save_safetensors(str(shards[1]), tensors[1] | {name: tensors[0][name]})
    with pytest.raises(CheckpointError, match=f"'{name}' is in .* too"):
        moshi_mlx.load(hugging)


# Types by name.


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", mx.float16), ("bfloat16", mx.bfloat16), ("float32", mx.float32), ("torch.float16", mx.float16),
        (np.float32, mx.float32), (np.dtype("float16"), mx.float16), ("auto", mx.bfloat16), (None, mx.bfloat16),
        (mx.float16, mx.float16),
    ],
)  # fmt: skip
def test_types_by_name(checkpoint, dtype, expected):
    folder = checkpoint()
    for given in ({"dtype": dtype}, {"torch_dtype": dtype}):
        assert moshi_mlx.load(folder, **given).decoder.lm_head.weight.dtype == expected


@pytest.mark.parametrize(
    "dtype", [float, 16, "float64", "int8", "half a float", "", mx.int32, np.float64, np.int8, ["float16"]]
)
def test_what_is_no_type(checkpoint, dtype):
    with pytest.raises(ConfigError, match="dtype: got"):
        moshi_mlx.load(checkpoint(), dtype=dtype)
