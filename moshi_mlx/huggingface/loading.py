"""`load`: a model from a folder or the hub, ready to talk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import adapters
from ..checkpoints.hub import local_folder
from ..checkpoints.reading import Checkpoint, build, check_dtype, moshi_tokenizer, open_checkpoint, read_tokenizer
from ..errors import CheckpointError
from .moshi import MoshiForConditionalGeneration


def load(
    path_or_hub_id: str | Path,
    dtype: mx.Dtype | str | None = None,
    adapter: str | Path | None = None,
    *,
    torch_dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
) -> MoshiForConditionalGeneration:
    """A model, ready for `model.session()`: a local folder, a hub id such as "kyutai/moshiko-mlx-q4", or "miniature".

    `dtype` is the type that the language model is run in (of the scales, where it is quantized), such as "bfloat16";
    None and "auto" keep the stored one; `torch_dtype` is another name for it. The codec always runs in float32.
    `adapter` is put on the model: see `adapters.load`. `revision` is a branch, tag or commit of the hub's repository.
    A model of Moshi's vocabulary that comes without a tokenizer gets Kyutai's; where that cannot be had, or for
    another vocabulary, there is no text, and a warning says so.
    Raises CheckpointError or ConfigError, naming file and tensor or key.

    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> model.config.num_codebooks, model.audio_encoder.config.sampling_rate
    (8, 24000)
    """
    dtype = check_dtype(torch_dtype if dtype is None else dtype)
    checkpoint = open_checkpoint(local_folder(path_or_hub_id, revision))
    model = build(checkpoint, dtype, MoshiForConditionalGeneration)
    if model.tokenizer is None:
        model.tokenizer = _kyutai_tokenizer(checkpoint)
    if adapter is not None:
        adapters.load(model, adapter)
    mx.eval(model.parameters())
    return model


def _kyutai_tokenizer(checkpoint: Checkpoint) -> Any:
    """Moshi's tokenizer for a checkpoint that has none; None, with a warning, where there is none that fits."""
    why = "put its tokenizer, NAME.model, into the folder"
    try:
        path = moshi_tokenizer(checkpoint)
        if path is not None:
            return read_tokenizer(path, checkpoint.config)
    except CheckpointError as error:
        why = str(error)
    warnings.warn(f"{checkpoint.folder}: no sentencepiece tokenizer, so there will be no text: {why}", stacklevel=3)
    return None
