"""The transformer that Mimi, Helium and the depth decoder share: pre-norm layers over ring caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ..config import MoshiConfig, MoshiDepthConfig
from ..state import State
from . import cache as caches
from . import rotary, sequence
from .activations import gelu
from .linear import Linear, add_product


@dataclass(frozen=True)
class LayerConfig:
    """Sizes of a layer. `gated` chooses SiLU-gated MLP, RMSNorm and no layer scale; else GELU MLP, LayerNorm, scale."""

    dim: int
    num_heads: int
    num_key_value_heads: int
    hidden: int
    norm_eps: float
    gated: bool
    head_dim: int
    interleaved: bool = True  # rotary positions turn neighbours, else the halves of a head
    crosses: bool = False  # whether the layer looks at something besides

    @classmethod
    def gated_of(cls, config: MoshiConfig | MoshiDepthConfig) -> LayerConfig:
        """The gated layer of the temporal transformer, or of the depth decoder."""
        return cls(
            dim=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.key_value_heads,
            hidden=config.ffn_dim // 2,
            norm_eps=config.rms_norm_eps,
            gated=True,
            head_dim=config.head_width,
            interleaved=getattr(config, "rope_interleaved", True),
            crosses=getattr(config, "cross_attention", False),
        )


class Attention(nn.Module):
    """Self-attention, queries, keys and values from one product. in_proj [dim, (H + 2 Hkv) D], out_proj [H D, dim]."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        queries, kv = config.num_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.in_proj = Linear(config.dim, queries + 2 * kv)
        self.out_proj = Linear(queries, config.dim)
        self.heads = (config.num_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.head_dim, self.scale = config.head_dim, config.head_dim**-0.5
        self.interleaved = config.interleaved

    def turned(self, x: mx.array, rope_theta: float, offset: int | mx.array) -> mx.array:
        """Queries or keys [B, H, T, D] at the positions from `offset` on."""
        return mx.fast.rope(x, x.shape[-1], traditional=self.interleaved, base=rope_theta, scale=1.0, offset=offset)

    def project(self, x: mx.array, batch: int, *shape: int) -> mx.array:
        """x [B T, dim] or [B, T, dim] -> queries, keys and values in one [B, H + 2 Hkv, T, *shape of a head]."""
        h, heads = self.in_proj(x), sum(self.heads)
        if h.size == batch * h.shape[-1]:  # nothing to transpose
            return h.reshape(batch, heads, 1, *shape)
        return h.reshape(batch, -1, heads, *shape).swapaxes(1, 2)

    def __call__(self, x: mx.array, cache: State, seen: caches.Window, turn: rotary.Turn) -> tuple[mx.array, State]:
        """x [B T, dim] -> what attention saw [B T, H D], before the output projection; cache."""
        queries, keys, _ = self.heads
        batch, _, length, half = turn.cos.shape
        pairs = self.project(x, batch, *rotary.pairs_of(2 * half, self.interleaved))
        q, new = mx.split(rotary.turned(pairs, turn, self.interleaved, queries + keys), [queries], axis=1)
        cache = caches.write(cache, seen.slots, new.reshape(batch, 2, keys, length, 2 * half))
        y = caches.attend(q.reshape(batch, queries, length, 2 * half), cache, seen.mask, self.scale)
        return (y if length == 1 else y.swapaxes(1, 2)).reshape(len(x), -1), cache

    def over_sequence(
        self, x: mx.array, ring: State, span: sequence.Span, rope_theta: float, weights: list[mx.array] | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """The same over a whole sequence (see `sequence`): what attention saw, and the new keys and values."""
        queries, keys, _ = self.heads
        turning, v = mx.split(self.project(x, len(x), self.head_dim), [queries + keys], axis=1)
        if span.rotary is None:
            turned = self.turned(turning, rope_theta, 0 if span.past is None else span.offset)
        else:
            turn = rotary.turn(span.rotary[:, None, :, None], self.head_dim, rope_theta)
            pairs = turning.reshape(*turning.shape[:3], *rotary.pairs_of(self.head_dim, self.interleaved))
            turned = rotary.turned(pairs, turn, self.interleaved).reshape(turning.shape)
        q, k = mx.split(turned, [queries], axis=1)
        y = sequence.attend(q, k, v, ring, span, self.scale, weights)
        return y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1), k, v


class CrossAttention(nn.Module):
    """Attention to keys and values that stay what they are: no positions, no mask. in_proj has queries, keys, values.

    Their source is what a conversation is told (`conditions`), so they are made once, and lie in its state.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.in_proj = Linear(config.dim, 3 * config.num_heads * config.head_dim)
        self.out_proj = Linear(config.num_heads * config.head_dim, config.dim)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim

    def keys_values(self, source: mx.array) -> State:
        """source [B, S, dim] -> keys and values [B, H, S, D]."""
        _, k, v = (self._heads(part) for part in mx.split(self.in_proj(source), 3, axis=-1))
        return {"keys": k, "values": v}

    def __call__(self, x: mx.array, fixed: State) -> mx.array:
        """x [B T, dim] or [B, T, dim] -> what is added to it, alike."""
        keys, values = fixed["keys"], fixed["values"]
        q = self._heads(mx.split(self.in_proj(x), 3, axis=-1)[0].reshape(len(keys), -1, self.num_heads * self.head_dim))
        y = mx.fast.scaled_dot_product_attention(q, keys, values, scale=self.head_dim**-0.5)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(*x.shape[:-1], -1))

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(0, 2, 1, 3)


class GatedMLP(nn.Module):
    """silu(gate) * up, then down; gate and up from one product."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_in = Linear(dim, 2 * hidden)
        self.linear_out = Linear(hidden, dim)

    def hidden(self, x: mx.array) -> mx.array:
        """What the last layer sees."""
        gate, up = mx.split(self.linear_in(x), 2, axis=-1)
        return nn.silu(gate) * up


class MLP(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = Linear(dim, hidden)
        self.linear2 = Linear(hidden, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear2(gelu(self.linear1(x)))


class LayerScale(nn.Module):
    """A learnt factor for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = mx.ones((dim,))

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.scale


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each scaled where the layer has scales."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        norm: Any = nn.RMSNorm if config.gated else nn.LayerNorm
        self.norm1 = norm(config.dim, eps=config.norm_eps)
        self.norm2 = norm(config.dim, eps=config.norm_eps)
        self.self_attn = Attention(config)
        if config.crosses:
            self.norm_cross = nn.LayerNorm(config.dim, eps=1e-5)
            self.cross_attention = CrossAttention(config)
        if config.gated:
            self.gating = GatedMLP(config.dim, config.hidden)
        else:
            self.mlp = MLP(config.dim, config.hidden)
            self.layer_scale_1 = LayerScale(config.dim)
            self.layer_scale_2 = LayerScale(config.dim)

    def finish(self, x: mx.array, attended: mx.array, fixed: State = None) -> mx.array:
        """What follows attention: its output projection, cross-attention to what is `fixed`, and the MLP, each added
        to the residual x."""
        out = self.self_attn.out_proj
        if "gating" in self:
            x = add_product(x, attended, out)
            if "cross_attention" in self:
                x = x + self.cross_attention(self.norm_cross(x), fixed)
            return add_product(x, self.gating.hidden(self.norm2(x)), self.gating.linear_out)
        x = x + self.layer_scale_1(out(attended))
        return x + self.layer_scale_2(self.mlp(self.norm2(x)))

    def __call__(
        self, x: mx.array, cache: State, seen: caches.Window, turn: rotary.Turn, fixed: State = None
    ) -> tuple[mx.array, State]:
        attended, cache = self.self_attn(self.norm1(x), cache, seen, turn)
        return self.finish(x, attended, fixed), cache


class Transformer(nn.Module):
    """Layers with rotary positions. State: offset [B] and the cache of each layer."""

    def __init__(self, config: LayerConfig, num_layers: int, context: int, rope_theta: float) -> None:
        super().__init__()
        self.layers = [TransformerLayer(config) for _ in range(num_layers)]
        self.context = context
        self.rope_theta = rope_theta
        self.checkpointing = False  # whether `over_sequence` computes its layers anew in the backward pass
        self._cache_shape = (config.num_key_value_heads, config.head_dim)

    def init_state(
        self, batch: int, dtype: mx.Dtype, positions: int = 1, capacity: int | None = None, kv_bits: int | None = None
    ) -> State:
        """State for calls of up to `positions` positions each; `capacity` slots to begin with (see `grow`)."""
        heads, head_dim = self._cache_shape
        slots = capacity or self.full_capacity(positions)
        layers = [caches.create(batch, heads, slots, head_dim, dtype, kv_bits) for _ in self.layers]
        return {"offset": mx.zeros((batch,), mx.int32), "layers": layers}

    def full_capacity(self, positions: int = 1) -> int:
        """Slots that hold the window of each of `positions` new ones."""
        return self.context + positions - 1

    def __call__(self, x: mx.array, state: State) -> tuple[mx.array, State]:
        """x [B, T, dim] -> [B, T, dim], state."""
        length, capacity = x.shape[1], caches.capacity_of(state["layers"][0])
        if length > max(1, capacity - self.context + 1):
            room = max(1, capacity - self.context + 1)
            raise InputError(f"got {length} positions in one call, but the state's caches take {room}")
        seen = caches.window(state["offset"], length, capacity, self.context)
        turn = rotary.turn(seen.positions, self._cache_shape[1], self.rope_theta)
        shape, layers = x.shape, []
        x = x.reshape(-1, shape[-1])  # as products want it, which would each take the batch apart and back
        fixed = state.get("cross", [None] * len(self.layers))
        for layer, cache, source in zip(self.layers, state["layers"], fixed, strict=True):
            x, cache = layer(x, cache, seen, turn, source)
            layers.append(cache)
        return x.reshape(shape), {**state, "offset": state["offset"] + length, "layers": layers}

    def across(self, source: mx.array) -> State:
        """What the layers' cross-attention looks at, of source [B, S, dim]: a state's `cross`."""
        return [layer.cross_attention.keys_values(source) for layer in self.layers]

    def over_sequence(
        self,
        x: mx.array,
        past: State = None,
        *,
        lengths: mx.array | None = None,
        rotary: mx.array | None = None,
        packed: bool = False,
        room: int = 0,
        attentions: list[mx.array] | None = None,
        hidden_states: list[mx.array] | None = None,
    ) -> tuple[mx.array, State]:
        """A whole sequence, any length, differentiable: x [B, T, dim] -> [B, T, dim] and the state after it.

        The state comes from `past` or nothing; it costs nothing where it is not used. Its rings have place for `room`
        positions more. `lengths` int [B]: how many of the T positions of each row are no padding, which lies behind
        them; `rotary` int [B, T]: positions that do not count on; `packed`: where they start again another sequence
        begins, which does not see the one before (the state, which would, is not to be used then). The last two, where
        given, get the attention weights and the output of every layer appended.
        """
        batch, length, _ = x.shape
        offset = mx.zeros((batch,), mx.int32) if past is None else past["offset"]
        lengths = mx.full((batch,), length, mx.int32) if lengths is None else lengths
        before = 0 if past is None else caches.capacity_of(past["layers"][0])
        capacity = max(before, min(self.context, before + length + room))
        span = sequence.span(length, offset, rotary, before, self.context, packed)
        layers = []
        for layer, ring in zip(self.layers, past["layers"] if past else [None] * len(self.layers), strict=True):
            x, k, v = self._layer_over_sequence(layer, x, ring, span, attentions)
            layers.append(sequence.ring_after(ring, k, v, offset, lengths, capacity))
            if hidden_states is not None:
                hidden_states.append(x)
        return x, {**(past or {}), "offset": offset + lengths, "layers": layers}

    def _layer_over_sequence(
        self, layer: TransformerLayer, x: mx.array, ring: State, span: sequence.Span, attentions: list[mx.array] | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """A layer's output, and its new keys and values."""

        def run(weights: Any, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
            if weights is not None:
                layer.update(weights)
            attended, k, v = layer.self_attn.over_sequence(layer.norm1(x), ring, span, self.rope_theta, attentions)
            return layer.finish(x, attended), k, v

        if not self.checkpointing or attentions is not None:
            return run(None, x)
        weights = layer.trainable_parameters()
        out = mx.checkpoint(run)(weights, x)
        layer.update(weights)  # `run` leaves there what it was traced with
        return out


def grow(state: State, capacity: int) -> State:
    """A transformer's state with rings of `capacity` slots, before any of them has wrapped."""
    return {**state, "layers": [caches.grow(cache, capacity) for cache in state["layers"]]}
