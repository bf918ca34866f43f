"""A small trainer: the compiled step, the schedule, exact resumption, the curve.

Everything random in a step comes from (seed, number of the step), so a run that was killed and started again goes
through the same losses as one that was not.
"""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np
from mlx.utils import tree_map

from moshi_mlx.models.state import flatten, unflatten

from .files import load_whole, save_whole

Losses = dict[str, mx.array]
"""By name; "loss" is what is minimized."""


@dataclass(frozen=True)
class Recipe:
    """AdamW without decay, a warm-up, then a cosine down to `floor` of the rate; gradients clipped to norm 1."""

    steps: int
    rate: float = 1e-3
    betas: tuple[float, float] = (0.8, 0.99)
    warm_up: int = 100
    floor: float = 0.05
    batch: int = 8
    workers: int = 2  # the batch is a multiple of it
    seed: int = 0
    save_every: int = 100
    report_every: int = 25

    def rate_at(self, step: int) -> float:
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        turn = min(1.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        return self.rate * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * turn)))

    def random(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, step])


class _Worker:
    """Losses and gradients of a share of every batch, in a thread and on a model of its own."""

    def __init__(self, model: nn.Module, loss: Callable[..., tuple[Losses, Any]]) -> None:
        self._model, self._loss = copy.deepcopy(model), loss
        self._thread, self._stream = ThreadPoolExecutor(1), mx.new_thread_local_stream(mx.default_device())
        self._compiled = mx.compile(self._gradients)

    def close(self) -> None:
        """End the thread, and before it what MLX runs for it."""
        self._thread.submit(mx.clear_streams).result()
        self._thread.shutdown()

    def start(self, weights: Any, trainable: Any, share: list[np.ndarray]) -> Future[Any]:
        return self._thread.submit(self._work, weights, trainable, share)

    def _work(self, weights: Any, trainable: Any, share: list[np.ndarray]) -> Any:
        with mx.stream(self._stream):
            done = self._compiled(weights, trainable, *map(mx.array, share))
            mx.eval(done)
        return done

    def _gradients(self, weights: Any, trainable: Any, *batch: mx.array) -> Any:
        self._model.update(weights)

        def minimized(trainable: Any) -> tuple[mx.array, Any]:
            self._model.update(trainable)
            losses, rest = self._loss(self._model, *batch)
            return losses["loss"], (losses, rest)

        (_, (losses, rest)), gradients = mx.value_and_grad(minimized)(trainable)
        return losses, rest, gradients


class Trainer:
    """A model, its optimizer and the number of steps done; `extra` is what else must be kept to resume.

    `loss(model, *batch)` gives named losses and anything else that the caller wants of the batch. Every batch is split
    among `recipe.workers` threads, which `close` ends: MLX's CPU backend computes on one core.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, loss: Callable[..., tuple[Losses, Any]]) -> None:
        self.model, self.recipe, self.step_number = model, recipe, 0
        self.extra: dict[str, mx.array] = {}
        self.optimizer = mlx.optimizers.AdamW(recipe.rate, betas=list(recipe.betas), weight_decay=0.0)
        self.optimizer.bias_correction = True
        self.optimizer.init(_trainable(model))
        mx.eval(model.parameters())
        self._workers = [_Worker(model, loss) for _ in range(recipe.workers)]
        state = [model.state, self.optimizer.state]

        def update(gradients: list[Any]) -> mx.array:
            mean = tree_map(lambda *parts: sum(parts[1:], parts[0]) / len(parts), *gradients)
            clipped, norm = mlx.optimizers.clip_grad_norm(mean, 1.0)
            self.optimizer.update(model, clipped)
            return norm

        self._update = mx.compile(update, inputs=state, outputs=state)

    def step(self, *batch: np.ndarray) -> tuple[dict[str, float], list[Any]]:
        """One step: the losses and the gradient's norm as numbers, and what the loss function gave besides, of each
        worker's share of the batch.
        """
        self.optimizer.learning_rate = mx.array(self.recipe.rate_at(self.step_number))
        losses, rests, gradients = zip(*self._work(batch), strict=True)
        norm = self._update(list(gradients))
        mx.eval(norm, self.model.state, self.optimizer.state)
        self.step_number += 1
        means = {name: float(np.mean([part[name].item() for part in losses])) for name in losses[0]}
        return means | {"norm": float(norm)}, list(rests)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _work(self, batch: tuple[np.ndarray, ...]) -> list[Any]:
        shares = zip(*(np.split(rows, len(self._workers)) for rows in batch), strict=True)
        weights, trainable = self.model.parameters(), _trainable(self.model)
        mx.eval(weights)
        jobs = zip(self._workers, shares, strict=True)
        return [job.result() for job in [worker.start(weights, trainable, list(share)) for worker, share in jobs]]

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": value for name, value in flatten(self.model.parameters())}
        tensors |= {f"optimizer.{name}": value for name, value in flatten(self.optimizer.state)}
        tensors |= {f"extra.{name}": value for name, value in self.extra.items()}
        save_whole(path, tensors, {"step": str(self.step_number)})

    def resume(self, path: Path) -> None:
        """Go on where `save` was called, if it ever was."""
        if not path.exists():
            return
        tensors, metadata = load_whole(path)
        self.model.update(unflatten(_under("model.", tensors)))
        for name, value in unflatten(_under("optimizer.", tensors)).items():
            self.optimizer.state[name] = value
        self.extra = dict(_under("extra.", tensors))
        self.step_number = int(metadata["step"])


def _trainable(model: nn.Module) -> Any:
    """MLX's own tree has empty places for frozen lists, which no update takes."""
    return unflatten(flatten(model.trainable_parameters()))


def _under(prefix: str, tensors: dict[str, mx.array]) -> list[tuple[str, mx.array]]:
    return [(name.removeprefix(prefix), value) for name, value in tensors.items() if name.startswith(prefix)]


class Curve:
    """Losses over steps in a CSV file, a row every `every` steps: their means since the last, and the time of a step.

    Rows of steps that a resumed run does again are dropped.
    """

    def __init__(self, path: Path, every: int, done: int) -> None:
        self.path, self.every = path, every
        self._since: list[dict[str, float]] = []
        self._began = time.monotonic()
        rows = [row for row in read_curve(path) if int(row["step"]) <= done]
        self._columns = list(rows[0]) if rows else []
        self._write("w", rows)

    def add(self, step: int, losses: dict[str, float]) -> dict[str, Any] | None:
        """The row, where one is full."""
        self._since.append(losses)
        if step % self.every:
            return None
        means = {name: float(np.mean([row[name] for row in self._since])) for name in losses}
        now = time.monotonic()
        row = {"step": step, "seconds": round((now - self._began) / len(self._since), 3)}
        row |= {name: round(value, 6) for name, value in means.items()}
        self._since, self._began = [], now
        new = not self._columns
        self._columns = list(row)
        self._write("a", [row], header=new)
        return row

    def _write(self, mode: str, rows: list[dict[str, Any]], header: bool = True) -> None:
        with self.path.open(mode, newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            if header and self._columns:
                writer.writeheader()
            writer.writerows(rows)


def read_curve(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        with path.open(newline="") as file:
            yield from csv.DictReader(file)


def plot_curves(files: dict[str, list[str]], source: Path, target: Path) -> None:
    """A picture: one panel for each list of columns, those that the CSV file has."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(read_curve(source))
    steps = [int(row["step"]) for row in rows]
    figure, panels = plt.subplots(1, len(files), figsize=(5 * len(files), 3.2), squeeze=False)
    for axes, (title, columns) in zip(panels[0], files.items(), strict=True):
        for column in columns:
            points = [(step, float(row[column])) for step, row in zip(steps, rows, strict=True) if row.get(column)]
            if points:
                axes.plot(*zip(*points, strict=True), label=column)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=90)
    plt.close(figure)
