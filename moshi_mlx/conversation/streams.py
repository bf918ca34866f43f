"""Time alignment of whole streams (Moshi paper, section 3.4.4): which index of each stream a position sees and gives.

Position p sees index p - 1 - delay of a stream, or the stream's initial token before its start; what it gives is index
p - delay. `duplex` does the same frame by frame.
"""

from __future__ import annotations

import mlx.core as mx

from ..models.config import MoshiConfig


def initial_tokens(config: MoshiConfig) -> list[int]:
    """The token that stands before each stream's start: text, Moshi's codebooks, the user's."""
    return [config.vocab_size] + [config.audio_vocab_size] * len(config.audio_delays)


def shifted(streams: mx.array, shifts: list[int], initial: list[int]) -> mx.array:
    """streams int [B, K, T], stream k moved shifts[k] to the right behind its initial token: [B, K, T]."""
    batch, _, length = streams.shape
    rows = []
    for row, shift, token in zip(mx.split(streams, len(shifts), axis=1), shifts, initial, strict=True):
        before = mx.full((batch, 1, min(shift, length)), token, streams.dtype)
        rows.append(mx.concatenate([before, row[:, :, : max(0, length - shift)]], axis=2))
    return mx.concatenate(rows, axis=1)


def position_inputs(config: MoshiConfig, streams: mx.array) -> mx.array:
    """What each of T positions sees of streams int [B, 1 + streams, T], text first."""
    shifts = [1, *(1 + delay for delay in config.audio_delays)]
    return shifted(streams, shifts, initial_tokens(config))


def depth_inputs(config: MoshiConfig, streams: mx.array) -> mx.array:
    """What the depth decoder's steps see at each of T positions: [B, num_codebooks, T], the text token first."""
    count = config.num_codebooks
    return shifted(streams[:, :count], [0, *config.audio_delays[: count - 1]], initial_tokens(config)[:count])


def undelayed(config: MoshiConfig, logits: mx.array) -> mx.array:
    """The depth decoder's logits [B, T, num_codebooks, V] of positions as those of stream indices [B, K, T, V].

    The last `delay` indices of a codebook have none: zeros.
    """
    columns = mx.split(logits.swapaxes(1, 2), config.num_codebooks, axis=1)
    delays = config.audio_delays[: config.num_codebooks]
    length = logits.shape[1]
    rows = [
        mx.pad(column[:, :, delay:], [(0, 0), (0, 0), (0, min(delay, length)), (0, 0)])
        for column, delay in zip(columns, delays, strict=True)
    ]
    return mx.concatenate(rows, axis=1)


def reached(config: MoshiConfig, lengths: mx.array, length: int) -> mx.array:
    """bool [B, num_codebooks, T]: which indices of Moshi's codebooks a row of lengths[b] positions has logits of."""
    delays = mx.array(config.audio_delays[: config.num_codebooks])
    return mx.arange(length) + delays[:, None] < lengths[:, None, None]
