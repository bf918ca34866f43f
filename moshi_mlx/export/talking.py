"""A conversation with a bundle in Python: what `embed/src/conversation.cpp` does, to hold a bundle to the Session."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..conversation.duplex import DuplexSampling
from ..models.sampling import COLD, Sampling
from .running import Arrays, Bundle


class Heard(NamedTuple):
    """80 ms of Moshi's side; pcm and codes are None while the delay fills."""

    pcm: np.ndarray | None
    text_token: int
    audio_codes: np.ndarray | None


class Stream:
    """How the tokens of one kind are chosen."""

    def __init__(self, bundle: Bundle, settings: Sampling, vocabulary: int) -> None:
        kept = min(settings.top_k or vocabulary, vocabulary)
        cut = "k" if kept < vocabulary else ""
        kind = cut + ("p" if settings.top_p < 1 else "") + ("m" if settings.min_p > 0 else "")
        kind += "c" if settings.temperature < COLD else ""
        name = "greedy" if settings.greedy else kind or "all"
        self._graph = bundle.graph(f"sample.{name}", [], V=vocabulary, K=kept)
        log_min_p = math.log(settings.min_p) if settings.min_p > 0 else 0.0
        self._numbers = [mx.array(float(value)) for value in (settings.temperature, settings.top_p, log_min_p)]

    def choose(self, logits: mx.array, noise: mx.array) -> mx.array:
        return self._graph(logits, noise, *self._numbers)[0]


class Talk:
    """One conversation, a frame at a time."""

    def __init__(self, bundle: Bundle, seed: int, sampling: DuplexSampling) -> None:
        self._bundle = bundle
        # Of one conversation, which has numbers and no arrays of rows.
        assert isinstance(sampling.text, Sampling)
        assert isinstance(sampling.audio, Sampling)
        self._text = Stream(bundle, sampling.text, bundle.number("text_tokens"))
        self._audio = Stream(bundle, sampling.audio, bundle.number("audio_tokens"))
        greedy = sampling.text.greedy and sampling.audio.greedy
        self._noise = None if greedy else bundle.graph("noise", [])
        self._key = mx.random.key(seed)[None]
        self._capacities = [int(size) for size in bundle.values["capacities"].split()]
        state = bundle.begin()
        self._small, self._temporal, self._encoder, self._decoder = self._parts(state)
        self._positions, self._capacity = 0, self._capacities[0]
        column, _, self.first_token = self._language(mx.zeros((1, bundle.number("user_codebooks")), mx.int32))
        mx.eval(column, self._small, self._temporal)

    def _parts(self, state: Arrays) -> list[Arrays]:
        parts = []
        for name in ("small", "temporal", "encoder", "decoder"):
            count = self._bundle.number(name)
            parts.append(state[:count])
            state = state[count:]
        return parts

    def step(self, pcm: np.ndarray) -> Heard:
        codes, *self._encoder = self._bundle.encode(mx.array(pcm[None]), *self._encoder)
        return self.step_codes(codes)

    def step_codes(self, codes: mx.array) -> Heard:
        column, ready, token = self._language(codes)
        sound, *self._decoder = self._bundle.decode(column, *self._small, *self._decoder)
        mx.eval(sound, column, self._small, self._temporal, self._encoder, self._decoder)
        if not ready.item():
            return Heard(None, token, None)
        return Heard(np.array(sound)[0], token, np.array(column)[0])

    def _language(self, codes: mx.array) -> tuple[mx.array, mx.array, int]:
        """One position of the language model: -> column, ready, text token."""
        bundle = self._bundle
        if self._positions == self._capacity < self._capacities[-1]:
            self._temporal = bundle.grow[self._capacity](*self._temporal)
            self._capacity = self._capacities[self._capacities.index(self._capacity) + 1]
        logits, hidden, *state = bundle.think[self._capacity](codes, *self._small, *self._temporal)
        self._small, self._temporal = state[: len(self._small)], state[len(self._small) :]
        none = mx.zeros((1, 0))
        noises = [none] * (1 + bundle.number("codebooks"))
        if self._noise is not None:
            *noises, self._key = self._noise(self._key)
        text = self._text.choose(logits, noises[0]).astype(mx.int32)
        column, ready, *self._small = bundle.depth(
            text, hidden, *self._small, choose=lambda k, logits: self._audio.choose(logits, noises[1 + k])
        )
        self._positions += 1
        return column, ready, int(np.array(text)[0])
