"""Plain Moshis as people publish them: keys that say nothing, sizes in a file of their own."""

import json

import mlx.core as mx
import pytest
from helpers import check_tokens, golden, run_codes

import moshi_mlx

LM = golden("lm")
SAYS_NOTHING = {
    "text_card_out": None, "fuser": {"sum": [], "cross": [], "prepend": []}, "conditioners": {},
    "cross_attention": False, "demux_second_stream": False, "extra_heads_num_heads": 0, "depformer_norm": None,
    "tts_config": {}, "stt_config": {}, "version": "1.1",
}  # fmt: skip
NAMES = ("moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name", "model_type", "lm_gen_config")


def tokens_are_right(folder):
    model = moshi_mlx.load(folder, dtype=mx.float32)
    assert model.voices is None
    frames = run_codes(model, LM["user"][:, :30])
    check_tokens(frames, {"text": LM["delay1.text"][:31], "audio": LM["delay1.audio"][:, :30]})


@pytest.mark.parametrize("keys", [*({key: value} for key, value in SAYS_NOTHING.items()), SAYS_NOTHING])
def test_keys_that_say_nothing(checkpoint, keys):
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(config))
    tokens_are_right(folder)


def test_sizes_in_a_file_of_their_own(checkpoint):
    """As llm-jp-moshi and J-Moshi have them: the default names of files, and no config.json."""
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "moshi_lm_kwargs.json").write_text(json.dumps({k: v for k, v in config.items() if k not in NAMES}))
    (folder / "config.json").unlink()
    (folder / "mimi.safetensors").rename(folder / "tokenizer-e351c8d8-checkpoint125.safetensors")
    (folder / "tokenizer.model").rename(folder / "tokenizer_spm_32k_3.model")
    tokens_are_right(folder)


def test_what_says_something_is_refused(checkpoint):
    for keys in ({"fuser": {"sum": ["description"]}}, {"model_type": "helium"}):
        folder = checkpoint()
        config = json.loads((folder / "config.json").read_text()) | keys
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(moshi_mlx.ConfigError, match=next(iter(keys))):
            moshi_mlx.load(folder)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
