"""What a run writes as it goes: the result so far, and training_state.safetensors, from which it resumes exactly.

The state is one file with the weights in float32, the optimizer's state, the number of iterations done and the
options; it is renamed into place as a whole. The result beside it is made from the same weights.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..checkpoints import adapters, writing
from ..checkpoints.configs import kyutai_config
from ..checkpoints.safetensors import load_lazily, read_metadata
from ..errors import CheckpointError, ConfigError, brief, clipped
from ..models.moshi import Moshi
from .files import is_file, whole_number, write_json, write_tensors
from .options import Options
from .steps import State
from .weights import Weights, placed

STATE_NAME = "training_state.safetensors"
CHECKPOINT_NAME = "checkpoint"  # of a full fine-tuning: a folder that `moshi_mlx.load` reads
# What may differ between the run that is continued and its continuation: none of it changes a loss.
FREE = (
    "iters", "adapter_path", "resume_adapter_file", "model", "data", "grad_checkpoint", "compile", "steps_per_report",
    "steps_per_eval", "val_batches", "save_every",
)  # fmt: skip


class Progress(NamedTuple):
    """A run after `done` iterations."""

    done: int
    weights: Weights
    optimizer: State


def save(folder: Path, progress: Progress, options: Options, model: Moshi) -> None:
    """The state, then the result: adapters.safetensors and a numbered copy, or a whole checkpoint."""
    metadata = {"done": str(progress.done), "options": json.dumps(dataclasses.asdict(options))}
    write_tensors(folder / STATE_NAME, _named(progress), metadata)
    if options.fine_tune_type == "lora":
        trained = {name: value.astype(model.decoder.model.dtype) for name, value in progress.weights.items()}
        published = adapters.to_kyutai(trained, model.config)
        write_json(folder / adapters.CONFIG_NAME, adapter_config(options))
        write_json(folder / adapters.KYUTAI_CONFIG_NAME, kyutai_config_of(options, model))
        for name in (f"{progress.done:07d}_{adapters.FILE_NAME}", adapters.FILE_NAME):
            write_tensors(folder / name, published, {"format": "pt"})
    else:
        with placed(model, progress.weights):
            writing.save(model, folder / CHECKPOINT_NAME, overwrite=True)


def adapter_config(options: Options) -> dict[str, Any]:
    """As mlx_lm writes it."""
    values = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("rank", "scale")}
    return values | {"lora_parameters": {"rank": options.rank, "scale": options.scale, "dropout": 0.0}}


def kyutai_config_of(options: Options, model: Moshi) -> dict[str, Any]:
    """What Kyutai's package, and `convert --lora`, want to find beside an adapter."""
    adapter = {"lora": True, "lora_rank": options.rank, "lora_scaling": options.scale}
    return kyutai_config.moshi_dict(model.config) | adapter


class Saved(NamedTuple):
    """A run as it was saved: its tensors by their names in the file."""

    path: Path
    done: int
    tensors: dict[str, mx.array]


def resume(options: Options) -> Saved | None:
    """The run that `resume_adapter_file` continues; None where that is not the newest file of an unfinished run.

    Raises ConfigError where an option differs that would change the losses, CheckpointError for a damaged state.
    """
    if options.resume_adapter_file is None:
        return None
    file = Path(options.resume_adapter_file)
    path = file if file.name == STATE_NAME else file.with_name(STATE_NAME)
    if not is_file(path) or file.name not in (adapters.FILE_NAME, STATE_NAME):
        return None
    about = _about(path)
    now = dataclasses.asdict(options)
    before = dataclasses.asdict(Options(model=options.model, data=options.data)) | about["options"]  # new keys
    for key in sorted(set(now) - set(FREE)):
        if before[key] != now[key]:
            raise ConfigError(
                f"{path}: the run had {key} {brief(before[key])}, not {now[key]!r}: it cannot be continued"
            )
    tensors = load_lazily(path)
    mx.eval(tensors)  # read now: the next save replaces the file
    return Saved(path, about["done"], tensors)


def _about(path: Path) -> dict[str, Any]:
    """What a state says of its run: how many iterations are done, and its options. Raises CheckpointError."""
    metadata = read_metadata(path)
    try:
        about = {key: json.loads(metadata[key]) for key in ("done", "options")}
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged, or not the state of a run: {clipped(str(error))}") from error
    whole_number(about, "done", str(path))
    if not isinstance(about["options"], dict):
        raise CheckpointError(f"{path}: is damaged: key 'options' is {brief(about['options'])}, expected an object")
    return about


def like(saved: Saved, new: Progress) -> Progress:
    """`saved` in the order of `new`, whose arrays it must have. Raises CheckpointError."""
    expected = _named(new)
    for name in sorted(set(expected) ^ set(saved.tensors)):
        what = "is missing" if name in expected else "has no place"
        raise CheckpointError(f"{saved.path}: tensor {brief(name)} {what}; is it another model's or optimizer's?")
    for name, tensor in saved.tensors.items():
        wanted = expected[name]
        if (tensor.shape, tensor.dtype) != (wanted.shape, wanted.dtype):
            got, right = (f"{str(one.dtype).removeprefix('mlx.core.')} {list(one.shape)}" for one in (tensor, wanted))
            raise CheckpointError(f"{saved.path}: tensor {brief(name)} is {got}, expected {right}")
        if not _is_finite(tensor):
            raise CheckpointError(f"{saved.path}: is damaged: tensor {brief(name)} holds values that are no numbers")
    weights = {name: saved.tensors[f"weights/{name}"] for name in new.weights}
    found = {name: saved.tensors[f"optimizer/{name}"] for name, _ in _flat(new.optimizer)}
    state = {
        name: {leaf: found[f"{name}/{leaf}"] for leaf in value} if isinstance(value, dict) else found[name]
        for name, value in new.optimizer.items()
    }
    return Progress(saved.done, weights, state)


def is_finite(progress: Progress) -> bool:
    """Whether a run has only numbers: one that has not cannot go on."""
    return all(_is_finite(tensor) for tensor in _named(progress).values())


def _is_finite(tensor: mx.array) -> bool:
    return not mx.issubdtype(tensor.dtype, mx.floating) or bool(np.array(mx.isfinite(tensor).all()))


def _named(progress: Progress) -> dict[str, mx.array]:
    """The tensors of a state's file."""
    tensors = {f"weights/{name}": value for name, value in progress.weights.items()}
    return tensors | {f"optimizer/{name}": value for name, value in _flat(progress.optimizer)}


def _flat(state: State) -> list[tuple[str, mx.array]]:
    """An optimizer's state, at most two levels deep, as (NAME or NAME/LEAF, array)."""
    flat: list[tuple[str, mx.array]] = []
    for name, value in state.items():
        flat += (
            [(f"{name}/{leaf}", array) for leaf, array in value.items()] if isinstance(value, dict) else [(name, value)]
        )
    return flat


def refuse_to_overwrite(folder: Path) -> None:
    """Raises ConfigError where a folder holds another run."""
    if (folder / STATE_NAME).is_file():
        done = _about(folder / STATE_NAME)["done"]
        raise ConfigError(
            f"{folder}: holds a run of {done} iterations; --resume-adapter-file {folder / STATE_NAME} goes on with it, "
            "another --adapter-path begins anew"
        )
