"""Session: one conversation for people who embed Moshi. The one mutable object of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..inputs import spelled_out
from ..models.layers.transformer import grow
from ..models.moshi import Moshi
from ..models.sampling import MOSHI, SamplingSettings
from ..models.state import State
from . import duplex
from .duplex import DuplexSampling
from .text import TextDecoder

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Attention reads its whole ring, so a young conversation keeps a small one; each of these is compiled when reached.
FIRST_CAPACITY = 256
# What MLX may keep of freed buffers. Without a limit it took 8 GB more over a long conversation.
BUFFER_CACHE_BYTES = 512 * 2**20


OnText = Callable[[int], int | None]
"""(sampled text token) -> the token to go on with, or None for the sampled one."""


class SessionSettings(SamplingSettings, total=False):
    """What a session takes beside its model and seed: see `Session`."""

    kv_bits: int | None
    on_text: OnText | None


class Frame(NamedTuple):
    """80 ms of Moshi's side of the conversation."""

    pcm: np.ndarray | None  # float32 [frame_size] at sample_rate, None while the delay fills
    text: str  # what this frame adds to the text, "" for padding
    text_token: int
    audio_codes: np.ndarray | None  # int32 [num_codebooks], the codes of pcm


class Session:
    """A conversation. Made by `model.session(...)`; primed, so the first frame that it gets is seen at once.

    temperature (0: greedy), top_k (0: no cut), top_p (over 0 to 1) and min_p (0 to 1) are of Moshi's sound, the same
    with `text_` before them of its text (see `Sampling`). kv_bits=8 keeps the attention cache in 8 bits. Raises
    InputError for a setting out of range, TypeError for one that does not exist.

    on_text(token) is called once a frame with the sampled text token, before the depth decoder sees it: it returns
    another token to say that instead, or None to keep it. With it a frame is two evaluations, without it one. What it
    raises ends the call to `step`, and the frame counts as spoken with the sampled token.

    Not thread-safe: MLX work belongs to a thread, so make it, step it and reset it on one thread.
    """

    @spelled_out(SamplingSettings, MOSHI)
    def __init__(
        self,
        model: Moshi,
        seed: int = 0,
        *,
        kv_bits: int | None = None,
        on_text: OnText | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> None:
        sampling = DuplexSampling.of(settings)
        config = model.config.audio_encoder_config
        self.sample_rate, self.frame_size = config.sampling_rate, config.frame_size
        self.nonfinite_samples = 0
        """NaN and infinite samples that were replaced by silence so far."""
        self._model, self._seed, self._sampling, self._kv_bits = model, seed, sampling, kv_bits
        whole = (duplex.step, duplex.step_codes) if on_text is None else (duplex.hear, duplex.hear_codes)

        def compiled(part: Any) -> Any:
            return mx.compile(lambda given, state: part(model, given, state, sampling))

        self._step, self._step_codes, self._speak = (compiled(part) for part in (*whole, duplex.speak))
        self._on_text = on_text
        bound_memory()
        self.reset()
        self._trace_ahead()

    def reset(self) -> None:
        """Begin a new conversation, the same as a new session with this one's settings and seed."""
        self._capacity = min(FIRST_CAPACITY, self._model.config.sliding_window)
        self._state: State = None  # freed before its successor is made
        state = duplex.init_state(self._model, [self._seed], self._capacity, self._kv_bits)
        first_token, self._state = duplex.prime(self._model, state, self._sampling)
        mx.eval(first_token, self._state)
        self._positions = 1
        self._text_of = TextDecoder(self._model.tokenizer, self._model.config.silent_text_tokens)
        # Priming samples a text token before there is a frame to hand it out with: it goes with the first.
        self._pending_text = self._text_of(int(np.array(first_token)[0]))

    def _trace_ahead(self) -> None:
        """Trace the step for every cache size to come (nothing is computed), so that no frame waits for it later."""
        context, capacity = self._model.config.sliding_window, self._capacity
        while capacity < context:
            capacity = min(2 * capacity, context)
            state = duplex.init_state(self._model, [self._seed], capacity, self._kv_bits)
            first, state = self._step(mx.zeros((1, self.frame_size)), state)
            if self._on_text:
                self._speak(first, state)

    def step(self, pcm: Any) -> Frame:
        """One frame: pcm float [frame_size] at sample_rate, what the user says -> what Moshi says meanwhile.

        NaN and infinite samples are replaced by silence and counted in `nonfinite_samples`. Raises InputError for
        another shape or for samples that are not floats.
        """
        pcm = np.asarray(pcm)
        if pcm.dtype.kind != "f" or pcm.shape != (self.frame_size,):
            raise InputError(
                f"pcm: got {pcm.dtype} of shape {list(pcm.shape)}, expected float32 of shape [{self.frame_size}] "
                f"in [-1, 1] at {self.sample_rate} Hz"
            )
        finite = np.isfinite(pcm)
        if not finite.all():
            self.nonfinite_samples += int(pcm.size - finite.sum())
            pcm = np.where(finite, pcm, 0)
        return self._advance(self._step, mx.array(pcm[None].astype(np.float32)))

    def step_codes(self, codes: Any) -> Frame:
        """One frame from Mimi codes of the user's sound: int [user codebooks], -1 where there is no input.

        Raises InputError for another shape or a code that Mimi does not have.
        """
        codes, config = np.asarray(codes), self._model.config
        if codes.dtype.kind not in "iu" or codes.shape != (config.user_codebooks,):
            raise InputError(
                f"codes: got {codes.dtype} of shape {list(codes.shape)}, expected int32 of shape "
                f"[{config.user_codebooks}]"
            )
        if codes.min() < -1 or codes.max() >= config.audio_vocab_size:
            raise InputError(
                f"codes: got values from {codes.min()} to {codes.max()}, expected -1 to {config.audio_vocab_size - 1}"
            )
        return self._advance(self._step_codes, mx.array(codes[None].astype(np.int32)))

    def _advance(self, step: Any, given: mx.array) -> Frame:
        """The one evaluation of a frame, and its outcome on the host."""
        if self._positions == self._capacity < self._model.config.sliding_window:
            self._grow()
        reply, self._state = step(given, self._state)
        self._positions += 1
        if self._on_text:
            reply = self._hooked(self._on_text, reply)
        mx.eval(reply, self._state)
        return self._frame(*(np.array(part)[0] for part in reply))  # evaluated: nothing is computed any more

    def _hooked(self, on_text: OnText, text: mx.array) -> Any:
        """The second half of a frame, after the hook had its say."""
        mx.eval(text, self._state)
        try:
            chosen = on_text(int(np.array(text)[0]))
            if chosen is not None:
                text = mx.array([self._checked(chosen)], text.dtype)
        except BaseException:  # the state must end as one between frames
            _, self._state = self._speak(text, self._state)
            mx.eval(self._state)
            raise
        reply, self._state = self._speak(text, self._state)
        return reply

    def _checked(self, token: Any) -> int:
        size = self._model.config.vocab_size
        if not isinstance(token, (int, np.integer)) or isinstance(token, bool) or not 0 <= token < size:
            raise InputError(f"on_text: returned {token!r}, expected None or a text token from 0 to {size - 1}")
        return int(token)

    def _grow(self) -> None:
        """The cache is full and the context is not: go on with twice the slots."""
        self._capacity = min(2 * self._capacity, self._model.config.sliding_window)
        self._state["temporal"] = grow(self._state["temporal"], self._capacity)

    def _frame(self, text_token: Any, codes: np.ndarray, sound: np.ndarray, ready: Any) -> Frame:
        token = int(text_token)
        text, self._pending_text = self._pending_text + self._text_of(token), ""
        return Frame(sound, text, token, codes) if ready else Frame(None, text, token, None)


def bound_memory() -> None:
    """Bound what MLX keeps of freed buffers, and wire the weights where the machine offers it (Metal)."""
    mx.set_cache_limit(min(BUFFER_CACHE_BYTES, mx.set_cache_limit(BUFFER_CACHE_BYTES)))
    wired = mx.device_info().get("max_recommended_working_set_size")
    if wired:
        mx.set_wired_limit(int(wired))
