"""The step of many utterances: a position of those rows that take part in it, as two pure functions of arrays.

Between the two halves every row is answered on the host (`utterance.answer`). Rows that have no part in a step keep
their state, so that each is what it would be alone.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from ...conversation.duplex import DuplexSampling
from ...models.moshi import Moshi
from ...models.state import State, keep_paused
from .. import steps
from ..words import PADDING


class Parts(NamedTuple):
    """What each row does in a step."""

    takes_part: mx.array  # bool [B]
    decodes: mx.array  # bool [B], its newest complete column is sound
    replaced: mx.array  # int [B, num_codebooks], see `steps.say`


def ask(
    model: Moshi, state: State, takes_part: mx.array, sampling: DuplexSampling, padding_bonus: float = 0.0
) -> tuple[mx.array, State]:
    """-> the token that each row asks for, int [B], and the state for `say`.

    `padding_bonus` is added to the logit of padding: more makes slower speech.
    """

    def adjust(logits: mx.array) -> mx.array:
        return logits + padding_bonus * (mx.arange(logits.shape[-1]) == PADDING)

    asked, heard = steps.ask(model, state, sampling, adjust if padding_bonus else None)
    kept = _kept(takes_part, {name: heard[name] for name in state}, state)
    return asked, {**heard, **kept}


def say(
    model: Moshi, text: mx.array, heard: State, parts: Parts, sampling: DuplexSampling, codebooks: int, silent: bool,
) -> tuple[mx.array, mx.array, State]:  # fmt: skip
    """text int [B] -> the newest complete column int [B, codebooks], its sound float [B, frame_size], the state.

    Only `codebooks` of the model's are drawn. A `silent` step is before the sound of all rows: it draws and decodes
    nothing.
    """
    column, state = steps.say(model, text, heard, sampling, parts.replaced, codebooks, skip_depth=silent)[1:]
    column = column[:, :codebooks]
    if silent:
        sound = mx.zeros((len(text), model.config.audio_encoder_config.frame_size))
        return column, sound, _kept(parts.takes_part, state, heard)
    sound, decoder = model.audio_encoder.decode_step(column[:, :, None], heard["decoder"])
    decoder = keep_paused(parts.takes_part & parts.decodes, decoder, heard["decoder"])
    return column, sound, {**_kept(parts.takes_part, state, heard), "decoder": decoder}


def _kept(takes_part: mx.array, state: State, before: State) -> State:
    """The state of the rows that take part, of which guidance has two in the temporal transformer."""
    sides = len(state["temporal"]["offset"]) // len(takes_part)
    twice = mx.concatenate([takes_part] * sides)
    return {
        name: keep_paused(twice if name == "temporal" else takes_part, part, before[name])
        for name, part in state.items()
    }
