"""The two functions of an iteration: gradients of a batch, and the optimizer's update. Both are pure, and compiled.

On the CPU backend they are compiled only if asked: each of their many kernels takes g++ a second there, for little.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
from mlx.utils import tree_map

from ..models.moshi import Moshi
from .loss import Batch, loss
from .weights import Weights, placed

State = Any
"""An optimizer's: a dict of arrays and, under each weight's name, a dict of its own."""


class Steps:
    """Batches have one shape. The frozen weights of the model are constants of the graph."""

    def __init__(
        self,
        model: Moshi,
        optimizer: mlx.optimizers.Optimizer,
        max_grad_norm: float,
        remat: bool,
        compiled: bool | None,
        group: mx.distributed.Group,
    ) -> None:
        if compiled is None:
            compiled = mx.default_device() != mx.Device(mx.cpu)
        wrap: Any = mx.compile if compiled else lambda function: function
        self._group = group
        self._gradients = wrap(_gradients(model, remat))
        self._losses = wrap(_losses(model))
        self._update = wrap(_update(optimizer, max_grad_norm, group.size()))

    def train(
        self, weights: Weights, state: State, batches: list[Batch], rate: float
    ) -> tuple[Weights, State, mx.array]:
        """An iteration over one or more batches: -> weights, optimizer's state, losses by kind [3]."""
        kinds, gradients = self._gradients(weights, batches[0])
        mx.eval(kinds, gradients)
        for batch in batches[1:]:
            more, other = self._gradients(weights, batch)
            kinds, gradients = kinds + more, tree_map(mx.add, gradients, other)
            mx.eval(kinds, gradients)
        averaged = nn.average_gradients(list(gradients.values()), self._group)
        gradients = dict(zip(gradients, averaged, strict=True))
        weights, state = self._update(weights, state, gradients, mx.array(rate))
        mx.eval(weights, state, kinds)
        return weights, state, self._sum(kinds)

    def validate(self, weights: Weights, batches: list[Batch]) -> mx.array:
        """Losses by kind [3] over batches."""
        total = mx.zeros((3,))
        for batch in batches:
            total = total + self._losses(weights, batch)
            mx.eval(total)
        return self._sum(total)

    def _sum(self, kinds: mx.array) -> mx.array:
        """Over all processes; evaluated here, so that each of them takes its part in the exchange."""
        total = mx.distributed.all_sum(kinds, group=self._group)
        mx.eval(total)
        return total


def _gradients(model: Moshi, remat: bool) -> Any:
    def objective(weights: Weights, batch: Batch) -> tuple[mx.array, mx.array]:
        with placed(model, weights):
            return loss(model, batch, weights if remat else None)

    value_and_grad = mx.value_and_grad(objective)

    def gradients(weights: Weights, batch: Batch) -> tuple[mx.array, Weights]:
        (_, kinds), found = value_and_grad(weights, batch)
        return kinds, found

    return gradients


def _losses(model: Moshi) -> Any:
    def losses(weights: Weights, batch: Batch) -> mx.array:
        with placed(model, weights):
            return loss(model, batch)[1]

    return losses


def _update(optimizer: mlx.optimizers.Optimizer, max_grad_norm: float, processes: int) -> Any:
    def update(weights: Weights, state: State, gradients: Weights, rate: mx.array) -> tuple[Weights, State]:
        # The weights of a batch add up to one over all processes: the gradient is the sum, not the mean.
        gradients = tree_map(lambda gradient: processes * gradient, gradients)
        if max_grad_norm:
            gradients, _ = mlx.optimizers.clip_grad_norm(gradients, max_grad_norm)
        optimizer.state = state
        optimizer.learning_rate = rate
        return optimizer.apply_gradients(gradients, weights), optimizer.state

    return update
