"""`load`: a model from a folder or the hub, ready to talk."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..checkpoints import adapters
from ..checkpoints.hub import local_folder
from ..checkpoints.reading import build, open_checkpoint
from .moshi import MoshiForConditionalGeneration


def load(
    path_or_hub_id: str | Path, dtype: mx.Dtype | None = None, adapter: str | Path | None = None
) -> MoshiForConditionalGeneration:
    """A model, ready for `model.session()`, from a local folder or a hub id such as "kyutai/moshiko-mlx-q4".

    `dtype` is the type that the language model is run in (of the scales, where it is quantized); None keeps the
    stored one. The codec always runs in float32. `adapter` is put on the model: see `adapters.load`.
    Raises CheckpointError or ConfigError, naming file and tensor or key.
    """
    model = build(open_checkpoint(local_folder(path_or_hub_id)), dtype, MoshiForConditionalGeneration)
    if adapter is not None:
        adapters.load(model, adapter)
    mx.eval(model.parameters())
    return model
