"""What the tests of convert share."""

import json
import shutil

import mlx.core as mx
import pytest
from helpers import GOLDENS

import moshi_mlx


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """Random weights wide enough for every group size, in the MLX layout."""
    from bench.random_checkpoint import language_tensors, lm_config

    folder = tmp_path_factory.mktemp("wide") / "wide"
    shutil.copytree(GOLDENS / "moshi_tiny", folder)
    values = lm_config(128, 1, 128, 1, 64, 32) | {
        "hidden_scale": 3.0, "depformer_dim_feedforward": 384, "num_heads": 2, "depformer_num_heads": 2, "context": 32,
    }  # fmt: skip
    names = {
        "mimi_name": "mimi.safetensors",
        "tokenizer_name": "tokenizer.model",
        "mimi_config_name": "mimi_config.json",
    }
    (folder / "config.json").write_text(json.dumps(values | names))
    mimi = moshi_mlx.MimiConfig.from_kyutai(json.loads((folder / "mimi_config.json").read_text()), "mimi_config.json")
    config = moshi_mlx.MoshiConfig.from_kyutai(values, "config.json", mimi)
    mx.random.seed(1)
    tensors = dict(language_tensors(config, None, mx.bfloat16))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder
