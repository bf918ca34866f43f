"""The golden checkpoint in Hugging Face's layout."""

import shutil

import mlx.core as mx
import pytest
from helpers import GOLDENS, edit_json

from moshi_mlx import MoshiForConditionalGeneration


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """A function that loads the golden checkpoint with another window, or one head of keys and values alone."""

    def load(**changes):
        folder = tmp_path_factory.mktemp("hf") / "model"
        shutil.copytree(GOLDENS / "moshi_tiny_hf", folder)
        if changes.get("num_key_value_heads") == 1:
            for shard in folder.glob("*.safetensors"):
                tensors = mx.load(str(shard))
                for name in tensors:
                    if name.startswith("decoder.") and ("k_proj" in name or "v_proj" in name):
                        tensors[name] = mx.contiguous(tensors[name][:16])
                mx.save_safetensors(str(shard), tensors)
        edit_json(folder / "config.json", **changes)
        return MoshiForConditionalGeneration.from_pretrained(folder, dtype=mx.float32)

    return load
