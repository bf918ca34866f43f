"""Text alone: a prompt in one prefill, then the live path's step of the temporal transformer, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import mlx.core as mx
import numpy as np

from .. import inputs
from ..inputs import Whole
from ..models.sampling import Sampling, StreamSettings, noise, sample
from .outputs import TextOutput
from .prompt import new_token_count, packed
from .rules import Record, Rules, RuleSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .helium import MoshiForCausalLM


TRANSFORMERS: StreamSettings = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""The settings of transformers' generate where none are given."""


class TextSettings(StreamSettings, RuleSettings, total=False):
    """How text is drawn, by which rules, and how long it gets."""

    max_new_tokens: Whole | None
    max_length: Whole | None
    num_return_sequences: Whole | None


@overload
def generate_text(
    model: MoshiForCausalLM, input_ids: Any, attention_mask: Any = None, *, do_sample: bool = False, seed: int = 0,
    return_dict_in_generate: Literal[False] = False, **settings: Unpack[TextSettings],
) -> mx.array: ...  # fmt: skip
@overload
def generate_text(
    model: MoshiForCausalLM, input_ids: Any, attention_mask: Any = None, *, do_sample: bool = False, seed: int = 0,
    return_dict_in_generate: bool, **settings: Unpack[TextSettings],
) -> TextOutput: ...  # fmt: skip
@inputs.spelled_out(TextSettings, {**TRANSFORMERS, "num_return_sequences": 1})
def generate_text(
    model: MoshiForCausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    do_sample: bool = False,
    seed: int = 0,
    return_dict_in_generate: bool = False,
    **settings: Unpack[TextSettings],
) -> mx.array | TextOutput:
    """Text that goes on from input_ids int [B, T] -> int32 [B * num_return_sequences, T + new], the prompt first.

    `attention_mask` [B, T] is 0 at padding, before or behind a row. Lengths as in `generate`. With do_sample tokens are
    drawn: temperature 1.0 (0: greedy), top_k 50 (0: no cut), top_p 1.0 (over 0 to 1), min_p 0.0 (0 to 1) unless given;
    row n with the seed + n.

    Rules, as in transformers: once every row has given one of `eos_token_id` (a token or several) it ends; rows that
    have it already are filled with `pad_token_id` (default: the first of those). `min_new_tokens` come before that.
    `repetition_penalty` (over 0; 1: none) divides the logits of tokens that are in the row already, `suppress_tokens`
    and the sequences in `bad_words_ids` never come. With return_dict_in_generate it is `.sequences`, with
    `output_scores` also `.scores`, a float [B, vocab] for each new token: what it was drawn from; with `output_logits`
    `.logits`, what the model gave. Raises InputError, naming the argument.
    """
    config = model.config
    repeats = inputs.whole("num_return_sequences", settings["num_return_sequences"], 1)
    seed = inputs.seed(seed)
    ids = np.array(inputs.tokens("input_ids", input_ids, (None, None), -1, config.table_rows[0] - 1))
    lengths, columns, _ = packed(ids[:, None], None, attention_mask)
    ids, lengths, columns = (np.repeat(part, repeats, axis=0) for part in (ids, lengths, columns))
    count = new_token_count(settings, ids.shape[1], config.max_position_embeddings)
    drawn = Sampling.of(settings) if do_sample else Sampling(temperature=0)
    rows = [row[0, :length] for row, length in zip(columns, lengths, strict=True)]
    record = Record(Rules.of(settings, config.vocab_size), rows, drawn)
    _go_on(model, columns[:, 0], lengths, count, record, drawn, seed)
    sequences = mx.array(np.concatenate([ids, np.stack(record.new, axis=1)], axis=1).astype(np.int32))
    return TextOutput(sequences, **record.kept()) if return_dict_in_generate else sequences


def _go_on(
    model: MoshiForCausalLM, prompt: np.ndarray, lengths: np.ndarray, count: int, record: Record, drawn: Sampling,
    seed: int,
) -> None:  # fmt: skip
    """prompt int [B, L], the padding of each row behind its `lengths` [B] -> up to `count` tokens more, in `record`."""
    batch, config = len(prompt), model.config
    keys = mx.stack([mx.random.key(inputs.seed(seed + row)) for row in range(batch)])
    mask = np.arange(prompt.shape[1]) < lengths[:, None]
    out = model.model(prompt, mask, use_cache=True, room=count)
    last = mx.array(lengths.astype(np.int32))[:, None, None] - 1
    logits = model.lm_head(mx.take_along_axis(out.last_hidden_state, last, axis=1))
    state = out.past_key_values
    silent = mx.full((batch, len(config.audio_delays), 1), -1, mx.int32)
    for _ in range(count):
        (draw,), keys = noise(keys, [drawn.candidates(config.vocab_size)])
        masks = record.masks()
        token = sample(record.adjusted(logits[:, -1], *masks), draw, drawn)
        tokens = record.add(np.array(token), logits[:, -1], masks)
        if record.ended:
            break
        _, logits, state = model.step(mx.concatenate([mx.array(tokens)[:, None, None], silent], axis=1), state)
        mx.eval(logits, state)
