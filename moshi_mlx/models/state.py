"""The state of conversations: a plain tree (dicts and lists) of arrays whose axis 0 is the conversation.

A module makes its part with `init_state(batch)` and hands on a new tree with every call. A state is consumed by the
call that it is given to: drop the old tree, or MLX has to copy the caches instead of writing them in place.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

State = Any
"""A tree of arrays: dict[str, State] | list[State] | mx.array."""


def stack(states: list[State]) -> State:
    """One state of all the conversations of several states, in their order. Cache capacities must be equal."""
    return tree_map(lambda *leaves: mx.concatenate(list(leaves)), *states)


def take(state: State, conversation: int) -> State:
    """The state of one conversation (as a batch of one)."""
    return tree_map(lambda leaf: leaf[conversation : conversation + 1], state)


def where(mask: mx.array, state: State, other: State) -> State:
    """`state` for the conversations where mask (bool [B]) is true, `other` for the rest: pauses, resets, swaps.

    Where a part has more rows, as the temporal transformer has with guidance, they are the conversations again.
    """

    def choose(a: mx.array, b: mx.array) -> mx.array:
        rows = mask if len(a) == len(mask) else mx.tile(mask, len(a) // len(mask))
        return mx.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return tree_map(choose, state, other)


def keep_paused(active: mx.array, state: State, before: State) -> State:
    """`state` for the conversations where active (bool [B]) is true, `before` for those that a step only passed over.

    Rings, and what no step changes, stay those of `state`, and nothing of them is copied: what a step writes for a
    paused conversation lies in the slots that its next step overwrites before it looks at them, since its offset has
    not moved.
    """
    if isinstance(state, dict):
        return {
            name: part if name in UNTOUCHED else keep_paused(active, part, before[name]) for name, part in state.items()
        }
    if isinstance(state, list):
        return [keep_paused(active, *parts) for parts in zip(state, before, strict=True)]
    return where(active, state, before)


TOLD = ("cross", "condition")
"""Parts of a transformer's state that no step changes."""
UNTOUCHED = ("layers", *TOLD)
"""Those, and its rings, beside the offset that says what of them is seen."""


def flatten(state: State) -> list[tuple[str, mx.array]]:
    """(dotted path, leaf) of every leaf, in the tree's order: the order of arguments of an exported step."""
    leaves = tree_flatten(state)
    return list(leaves.items()) if isinstance(leaves, dict) else leaves


def unflatten(leaves: list[tuple[str, mx.array]]) -> State:
    """The tree that `flatten` took apart."""
    return tree_unflatten(leaves)
