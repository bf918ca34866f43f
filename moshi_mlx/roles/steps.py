"""The duplex step of models that only hear, and of models that only speak: the same position, in other halves.

A transcriber's position ends with its text. A speaker's text is not sampled but asked for: `ask` gives the token that
the model would have, somebody answers with what is to be said (`words`), and `say` goes on from there.
"""

from __future__ import annotations

import mlx.core as mx

from .. import inputs
from ..conversation import duplex
from ..conversation.duplex import DuplexSampling
from ..models.moshi import Moshi
from ..models.state import State


def prime(model: Moshi, state: State, sampling: DuplexSampling) -> tuple[mx.array, mx.array, State]:
    """Position 0 of a transcriber, which sees initial tokens alone: as `listen`."""
    unseen = mx.zeros((len(state["offset"]), model.config.user_codebooks), mx.int32)
    return listen(model, unseen, state, sampling)


def listen(model: Moshi, codes: mx.array, state: State, sampling: DuplexSampling) -> tuple[mx.array, mx.array, State]:
    """One position of a model that does not speak: codes int [B, user_codebooks] -> text int32 [B], heads, state.

    `heads` float32 [B, extra_heads, extra_head_classes] are the probabilities of each extra head. Raises InputError.
    """
    duplex.check(state, sampling, "offset")
    text, hidden, state = position(model, duplex.checked_codes(model, codes, state), state, sampling)
    return text, heads(model, hidden), state


def position(model: Moshi, codes: mx.array, state: State, sampling: DuplexSampling) -> tuple[mx.array, mx.array, State]:
    """The same of codes that were checked -> text, the last hidden state [B, hidden_size], state."""
    text, after = duplex.advance(model, codes, state, sampling)
    hidden, _ = after.pop("hidden"), after.pop("noise")
    text = text.astype(mx.int32)
    return text, hidden, {**after, "offset": state["offset"] + 1, "text": text}


def heads(model: Moshi, hidden: mx.array) -> mx.array:
    """The probabilities float32 [B, extra_heads, extra_head_classes] that the extra heads give a hidden state."""
    config = model.config
    if not config.extra_heads:
        return mx.zeros((len(hidden), 0, config.extra_head_classes))
    logits = mx.stack([head(hidden) for head in model.decoder.extra_heads], axis=1)
    return mx.softmax(logits.astype(mx.float32), axis=-1)


def ask(
    model: Moshi, state: State, sampling: DuplexSampling, adjust: duplex.Adjust | None = None
) -> tuple[mx.array, State]:
    """The first half of a speaker's position: -> the text token that it asks for, int [B]; state for `say`."""
    duplex.check(state, sampling, "offset")
    return duplex.advance(model, mx.zeros((len(state["offset"]), 0), mx.int32), state, sampling, adjust)


def say(
    model: Moshi, text: mx.array, heard: State, sampling: DuplexSampling, replaced: mx.array | None = None,
    steps: int | None = None, skip_depth: bool = False,
) -> tuple[mx.array, mx.array, State]:  # fmt: skip
    """The second half: text int [B], which may stand for two, -1 for none -> codes, newest complete column, state.

    Both are int32 [B, num_codebooks]. `replaced`, of that shape, takes the place of what was drawn: codes, -1 for
    nothing there, -2 for what was drawn. After `steps` codebooks the others are -1; `skip_depth` draws none of them.
    Raises InputError.
    """
    duplex.check(heard, sampling, "hidden")
    config, batch = model.config, len(heard["offset"])
    rows = config.vocab_size + 1
    most = rows * rows - 1 if config.demuxed_text else config.vocab_size
    text = inputs.tokens("text", text, (batch,), -1, most)
    state = dict(heard)
    hidden, drawn = state.pop("hidden"), state.pop("noise")
    if skip_depth:
        codes = mx.full((batch, config.num_codebooks), -1, mx.int32)
    else:
        codes = duplex.depth_codes(model, hidden, text, drawn, sampling, steps=steps)
    if replaced is not None:
        replaced = inputs.tokens("replaced", replaced, codes.shape, -2, config.audio_vocab_size)
        codes = mx.where(replaced == -2, codes, replaced)
    column, state = duplex.wrote(model, text, codes, state)
    return codes, column, state
