"""Offline generation: a prompt in one prefill, then the live path's own step, position by position.

The prompt is what `streams` aligns: initial tokens, then the columns of three synchronised streams, delayed. What a
position samples for a delayed codebook where the prompt already says it, is replaced by what the prompt says. From
there on the state is that of a live conversation, and `duplex.language_step` goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from . import duplex, inputs, streams
from .duplex import DuplexSampling
from .errors import InputError
from .outputs import GenerateOutput
from .sampling import Sampling, noise, sample
from .session import Frame
from .state import State
from .text import TextDecoder

if TYPE_CHECKING:
    from .helium import MoshiForCausalLM
    from .moshi import MoshiForConditionalGeneration

DEFAULT_NEW_TOKENS = 20


class Prompt(NamedTuple):
    """The columns that every row begins with, padding behind them; rows repeated for every sequence to return."""

    columns: np.ndarray  # int [B, 1 + streams, L]
    lengths: np.ndarray  # int [B]
    later: np.ndarray  # int [B, user codebooks, M], what the user goes on to say
    embeds: mx.array | None  # [B, L, hidden] in the place of the columns' own
    shown: np.ndarray  # int [B, T], the text to return before the new one


def generate(
    model: MoshiForConditionalGeneration,
    input_ids: Any = None,
    user_input_values: Any = None,
    user_audio_codes: Any = None,
    moshi_input_values: Any = None,
    moshi_audio_codes: Any = None,
    inputs_embeds: mx.array | None = None,
    return_audio_waveforms: bool = True,
    return_audio_codes: bool = False,
    concat_unconditional_inputs: bool = True,
    *,
    attention_mask: Any = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    do_sample: bool = True,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    depth_do_sample: bool | None = None,
    depth_temperature: float | None = None,
    depth_top_k: int | None = None,
    depth_top_p: float = 1.0,
    depth_min_p: float = 0.0,
    num_return_sequences: int = 1,
    seed: int = 0,
    streamer: Any = None,
) -> GenerateOutput:
    """Text and sound that go on from a prompt -> `sequences`, `audio_sequences`, `audio_codes` (see `GenerateOutput`).

    The prompt is text input_ids int [B, T] with the codes int [B, codebooks, T] or the sound float [B, 1, samples] of
    both sides (codes win), a column every frame; without any of them a conversation begins. What the user's stream
    holds beyond the T columns is heard as generation goes on, and after it silence: each frame the codes of one first
    frame of zeros, as in transformers. `inputs_embeds` [B, T, hidden] takes the place of the prompt's embeddings; the
    codes are still needed, for the delays. `concat_unconditional_inputs` puts a column of initial tokens before the
    prompt, where no inputs_embeds are given. `attention_mask` [B, T] is 0 at padding, before or behind a row.

    `max_new_tokens`, or `max_length` with the prompt and its initial column (default: 20 new ones, in all at most
    `max_position_embeddings`); N new tokens are N - max delay new frames. `temperature`, `top_k`, `top_p`, `min_p` are
    of the text, with `depth_` of the codes; where not given, the checkpoint's or Moshi's own (0.7 and 25, 0.8 and 250).
    `do_sample=False` is greedy. `num_return_sequences` rows for each row, each with the next seed. `streamer.put` gets
    a `Frame` for every new token as it comes, then `streamer.end()` is called; it takes one row.

    The attention window holds in the prompt as it does in a live conversation (transformers 5.23 forgets it in a
    prompt). Raises InputError, naming the argument.
    """
    _check_streamer(streamer, input_ids, num_return_sequences)
    prompt = _prompt(
        model, input_ids, (user_input_values, user_audio_codes), (moshi_input_values, moshi_audio_codes),
        inputs_embeds, concat_unconditional_inputs, attention_mask, num_return_sequences,
    )  # fmt: skip
    count = _new_tokens(max_new_tokens, max_length, prompt.columns.shape[2], model.config.max_position_embeddings)
    defaults = model.sampling_defaults
    audio_sample = do_sample if depth_do_sample is None else depth_do_sample
    sampling = DuplexSampling(
        text=_sampling(do_sample, temperature, top_k, top_p, min_p, defaults, "text_", (0.7, 25)),
        audio=_sampling(
            audio_sample, depth_temperature, depth_top_k, depth_top_p, depth_min_p, defaults, "", (0.8, 250)
        ),
    )
    text, sampled = _run(model, prompt, count, sampling, seed, streamer)
    if streamer is not None:
        streamer.end()
    codes = _codes(model, prompt, sampled)
    return GenerateOutput(
        audio_sequences=_sound(model, codes) if return_audio_waveforms else None,
        sequences=mx.array(np.concatenate([prompt.shown, text], axis=1).astype(np.int32)),
        audio_codes=mx.array(codes) if return_audio_codes else None,
    )


def _sampling(
    do_sample: bool, temperature: float | None, top_k: int | None, top_p: float, min_p: float,
    defaults: dict[str, float], prefix: str, usual: tuple[float, int],
) -> Sampling:  # fmt: skip
    if not do_sample:
        return Sampling(temperature=0)
    warmth = defaults.get(f"{prefix}temperature", usual[0]) if temperature is None else temperature
    candidates = int(defaults.get(f"{prefix}top_k", usual[1])) if top_k is None else top_k
    return Sampling(warmth, candidates, top_p, min_p)


def _new_tokens(max_new_tokens: int | None, max_length: int | None, length: int, positions: int) -> int:
    """How many tokens follow a prompt of `length` columns."""
    name, value, count = "max_new_tokens", max_new_tokens, max_new_tokens
    if count is None and max_length is not None:
        name, value, count = "max_length", max_length, max_length - length
    if count is None:
        count = min(DEFAULT_NEW_TOKENS, max(1, positions - length))
    if not isinstance(count, int) or count < 1:
        least = 1 if name == "max_new_tokens" else length + 1
        raise InputError(f"{name}: got {value}, expected {least} or more (the prompt has {length} columns)")
    return count


def _check_streamer(streamer: Any, input_ids: Any, num_return_sequences: int) -> None:
    if not isinstance(num_return_sequences, int) or num_return_sequences < 1:
        raise InputError(f"num_return_sequences: got {num_return_sequences!r}, expected 1 or more")
    rows = num_return_sequences * (1 if input_ids is None else len(input_ids))
    if streamer is not None and rows > 1:
        raise InputError(f"streamer: got {rows} rows to generate, expected one")


# --- the prompt -----------------------------------------------------------------------------------------------------


def _prompt(
    model: MoshiForConditionalGeneration, input_ids: Any, user: tuple[Any, Any], moshi: tuple[Any, Any],
    inputs_embeds: mx.array | None, concat: bool, attention_mask: Any, repeats: int,
) -> Prompt:  # fmt: skip
    names = (
        "input_ids or inputs_embeds",
        "user_input_values or user_audio_codes",
        "moshi_input_values or moshi_audio_codes",
    )
    text_given = input_ids is not None or inputs_embeds is not None
    given = [text_given, *(any(part is not None for part in side) for side in (user, moshi))]
    if not any(given):
        start = model.get_unconditional_inputs()
        input_ids, user, moshi, concat = (
            start.input_ids,
            (None, start.user_audio_codes),
            (None, start.moshi_audio_codes),
            False,
        )
    elif not all(given):
        missing = names[given.index(False)]
        raise InputError(
            f"{missing}: got none, expected all three streams (or none of them; see get_unconditional_inputs)"
        )
    if inputs_embeds is not None:
        inputs.check_shape("inputs_embeds", inputs_embeds, (None, None, model.config.hidden_size))
        concat = False
    own = np.array(model.streams(moshi_input_values=moshi[0], moshi_audio_codes=moshi[1]))
    batch, _, length = own.shape
    count = model.config.num_codebooks
    heard = np.array(model.streams(user_input_values=user[0], user_audio_codes=user[1]))[:, count + 1 :]
    shown = np.zeros((batch, 0), np.int32)
    text = np.full((batch, 1, length), -1, np.int32)
    if input_ids is not None:
        text = np.array(model.streams(input_ids=input_ids))[:, :1]
        shown = text[:, 0]
    _check_lengths(batch, length, text, heard, inputs_embeds)
    columns = np.concatenate([text, own[:, 1 : count + 1], heard[:, :, :length]], axis=1)
    lengths, columns, inputs_embeds = _packed(columns, inputs_embeds, attention_mask)
    initial = np.array(streams.initial_tokens(model.config), np.int32)
    if concat:
        columns = np.concatenate([np.broadcast_to(initial[:, None], (batch, len(initial), 1)), columns], axis=2)
        shown, lengths = np.pad(shown, [(0, 0), (1, 0)], constant_values=initial[0]), lengths + 1
    _check_initial(columns[:, 1 : count + 1], lengths, initial[1])
    prompt = Prompt(columns, lengths, heard[:, :, length:], None, shown)
    repeated = [None if part is None else np.repeat(part, repeats, axis=0) for part in prompt]
    embeds = None if inputs_embeds is None else mx.repeat(inputs_embeds, repeats, axis=0)
    return Prompt(*repeated)._replace(embeds=embeds)  # type: ignore[arg-type]


def _check_lengths(batch: int, length: int, text: np.ndarray, heard: np.ndarray, embeds: mx.array | None) -> None:
    """All streams have the columns of Moshi's; the user's may go on."""
    shapes = {"input_ids": (len(text), text.shape[2]), "user_audio_codes": (len(heard), heard.shape[2])}
    if embeds is not None:
        shapes["inputs_embeds"] = (len(embeds), embeds.shape[1])
    for name, (rows, columns) in shapes.items():
        if rows != batch or columns < length or (columns > length and name != "user_audio_codes"):
            more = " or more" if name == "user_audio_codes" else ""
            raise InputError(
                f"{name}: got {rows} rows of {columns} columns, expected {batch} of {length}{more}, as "
                "moshi_audio_codes has: a column every frame"
            )


def _packed(
    columns: np.ndarray, embeds: mx.array | None, attention_mask: Any
) -> tuple[np.ndarray, np.ndarray, mx.array | None]:
    """Rows with their padding behind them: how long they are, their columns and embeddings."""
    batch, _, length = columns.shape
    if attention_mask is None:
        return np.full(batch, length), columns, embeds
    real = np.array(inputs.attention_mask(attention_mask, batch, length)).astype(bool)
    if not real.any(axis=1).all():
        raise InputError("attention_mask: got a row that is padding alone, expected a column or more in every row")
    order = np.argsort(~real, axis=1, kind="stable")
    columns = np.take_along_axis(columns, order[:, None], axis=2)
    moved = None if embeds is None else mx.take_along_axis(embeds, mx.array(order)[:, :, None], axis=1)
    return real.sum(axis=1), columns, moved


def _check_initial(own: np.ndarray, lengths: np.ndarray, initial: int) -> None:
    """Moshi's initial tokens stand in whole columns before all others."""
    begun = np.cumsum((own != initial).any(axis=1), axis=1) > 0  # [B, L]
    inside = (own == initial).any(axis=1) & begun & (np.arange(own.shape[2]) < lengths[:, None])
    if inside.any():
        row, column = np.argwhere(inside)[0]
        raise InputError(
            f"moshi_audio_codes: got the initial token {initial} in row {row} at column {column}, expected it only "
            f"before the stream's start; codes are 0 to {initial - 1}"
        )


def _tokens_before(prompt: Prompt, back: list[int], first: int, initial: int) -> np.ndarray:
    """The tokens int [B, len(back)] of streams from `first` on, back[k] columns before the prompt's end."""
    index = prompt.lengths[:, None] - np.array(back)
    columns = prompt.columns[:, first : first + len(back)]
    taken = np.take_along_axis(columns, np.maximum(index, 0)[:, :, None], axis=2)[:, :, 0]
    return np.where(index >= 0, taken, initial).astype(np.int32)


# --- prefill and steps ----------------------------------------------------------------------------------------------


def _run(
    model: MoshiForConditionalGeneration, prompt: Prompt, count: int, sampling: DuplexSampling, seed: int, streamer: Any
) -> tuple[np.ndarray, np.ndarray]:
    """-> new text int [B, count], and the codes that each new position sampled, int [B, num_codebooks, count]."""
    state = _prefill(model, prompt, count, sampling, seed)
    step = mx.compile(lambda codes, state: duplex.language_step(model, codes, state, sampling))
    silence = np.array(model.audio_encoder.encode(
        mx.zeros((1, model.config.audio_encoder_config.frame_size)), num_quantizers=model.config.user_codebooks
    ).audio_codes)[:, :, 0]  # fmt: skip
    texts, sampled = [np.array(state["text"])], [np.array(state["own"])[:, :, -1]]
    watch = _Watch(model, prompt, streamer)
    watch.put(texts[-1], sampled)
    for n in range(count - 1):
        user = prompt.later[:, :, n] if n < prompt.later.shape[2] else np.repeat(silence, len(prompt.lengths), axis=0)
        text, _, state = step(mx.array(user), state)
        _keep_known(model, prompt, state, n + 1)
        mx.eval(text, state)
        texts.append(np.array(text))
        sampled.append(np.array(state["own"])[:, :, -1])
        watch.put(texts[-1], sampled)
    return np.stack(texts, axis=1), np.stack(sampled, axis=2)


def _prefill(
    model: MoshiForConditionalGeneration, prompt: Prompt, count: int, sampling: DuplexSampling, seed: int
) -> State:
    """The state of a live conversation whose last position is the prompt's last."""
    config, batch = model.config, len(prompt.lengths)
    initial = streams.initial_tokens(config)
    embeds = prompt.embeds
    if embeds is None:
        seen = streams.shifted(mx.array(prompt.columns), [0, *config.audio_delays], initial)
        embeds = model.decoder.model.embed(seen)
    lengths = mx.array(prompt.lengths.astype(np.int32))
    mask = None if (prompt.lengths == embeds.shape[1]).all() else mx.arange(embeds.shape[1]) < lengths[:, None]
    out = model.decoder.model(inputs_embeds=embeds, attention_mask=mask, use_cache=True, room=count)
    hidden = mx.take_along_axis(out.last_hidden_state, lengths[:, None, None] - 1, axis=1).squeeze(1)
    keys = mx.stack([mx.random.key(seed + row) for row in range(batch)])
    text, codes, keys = duplex.sample_frame(model, hidden, model.decoder.lm_head(hidden), keys, sampling)
    own, user = duplex.delays_of(config)

    def past(back: int, delays: list[int] | tuple[int, ...], first: int) -> mx.array:
        """The tokens [B, K, 1] of streams from `first` on, `back` + delay columns before the prompt's end."""
        return mx.array(_tokens_before(prompt, [back + delay for delay in delays], first, initial[1]))[:, :, None]

    state = {
        # Rings and tokens hold what is before a stream's start: no position of this state needs to be told.
        "offset": lengths + max(config.audio_delays) + 1,
        "keys": keys,
        "text": text,
        "own": mx.concatenate([*(past(i, own, 1) for i in range(max(own), 0, -1)), codes[:, :, None]], axis=2),
        "user": mx.concatenate([past(1 + i, [0] * len(user), 1 + len(own)) for i in range(max(user), -1, -1)], axis=2),
        "temporal": out.past_key_values,
    }
    _keep_known(model, prompt, state, 0)
    mx.eval(state)
    return state


def _keep_known(model: MoshiForConditionalGeneration, prompt: Prompt, state: State, step: int) -> None:
    """Put back what the prompt says of delayed codebooks where the position `step` after its last sampled them."""
    own, _ = duplex.delays_of(model.config)
    known = np.array([delay > step for delay in own])
    if not known.any():
        return
    said = _tokens_before(prompt, [max(1, delay - step) for delay in own], 1, model.config.audio_vocab_size)
    before, last = mx.split(state["own"], [max(own)], axis=2)
    last = mx.where(mx.array(known)[:, None], mx.array(said)[:, :, None], last)
    state["own"] = mx.concatenate([before, last], axis=2)


# --- what comes out -------------------------------------------------------------------------------------------------


def _codes(model: MoshiForConditionalGeneration, prompt: Prompt, sampled: np.ndarray) -> np.ndarray:
    """Moshi's frames int32 [B, num_codebooks, frames]: the prompt's, then the new; -1 before a shorter row."""
    own, _ = duplex.delays_of(model.config)
    new = max(0, sampled.shape[2] - max(own))
    fresh = np.stack([sampled[:, k, delay : delay + new] for k, delay in enumerate(own)], axis=1)
    said = prompt.columns[:, 1 : 1 + len(own)]
    said = np.where(said == model.config.audio_vocab_size, -2, said)  # initial tokens are no frames
    length = said.shape[2]
    rows = [np.roll(row, length - n, axis=1) for row, n in zip(said, prompt.lengths, strict=True)]
    padding = np.arange(length) < length - prompt.lengths[:, None]
    codes = np.concatenate([np.where(padding[:, None], -2, np.stack(rows)), fresh], axis=2)
    begun = (codes != -2).any(axis=(0, 1))
    first = int(begun.argmax()) if begun.any() else codes.shape[2]
    return np.maximum(codes[:, :, first:], -1).astype(np.int32)


def _sound(model: MoshiForConditionalGeneration, codes: np.ndarray) -> mx.array:
    """float [B, 1, samples]; a row that begins late is silent until then and sounds as it does alone."""
    size = model.config.audio_encoder_config.frame_size
    if not codes.shape[2]:
        return mx.zeros((len(codes), 1, 0))
    late = (np.cumsum((codes >= 0).any(axis=1), axis=1) == 0).sum(axis=1)
    packed = np.stack([np.roll(row, -n, axis=1) for row, n in zip(codes, late, strict=True)])
    sound = model.audio_encoder.decode(packed).audio_values
    if not late.any():
        return sound
    return mx.array(np.stack([np.roll(row, n * size, axis=1) for row, n in zip(np.array(sound), late, strict=True)]))


class _Watch:
    """Hands a streamer the frame of every new token: its text, and the sound of the newest complete column."""

    def __init__(self, model: MoshiForConditionalGeneration, prompt: Prompt, streamer: Any) -> None:
        self._streamer = streamer
        if streamer is None:
            return
        self._model, self._delays = model, duplex.delays_of(model.config)[0]
        self._text = TextDecoder(model.tokenizer, model.config.silent_text_tokens)
        self._decoder = model.audio_encoder.init_decoder_state(1)
        said = _codes(model, prompt, np.zeros((1, len(self._delays), 0), np.int32))
        for column in np.moveaxis(said, 2, 0):
            self._decode(column)

    def _decode(self, column: np.ndarray) -> np.ndarray:
        """column int [1, num_codebooks] -> sound [frame_size]."""
        codes = mx.array(np.maximum(column, 0)[:, :, None])
        sound, self._decoder = self._model.audio_encoder.decode_step(codes, self._decoder)
        mx.eval(sound, self._decoder)
        return np.array(sound)[0] * (column >= 0).all()

    def put(self, text: np.ndarray, sampled: list[np.ndarray]) -> None:
        if self._streamer is None:
            return
        token, newest = int(text[0]), len(sampled) - 1 - max(self._delays)
        sound = codes = None
        if newest >= 0:
            codes = np.array([sampled[newest + delay][0, k] for k, delay in enumerate(self._delays)], np.int32)
            sound = self._decode(codes[None])
        self._streamer.put(Frame(sound, self._text(token), token, codes))


# --- text alone -----------------------------------------------------------------------------------------------------


def generate_text(
    model: MoshiForCausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float = 0.0,
    num_return_sequences: int = 1,
    seed: int = 0,
    eos_token_id: int | None = None,
) -> mx.array:
    """Text that goes on from input_ids int [B, T] -> int32 [B * num_return_sequences, T + new], the prompt first.

    `attention_mask` [B, T] is 0 at padding, before or behind a row. Lengths as in `generate`. Once every row has given
    `eos_token_id` it ends; rows that have it already are filled with it. Raises InputError, naming the argument.
    """
    config = model.config
    _check_streamer(None, input_ids, num_return_sequences)
    ids = np.repeat(np.array(inputs.tokens("input_ids", input_ids, (None, None), -1, config.table_rows[0] - 1)),
                    num_return_sequences, axis=0)  # fmt: skip
    if attention_mask is not None:
        attention_mask = np.repeat(np.array(attention_mask), num_return_sequences, axis=0)
    lengths, columns, _ = _packed(ids[:, None], None, attention_mask)
    count = _new_tokens(max_new_tokens, max_length, ids.shape[1], config.max_position_embeddings)
    settings = Sampling(temperature, top_k, top_p, min_p) if do_sample else Sampling(temperature=0)
    keys = mx.stack([mx.random.key(seed + row) for row in range(len(ids))])
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    out = model.model(columns[:, 0], mask, use_cache=True, room=count)
    last = mx.array(lengths.astype(np.int32))[:, None, None] - 1
    logits = model.lm_head(mx.take_along_axis(out.last_hidden_state, last, axis=1))
    state, new = out.past_key_values, []
    ended = np.zeros(len(ids), bool)
    silent = mx.full((len(ids), len(config.audio_delays), 1), -1, mx.int32)
    for _ in range(count):
        (draw,), keys = noise(keys, [settings.candidates(config.vocab_size)])
        token = np.array(sample(logits[:, -1], draw, settings)).astype(np.int32)
        if eos_token_id is not None:
            token = np.where(ended, eos_token_id, token)
            ended |= token == eos_token_id
        new.append(token)
        if ended.all():
            break
        _, logits, state = model.step(mx.concatenate([mx.array(token)[:, None, None], silent], axis=1), state)
        mx.eval(logits, state)
    return mx.array(np.concatenate([ids, np.stack(new, axis=1)], axis=1).astype(np.int32))
