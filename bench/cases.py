"""What is timed: one frame of each case, as the functions that conversations run, over random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from moshi_mlx import MimiConfig, MoshiConfig, MoshiForConditionalGeneration
from moshi_mlx.conversation import duplex, session
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.errors import ConfigError
from moshi_mlx.models.sampling import noise, sample
from moshi_mlx.models.state import State
from moshi_mlx.roles import steps

from . import random_checkpoint
from .random_checkpoint import QUANTIZED, Bits

CACHE = Path.home() / ".cache" / "moshi-bench"
CASES = ("mimi-encode", "mimi-decode", "lm-step", "depth-step", "duplex-frame")
DEFAULT_CASES = ("mimi-encode", "mimi-decode", "lm-step", "duplex-frame")
CONTEXTS = ("empty", "half", "full")
SIZES = tuple(random_checkpoint.SIZES)
SAMPLING = DuplexSampling()
DTYPES = ("bfloat16", "float16", "float32")
SEEN = 625  # vectors of a speaker's voices: five slots of 10 s
WARMUP = 3  # frames: the first compiles


@dataclass(frozen=True)
class Spec:
    """One row of the benchmark. `bits` None: as stored; `checkpoint`: a folder in the place of size and bits.

    `kv_bits` 8 or 4: the temporal transformer's cache in so many bits. `dtype`: what the language model runs in, None:
    as stored.
    """

    case: str
    size: str = "tiny"
    bits: Bits = None
    context: str = "empty"
    batch: int = 1
    frames: int = 40
    checkpoint: str | None = None
    kv_bits: int | None = None
    dtype: str | None = None

    @property
    def has_context(self) -> bool:
        """Whether the temporal transformer, whose ring `context` fills, has a part in the case."""
        return self.case in ("lm-step", "duplex-frame")


class Work(NamedTuple):
    """`step` is one frame, a pure function; `state` makes the state it begins with; `given` the input of frame n."""

    step: Callable[[mx.array, State], tuple[Any, State]]
    state: Callable[[], State]
    given: Callable[[int], mx.array]


def checkpoint(size: str, bits: Bits, cache: Path = CACHE) -> Path:
    """The folder of random weights of a size, written at the first call. 7b is bfloat16, the rest float32.

    Raises ConfigError for a size whose matrices are no whole groups of quantized numbers.
    """
    width = config_of(size).ffn_dim // 2
    if bits is not None and not QUANTIZED[bits].fits(width):
        raise ConfigError(
            f"{size} cannot be {QUANTIZED[bits]}: it has matrices of {width} inputs, no multiple of a group"
        )
    folder = cache / f"{size}-{weights_name(bits, 'none')}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        dtype = mx.bfloat16 if size == "7b" else mx.float32
        random_checkpoint.write(partial, size, bits, dtype, mx.float32)
        partial.rename(folder)
    return folder


def weights_name(bits: Bits, whole: str = "bf16") -> str:
    """ "q4", "mxfp4"; `whole` where nothing is quantized."""
    return whole if bits is None else f"q{bits}" if isinstance(bits, int) else bits


def config_of(size: str) -> MoshiConfig:
    """The configuration of a size."""
    language, codec = random_checkpoint.SIZES[size]
    return MoshiConfig.from_kyutai(language, size, MimiConfig.from_kyutai(codec, size))


def noise_frames(batch: int, frame_size: int, count: int = 16) -> np.ndarray:
    """Sound to encode: float32 [count, batch, frame_size], the same in every run."""
    return (0.1 * np.random.default_rng(0).normal(size=(count, batch, frame_size))).astype(np.float32)


def work(model: MoshiForConditionalGeneration, spec: Spec) -> Work:
    """The frame that a row times. Sampling is the default, seeded."""
    codec = {"mimi-encode": _encode, "mimi-decode": _decode, "depth-step": _depth}
    if spec.case in codec:
        return codec[spec.case](model, spec.batch)
    role = {"transcriber": _listening, "speaker": _speaking}.get(model.config.role)
    if role is not None:
        return role(model, spec)
    language = spec.case == "lm-step"
    return (_language if language else _duplex)(model, spec)


def _encode(model: MoshiForConditionalGeneration, batch: int) -> Work:
    mimi, count = model.audio_encoder, model.config.user_codebooks
    sound = noise_frames(batch, mimi.config.frame_size)
    return Work(
        lambda pcm, state: mimi.encode_step(pcm, state, count),
        lambda: mimi.init_encoder_state(batch),
        lambda n: mx.array(sound[n % len(sound)]),
    )


def _decode(model: MoshiForConditionalGeneration, batch: int) -> Work:
    mimi, codes = model.audio_encoder, _random_codes(model, model.config.num_codebooks, batch)
    return Work(mimi.decode_step, lambda: mimi.init_decoder_state(batch), lambda n: codes(n)[:, :, None])


def _depth(model: MoshiForConditionalGeneration, batch: int) -> Work:
    config = model.config
    counts = [SAMPLING.audio.candidates(config.audio_vocab_size)] * config.num_codebooks

    def step(hidden: mx.array, state: State) -> tuple[mx.array, State]:
        draws, keys = noise(state["keys"], counts)
        text = mx.zeros((batch,), mx.int32)
        codes = model.depth_decoder.sample(hidden, text, lambda i, logits: sample(logits, draws[i], SAMPLING.audio))
        return codes, {"keys": keys}

    hidden = mx.random.normal((batch, config.hidden_size), key=mx.random.key(0))
    hidden = hidden.astype(model.decoder.model.dtype)
    return Work(step, lambda: {"keys": mx.stack([mx.random.key(seed) for seed in range(batch)])}, lambda n: hidden)


def _language(model: MoshiForConditionalGeneration, spec: Spec) -> Work:
    def step(codes: mx.array, state: State) -> tuple[Any, State]:
        text, column, state = duplex.language_step(model, codes, state, SAMPLING)
        return (text, column), state

    def state() -> State:
        whole = _state(model, spec)
        return {name: part for name, part in whole.items() if name not in ("encoder", "decoder")}

    return Work(step, state, _random_codes(model, model.config.user_codebooks, spec.batch))


def _duplex(model: MoshiForConditionalGeneration, spec: Spec) -> Work:
    sound = noise_frames(spec.batch, model.config.audio_encoder_config.frame_size)
    return Work(
        lambda pcm, state: duplex.step(model, pcm, state, SAMPLING),
        lambda: _state(model, spec),
        lambda n: mx.array(sound[n % len(sound)]),
    )


def _listening(model: MoshiForConditionalGeneration, spec: Spec) -> Work:
    """A frame of a transcriber: sound to codes, then one position (as the case `lm-step`, the position alone)."""
    config, mimi = model.config, model.audio_encoder
    if spec.case == "lm-step":

        def listen(codes: mx.array, state: State) -> tuple[Any, State]:
            text, heads, state = steps.listen(model, codes, state, SAMPLING)
            return (text, heads), state

        return Work(listen, lambda: _state(model, spec), _random_codes(model, config.user_codebooks, spec.batch))

    def step(pcm: mx.array, state: State) -> tuple[Any, State]:
        codes, encoder = mimi.encode_step(pcm, state["encoder"], config.user_codebooks)
        text, heads, state = steps.listen(model, codes[..., 0], {**state, "encoder": encoder}, SAMPLING)
        return (text, heads), state

    sound = noise_frames(spec.batch, mimi.config.frame_size)
    return Work(step, lambda: _state(model, spec), lambda n: mx.array(sound[n % len(sound)]))


def _speaking(model: MoshiForConditionalGeneration, spec: Spec) -> Work:
    """A frame of a speaker, past the start of its sound: the token asked for, the codes, the sound (not of `lm-step`).

    The word machine, which answers on the host, is left out: the token given is padding.
    """

    def step(text: mx.array, state: State) -> tuple[Any, State]:
        asked, heard = steps.ask(model, state, SAMPLING)
        _, column, state = steps.say(model, text, heard, SAMPLING)
        if spec.case == "lm-step":
            return (asked, column), state
        sound, decoder = model.audio_encoder.decode_step(column[:, :, None], state["decoder"])
        return (asked, sound), {**state, "decoder": decoder}

    padding = model.config.silent_text_tokens[-1]
    return Work(step, lambda: _state(model, spec), lambda n: mx.full((spec.batch,), padding, mx.int32))


def _random_codes(model: MoshiForConditionalGeneration, count: int, batch: int) -> Callable[[int], mx.array]:
    entries = model.config.audio_vocab_size
    codes = np.random.default_rng(0).integers(0, entries, (16, batch, count), np.int32)
    return lambda n: mx.array(codes[n % len(codes)])


def _state(model: MoshiForConditionalGeneration, spec: Spec) -> State:
    """Conversations whose ring is empty, half full or full; its capacity is the one that a Session has by then."""
    context = model.config.sliding_window
    position = {"empty": 0, "half": context // 2, "full": context}[spec.context]
    capacity = ring_capacity(position + WARMUP + spec.frames, context, model.config.head_width, spec.kv_bits)
    told = {
        one.name: (np.zeros((SEEN, one.dim), np.float32), np.ones(SEEN, bool))
        for one in model.config.conditions
        if one.is_sequence
    }
    state = duplex.init_state(model, list(range(spec.batch)), capacity, spec.kv_bits, told)
    offset = mx.full((spec.batch,), position, mx.int32)
    return {**state, "offset": offset, "temporal": {**state["temporal"], "offset": offset}}


def ring_capacity(positions: int, context: int, head_dim: int = 0, kv_bits: int | None = None) -> int:
    """Slots of a Session's ring after so many positions."""
    capacities = session.capacities(context, head_dim, kv_bits)
    return next((slots for slots in capacities if slots >= positions), context)


def public_frame(model: MoshiForConditionalGeneration, spec: Spec) -> Callable[[], Any]:
    """One frame through the public object that runs the case: a stream of Mimi or a Session (default settings)."""
    config = model.config
    sound = noise_frames(1, config.audio_encoder_config.frame_size)[0, 0]
    if spec.case.startswith("mimi"):
        stream = model.audio_encoder.stream(config.num_codebooks)
        codes = np.zeros((config.num_codebooks, 1), np.int32)
        return (lambda: stream.encode(sound)) if spec.case == "mimi-encode" else (lambda: stream.decode(codes))
    conversation = model.session(seed=0, kv_bits=spec.kv_bits)
    if spec.case == "duplex-frame":
        return lambda: conversation.step(sound)
    return lambda: conversation.step_codes(np.zeros(config.user_codebooks, np.int32))
