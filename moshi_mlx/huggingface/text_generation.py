"""Text alone: a prompt in one prefill, then the live path's step of the temporal transformer, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .. import inputs
from ..models.sampling import Sampling, StreamSettings, noise, sample
from .prompt import new_token_count, packed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .helium import MoshiForCausalLM


TRANSFORMERS: StreamSettings = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""The settings of transformers' generate where none are given."""


@inputs.spelled_out(StreamSettings, TRANSFORMERS)
def generate_text(
    model: MoshiForCausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    do_sample: bool = False,
    *,
    num_return_sequences: int = 1,
    seed: int = 0,
    eos_token_id: int | None = None,
    **settings: Unpack[StreamSettings],
) -> mx.array:
    """Text that goes on from input_ids int [B, T] -> int32 [B * num_return_sequences, T + new], the prompt first.

    `attention_mask` [B, T] is 0 at padding, before or behind a row. Lengths as in `generate`. Once every row has given
    `eos_token_id` it ends; rows that have it already are filled with it. With do_sample tokens are drawn: temperature
    1.0 (0: greedy), top_k 50 (0: no cut), top_p 1.0 (over 0 to 1), min_p 0.0 (0 to 1) unless given; row n with the seed
    + n. Raises InputError, naming the argument.
    """
    config = model.config
    num_return_sequences = inputs.whole("num_return_sequences", num_return_sequences, 1)
    seed = inputs.seed(seed)
    ids = np.repeat(np.array(inputs.tokens("input_ids", input_ids, (None, None), -1, config.table_rows[0] - 1)),
                    num_return_sequences, axis=0)  # fmt: skip
    if attention_mask is not None:
        attention_mask = np.repeat(inputs.on_host("attention_mask", attention_mask), num_return_sequences, axis=0)
    lengths, columns, _ = packed(ids[:, None], None, attention_mask)
    count = new_token_count(max_new_tokens, max_length, ids.shape[1], config.max_position_embeddings)
    drawn = Sampling.of(settings) if do_sample else Sampling(temperature=0)
    keys = mx.stack([mx.random.key(inputs.seed(seed + row)) for row in range(len(ids))])
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    out = model.model(columns[:, 0], mask, use_cache=True, room=count)
    last = mx.array(lengths.astype(np.int32))[:, None, None] - 1
    logits = model.lm_head(mx.take_along_axis(out.last_hidden_state, last, axis=1))
    state, new = out.past_key_values, []
    ended = np.zeros(len(ids), bool)
    silent = mx.full((len(ids), len(config.audio_delays), 1), -1, mx.int32)
    for _ in range(count):
        (draw,), keys = noise(keys, [drawn.candidates(config.vocab_size)])
        token = np.array(sample(logits[:, -1], draw, drawn)).astype(np.int32)
        if eos_token_id is not None:
            token = np.where(ended, eos_token_id, token)
            ended |= token == eos_token_id
        new.append(token)
        if ended.all():
            break
        _, logits, state = model.step(mx.concatenate([mx.array(token)[:, None, None], silent], axis=1), state)
        mx.eval(logits, state)
    return mx.array(np.concatenate([ids, np.stack(new, axis=1)], axis=1).astype(np.int32))
