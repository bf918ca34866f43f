"""Attention of whole sequences: many positions in one call, differentiable, with memory linear in their number.

The ring caches of `cache` are written position by position and cannot be differentiated cheaply. Here the new
positions attend to each other directly, block by block of queries, each block to the keys that its windows reach; a
ring that holds what came before is read once and its successor is put together afterwards, by a gather.

Rows of unlike length: `Packing` moves the padding of each row, wherever it is, behind its last position. Nothing
before it can see it there, so that the causal mask is all that attention needs, and a row equals that row alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ...errors import InputError
from ..state import State
from .activations import on_cpu
from .cache import bits_of, held_after, sides

BLOCK = 64  # queries at a time


class Packing(NamedTuple):
    """Where the positions of padded rows go: `order` [B, T] to pack them, `inverse` to put them back."""

    order: mx.array
    inverse: mx.array
    lengths: mx.array  # int [B] positions that are no padding

    def pack(self, x: mx.array, axis: int = 1) -> mx.array:
        return _reorder(x, self.order, axis)

    def unpack(self, x: mx.array, axis: int = 1) -> mx.array:
        return _reorder(x, self.inverse, axis)


def packing(attention_mask: mx.array) -> Packing:
    """attention_mask [B, T], 0 or false where there is padding."""
    real, length = attention_mask.astype(mx.bool_), attention_mask.shape[1]
    order = mx.argsort(mx.where(real, 0, length) + mx.arange(length), axis=1)
    return Packing(order, mx.argsort(order, axis=1), real.sum(axis=1).astype(mx.int32))


def _reorder(x: mx.array, order: mx.array, axis: int) -> mx.array:
    shape = [1] * x.ndim
    shape[0], shape[axis] = order.shape
    return mx.take_along_axis(x, order.reshape(shape), axis=axis)


class Span(NamedTuple):
    """How the T new positions of a call stand to each other and to those before; shared by all layers."""

    offset: mx.array  # int [B] positions so far
    rotary: mx.array | None  # int [B, T] rotary positions, where they do not just count on from the offset
    past: mx.array | None  # bool [B, 1, T, capacity]: what of the ring is seen
    age: mx.array | None  # int [B, capacity] the ring's slots, oldest position first
    context: int
    parts: mx.array | None = None  # int [B, T] which of a row's packed sequences a position is of; the ring is of 0


def starts_again(positions: mx.array) -> mx.array:
    """positions int [B, T] -> bool [B, T]: where a position is no later than the one before it."""
    later = positions[:, 1:] > positions[:, :-1]
    return mx.concatenate([mx.zeros((len(positions), 1), mx.bool_), mx.logical_not(later)], axis=1)


def span(
    length: int, offset: mx.array, rotary: mx.array | None, capacity: int, context: int, packed: bool = False
) -> Span:
    """The span of `length` positions after `offset` (int [B]) that a ring of `capacity` slots holds (0: no ring).

    `packed`: several sequences in a row, apart where rotary positions start again.
    """
    parts = mx.cumsum(starts_again(rotary).astype(mx.int32), axis=1) if packed and rotary is not None else None
    if not capacity:
        return Span(offset, rotary, None, None, context, parts)
    held, _ = held_after(offset[:, None] - 1, capacity)
    distance = (offset[:, None] + mx.arange(length))[:, :, None] - held[:, None]
    past = (held[:, None] >= 0) & (distance < context)
    if parts is not None:
        past = past & (parts == 0)[:, :, None]
    return Span(offset, rotary, past[:, None], mx.argsort(held, axis=1), context, parts)


def attend(
    q: mx.array, k: mx.array, v: mx.array, ring: State, span: Span, scale: float, weights: list[mx.array] | None
) -> mx.array:
    """q [B, H, T, D], new k and v [B, Hkv, T, D] and the ring before them -> [B, H, T, D].

    `weights`, where given, gets the attention weights [B, H, T, capacity + T] of the layer appended, oldest first.
    Raises InputError for a ring in 8 or 4 bits, which is the live session's.
    """
    bits = None if ring is None else bits_of(ring, k.shape[-1])
    if bits:
        raise InputError(f"past_key_values: got a cache in {bits} bits, expected one in full precision (kv_bits=None)")
    length = q.shape[2]
    parts: list[mx.array] = []
    size = BLOCK if weights is None else length
    bands: dict[tuple[int, int], Any] = {}  # most blocks have the same
    for start in range(0, length, size):
        end = min(start + size, length)
        first = 0 if weights is not None else max(0, start - span.context + 1)
        shape = (end - start, end - first)
        whole = end <= span.context and span.past is None and weights is None and span.parts is None
        mask = bands.setdefault(shape, "causal" if whole else _band(*shape, span.context))
        if span.parts is not None:
            mask = mask & (span.parts[:, None, start:end, None] == span.parts[:, None, None, first:end])
        keys, values = k[:, :, first:end], v[:, :, first:end]
        if span.past is not None:
            mask = mask if mask.ndim == 4 else _rows(mask, len(q))
            mask = mx.concatenate([span.past[:, :, start:end], mask], axis=-1)
            old, new = sides(ring), (keys, values)
            keys, values = (mx.concatenate(list(pair), axis=2) for pair in zip(old, new, strict=True))
        block = q[:, :, start:end]
        if parts:  # one block after the other, or the scores of many are in memory at once
            block = mx.depends(block, parts[-1])
        if weights is None:
            parts.append(mx.fast.scaled_dot_product_attention(block, keys, values, scale=scale, mask=mask))
        else:
            seen = attention_weights(block, keys, mask, scale)
            parts.append(seen @ _repeated(values, q))
            weights.append(_oldest_first(seen, span.age))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def _band(queries: int, keys: int, context: int) -> mx.array:
    """bool [queries, keys]: what the last `queries` of `keys` positions see."""
    distance = mx.arange(keys - queries, keys)[:, None] - mx.arange(keys)
    return (distance >= 0) & (distance < context)


def stacked(parts: list[mx.array], axis: int) -> mx.array:
    """mx.stack of arrays [B, ...] of up to a frame's few integers.

    On a GPU it is one fused choice among them, where a concatenation would launch a copy for each.
    """
    if on_cpu():
        return mx.stack(parts, axis=axis)
    if len(parts) > 8:  # more than MLX fuses
        return mx.concatenate([stacked(parts[n : n + 8], axis) for n in range(0, len(parts), 8)], axis=axis)
    *rest, chosen = [mx.expand_dims(part, axis) for part in parts]
    place = mx.array(list(range(len(parts)))).reshape(-1, *[1] * (chosen.ndim - 1 - axis))
    for n, part in reversed(list(enumerate(rest))):
        chosen = mx.where(place == n, part, chosen)
    return chosen


def appended(past: mx.array | None, new: mx.array, count: int, room: int) -> mx.array:
    """What `past` holds in its first `count` places along axis 2, then new [B, H, 1, D]; what is behind means nothing.

    On a GPU it is one choice, with places for `room` of them, where a concatenation would launch two copies.
    """
    if past is None:
        return new
    if on_cpu():
        return mx.concatenate([past, new], axis=2)
    return mx.where(mx.array(np.arange(room)[:, None] >= count), new, past)


def _rows(mask: mx.array, batch: int) -> mx.array:
    return mx.broadcast_to(mask[None, None], (batch, 1, *mask.shape))


def _repeated(x: mx.array, q: mx.array) -> mx.array:
    """Keys or values for every query head of a group."""
    return mx.repeat(x, q.shape[1] // x.shape[1], axis=1)


def attention_weights(q: mx.array, keys: mx.array, mask: mx.array | None, scale: float) -> mx.array:
    """q [B, H, T, D], keys [B, Hkv, S, D] -> what each query takes of each key, [B, H, T, S]."""
    scores = (q * scale) @ _repeated(keys, q).swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    return mx.softmax(scores, axis=-1, precise=True)


def _oldest_first(weights: mx.array, age: mx.array | None) -> mx.array:
    if age is None:
        return weights
    past, new = mx.split(weights, [age.shape[1]], axis=-1)
    return mx.concatenate([mx.take_along_axis(past, age[:, None, None], axis=-1), new], axis=-1)


def ring_after(
    ring: State, keys: mx.array, values: mx.array, offset: mx.array, lengths: mx.array, capacity: int
) -> State:
    """The ring of `capacity` slots that holds the last positions once `lengths` (int [B]) new ones have come.

    keys and values [B, Hkv, T, D] are the new ones', packed; a ring before them must not have had more slots.
    """
    held, _ = held_after((offset + lengths)[:, None] - 1, capacity)
    new = (held - offset[:, None])[:, None, None, :, None]
    pairs = mx.stack([keys, values], axis=2)  # [B, Hkv, 2, T, D]
    taken = mx.take_along_axis(pairs, mx.clip(new, 0, keys.shape[2] - 1), axis=3)
    old = mx.zeros_like(taken) if ring is None else _widened(ring["pairs"], capacity)
    return {"pairs": mx.where(new >= 0, taken, old)}


def _widened(ring: mx.array, capacity: int) -> mx.array:
    return mx.pad(ring, [(0, 0), (0, 0), (0, 0), (0, capacity - ring.shape[3]), (0, 0)])
