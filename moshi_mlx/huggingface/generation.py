"""Offline generation: a prompt in one prefill, then the live path's own step, position by position.

The prompt's prefill is `conversation.prompt`'s, the same as a live session's; from there on the state is that of a
live conversation, and `duplex.language_step` goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import mlx.core as mx
import numpy as np

from .. import inputs
from ..conversation import duplex
from ..conversation.duplex import DuplexSampling
from ..conversation.frame import Frame
from ..conversation.prompt import Columns, begin, grown, known, prefill
from ..conversation.text import TextDecoder
from ..conversation.told import conversation_guidance, guided
from ..errors import InputError
from ..inputs import Number, Whole
from ..models.moshi import Moshi
from ..models.roles import BOTH_SIDES, check_role
from ..models.sampling import MOSHI, NAMES, Sampling, StreamSettings
from ..models.state import State
from .outputs import GenerateOutput
from .prompt import Prompt, after, make_prompt, new_token_count
from .rules import Record, Rules, RuleSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .moshi import MoshiForConditionalGeneration


class GenerateSettings(StreamSettings, RuleSettings, total=False):
    """How text and codes are drawn: the names of one stream are the text's, with `depth_` the codes'; and the rest."""

    attention_mask: Any
    voice: Any
    persona: str | None
    prompt: Any
    guidance: Number | None
    conditions: Mapping[str, Any] | None
    max_new_tokens: Whole | None
    max_length: Whole | None
    do_sample: bool | None
    depth_do_sample: bool | None
    depth_temperature: Number | None
    depth_top_k: Whole | None
    depth_top_p: Number | None
    depth_min_p: Number | None
    depth_decoder_do_sample: bool | None
    depth_decoder_temperature: Number | None
    depth_decoder_top_k: Whole | None
    depth_decoder_top_p: Number | None
    depth_decoder_min_p: Number | None
    num_return_sequences: Whole | None
    streamer: Any


@overload
def generate(  # type: ignore[overload-overlap]
    model: MoshiForConditionalGeneration, input_ids: Any = None, user_input_values: Any = None,
    user_audio_codes: Any = None, moshi_input_values: Any = None, moshi_audio_codes: Any = None,
    inputs_embeds: Any = None, *, return_audio_waveforms: Literal[False],
    return_audio_codes: Literal[False] | None = None, concat_unconditional_inputs: bool = True, seed: int = 0,
    return_dict_in_generate: Literal[False] = False, **settings: Unpack[GenerateSettings],
) -> mx.array: ...  # fmt: skip
@overload
def generate(
    model: MoshiForConditionalGeneration, input_ids: Any = None, user_input_values: Any = None,
    user_audio_codes: Any = None, moshi_input_values: Any = None, moshi_audio_codes: Any = None,
    inputs_embeds: Any = None, return_audio_waveforms: bool = True, return_audio_codes: bool | None = None,
    concat_unconditional_inputs: bool = True, *, seed: int = 0, return_dict_in_generate: bool = False,
    **settings: Unpack[GenerateSettings],
) -> GenerateOutput: ...  # fmt: skip
@inputs.spelled_out(GenerateSettings, {"do_sample": True, "num_return_sequences": 1})
def generate(
    model: MoshiForConditionalGeneration,
    input_ids: Any = None,
    user_input_values: Any = None,
    user_audio_codes: Any = None,
    moshi_input_values: Any = None,
    moshi_audio_codes: Any = None,
    inputs_embeds: Any = None,
    return_audio_waveforms: bool = True,
    return_audio_codes: bool | None = None,
    concat_unconditional_inputs: bool = True,
    *,
    seed: int = 0,
    return_dict_in_generate: bool = False,
    **settings: Unpack[GenerateSettings],
) -> GenerateOutput | mx.array:
    """Text and sound that go on from a prompt -> `sequences`, `audio_sequences`, `audio_codes` (see `GenerateOutput`).

    The prompt is text input_ids int [B, T] with the codes int [B, codebooks, T] or the sound float [B, 1, samples] of
    both sides (codes win), a column every frame; without any of them a conversation begins. What the user's stream
    holds beyond the T columns is heard as generation goes on, and after it silence: each frame the codes of one first
    frame of zeros, as in transformers. `inputs_embeds` [B, T, hidden] takes the place of the prompt's embeddings; the
    codes are still needed, for the delays. `concat_unconditional_inputs` puts a column of initial tokens before the
    prompt, where no inputs_embeds are given. `attention_mask` [B, T] is 0 at padding, before or behind a row.

    `voice` and `persona` (see `MoshiForConditionalGeneration.prompt`), or the `prompt` that was made of them, take
    the place of the prompt's columns: the user's stream begins after them, and what is returned is new.

    `conditions` and `guidance` are those of `Session`, and hold in the prompt too.

    `max_new_tokens`, or `max_length` with the prompt and its initial column (default: 20 new ones, in all at most
    `max_position_embeddings`); N new tokens are N - max delay new frames. temperature (0: greedy), top_k (0: no cut),
    top_p (over 0 to 1) and min_p (0 to 1) are of the text, with `depth_` or `depth_decoder_` of the codes; what is not
    given is the checkpoint's or Moshi's own: 0.7 and 25, 0.8 and 250, no other cut. `do_sample=False` is greedy.
    `num_return_sequences` rows for each row, each with the next seed. `streamer.put` gets a `Frame` for every new token
    as it comes, then `streamer.end()` is called; it takes one row. The rules of the text (`eos_token_id`,
    `repetition_penalty` and so on) are those of `MoshiForCausalLM.generate`.

    With return_audio_waveforms=False it is the plain int array of `sequences`, unless codes or return_dict_in_generate
    are asked for, as in transformers. The attention window holds in the prompt as it does in a live conversation
    (transformers 5.23 forgets it in a prompt). Raises InputError, naming the argument.
    """
    check_role(model, *BOTH_SIDES)
    sampling, seed = _sampling(model, settings), inputs.seed(seed)
    rules = Rules.of(settings, model.config.vocab_size)
    user, moshi = (user_input_values, user_audio_codes), (moshi_input_values, moshi_audio_codes)
    mask, repeats = (
        settings.get("attention_mask"),
        inputs.whole("num_return_sequences", settings["num_return_sequences"], 1),
    )
    seen = model.prompt_of(settings.get("voice"), settings.get("persona"), settings.get("prompt"))
    if seen is None:
        prompt = make_prompt(model, input_ids, user, moshi, inputs_embeds, concat_unconditional_inputs, mask, repeats)
    else:
        _refuse_beside_persona(input_ids, *moshi, inputs_embeds, mask)
        prompt = after(model, seen, user, repeats)
    conditions, streamer = settings.get("conditions"), settings.get("streamer")
    _check_told(model, conditions, sampling.guidance, prompt.embeds)
    _check_streamer(streamer, len(prompt.lengths))
    count = new_token_count(settings, prompt.length, model.config.max_position_embeddings)
    record = Record(
        rules,
        [row[0, :n] for row, n in zip(prompt.columns, prompt.lengths, strict=True)],
        cast(Sampling, sampling.text),
    )
    sampled = _run(model, prompt, count, sampling, conditions, seed, record, _Watch(model, prompt, streamer))
    sequences = mx.array(np.concatenate([prompt.shown, np.stack(record.new, axis=1)], axis=1).astype(np.int32))
    if not (return_audio_waveforms or return_audio_codes or return_dict_in_generate):
        return sequences
    codes = _codes(model, prompt, sampled)
    return GenerateOutput(
        audio_sequences=_sound(model, codes) if return_audio_waveforms else None,
        sequences=sequences,
        audio_codes=mx.array(codes) if return_audio_codes else None,
        **record.kept(),
    )


def _sampling(model: MoshiForConditionalGeneration, settings: GenerateSettings) -> DuplexSampling:
    """Of the text and of the codes; what is not given is the checkpoint's, or Moshi's own."""
    given: Mapping[str, Any] = {name.replace("depth_decoder_", "depth_"): v for name, v in settings.items()}
    if len(given) < len(settings):
        twice = next(n for n in settings if n.startswith("depth_decoder_") and n.replace("decoder_", "") in settings)
        raise InputError(f"{twice}: got it beside {twice.replace('decoder_', '')}, which is the same; give one of them")
    usual = {**MOSHI, **model.sampling_defaults}

    def of(prefix: str, ours: str, do_sample: bool) -> Sampling:
        """The stream whose settings begin with `prefix` here, and with `ours` in a conversation."""
        if not do_sample:
            return Sampling(temperature=0)
        return Sampling.of({prefix + n: given.get(prefix + n, usual[ours + n]) for n in NAMES}, prefix)

    do_sample = given["do_sample"]
    audio = of("depth_", "", given.get("depth_do_sample", do_sample))
    guidance = conversation_guidance(model, given.get("guidance"))
    return DuplexSampling(of("", "text_", do_sample), audio, guidance)


def _refuse_beside_persona(*given: Any) -> None:
    names = ("input_ids", "moshi_input_values", "moshi_audio_codes", "inputs_embeds", "attention_mask")
    for name, value in zip(names, given, strict=True):
        if value is not None:
            raise InputError(f"{name}: got it together with a voice or a persona, which take its place")


def _check_told(model: Moshi, conditions: Any, guidance: float, embeds: mx.array | None) -> None:
    model.conditions.check(conditions)
    if embeds is not None and (conditions or guidance != 1):
        name = "guidance" if guidance != 1 else "conditions"
        raise InputError(f"{name}: got it together with inputs_embeds, which say what the model is told; leave one out")


def _check_streamer(streamer: Any, rows: int) -> None:
    if streamer is not None and rows > 1:
        raise InputError(f"streamer: got {rows} rows to generate, expected one")
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise InputError(f"streamer: got a {type(streamer).__name__}, expected an object with put(frame) and end()")


# --- prefill and steps ----------------------------------------------------------------------------------------------


def _run(
    model: MoshiForConditionalGeneration, prompt: Prompt, count: int, sampling: DuplexSampling,
    conditions: Mapping[str, Any] | None, seed: int, record: Record, watch: _Watch,
) -> np.ndarray:  # fmt: skip
    """Up to `count` text tokens more, in `record` -> the codes that each sampled, int [B, num_codebooks, new]."""

    seen = prompt.seen
    if seen is None:
        columns = Columns(prompt.columns, prompt.lengths, prompt.embeds)
        seen = prefill(model, columns, count, conditions, sampling.guidance)
    else:
        seen = grown(seen, min(model.config.sliding_window, seen.length + count))
    logits = guided(model.decoder.lm_head(seen.hidden), len(prompt.lengths), sampling.guidance)

    def step(
        codes: mx.array, state: State, given: tuple[mx.array, ...], masks: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array, State]:
        drawn_from: list[mx.array] = []

        def adjust(logits: mx.array) -> mx.array:
            drawn_from.append(logits)
            return record.adjusted(logits, *masks)

        text, _, state = duplex.language_step(model, codes, state, sampling, next(iter(given), None), adjust)
        return text, drawn_from[0], state

    compiled, rows = mx.compile(step), len(prompt.lengths)
    masks = record.masks()
    seeds = [seed + row for row in range(rows)]
    state = begin(model, seen, seeds, sampling, lambda x: record.adjusted(x, *masks), conditions)
    mx.eval(logits, state)
    silence = np.repeat(_silence(model), rows, axis=0)
    text, sampled = state["text"], []
    for n in range(count):
        if n:
            user = prompt.later[:, :, n - 1] if n <= prompt.later.shape[2] else silence
            masks = record.masks()
            text, logits, state = compiled(mx.array(user), state, known(model, seen, n), masks)
            mx.eval(text, logits, state)
        said = record.add(np.array(text), logits, masks)
        sampled.append(np.array(state["own"])[:, :, -1])
        watch.put(said, sampled)
        if record.ended:
            break
    watch.end()
    return np.stack(sampled, axis=2)


def _silence(model: MoshiForConditionalGeneration) -> np.ndarray:
    """The user's codes int [1, user codebooks] of a first frame of zeros."""
    sound, count = mx.zeros((1, model.config.audio_encoder_config.frame_size)), model.config.user_codebooks
    return np.array(model.audio_encoder.encode(sound, num_quantizers=count).audio_codes)[:, :, 0]


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

    def end(self) -> None:
        if self._streamer is not None:
            self._streamer.end()
