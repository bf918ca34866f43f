"""The forward pass of training: whole streams in, logits of every index and their losses out.

The alignment and the loss are those of Kyutai's package (`LMModel.forward` of moshi 0.2.13): the logits of position p
against stream index p, the delays of the audio logits undone, targets that are negative or whose position the sequence
does not reach left out, cross-entropy averaged over the others, text and audio apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx

from .. import inputs
from ..conversation import streams
from ..models.config import MoshiConfig
from ..models.depth import Caches
from ..models.layers.sequence import packing
from ..models.losses import cross_entropy
from .depth import Kept
from .outputs import ConditionalGenerationOutput

if TYPE_CHECKING:
    from .moshi import MoshiForConditionalGeneration


def run(
    model: MoshiForConditionalGeneration,
    tokens: mx.array,
    attention_mask: Any,
    text_labels: Any,
    audio_labels: Any,
    flags: dict[str, bool],
) -> ConditionalGenerationOutput:
    """tokens int [B, 1 + streams, T]; the rest as `MoshiForConditionalGeneration.__call__` has it."""
    batch, _, length = tokens.shape
    text, audio = _labels(model.config, text_labels, audio_labels, batch, length)
    if attention_mask is None:
        return _run(model, tokens, text, audio, mx.full((batch,), length, mx.int32), flags)
    packed = packing(inputs.attention_mask(attention_mask, batch, length))
    tokens = packed.pack(tokens, axis=2)
    text = None if text is None else packed.pack(text)
    audio = None if audio is None else packed.pack(audio, axis=2)
    result = _run(model, tokens, text, audio, packed.lengths, flags)
    result.logits = packed.unpack(result.logits)
    result.last_hidden_state = packed.unpack(result.last_hidden_state)
    if audio is not None:
        result.audio_logits = packed.unpack(result.audio_logits, axis=2)
    return result


def _labels(
    config: MoshiConfig, text_labels: Any, audio_labels: Any, batch: int, length: int
) -> tuple[mx.array | None, mx.array | None]:
    """Both labels, -1 or less where they do not count."""
    text, audio = None, None
    if text_labels is not None:
        text = inputs.tokens("text_labels", text_labels, (batch, length), -100, config.vocab_size)
        text = mx.where(text == config.vocab_size, -1, text)
    if audio_labels is not None:
        shape = (batch, config.num_codebooks, length)
        audio = inputs.tokens("audio_labels", audio_labels, shape, -100, config.audio_vocab_size)
        audio = mx.where(audio == config.audio_vocab_size, -1, audio)
    return text, audio


def _run(
    model: MoshiForConditionalGeneration,
    tokens: mx.array,
    text: mx.array | None,
    audio: mx.array | None,
    lengths: mx.array,
    flags: dict[str, bool],
) -> ConditionalGenerationOutput:
    """The pass over rows whose padding lies behind their `lengths` (int [B])."""
    config, length = model.config, tokens.shape[2]
    real = mx.arange(length) < lengths[:, None]  # [B, T]
    embeds = model.embed(streams.position_inputs(config, tokens))
    out = model.decoder(inputs_embeds=embeds, use_cache=False, **flags)
    result = ConditionalGenerationOutput(
        logits=out.logits, last_hidden_state=out.last_hidden_state, hidden_states=out.hidden_states,
        attentions=out.attentions,
    )  # fmt: skip
    if text is not None:
        result.loss = result.text_loss = cross_entropy(out.logits, mx.where(real, text, -1))
    if audio is not None:
        _depth_pass(model, result, tokens, flags)
        targets = mx.where(streams.reached(config, lengths, length), audio, -1)
        result.depth_loss = cross_entropy(result.audio_logits, targets)
        result.loss = result.depth_loss if text is None else result.text_loss + result.depth_loss
    return result


def _depth_pass(
    model: MoshiForConditionalGeneration,
    result: ConditionalGenerationOutput,
    tokens: mx.array,
    flags: dict[str, bool],
) -> None:
    """Every position's frame through the depth decoder, given the streams: all positions are rows of one batch."""
    batch, _, length = tokens.shape
    depth = model.depth_decoder
    given = streams.depth_inputs(model.config, tokens).swapaxes(1, 2).reshape(batch * length, -1)
    kept = Kept([], [] if flags["output_attentions"] else None)
    hidden = result.last_hidden_state.reshape(batch * length, 1, -1)
    caches: Caches = [[] for _ in range(depth.config.num_hidden_layers)]
    logits = depth.over_steps(depth.embed(given), hidden, caches, kept)
    result.audio_logits = streams.undelayed(model.config, logits.reshape(batch, length, *logits.shape[1:]))
    result.depth_hidden_states = kept.layer_states() if flags["output_hidden_states"] else None
    result.depth_attentions = kept.layer_weights() if flags["output_attentions"] else None
