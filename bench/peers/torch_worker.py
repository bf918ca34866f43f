"""Kyutai's PyTorch package (moshi 0.2.13) at the same work, streaming, in float32; run with a Python that has it.

See serve.py for the protocol.
"""

from __future__ import annotations

import importlib
import os
import runpy
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

protocol = runpy.run_path(str(Path(__file__).with_name("serve.py")))
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of compilers left beside the measurement
torch = importlib.import_module("torch")
loaders = importlib.import_module("moshi.models.loaders")


def codec(spec: dict[str, Any]) -> Any:
    """A Mimi of 8 codebooks, in streaming mode from here on."""
    mimi = loaders.get_mimi(f"{spec['folder']}/mimi.safetensors", num_codebooks=8)
    mimi.streaming_forever(1)
    return mimi


def language(spec: dict[str, Any]) -> tuple[Callable[[Any], Any], Any]:
    """(user codes [1, 8, 1] -> tokens [1, 9, 1] or None, model), random weights of the same sizes."""
    model = loaders.get_moshi_lm(None, lm_kwargs=spec["config"], dtype=torch.float32)
    generator = importlib.import_module("moshi.models").LMGen(model)
    generator.streaming_forever(1)
    return generator.step, model


def _bytes(model: Any) -> int:
    return sum(value.numel() * value.element_size() for value in model.parameters())


def prepare(spec: dict[str, Any]) -> Any:
    if spec["bits"]:
        raise SystemExit("PyTorch moshi has no quantized weights on a CPU")
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    versions = {"moshi": version("moshi"), "torch": version("torch")}
    work = protocol["Work"]
    if spec["case"] == "lm-step":
        step, model = language(spec)
        zeros = torch.zeros((1, 8, 1), dtype=torch.long)

        def lm_frame(n: int) -> None:
            tokens = step(zeros)
            if tokens is not None:
                tokens.numpy()

        return work(lm_frame, _bytes(model), versions)
    mimi = codec(spec)
    sound = torch.from_numpy(protocol["sound"](spec["sound_frames"]))
    if spec["case"] == "mimi":

        def mimi_frame(n: int) -> Any:
            codes = mimi.encode(sound[n % len(sound)])
            mimi.decode(codes).numpy()
            return codes.numpy()

        return work(mimi_frame, _bytes(mimi), versions)
    step, model = language(spec)

    def duplex_frame(n: int) -> Any:
        codes = mimi.encode(sound[n % len(sound)])
        tokens = step(codes)
        if tokens is not None:
            mimi.decode(tokens[:, 1:]).numpy()
        return codes.numpy()

    return work(duplex_frame, _bytes(mimi) + _bytes(model), versions)


if __name__ == "__main__":
    protocol["serve"](prepare)
