"""Ring caches: the keys and values of a layer, in full precision, in 8 bits or in 4.

The cache of a layer is a ring of `capacity` slots; the key of position p lies in slot p mod capacity. In full precision
keys and values are one array, `pairs` [B, H, 2, capacity, D], which one call writes. Which slots a
query may see follows from the offset (positions so far) of its conversation alone, so a ring needs no clearing: what
an earlier conversation left in it is never seen. The window of position q is exactly 0 <= q - k < context.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ...errors import InputError
from ..state import State
from .activations import on_cpu

SIDES = ("keys", "values")
PARTS = ("", "_scales", "_biases")  # of a side in 8 or 4 bits
KV_BITS = (8, 4)
FUSED_HEADS = (64, 96, 128, 256)  # sizes of a head for which Metal has the kernel that skips hidden keys


class Window(NamedTuple):
    """Where the new positions of a call stand and what they may see; made once a call, shared by all layers."""

    positions: mx.array  # [B, 1, T, 1]
    slots: mx.array  # [B, 1, T, 1] ring slot of each new position
    mask: mx.array  # [B, 1, T, capacity] bool, true where seen


def window(offset: mx.array, length: int, capacity: int, context: int) -> Window:
    """The window of `length` new positions after `offset` (int [B]) in rings of `capacity` slots."""
    first, later = offset[:, None, None, None], _counting(length)[:, None]
    held, size = held_after(first + (length - 1), capacity)  # [B, 1, 1, capacity]
    # What is made of each shares no part with another and needs no other shape, so that each is one fused operation.
    distance = (first - held) + later
    mask = (held >= 0) & (distance >= 0) & (distance < context)
    return Window(later + first, (first + later) % size, mask)


def held_after(last: mx.array, capacity: int) -> tuple[mx.array, mx.array]:
    """[..., capacity], the position that each slot holds once `last` int [..., 1] is written, < 0: none; slots [1]."""
    slots = _counting(capacity)
    size = slots[-1:] + 1  # as data: a number would be written into the fused kernels, to be built anew as rings grow
    return last - (last - slots) % size, size


def _counting(length: int) -> mx.array:
    """0, 1, 2 ... as a constant, which no call has to make anew."""
    return mx.array(np.arange(length, dtype=np.int32))


def create(batch: int, heads: int, capacity: int, head_dim: int, dtype: mx.Dtype, kv_bits: int | None) -> State:
    """The empty cache of a layer. With kv_bits 8 or 4, each half of it is packed words, scales and biases."""
    if kv_bits is None:
        return {"pairs": mx.zeros((batch, heads, 2, capacity, head_dim), dtype)}
    if kv_bits not in KV_BITS:
        raise InputError(f"kv_bits: got {kv_bits!r}, only 8 or 4 (or None) is supported")
    if head_dim % 32:
        raise InputError(f"kv_bits: got {kv_bits} with heads of {head_dim} values, expected a multiple of 32")
    shapes = [(head_dim * kv_bits // 32, mx.uint32)] + [(head_dim // group_size(head_dim), dtype)] * 2
    return {
        side + part: mx.zeros((batch, heads, capacity, width), kind)
        for side in SIDES
        for part, (width, kind) in zip(PARTS, shapes, strict=True)
    }


def group_size(head_dim: int) -> int:
    """Values that share a scale."""
    return 64 if head_dim % 64 == 0 else 32


def bits_of(cache: State, head_dim: int) -> int | None:
    """The kv_bits that a cache was created with."""
    return None if "pairs" in cache else cache["keys"].shape[-1] * 32 // head_dim


def capacity_of(cache: State) -> int:
    return int(cache["pairs" if "pairs" in cache else "keys"].shape[-2])


def sides(cache: State) -> tuple[mx.array, mx.array]:
    """Keys and values [B, H, capacity, D] of a cache in full precision: views that attention takes as they are."""
    keys, values = (side.squeeze(2) for side in mx.split(cache["pairs"], 2, axis=2))
    return keys, values


def write(cache: State, slots: mx.array, new: mx.array) -> State:
    """The cache with new keys and values [B, 2, H, T, D] in their slots; in place where the cache is consumed."""
    head_dim = new.shape[-1]
    bits = bits_of(cache, head_dim)
    if not bits:
        return {"pairs": mx.put_along_axis(cache["pairs"], slots[:, :, None], new.swapaxes(1, 2), axis=3)}
    packed = {
        side + part: array
        for side, half in zip(SIDES, (half.squeeze(1) for half in mx.split(new, 2, axis=1)), strict=True)
        for part, array in zip(PARTS, mx.quantize(half, group_size=group_size(head_dim), bits=bits), strict=True)
    }
    return {name: mx.put_along_axis(ring, slots, packed[name], axis=2) for name, ring in cache.items()}


def attend(q: mx.array, cache: State, mask: mx.array, scale: float) -> mx.array:
    """Softmax attention of q [B, H, T, D] over a cache: [B, H, T, D]."""
    bits = bits_of(cache, q.shape[-1])
    if not bits:
        return mx.fast.scaled_dot_product_attention(q, *sides(cache), scale=scale, mask=mask)
    batch, heads, length, head_dim = q.shape
    kv_heads, group = cache["keys"].shape[1], group_size(head_dim)
    q = (q * scale).reshape(batch, kv_heads, heads // kv_heads * length, head_dim)
    keys, values = ([cache[side + part] for part in PARTS] for side in SIDES)
    scores = mx.quantized_matmul(q, keys[0], keys[1], keys[2], True, group, bits)
    scores = scores.reshape(batch, kv_heads, heads // kv_heads, length, -1)
    scores = mx.where(mask[:, :, None], scores, mx.finfo(scores.dtype).min)
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(batch, kv_heads, -1, scores.shape[-1])
    y = mx.quantized_matmul(weights, values[0], values[1], values[2], False, group, bits)
    return y.reshape(q.shape[0], heads, length, head_dim)


def reads_unseen_slots(head_dim: int, kv_bits: int | None) -> bool:
    """Whether the attention of one position reads every slot of a ring, also those that the mask hides.

    Metal's kernel for few queries skips hidden keys, in the sizes of heads that it has. (From 1024 slots on a Max or
    an Ultra takes another one, which reads them ahead: there a full ring costs its bytes from the start.) The CPU's
    product, the fallback of other heads and the products of a cache in 8 or 4 bits read everything.
    """
    return on_cpu() or kv_bits is not None or head_dim not in FUSED_HEADS


def packed(cache: State, kv_bits: int) -> State:
    """A cache in full precision as `write` keeps it in `kv_bits`."""
    pairs = cache["pairs"]
    batch, heads, _, capacity, head_dim = pairs.shape
    empty = create(batch, heads, capacity, head_dim, pairs.dtype, kv_bits)
    slots = mx.broadcast_to(mx.arange(capacity)[:, None], (batch, 1, capacity, 1))
    return write(empty, slots, pairs.swapaxes(1, 2))


def grow(cache: State, capacity: int) -> State:
    """The cache with rings of `capacity` slots. Only before they have wrapped: what is in them stays in its slot."""

    def widen(ring: mx.array) -> mx.array:
        *rows, slots, width = ring.shape
        return mx.concatenate([ring, mx.zeros((*rows, capacity - slots, width), ring.dtype)], axis=-2)

    return {name: widen(ring) for name, ring in cache.items()}
