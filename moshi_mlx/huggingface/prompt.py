"""The prompt of a generation: three synchronised streams, checked, and its rows packed to their beginning.

All of it happens before anything is generated, on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from .. import inputs
from ..conversation import streams
from ..conversation.prompt import Prefilled, one_row, repeated
from ..errors import InputError

if TYPE_CHECKING:
    from .moshi import MoshiForConditionalGeneration

DEFAULT_NEW_TOKENS = 20


class Prompt(NamedTuple):
    """The columns that every row begins with, padding behind them; rows repeated for every sequence to return."""

    columns: np.ndarray  # int [B, 1 + streams, L]
    lengths: np.ndarray  # int [B]
    later: np.ndarray  # int [B, user codebooks, M], what the user goes on to say
    embeds: mx.array | None  # [B, L, hidden] in the place of the columns' own
    shown: np.ndarray  # int [B, T], the text to return before the new one
    seen: Prefilled | None = None  # a voice and a persona, of which nothing is returned, in the place of the columns

    @property
    def length(self) -> int:
        return self.columns.shape[2] if self.seen is None else self.seen.length


def new_token_count(settings: Any, length: int, positions: int) -> int:
    """How many tokens follow a prompt of `length` columns, by `max_new_tokens` or `max_length`."""
    max_new_tokens, max_length = settings.get("max_new_tokens"), settings.get("max_length")
    if max_new_tokens is None and max_length is None:
        return min(DEFAULT_NEW_TOKENS, max(1, positions - length))
    name, value, before = ("max_length", max_length, length) if max_new_tokens is None else (
        "max_new_tokens", max_new_tokens, 0
    )  # fmt: skip
    count = inputs.scalar(value)
    if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count <= before:
        raise InputError(f"{name}: got {value}, expected {before + 1} or more (the prompt has {length} columns)")
    return int(count) - before


def make_prompt(
    model: MoshiForConditionalGeneration, input_ids: Any, user: tuple[Any, Any], moshi: tuple[Any, Any],
    inputs_embeds: Any, concat: bool, attention_mask: Any, repeats: int,
) -> Prompt:  # fmt: skip
    """The prompt of the arguments of `generate`; of each side its sound and its codes, which win."""
    if not _is_given(input_ids, user, moshi, inputs_embeds):
        start, concat = model.get_unconditional_inputs(), False
        input_ids, user, moshi = start.input_ids, (None, start.user_audio_codes), (None, start.moshi_audio_codes)
    if inputs_embeds is not None:
        inputs_embeds = inputs.floats("inputs_embeds", inputs_embeds, (None, None, model.config.hidden_size))
        concat = False
    shown, columns, later = _columns(model, input_ids, user, moshi, inputs_embeds)
    lengths, columns, embeds = packed(columns, inputs_embeds, attention_mask)
    initial = np.array(streams.initial_tokens(model.config), np.int32)
    if concat:
        before = np.broadcast_to(initial[:, None], (len(columns), len(initial), 1))
        columns, lengths = np.concatenate([before, columns], axis=2), lengths + 1
        shown = np.pad(shown, [(0, 0), (1, 0)], constant_values=initial[0])
    _check_initial(columns[:, 1 : model.config.num_codebooks + 1], lengths, initial[1])
    columns, lengths, later, shown = (np.repeat(part, repeats, axis=0) for part in (columns, lengths, later, shown))
    return Prompt(columns, lengths, later, None if embeds is None else mx.repeat(embeds, repeats, axis=0), shown)


def after(model: MoshiForConditionalGeneration, seen: Prefilled, user: tuple[Any, Any], repeats: int) -> Prompt:
    """What the user says, in sound or codes of one row, after a prompt that has been read."""
    columns: np.ndarray = np.array(streams.initial_tokens(model.config), np.int32)[None, :, None]
    later: np.ndarray = np.zeros((1, model.config.user_codebooks, 0), np.int32)
    if any(part is not None for part in user):
        heard = model.streams(user_input_values=user[0], user_audio_codes=user[1])
        later = np.array(heard)[:, 1 + model.config.num_codebooks :]
    if len(later) != 1:
        raise InputError(f"user_audio_codes: got {len(later)} rows, expected one after a voice or a persona")
    shown, lengths = np.zeros((repeats, 0), np.int32), np.ones(repeats, np.int64)
    columns, later = np.repeat(columns, repeats, axis=0), np.repeat(later, repeats, axis=0)
    return Prompt(columns, lengths, later, None, shown, repeated(one_row(seen), repeats))


def _is_given(input_ids: Any, user: tuple[Any, Any], moshi: tuple[Any, Any], embeds: mx.array | None) -> bool:
    """Whether all three streams are, or else none of them."""
    given = {
        "input_ids or inputs_embeds": input_ids is not None or embeds is not None,
        "user_input_values or user_audio_codes": any(part is not None for part in user),
        "moshi_input_values or moshi_audio_codes": any(part is not None for part in moshi),
    }
    missing = [name for name, there in given.items() if not there]
    if len(missing) in (1, 2):
        raise InputError(
            f"{missing[0]}: got none, expected all three streams, or none of them (see get_unconditional_inputs)"
        )
    return not missing


def _columns(
    model: MoshiForConditionalGeneration, input_ids: Any, user: tuple[Any, Any], moshi: tuple[Any, Any],
    embeds: mx.array | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The given text [B, T], the columns [B, 1 + streams, T] of three streams, and the user's that lie beyond."""
    ours = 1 + model.config.num_codebooks
    own = np.array(model.streams(moshi_input_values=moshi[0], moshi_audio_codes=moshi[1]))[:, 1:ours]
    heard = np.array(model.streams(user_input_values=user[0], user_audio_codes=user[1]))[:, ours:]
    batch, _, length = own.shape
    shown, text = np.zeros((batch, 0), np.int32), np.full((batch, 1, length), -1, np.int32)
    if input_ids is not None:
        text = np.array(model.streams(input_ids=input_ids))[:, :1]
        shown = text[:, 0]
    _check_lengths(batch, length, text, heard, embeds)
    return shown, np.concatenate([text, own, heard[:, :, :length]], axis=1), heard[:, :, length:]


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


def packed(
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
