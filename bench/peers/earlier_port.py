"""What the converter writes, in the earlier port (moshi_mlx 0.3.0): strict loading, and the logits beside ours.

python -m bench.peers.earlier_port make FOLDER                    # a small random model, converted to bf16, q8 and q4
cd /tmp && PORT/bin/python /PATH/bench/peers/earlier_port.py run FOLDER    # in the environment of the earlier port
python -m bench.peers.earlier_port check FOLDER                   # the same tokens through ours, side by side
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

POSITIONS = 20
KINDS: dict[str, list[str]] = {"bf16": [], "q8": ["-q", "--q-bits", "8"], "q4": ["-q", "--q-bits", "4"]}


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Inputs [17, T] and the text that the depth decoder is given [T]: random tokens of the model that `make` makes."""
    rng = np.random.default_rng(0)
    text, audio = rng.integers(0, 512, (2, POSITIONS)), rng.integers(0, 2048, (16, POSITIONS))
    return np.concatenate([text[:1], audio]).astype(np.int32), text[1].astype(np.int32)


def make(folder: Path) -> None:
    """The model at sizes where the port's fixed widths (11/4 of the dimension) and every group size are whole."""
    from moshi_mlx.convert import cli

    from .. import random_checkpoint

    sizes = random_checkpoint.lm_config(256, 2, 256, 2, 512, 2048)
    codec = random_checkpoint.mimi_config(4, 64, 2, 128, 2048, 32, 8)
    random_checkpoint.SIZES["port"] = (sizes, codec)
    random_checkpoint.write(folder / "source", "port", None, mx.bfloat16, mx.float32)
    for name, flags in KINDS.items():
        cli.main(["--hf-path", str(folder / "source"), "--mlx-path", str(folder / name), "--overwrite", *flags])


def run(folder: Path) -> None:
    """In the port: its own way of choosing the quantization by the file's name, then load_weights(strict=True)."""
    models = importlib.import_module("moshi_mlx.models")  # the port's, in its own environment

    for name in KINDS:
        config = json.loads((folder / name / "config.json").read_text())
        model = models.Lm(models.LmConfig.from_config_dict(config))
        model.set_dtype(mx.bfloat16)
        file = config["moshi_name"]
        if file.endswith(".q4.safetensors"):
            nn.quantize(model, bits=4, group_size=32)
        elif file.endswith(".q8.safetensors"):
            nn.quantize(model, bits=8, group_size=64)
        model.load_weights(str(folder / name / file), strict=True)
        model.set_dtype(mx.float32)
        text, codes = _port_logits(model)
        np.savez(folder / f"{name}.npz", text=text, codes=codes)
        print(f"{name}: {file} loaded, strict")


def _port_logits(model: Any) -> tuple[np.ndarray, np.ndarray]:
    inputs, text = tokens()
    logits: list[np.ndarray] = []
    heads: list[list[np.ndarray]] = []

    def greedy(values: mx.array) -> tuple[mx.array, None]:
        heads[-1].append(np.array(values).reshape(-1))
        return mx.argmax(values, axis=-1).astype(mx.int32), None

    for t in range(POSITIONS):
        x = model.text_emb(mx.array(inputs[:1, t : t + 1]))
        for row, table in zip(inputs[1:], model.audio_embs, strict=True):
            x = x + table(mx.array(row[None, t : t + 1]))
        hidden = model.out_norm(model.transformer(x, cache=model.transformer_cache))
        logits.append(np.array(model.text_linear(hidden)).reshape(-1))
        heads.append([])
        model.depformer.sample(hidden, greedy, mx.array(text[None, t : t + 1]), model.depformer_cache)
    return np.stack(logits), np.array(heads)


def check(folder: Path) -> None:
    """The largest difference of ours, as a share of the largest logit."""
    import moshi_mlx

    inputs, text = tokens()
    for name in KINDS:
        model = moshi_mlx.load(folder / name, dtype=mx.float32)
        state = model.decoder.model.init_state(1, positions=POSITIONS)
        hidden, logits, _ = model.decoder.step(mx.array(inputs[None]), state)
        heads: list[np.ndarray] = []

        def greedy(step: int, values: mx.array, heads: list[np.ndarray] = heads) -> mx.array:
            heads.append(np.array(values))
            return mx.argmax(values, axis=-1)

        model.depth_decoder.sample(hidden[0], mx.array(text), greedy)
        ours = {"text": np.array(logits[0]), "codes": np.stack(heads, axis=1)}
        theirs = np.load(folder / f"{name}.npz")
        gaps = {key: float(np.abs(ours[key] - theirs[key]).max() / np.abs(theirs[key]).max()) for key in ours}
        print(f"{name}: largest difference of the logits {gaps['text']:.1e} (text), {gaps['codes']:.1e} (codes)")


if __name__ == "__main__":
    {"make": make, "run": run, "check": check}[sys.argv[1]](Path(sys.argv[2]))
