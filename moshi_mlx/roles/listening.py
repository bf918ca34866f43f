"""The step of many people who are transcribed: `steps.listen`, told what each row does in it, as `conversation.rows`.

Sound is encoded on its own, so that codes which somebody has already take the same way from there on. A row that has no
part in a step keeps its state, and a new one is zeroed in passing.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..conversation import rows
from ..conversation.duplex import DuplexSampling
from ..conversation.rows import Parts
from ..models.moshi import Moshi
from ..models.state import State, keep_paused
from . import steps


def encode(model: Moshi, sound: mx.array, encoder: State, parts: Parts, codebooks: int) -> tuple[mx.array, State]:
    """sound float [B, frame_size] -> codes int [B, user_codebooks], -1 beyond so many, and the encoder's state."""
    before = keep_paused(~parts.begins, encoder, rows.zeros(encoder))
    codes, after = model.audio_encoder.encode_step(sound, before, codebooks)
    missing = model.config.user_codebooks - codebooks
    padded = mx.pad(codes[..., 0].astype(mx.int32), [(0, 0), (0, missing)], constant_values=-1)
    return padded, keep_paused(parts.hears, after, before)


def step(
    model: Moshi, codes: mx.array, state: State, parts: Parts, sampling: DuplexSampling
) -> tuple[mx.array, mx.array, mx.array, State]:
    """One position from codes int [B, user_codebooks] -> text int32 [B], heads [B, n, classes], finite bool [B], state.

    The state is one without the encoder's. What a row that neither primes nor hears gives means nothing.
    """
    before = rows.begun(state, parts)
    unseen = mx.where(parts.hears[:, None], codes, 0)  # a position that primes sees initial tokens alone
    text, hidden, after = steps.position(model, unseen, before, sampling)
    finite = mx.isfinite(hidden).all(axis=-1)
    return text, steps.heads(model, hidden), finite, keep_paused(parts.hears | parts.primes, after, before)


def remembered(model: Moshi, text: np.ndarray, codes: np.ndarray, kv_bits: int | None = None) -> State:
    """The temporal state of one person of whom only some frames are remembered: the last ones, text and codes as known.

    text int [n], the token before each of these frames; codes int [n, user_codebooks]. The state is that after a
    beginning (initial tokens) and these frames, all in one pass: n + 1 positions. Lazy.
    """
    config = model.config
    first = [config.vocab_size] + [config.audio_vocab_size] * config.user_codebooks
    frames = np.concatenate([text[:, None], codes], axis=1) if len(text) else np.zeros((0, len(first)), np.int32)
    tokens = mx.array(np.concatenate([[first], frames]).T.astype(np.int32))[None]
    length = tokens.shape[-1]
    temporal = model.decoder.model.init_state(1, positions=length, kv_bits=kv_bits)
    _, _, temporal = model.decoder.step(tokens, temporal)
    layers = [{name: ring[..., :length, :] for name, ring in cache.items()} for cache in temporal["layers"]]
    return {**temporal, "layers": layers}
