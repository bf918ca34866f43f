"""`export_step`, the earlier way: MLX's own file of one step. `python -m moshi_mlx.export` takes its place."""

from __future__ import annotations

import warnings
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from ..conversation.duplex import DuplexSampling, init_state, prime, step
from ..models.moshi import Moshi
from ..models.roles import BOTH_SIDES, check_role
from ..models.state import flatten, unflatten


def export_step(model: Moshi, path: str | Path, sampling: DuplexSampling, seed: int = 0) -> int:
    """Deprecated: write the step of one conversation to `path` (.mlxfn, weights included).

    Only the MLX version, device and thread that it was made for can run it, with this seed and these settings; for
    apps there is `python -m moshi_mlx.export`. The function takes sound float32 [1, frame_size], then the leaves of
    the state in the order of `flatten`; it returns text, codes, sound and ready (see `Reply`), then the leaves of the
    next state in the same order. Beside it lies the primed state of a new conversation, `path` with the suffix
    .safetensors, its names numbered in that order. Returns the number of leaves.

    >>> import tempfile, warnings
    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", DeprecationWarning)
    ...     leaves = moshi_mlx.export_step(model, f"{folder}/step.mlxfn", moshi_mlx.DuplexSampling())
    >>> leaves > 10
    True
    """
    warnings.warn("export_step: use python -m moshi_mlx.export CHECKPOINT FOLDER", DeprecationWarning, stacklevel=2)
    check_role(model, *BOTH_SIDES)
    path = Path(path)
    _, state = prime(model, init_state(model, [seed], guidance=sampling.guidance), sampling)
    leaves = flatten(state)
    names = [name for name, _ in leaves]

    def exported(sound: mx.array, *values: mx.array) -> list[mx.array]:
        reply, after = step(model, sound, unflatten(list(zip(names, values, strict=True))), sampling)
        return [*reply, *(leaf for _, leaf in flatten(after))]

    sound = mx.zeros((1, model.config.audio_encoder_config.frame_size))
    weights = model.parameters()
    # MLX writes a view's memory under the view's shape: what lies there must be what is meant.
    model.update(tree_map(mx.contiguous, weights))
    try:
        mx.eval(model.parameters())
        mx.export_function(str(path), exported, sound, *(leaf for _, leaf in leaves))
    finally:
        model.update(weights)
    numbered = {f"{i:04d}.{name}": leaf for i, (name, leaf) in enumerate(leaves)}
    mx.save_safetensors(str(path.with_suffix(".safetensors")), numbered)
    return len(leaves)
