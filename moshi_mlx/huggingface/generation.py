"""Offline generation: a prompt in one prefill, then the live path's own step, position by position.

The prompt's prefill is `conversation.prompt`'s, the same as a live session's; from there on the state is that of a
live conversation, and `duplex.language_step` goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .. import inputs
from ..conversation import duplex
from ..conversation.duplex import DuplexSampling
from ..conversation.prompt import Columns, begin, grown, known, prefill
from ..conversation.session import Frame
from ..conversation.text import TextDecoder
from ..errors import InputError
from ..inputs import Number, Whole
from ..models.sampling import MOSHI, NAMES, Sampling, StreamSettings
from .outputs import GenerateOutput
from .prompt import Prompt, after, make_prompt, new_token_count

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .moshi import MoshiForConditionalGeneration


class GenerateSettings(StreamSettings, total=False):
    """How text and codes are drawn: the names of one stream are the text's, with `depth_` the codes'."""

    do_sample: bool | None
    depth_do_sample: bool | None
    depth_temperature: Number | None
    depth_top_k: Whole | None
    depth_top_p: Number | None
    depth_min_p: Number | None


@inputs.spelled_out(GenerateSettings, {"do_sample": True})
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
    voice: Any = None,
    persona: str | None = None,
    prompt: Any = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    num_return_sequences: int = 1,
    seed: int = 0,
    streamer: Any = None,
    **settings: Unpack[GenerateSettings],
) -> GenerateOutput:
    """Text and sound that go on from a prompt -> `sequences`, `audio_sequences`, `audio_codes` (see `GenerateOutput`).

    The prompt is text input_ids int [B, T] with the codes int [B, codebooks, T] or the sound float [B, 1, samples] of
    both sides (codes win), a column every frame; without any of them a conversation begins. What the user's stream
    holds beyond the T columns is heard as generation goes on, and after it silence: each frame the codes of one first
    frame of zeros, as in transformers. `inputs_embeds` [B, T, hidden] takes the place of the prompt's embeddings; the
    codes are still needed, for the delays. `concat_unconditional_inputs` puts a column of initial tokens before the
    prompt, where no inputs_embeds are given. `attention_mask` [B, T] is 0 at padding, before or behind a row.

    `voice` and `persona` (see `MoshiForConditionalGeneration.prompt`), or the `prompt` that was made of them, take
    the place of the prompt's columns: the user's stream begins after them, and what is returned is new.

    `max_new_tokens`, or `max_length` with the prompt and its initial column (default: 20 new ones, in all at most
    `max_position_embeddings`); N new tokens are N - max delay new frames. temperature (0: greedy), top_k (0: no cut),
    top_p (over 0 to 1) and min_p (0 to 1) are of the text, with `depth_` of the codes; what is not given is the
    checkpoint's or Moshi's own: 0.7 and 25, 0.8 and 250, no other cut. `do_sample=False` is greedy.
    `num_return_sequences` rows for each row, each with the next seed. `streamer.put` gets a `Frame` for every new token
    as it comes, then `streamer.end()` is called; it takes one row.

    The attention window holds in the prompt as it does in a live conversation (transformers 5.23 forgets it in a
    prompt). Raises InputError, naming the argument.
    """
    inputs.check_repeats(num_return_sequences)
    user, moshi = (user_input_values, user_audio_codes), (moshi_input_values, moshi_audio_codes)
    seen = model.prompt_of(voice, persona, prompt)
    if seen is None:
        prompt = make_prompt(
            model, input_ids, user, moshi, inputs_embeds, concat_unconditional_inputs, attention_mask,
            num_return_sequences,
        )  # fmt: skip
    else:
        _refuse_beside_persona(input_ids, *moshi, inputs_embeds, attention_mask)
        prompt = after(model, seen, user, num_return_sequences)
    _check_streamer(streamer, len(prompt.lengths))
    count = new_token_count(max_new_tokens, max_length, prompt.length, model.config.max_position_embeddings)
    text, sampled = _run(model, prompt, count, _sampling(model, settings), seed, streamer)
    if streamer is not None:
        streamer.end()
    codes = _codes(model, prompt, sampled)
    return GenerateOutput(
        audio_sequences=_sound(model, codes) if return_audio_waveforms else None,
        sequences=mx.array(np.concatenate([prompt.shown, text], axis=1).astype(np.int32)),
        audio_codes=mx.array(codes) if return_audio_codes else None,
    )


def _sampling(model: MoshiForConditionalGeneration, settings: GenerateSettings) -> DuplexSampling:
    def of(prefix: str, ours: str, do_sample: bool | None) -> Sampling:
        """The stream whose settings begin with `prefix` here, and with `ours` in a conversation."""
        if not do_sample:
            return Sampling(temperature=0)
        usual = {**MOSHI, **model.sampling_defaults}
        return Sampling.of({prefix + n: settings.get(prefix + n, usual[ours + n]) for n in NAMES}, prefix)

    do_sample = settings.get("do_sample")
    return DuplexSampling(of("", "text_", do_sample), of("depth_", "", settings.get("depth_do_sample", do_sample)))


def _refuse_beside_persona(*given: Any) -> None:
    names = ("input_ids", "moshi_input_values", "moshi_audio_codes", "inputs_embeds", "attention_mask")
    for name, value in zip(names, given, strict=True):
        if value is not None:
            raise InputError(f"{name}: got it together with a voice or a persona, which take its place")


def _check_streamer(streamer: Any, rows: int) -> None:
    if streamer is not None and rows > 1:
        raise InputError(f"streamer: got {rows} rows to generate, expected one")


# --- prefill and steps ----------------------------------------------------------------------------------------------


def _run(
    model: MoshiForConditionalGeneration, prompt: Prompt, count: int, sampling: DuplexSampling, seed: int, streamer: Any
) -> tuple[np.ndarray, np.ndarray]:
    """-> new text int [B, count], and the codes that each new position sampled, int [B, num_codebooks, count]."""
    seen = prompt.seen
    if seen is None:
        seen = prefill(model, Columns(prompt.columns, prompt.lengths, prompt.embeds), count)
    else:
        seen = grown(seen, min(model.config.sliding_window, seen.length + count))
    state = begin(model, seen, [seed + row for row in range(len(prompt.lengths))], sampling)
    mx.eval(state)
    step = mx.compile(lambda codes, state, *given: duplex.language_step(model, codes, state, sampling, *given))
    silence = np.array(model.audio_encoder.encode(
        mx.zeros((1, model.config.audio_encoder_config.frame_size)), num_quantizers=model.config.user_codebooks
    ).audio_codes)[:, :, 0]  # fmt: skip
    texts, sampled = [np.array(state["text"])], [np.array(state["own"])[:, :, -1]]
    watch = _Watch(model, prompt, streamer)
    watch.put(texts[-1], sampled)
    for n in range(count - 1):
        user = prompt.later[:, :, n] if n < prompt.later.shape[2] else np.repeat(silence, len(prompt.lengths), axis=0)
        text, _, state = step(mx.array(user), state, *known(model, seen, n + 1))
        mx.eval(text, state)
        texts.append(np.array(text))
        sampled.append(np.array(state["own"])[:, :, -1])
        watch.put(texts[-1], sampled)
    return np.stack(texts, axis=1), np.stack(sampled, axis=2)


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
