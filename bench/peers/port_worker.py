"""The earlier port (moshi_mlx 0.3.0) at the same work; run with a Python that has it, and rustymimi.

It is called as its own local.py calls it: Mimi in rustymimi (codec "mlx": its own MLX Mimi), codes and tokens through
the host. See serve.py for the protocol.
"""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

protocol = runpy.run_path(str(Path(__file__).with_name("serve.py")))
Codec = tuple[Callable[[np.ndarray], Any], Callable[[Any], Any], int]


def codec(spec: dict[str, Any]) -> Codec:
    """(pcm [1, 1, 1920] -> codes [1, 8, 1], codes -> pcm, bytes of weights), streaming."""
    weights = f"{spec['folder']}/mimi.safetensors"
    if spec["codec"] == "rustymimi":
        rust = importlib.import_module("rustymimi").Tokenizer(weights, num_codebooks=8)
        return rust.encode_step, rust.decode_step, Path(weights).stat().st_size
    module = importlib.import_module("moshi_mlx.models.mimi")
    mimi = module.Mimi(module.mimi_202407(8))
    mimi.load_pytorch_weights(weights, strict=False)
    return (
        lambda pcm: np.array(mimi.encode_step(mx.array(pcm))),
        lambda codes: np.array(mimi.decode_step(mx.array(codes))),
        _bytes(mimi),
    )


def language(spec: dict[str, Any]) -> tuple[Callable[[mx.array], Any], int]:
    """(user codes [1, 8] -> Moshi's codes or None, bytes of weights), random weights of the same sizes."""
    models = importlib.import_module("moshi_mlx.models")
    sampler = importlib.import_module("moshi_mlx.utils").Sampler
    model = models.Lm(importlib.import_module("moshi_mlx.models.lm").LmConfig.from_config_dict(spec["config"]))
    if spec["bits"]:
        nn.quantize(model, bits=spec["bits"], group_size=32 if spec["bits"] == 4 else 64)
    mx.eval(model.parameters())
    generator = models.LmGen(
        model,
        max_steps=spec["steps"],
        text_sampler=sampler(top_k=25, temp=0.7),
        audio_sampler=sampler(top_k=250, temp=0.8),
    )

    def step(codes: mx.array) -> Any:
        token = generator.step(codes)
        (token[0] if isinstance(token, tuple) else token).item()
        audio = generator.last_audio_tokens()
        return None if audio is None else np.array(audio)

    return step, _bytes(model)


def _bytes(model: nn.Module) -> int:
    leaves: Any = tree_flatten(model.parameters())
    return sum(value.nbytes for _, value in leaves)


def prepare(spec: dict[str, Any]) -> Any:
    versions = {"moshi_mlx": version("moshi_mlx"), "rustymimi": version("rustymimi"), "mlx": version("mlx")}
    work = protocol["Work"]
    if spec["case"] == "lm-step":
        step, size = language(spec)
        zeros = np.zeros((1, 8), np.int32)

        def lm_frame(n: int) -> None:
            step(mx.array(zeros))

        return work(lm_frame, size, versions)
    encode, decode, size = codec(spec)
    sound = protocol["sound"](spec["sound_frames"])
    if spec["case"] == "mimi":

        def mimi_frame(n: int) -> np.ndarray:
            codes = encode(sound[n % len(sound)])
            decode(codes)
            return np.array(codes)

        return work(mimi_frame, size, versions)
    step, language_size = language(spec)

    def duplex_frame(n: int) -> np.ndarray:
        codes = encode(sound[n % len(sound)])
        reply = step(mx.array(codes[:, :, 0]))
        if reply is not None:
            decode(reply[:, :, None].astype(np.uint32))
        return np.array(codes)

    return work(duplex_frame, size + language_size, versions)


if __name__ == "__main__":
    protocol["serve"](prepare)
