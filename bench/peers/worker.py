"""This package at the work that peers are compared on: `python -m bench.peers.worker`, by the protocol of serve.py."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import moshi_mlx
from moshi_mlx import MoshiForConditionalGeneration
from moshi_mlx.models.state import flatten

from .. import cases
from .serve import Work, serve, sound


def prepare(spec: dict[str, Any]) -> Work:
    model = moshi_mlx.load(spec["folder"])
    frame = {"mimi": _mimi, "lm-step": _language, "duplex": _duplex}[spec["case"]](model, spec)
    language = [model.decoder, model.depth_decoder]
    used: dict[str, list[nn.Module]] = {"mimi": [model.audio_encoder], "lm-step": language, "duplex": [model]}
    weights = {id(leaf): leaf.nbytes for part in used[spec["case"]] for _, leaf in flatten(part.parameters())}
    return Work(frame, sum(weights.values()), {"moshi_mlx": moshi_mlx.__version__, "mlx": version("mlx")})


def _mimi(model: MoshiForConditionalGeneration, spec: dict[str, Any]) -> Any:
    """Encode and decode, the codes on the host in between, as the peers have them."""
    frames, stream = sound(spec["sound_frames"]), model.audio_encoder.stream(8)

    def frame(n: int) -> np.ndarray:
        codes = stream.encode(frames[n % len(frames), 0, 0])
        stream.decode(codes)
        return codes

    return frame


def _language(model: MoshiForConditionalGeneration, spec: dict[str, Any]) -> Any:
    """The language model's part of a frame: codes from the host, tokens to the host."""
    work = cases.work(model, cases.Spec("lm-step", frames=spec["steps"]))
    step, states = mx.compile(work.step), [work.state()]
    zeros = np.zeros((1, model.config.user_codebooks), np.int32)

    def frame(n: int) -> None:
        tokens, state = step(mx.array(zeros), states.pop())
        mx.eval(tokens, state)
        states.append(state)
        for token in tokens:
            np.array(token)

    return frame


def _duplex(model: MoshiForConditionalGeneration, spec: dict[str, Any]) -> Any:
    """A Session, whose only difference to a peer's duplex frame is that nothing passes the host inside it."""
    frames, session = sound(spec["sound_frames"]), model.session(seed=0)

    def frame(n: int) -> None:
        session.step(frames[n % len(frames), 0, 0])

    return frame


if __name__ == "__main__":
    serve(prepare)
