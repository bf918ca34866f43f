"""How long frames take here: of the miniature, whole, and of Moshi, from a few of its layers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints.filling import fill, language_shapes
from ..checkpoints.layouts import kyutai_mlx
from ..conversation import duplex
from ..huggingface.loading import load
from ..machine import preflight
from ..machine.chips import FRAME_MS
from ..models.config import PRESETS, MoshiConfig
from ..models.layers.activations import on_cpu
from ..models.moshi import Moshi
from .finding import NOTE, OK, Finding

MINIATURE = Path(__file__).parents[1] / "assets" / "miniature"
FEW, MORE = 2, 4  # layers of the temporal transformer, of Moshi's 32
COUNT = {True: 12, False: 2}  # frames that are timed with each, on a GPU and on a CPU, which takes seconds for one
Q4_GROUP = 32


def miniature() -> Iterator[Finding]:
    """Its load, the kernels of a conversation, and its frames at a full context."""
    began = time.perf_counter()
    model: Any = load(MINIATURE)
    loaded = time.perf_counter()
    session = model.session(progress=False)
    built = time.perf_counter()
    model.session(progress=False)
    again = time.perf_counter() - built
    values = {"load_s": loaded - began, "first_session_s": built - loaded, "second_session_s": again}
    values = {name: round(seconds, 3) for name, seconds in values.items()}
    said = f"built in {built - loaded:.1f} s the first time, traced in {again:.1f} s after that"
    yield Finding("kernels", OK, said, "", values)
    yield _timed("miniature", preflight.time_frames(session))


def _timed(what: str, seconds: list[float]) -> Finding:
    p50, p95 = preflight.median_ms(seconds), 1e3 * float(np.percentile(seconds, 95))
    values = {"p50_ms": round(p50, 2), "p95_ms": round(p95, 2)}
    slow = p50 >= FRAME_MS
    todo = "too slow even for the miniature: close other programs" if slow else ""
    return Finding(what, NOTE if slow else OK, f"{p50:.1f} ms a frame, 95% within {p95:.1f}", todo, values)


def moshi() -> Iterator[Finding]:
    """A frame of Moshi's 7B in 4 bits at a full context, predicted from all of it but 28 of 32 layers."""
    config = PRESETS["moshi-7b"]
    model = random_model(replace(config, num_hidden_layers=MORE))
    more, _ = _median(model)
    del model.decoder.model.transformer.layers[FEW:]
    few, spread = _median(model)
    layer = max(0.0, (more - few) / (MORE - FEW))
    frame = more + (config.num_hidden_layers - MORE) * layer
    values = {"ms": round(frame, 1), "layer_ms": round(layer, 3), "few_ms": round(few, 2), "more_ms": round(more, 2),
              "few_p95_ms": round(spread, 2)}  # fmt: skip
    said = f"about {frame:.0f} ms a frame of {FRAME_MS:.0f}, predicted ({layer:.2f} ms a layer)"
    fits = frame < FRAME_MS
    todo = "" if fits else "too slow to talk live: try --kv-bits 8, or talk through files (--input, --output)"
    yield Finding("Moshi in 4 bits", OK if fits else NOTE, said, todo, values)


def _median(model: Moshi) -> tuple[float, float]:
    seconds = preflight.time_frames(FullContext(model), COUNT[not on_cpu()])
    return preflight.median_ms(seconds), 1e3 * float(np.percentile(seconds, 95))


class FullContext:
    """The step of a conversation whose context is full, as `preflight.time_frames` takes a session."""

    def __init__(self, model: Moshi) -> None:
        self.frame_size = model.config.audio_encoder_config.frame_size
        sampling = duplex.DuplexSampling()
        self._step = mx.compile(lambda sound, state: duplex.step(model, sound, state, sampling))
        offset = mx.array([model.config.sliding_window])
        self._state = duplex.init_state(model, [0])
        self._state |= {"offset": offset, "temporal": self._state["temporal"] | {"offset": offset}}

    def step(self, pcm: np.ndarray) -> None:
        reply, self._state = self._step(mx.array(pcm[None]), self._state)
        mx.eval(reply, self._state)

    def reset(self) -> None:
        self._state = None


def random_model(config: MoshiConfig) -> Moshi:
    """A Moshi of these sizes with random weights in 4 bits, as Kyutai's q4 files have them; no tokenizer."""
    model = Moshi(config)
    tensors: dict[str, mx.array] = {}
    for name, shape in language_shapes(config).items():
        if len(shape) == 2 and shape[1] % Q4_GROUP == 0:
            stem, groups = name.removesuffix(".weight"), (shape[0], shape[1] // Q4_GROUP)
            tensors[f"{stem}.weight"] = mx.random.randint(0, 2**31 - 1, (shape[0], shape[1] // 8)).astype(mx.uint32)
            tensors[f"{stem}.scales"] = mx.full(groups, 0.01 / shape[1] ** 0.5, mx.bfloat16)
            tensors[f"{stem}.biases"] = mx.full(groups, -0.08 / shape[1] ** 0.5, mx.bfloat16)
        else:
            tensors[name] = mx.ones(shape, mx.bfloat16)
    fill(model, list(kyutai_mlx(config)), tensors)
    mx.eval(model.parameters())
    return model
