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
from mlx.utils import tree_map

from ..checkpoints import adapters, kyutai_config, writing
from ..checkpoints.safetensors import load_lazily
from ..errors import CheckpointError, ConfigError
from ..models.moshi import Moshi
from .files import metadata_of, write_json, write_tensors
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
    tensors = {f"weights/{name}": value for name, value in progress.weights.items()}
    tensors |= {f"optimizer/{name}": value for name, value in _flat(progress.optimizer)}
    metadata = {"done": str(progress.done), "options": json.dumps(dataclasses.asdict(options))}
    write_tensors(folder / STATE_NAME, tensors, metadata)
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


def resume(options: Options) -> Progress | None:
    """The run that `resume_adapter_file` continues; None where that is not the newest file of an unfinished run.

    Raises ConfigError where an option differs that would change the losses, CheckpointError for a broken state.
    """
    if options.resume_adapter_file is None:
        return None
    file = Path(options.resume_adapter_file)
    path = file if file.name == STATE_NAME else file.with_name(STATE_NAME)
    if not path.is_file() or file.name not in (adapters.FILE_NAME, STATE_NAME):
        return None
    metadata = metadata_of(path)
    before, now = json.loads(metadata["options"]), dataclasses.asdict(options)
    for key in sorted(set(now) - set(FREE)):
        if before.get(key) != now[key]:
            raise ConfigError(
                f"{path}: the run had {key} {before.get(key)!r}, not {now[key]!r}: it cannot be continued"
            )
    weights: Weights = {}
    state: State = {}
    for name, value in load_lazily(path).items():
        kind, name, *leaf = name.split("/")
        if kind == "weights":
            weights[name] = value
        elif leaf:
            state.setdefault(name, {})[leaf[0]] = value
        else:
            state[name] = value
    mx.eval(weights, state)  # read now: the next save replaces the file
    return Progress(int(metadata["done"]), weights, state)


def like(saved: Progress, new: Progress) -> Progress:
    """`saved` in the order of `new`, whose arrays it must have. Raises CheckpointError."""
    for ours, theirs in ((saved.weights, new.weights), (dict(_flat(saved.optimizer)), dict(_flat(new.optimizer)))):
        if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
            raise CheckpointError(f"{STATE_NAME} is of another model or optimizer than this run's")
    weights, state = tree_map(lambda _, mine: mine, (new.weights, new.optimizer), (saved.weights, saved.optimizer))
    return Progress(saved.done, weights, state)


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
        done = metadata_of(folder / STATE_NAME).get("done")
        raise ConfigError(
            f"{folder}: holds a run of {done} iterations; --resume-adapter-file {folder / STATE_NAME} goes on with it, "
            "another --adapter-path begins anew"
        )
