"""The duplex step: one frame of a conversation as one pure function, (sound in, state) -> (reply, state).

Time alignment (Kyutai's PyTorch package is the reference): position p of the temporal transformer sees index p - 1 of
every stream, less the stream's delay, or the stream's initial token where that is before its start. Position 0 sees
initial tokens alone; `prime` spends it before the user's first frame, so that the step that receives user frame n is
position n + 1 and sees that very frame.

What position p samples for a codebook of delay d is index p - d of that codebook. The newest column in which all
codebooks of an index are known is p - max delay: that column is the reply.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..models.config import MoshiConfig
from ..models.moshi import Moshi
from ..models.sampling import MOSHI, RowSampling, Sampling, SamplingSettings, noise, sample
from ..models.state import State, flatten, keep_paused, unflatten


@dataclass(frozen=True)
class DuplexSampling:
    """How the two kinds of tokens are drawn. The defaults are the reference's."""

    text: Sampling | RowSampling = field(default=Sampling.of(MOSHI, "text_"))
    audio: Sampling | RowSampling = field(default=Sampling.of(MOSHI))

    @classmethod
    def of(cls, settings: SamplingSettings) -> DuplexSampling:
        """Of a conversation's settings by name; what is not given, or None, is the default. Raises InputError."""
        values = {**MOSHI, **{name: value for name, value in settings.items() if value is not None}}
        return cls(text=Sampling.of(values, "text_"), audio=Sampling.of(values))


class Reply(NamedTuple):
    """What a step gives out, for each conversation."""

    text: mx.array  # int32 [B], the text token sampled in this step
    codes: mx.array  # int32 [B, num_codebooks], the newest complete column of Moshi's own codebooks
    sound: mx.array  # float [B, frame_size], that column decoded
    ready: mx.array  # bool [B], false while the delay fills: codes and sound mean nothing yet


def init_state(model: Moshi, seeds: list[int], capacity: int | None = None, kv_bits: int | None = None) -> State:
    """The state of len(seeds) new conversations.

    `capacity`: cache slots to begin with (default: the whole context); `kv_bits` 8 keeps the cache in 8 bits.
    """
    config, batch = model.config, len(seeds)
    own, user = delays_of(model.config)
    return {
        "offset": mx.zeros((batch,), mx.int32),
        "keys": mx.stack([mx.random.key(seed) for seed in seeds]),
        "text": mx.zeros((batch,), mx.int32),
        "own": mx.zeros((batch, config.num_codebooks, max(own) + 1), mx.int32),
        "user": mx.zeros((batch, config.user_codebooks, max(user) + 1), mx.int32),
        "temporal": model.decoder.model.init_state(batch, capacity=capacity, kv_bits=kv_bits),
        "encoder": model.audio_encoder.init_encoder_state(batch),
        "decoder": model.audio_encoder.init_decoder_state(batch),
    }


def prime(model: Moshi, state: State, sampling: DuplexSampling) -> tuple[mx.array, State]:
    """Position 0, before the user's first frame: -> the first text token int32 [B], state."""
    # Codes that nobody sees: whatever index of the user's streams a position would read them at is before the start.
    unseen = mx.zeros((len(state["offset"]), model.config.user_codebooks), mx.int32)
    text, _, state = language_step(model, unseen, state, sampling)
    return text, state


def step(
    model: Moshi, sound: mx.array, state: State, sampling: DuplexSampling, known: mx.array | None = None
) -> tuple[Reply, State]:
    """One frame from sound: sound float [B, frame_size]; `known` is of `speak`."""
    codes, encoder = model.audio_encoder.encode_step(sound, state["encoder"], model.config.user_codebooks)
    return step_codes(model, codes[..., 0], {**state, "encoder": encoder}, sampling, known)


def step_codes(
    model: Moshi, codes: mx.array, state: State, sampling: DuplexSampling, known: mx.array | None = None
) -> tuple[Reply, State]:
    """One frame from the user's codes: codes int [B, user_codebooks], -1 for no input."""
    text, state = hear_codes(model, codes, state, sampling)
    return speak(model, text, state, sampling, known)


def hear(model: Moshi, sound: mx.array, state: State, sampling: DuplexSampling) -> tuple[mx.array, State]:
    """The first half of `step`, up to the sampled text token [B]; `speak` takes that token, or another, from there."""
    codes, encoder = model.audio_encoder.encode_step(sound, state["encoder"], model.config.user_codebooks)
    return hear_codes(model, codes[..., 0], {**state, "encoder": encoder}, sampling)


def hear_codes(model: Moshi, codes: mx.array, state: State, sampling: DuplexSampling) -> tuple[mx.array, State]:
    """The first half of `step_codes`. The state that it returns is one for `speak` alone."""
    _, user_delays = delays_of(model.config)
    user = mx.concatenate([state["user"][:, :, 1:], codes[:, :, None]], axis=-1)
    tokens = _input_tokens(model, state["text"], state["own"][:, :, -1], _delayed(user, user_delays), state["offset"])
    hidden, logits, temporal = model.decoder.step(tokens[:, :, None], state["temporal"])
    text_noise, code_noise, keys = _noise(model, state["keys"], sampling)
    text = sample(logits[:, 0], text_noise, sampling.text)
    heard = {"keys": keys, "user": user, "temporal": temporal, "hidden": hidden[:, 0], "noise": code_noise}
    return text, {**state, **heard}


def speak(
    model: Moshi, text: mx.array, heard: State, sampling: DuplexSampling, known: mx.array | None = None
) -> tuple[Reply, State]:
    """The second half of a step: text int [B] and the state from `hear` -> the reply and the next frame's state.

    `known` int [B, num_codebooks]: codes to take in the place of what would be drawn, -1 where to draw.
    """
    ready = heard["offset"] >= max(delays_of(model.config)[0])
    column, state = _depth_step(model, text, heard, sampling, known)
    decoder = state["decoder"]
    if max(delays_of(model.config)[0]) > 1:  # with less, the first step after priming has a column already
        fresh = model.audio_encoder.init_decoder_state(len(ready))
        decoder = keep_paused(state["offset"] - 1 > max(delays_of(model.config)[0]), decoder, fresh)
    sound, decoder = model.audio_encoder.decode_step(column[:, :, None], decoder)
    return Reply(text.astype(mx.int32), column, sound, ready), {**state, "decoder": decoder}


def delays_of(config: MoshiConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The delays of Moshi's own codebooks, and of the user's."""
    return config.audio_delays[: config.num_codebooks], config.audio_delays[config.num_codebooks :]


def language_step(
    model: Moshi, user_codes: mx.array, state: State, sampling: DuplexSampling, known: mx.array | None = None
) -> tuple[mx.array, mx.array, State]:
    """One position of the language model: -> text token [B], newest complete column [B, num_codebooks], state."""
    text, heard = hear_codes(model, user_codes, state, sampling)
    column, state = _depth_step(model, text, heard, sampling, known)
    return state["text"], column, state


def _depth_step(
    model: Moshi, text: mx.array, heard: State, sampling: DuplexSampling, known: mx.array | None = None
) -> tuple[mx.array, State]:
    """The depth decoder after text [B]: -> the newest complete column [B, num_codebooks], state."""
    own_delays, _ = delays_of(model.config)
    state = dict(heard)
    codes = _codes(model, state.pop("hidden"), text, state.pop("noise"), sampling, known)
    own = mx.concatenate([state["own"][:, :, 1:], codes[:, :, None]], axis=-1)
    column = _delayed(own, [max(own_delays) - delay for delay in own_delays])
    return column, {**state, "offset": state["offset"] + 1, "text": text.astype(mx.int32), "own": own}


def _delayed(history: mx.array, delays: list[int] | tuple[int, ...]) -> mx.array:
    """history [B, K, N], newest last -> [B, K]: of each row the value `delay` steps back."""
    index = mx.array([history.shape[-1] - 1 - delay for delay in delays])[None, :, None]
    return mx.take_along_axis(history, mx.broadcast_to(index, (*history.shape[:2], 1)), axis=-1)[..., 0]


def _input_tokens(model: Moshi, text: mx.array, own: mx.array, user: mx.array, offset: mx.array) -> mx.array:
    """The tokens [B, 1 + streams] that position `offset` sees: initial ones before the start of a stream."""
    config = model.config
    tokens = mx.concatenate([text[:, None], own, user], axis=1)
    initial = mx.array([config.vocab_size] + [config.audio_vocab_size] * len(config.audio_delays))
    return mx.where(offset[:, None] <= mx.array((0, *config.audio_delays)), initial, tokens)


def sample_frame(
    model: Moshi, hidden: mx.array, logits: mx.array, keys: mx.array, sampling: DuplexSampling,
    known: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """The text token [B], then the depth decoder's codes [B, num_codebooks], and the next frame's keys."""
    text_noise, code_noise, keys = _noise(model, keys, sampling)
    text = sample(logits, text_noise, sampling.text)
    return text.astype(mx.int32), _codes(model, hidden, text, code_noise, sampling, known), keys


def _codes(
    model: Moshi, hidden: mx.array, text: mx.array, drawn: mx.array, sampling: DuplexSampling,
    known: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """The depth decoder's codes [B, num_codebooks] after text [B], with the noise drawn for all codebooks."""
    noises = mx.split(drawn, model.config.num_codebooks, axis=-1)
    if known is None:
        return model.depth_decoder.sample(hidden, text, lambda i, logits: sample(logits, noises[i], sampling.audio))
    given = mx.where(known < model.config.audio_vocab_size, known, -1)

    def draw(i: int, logits: mx.array) -> mx.array:
        code = sample(logits, noises[i], sampling.audio)
        return mx.where(given[:, i] >= 0, given[:, i].astype(code.dtype), code)

    # What stands before a stream's start is no code: the depth decoder goes on from what it drew there.
    return mx.where(known >= 0, known, model.depth_decoder.sample(hidden, text, draw))


def _noise(model: Moshi, keys: mx.array, sampling: DuplexSampling) -> tuple[mx.array, mx.array, mx.array]:
    """Noise for the text token and, codebook after codebook, for the codes; and the next frame's keys."""
    config = model.config
    counts = [0, 0]
    if not (sampling.text.greedy and sampling.audio.greedy):  # the noise of one does not depend on the other's settings
        counts = [config.vocab_size, config.num_codebooks * config.audio_vocab_size]
    (text_noise, code_noise), keys = noise(keys, counts)
    return text_noise, code_noise, keys


def export_step(model: Moshi, path: str | Path, sampling: DuplexSampling, seed: int = 0) -> int:
    """Write the step of one conversation to `path` (.mlxfn, weights included) for programs in other languages.

    The function takes sound float32 [1, frame_size], then the leaves of the state in the order of `flatten`; it
    returns text, codes, sound and ready (see `Reply`), then the leaves of the next state in the same order. Beside it
    lies the primed state of a new conversation, `path` with the suffix .safetensors, its names numbered in that order.
    Returns the number of leaves.
    """
    path = Path(path)
    _, state = prime(model, init_state(model, [seed]), sampling)
    leaves = flatten(state)
    names = [name for name, _ in leaves]

    def exported(sound: mx.array, *values: mx.array) -> list[mx.array]:
        reply, after = step(model, sound, unflatten(list(zip(names, values, strict=True))), sampling)
        return [*reply, *(leaf for _, leaf in flatten(after))]

    sound = mx.zeros((1, model.config.audio_encoder_config.frame_size))
    mx.export_function(str(path), exported, sound, *(leaf for _, leaf in leaves))
    numbered = {f"{i:04d}.{name}": leaf for i, (name, leaf) in enumerate(leaves)}
    mx.save_safetensors(str(path.with_suffix(".safetensors")), numbered)
    return len(leaves)
