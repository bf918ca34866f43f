"""The duplex step: one frame of a conversation as one pure function, (sound in, state) -> (reply, state).

Time alignment (Kyutai's PyTorch package is the reference): position p of the temporal transformer sees index p - 1 of
every stream, less the stream's delay, or the stream's initial token where that is before its start. Position 0 sees
initial tokens alone; `prime` spends it before the user's first frame, so that the step that receives user frame n is
position n + 1 and sees that very frame.

What position p samples for a codebook of delay d is index p - d of that codebook. The newest column in which all
codebooks of an index are known is p - max delay: that column is the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .. import inputs
from ..errors import InputError
from ..models.config import MoshiConfig
from ..models.moshi import Moshi
from ..models.sampling import MOSHI, RowSampling, Sampling, SamplingSettings, noise
from ..models.state import State, keep_paused
from .told import checked_guidance, guided, told

Adjust = Callable[[mx.array], mx.array]
"""Text logits [B, vocab] -> those that the text token is drawn from."""


@dataclass(frozen=True)
class DuplexSampling:
    """How the two kinds of tokens are drawn. The defaults are the reference's.

    `text` and `audio` are `Sampling`: by default temperature 0.7 and top_k 25, and 0.8 and 250.

    >>> sampling = moshi_mlx.DuplexSampling.of({"temperature": 0, "text_top_k": 10})
    >>> sampling.audio.greedy, sampling.text.top_k, sampling.text.temperature
    (True, 10, 0.7)
    """

    text: Sampling | RowSampling = field(default=Sampling.of(MOSHI, "text_"))
    audio: Sampling | RowSampling = field(default=Sampling.of(MOSHI))
    guidance: float = 1.0  # see `told`; a state made for it has two rows of the temporal transformer
    guides_text: bool = True  # else the text is drawn from what is told alone

    @classmethod
    def of(cls, settings: SamplingSettings, guidance: float = 1.0) -> DuplexSampling:
        """Of a conversation's settings by name; what is not given, or None, is the default.

        Raises InputError for a value out of range, TypeError for a name that does not exist.
        """
        inputs.check_names("DuplexSampling.of", settings, MOSHI)
        values = {**MOSHI, **{name: value for name, value in settings.items() if value is not None}}
        return cls(text=Sampling.of(values, "text_"), audio=Sampling.of(values), guidance=checked_guidance(guidance))


class Reply(NamedTuple):
    """What a step gives out, for each conversation."""

    text: mx.array  # int32 [B], the text token sampled in this step
    codes: mx.array  # int32 [B, num_codebooks], the newest complete column of Moshi's own codebooks
    sound: mx.array  # float [B, frame_size], that column decoded
    ready: mx.array  # bool [B], false while the delay fills: codes and sound mean nothing yet


def init_state(
    model: Moshi, seeds: Sequence[int], capacity: int | None = None, kv_bits: int | None = None,
    conditions: Mapping[str, Any] | None = None, guidance: float = 1.0,
) -> State:  # fmt: skip
    """The state of len(seeds) new conversations.

    `capacity`: cache slots to begin with (default: the whole context); `kv_bits` 8 or 4 keeps the cache in these. A
    seed is any whole number. `conditions` by name, of a model that has any, and `guidance` other than 1, which the
    sampling must have too: see `told`. Raises InputError.
    """
    if not isinstance(seeds, (Sequence, np.ndarray, mx.array)) or isinstance(seeds, str) or len(seeds) == 0:
        raise InputError(f"seeds: got {seeds!r}, expected a list of whole numbers, one for each conversation")
    numbers = [inputs.seed(seed, "seeds") for seed in seeds]
    config, batch = model.config, len(numbers)
    capacity = None if capacity is None else inputs.whole("capacity", capacity, 1)
    own, user = delays_of(config)
    rows = batch if guidance == 1 else 2 * batch
    temporal = model.decoder.model.init_state(rows, capacity=capacity, kv_bits=kv_bits)
    state = {
        "offset": mx.zeros((batch,), mx.int32),
        "keys": mx.stack([mx.random.key(seed) for seed in numbers]),
        "text": mx.zeros((batch,), mx.int32),
        "temporal": {**temporal, **told(model, batch, conditions, guidance)},
    }
    if own:
        state["own"] = mx.zeros((batch, len(own), max(own) + 1), mx.int32)
        state["decoder"] = model.audio_encoder.init_decoder_state(batch)
    if user:
        state["user"] = mx.zeros((batch, len(user), max(user) + 1), mx.int32)
        state["encoder"] = model.audio_encoder.init_encoder_state(batch)
    return state


def prime(model: Moshi, state: State, sampling: DuplexSampling) -> tuple[mx.array, State]:
    """Position 0, before the user's first frame: -> the first text token int32 [B], state."""
    # Codes that nobody sees: whatever index of the user's streams a position would read them at is before the start.
    unseen = mx.zeros((len(state["offset"]), model.config.user_codebooks), mx.int32)
    text, _, state = language_step(model, unseen, state, sampling)
    return text, state


def step(
    model: Moshi, sound: mx.array, state: State, sampling: DuplexSampling, known: mx.array | None = None
) -> tuple[Reply, State]:
    """One frame from sound float [B, frame_size], where NaN and infinity are silence; `known` is of `speak`.

    Raises InputError.
    """
    text, state = hear(model, sound, state, sampling)
    return _speak(model, text, state, sampling, known)


def step_codes(
    model: Moshi, codes: mx.array, state: State, sampling: DuplexSampling, known: mx.array | None = None
) -> tuple[Reply, State]:
    """One frame from the user's codes: codes int [B, user_codebooks], -1 for no input. Raises InputError."""
    text, state = hear_codes(model, codes, state, sampling)
    return _speak(model, text, state, sampling, known)


def hear(model: Moshi, sound: mx.array, state: State, sampling: DuplexSampling) -> tuple[mx.array, State]:
    """The first half of `step`, up to the sampled text token [B]; `speak` takes that token, or another, from there."""
    check(state, sampling, "offset")
    mimi, count = model.audio_encoder, model.config.user_codebooks
    sound = inputs.floats("sound", sound, (len(state["offset"]), mimi.config.frame_size))
    codes, encoder = mimi.encode_step(sound, state["encoder"], count)
    return advance(model, codes[..., 0], {**state, "encoder": encoder}, sampling)


def hear_codes(model: Moshi, codes: mx.array, state: State, sampling: DuplexSampling) -> tuple[mx.array, State]:
    """The first half of `step_codes`. The state that it returns is one for `speak` alone."""
    check(state, sampling, "offset")
    return advance(model, checked_codes(model, codes, state), state, sampling)


def check(state: Any, sampling: Any, part: str) -> None:
    """Raises InputError for what is no state that has this part, and for what is no sampling."""
    if not isinstance(state, dict) or part not in state:
        after = "`hear`" if part == "hidden" else "`init_state` or the step before"
        raise InputError(f"state: got a {type(state).__name__}, expected the state that {after} returned")
    if not isinstance(sampling, DuplexSampling):
        raise InputError(f"sampling: got a {type(sampling).__name__}, expected a DuplexSampling")


def checked_codes(model: Moshi, codes: mx.array, state: State) -> mx.array:
    config, batch = model.config, len(state["offset"])
    return inputs.tokens("codes", codes, (batch, config.user_codebooks), -1, config.most_user_code)


def advance(
    model: Moshi, codes: mx.array, state: State, sampling: DuplexSampling, adjust: Adjust | None = None
) -> tuple[mx.array, State]:
    heard, streams = dict(state), []
    if "user" in state:
        _, delays = delays_of(model.config)
        heard["user"] = mx.concatenate([state["user"][:, :, 1:], codes[:, :, None]], axis=-1)
        streams = [_delayed(heard["user"], delays)]
    if "own" in state:
        streams = [state["own"][:, :, -1], *streams]
    tokens = _input_tokens(model, state["text"], streams, state["offset"])
    if len(state["temporal"]["offset"]) > len(tokens):
        tokens = mx.concatenate([tokens, _of_second_row(model, tokens, state, sampling)])
    hidden, logits, heard["temporal"] = model.decoder.step(tokens[:, :, None], state["temporal"])
    text_noise, heard["noise"], heard["keys"] = draw_noise(model, state["keys"], sampling)
    rows = len(state["offset"])
    logits = guided(logits[:, 0], rows, sampling.guidance) if sampling.guides_text else logits[:rows, 0]
    logits = logits if adjust is None else adjust(logits)
    text = sampling.text.choose(logits, text_noise)
    return text, {**heard, "hidden": hidden[:, 0]}


def _of_second_row(model: Moshi, tokens: mx.array, state: State, sampling: DuplexSampling) -> mx.array:
    """What guidance's second row sees of tokens [B, 1 + streams]: all but initial tokens may be hidden from it.

    That is the text, where it is not guided, and of every stream what lies up to the state's `unseen` int [B] frames
    after its start, where there is such.
    """
    delays, offset = mx.array((0, *model.config.audio_delays)), state["offset"][:, None]
    hidden = mx.arange(tokens.shape[1])[None] < (0 if sampling.guides_text else 1)
    if "unseen" in state:
        hidden = hidden | (offset <= delays + state["unseen"][:, None])
    return mx.where(hidden & (offset > delays), -1, tokens)


def speak(
    model: Moshi, text: mx.array, heard: State, sampling: DuplexSampling, known: mx.array | None = None
) -> tuple[Reply, State]:
    """The second half of a step: text int [B] and the state from `hear` -> the reply and the next frame's state.

    `known` int [B, num_codebooks]: codes to take in the place of what would be drawn, -1 where to draw. Raises
    InputError.
    """
    check(heard, sampling, "hidden")
    text = inputs.tokens("text", text, (len(heard["offset"]),), 0, model.config.vocab_size - 1)
    return _speak(model, text, heard, sampling, known)


def _speak(
    model: Moshi, text: mx.array, heard: State, sampling: DuplexSampling, known: mx.array | None
) -> tuple[Reply, State]:
    ready = heard["offset"] >= max(delays_of(model.config)[0])
    column, state = depth_step(model, text, heard, sampling, known)
    sound, decoder = voice(model, column, state["offset"], state["decoder"])
    return Reply(text.astype(mx.int32), column, sound, ready), {**state, "decoder": decoder}


def voice(model: Moshi, column: mx.array, offset: mx.array, decoder: State) -> tuple[mx.array, State]:
    """The sound [B, frame_size] of a column of codes [B, num_codebooks] before position `offset` [B]; decoder state."""
    longest = max(delays_of(model.config)[0])
    if longest > 1:  # with less, the first step after priming has a column already
        decoder = keep_paused(offset - 1 > longest, decoder, model.audio_encoder.init_decoder_state(len(offset)))
    sound, decoder = model.audio_encoder.decode_step(column[:, :, None], decoder)
    return sound, decoder


def delays_of(config: MoshiConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The delays of Moshi's own codebooks, and of the user's."""
    return config.audio_delays[: config.num_codebooks], config.audio_delays[config.num_codebooks :]


def language_step(
    model: Moshi, user_codes: mx.array, state: State, sampling: DuplexSampling, known: mx.array | None = None,
    adjust: Adjust | None = None,
) -> tuple[mx.array, mx.array, State]:  # fmt: skip
    """One position of the language model: -> text token [B], newest complete column [B, num_codebooks], state.

    The text token is drawn from what `adjust` makes of its logits [B, vocab].
    """
    check(state, sampling, "offset")
    text, heard = advance(model, checked_codes(model, user_codes, state), state, sampling, adjust)
    column, state = depth_step(model, text, heard, sampling, known)
    return state["text"], column, state


def depth_step(
    model: Moshi, text: mx.array, heard: State, sampling: DuplexSampling, known: mx.array | None = None
) -> tuple[mx.array, State]:
    """The depth decoder after text [B]: -> the newest complete column [B, num_codebooks], state."""
    state = dict(heard)
    if known is not None:
        shape = (len(state["offset"]), model.config.num_codebooks)
        known = inputs.tokens("known", known, shape, -1, model.config.audio_vocab_size)
    codes = depth_codes(model, state.pop("hidden"), text, state.pop("noise"), sampling, known)
    return wrote(model, text, codes, state)


def wrote(model: Moshi, text: mx.array, codes: mx.array, state: State) -> tuple[mx.array, State]:
    """What was drawn, put into the state: -> the newest complete column [B, num_codebooks], state."""
    own_delays, _ = delays_of(model.config)
    own = mx.concatenate([state["own"][:, :, 1:], codes[:, :, None]], axis=-1)
    column = _delayed(own, [max(own_delays) - delay for delay in own_delays])
    return column, {**state, "offset": state["offset"] + 1, "text": text.astype(mx.int32), "own": own}


def _delayed(history: mx.array, delays: list[int] | tuple[int, ...]) -> mx.array:
    """history [B, K, N], newest last -> [B, K]: of each row the value `delay` steps back."""
    index = mx.array([history.shape[-1] - 1 - delay for delay in delays])[None, :, None]
    return mx.take_along_axis(history, mx.broadcast_to(index, (*history.shape[:2], 1)), axis=-1)[..., 0]


def _input_tokens(model: Moshi, text: mx.array, streams: list[mx.array], offset: mx.array) -> mx.array:
    """The tokens [B, 1 + streams] that position `offset` sees: initial ones before the start of a stream."""
    config = model.config
    tokens = mx.concatenate([text[:, None], *streams], axis=1)
    initial = mx.array([config.vocab_size] + [config.audio_vocab_size] * len(config.audio_delays))
    return mx.where(offset[:, None] <= mx.array((0, *config.audio_delays)), initial, tokens)


def sample_frame(
    model: Moshi, hidden: mx.array, logits: mx.array, keys: mx.array, sampling: DuplexSampling,
    known: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """The text token [B], then the depth decoder's codes [B, num_codebooks], and the next frame's keys."""
    text_noise, code_noise, keys = draw_noise(model, keys, sampling)
    text = sampling.text.choose(logits, text_noise)
    return text.astype(mx.int32), depth_codes(model, hidden, text, code_noise, sampling, known), keys


def depth_codes(
    model: Moshi, hidden: mx.array, text: mx.array, drawn: mx.array, sampling: DuplexSampling,
    known: mx.array | None = None, steps: int | None = None,
) -> mx.array:  # fmt: skip
    """The depth decoder's codes [B, num_codebooks] after text [B], with the noise drawn for all codebooks."""
    noises = mx.split(drawn, model.config.num_codebooks, axis=-1)

    def draw(i: int, logits: mx.array) -> mx.array:
        return sampling.audio.choose(guided(logits, len(text), sampling.guidance), noises[i])

    if known is None:
        return model.depth_decoder.sample(hidden, text, draw, steps)
    given = mx.where(known < model.config.audio_vocab_size, known, -1)

    def draw_or_take(i: int, logits: mx.array) -> mx.array:
        code = draw(i, logits)
        return mx.where(given[:, i] >= 0, given[:, i].astype(code.dtype), code)

    # What stands before a stream's start is no code: the depth decoder goes on from what it drew there.
    return mx.where(known >= 0, known, model.depth_decoder.sample(hidden, text, draw_or_take, steps))


def draw_noise(model: Moshi, keys: mx.array, sampling: DuplexSampling) -> tuple[mx.array, mx.array, mx.array]:
    """Noise for the text token and, codebook after codebook, for the codes; and the next frame's keys."""
    config = model.config
    counts = [0, 0]
    if not (sampling.text.greedy and sampling.audio.greedy):  # the noise of one does not depend on the other's settings
        counts = [config.text_classes, config.num_codebooks * config.audio_vocab_size]
    (text_noise, code_noise), keys = noise(keys, counts)
    return text_noise, code_noise, keys
