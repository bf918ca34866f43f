"""The whole Moshi under the names of Hugging Face's `MoshiForConditionalGeneration`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from .. import inputs
from ..conversation import prompt as prompts
from ..conversation.asynchronous import WAITING, AsyncConversation
from ..conversation.batch import Batch
from ..conversation.frame import SessionSettings
from ..conversation.prompt import Prefilled, one_row
from ..conversation.session import Session
from ..errors import InputError
from ..inputs import spelled_out
from ..models import config as plain
from ..models.moshi import Moshi
from ..models.roles import BOTH_SIDES, check_role
from ..models.state import State
from ..roles.speaker import Speaks
from ..roles.transcriber import Transcribes
from ..roles.translator import Translates
from . import personas, pretrained, teacher_forcing
from .classes import Methods
from .config import MoshiConfig
from .depth import MoshiDepthDecoder
from .generation import generate
from .helium import MoshiForCausalLM
from .mimi import MimiModel
from .outputs import ConditionalGenerationOutput, UnconditionalInput

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MoshiForConditionalGeneration(Methods, Transcribes, Translates, Speaks, Moshi):
    """`.decoder` (Helium and text head), `.depth_decoder`, `.audio_encoder` (Mimi); `.tokenizer` where one was loaded.

    Weights are random (`initializer_range`, `seed`) until some are loaded; the codec's take no part in training
    (`audio_encoder.unfreeze()` lets them). `sampling_defaults` are the settings that the checkpoint asks for;
    `session` and `generate` use them for what they are not given.

    `session` talks frame by frame: 80 ms, 1920 samples at 24000 Hz. A call takes whole sequences, int [B, T] of text
    and int [B, codebooks, T] of sound; `generate` goes on from them.

    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> out = model(input_ids=mx.array([[5, 6]]), user_audio_codes=mx.zeros((1, 8, 2), mx.int32),
    ...             moshi_audio_codes=mx.zeros((1, 8, 2), mx.int32))
    >>> out.logits.shape  # of the text, [B, T, vocab]
    (1, 2, 288)
    >>> model.session(seed=0).step(np.zeros(1920, np.float32)).pcm.shape
    (1920,)
    """

    decoder_class, depth_class, codec_class = MoshiForCausalLM, MoshiDepthDecoder, MimiModel

    config: MoshiConfig

    def __init__(self, config: plain.MoshiConfig, seed: int = 0) -> None:
        super().__init__(MoshiConfig.of(config), seed)

    decoder: MoshiForCausalLM
    depth_decoder: MoshiDepthDecoder
    audio_encoder: MimiModel

    @spelled_out(SessionSettings)
    def session(
        self, seed: int = 0, *, voice: Any = None, persona: str | None = None, prompt: Any = None,
        **settings: Unpack[SessionSettings],
    ) -> Session:  # fmt: skip
        """A conversation, primed and ready for its first frame.

        `voice` and `persona` (of PersonaPlex: see `prompt`) come before it, or the `prompt` that was made of them, or
        the path of a saved one.

        temperature (0: greedy), top_k (0: no cut), top_p (over 0 to 1) and min_p (0 to 1) are of Moshi's sound, with
        `text_` of its text; what is not given, or None, is the checkpoint's or else Moshi's own: 0.8 and 250, 0.7 and
        25, no other cut. For the rest see `Session`. Raises InputError for a setting out of range, TypeError for one
        that does not exist.
        """
        said: Any = {**self.sampling_defaults, **settings}
        return Session(self, seed, prompt=self.prompt_of(voice, persona, prompt), **said)

    def prompt(self, voice: Any = None, persona: str | None = None) -> Prefilled:
        """A voice and a role, read once for any number of conversations: `session(prompt=...)`, `save_prompt`.

        `voice`: a name of `voices.names()`, the path of a `.pt` file or of a recording, codes int [num_codebooks, T],
        or sound float [samples]; `persona`: who Moshi is to be, as text. Either may be left out. Raises InputError for
        a model without personas, an unknown voice, a voice of another model, and a prompt longer than the context.
        """
        return personas.make_prompt(self, voice, persona)

    def save_prompt(self, prompt: Prefilled, path: str | Path) -> None:
        """Write a prompt to a safetensors file, which `session(prompt=path)` reads. Raises InputError."""
        prompts.save(self, prompt, path)

    def load_prompt(self, path: str | Path) -> Prefilled:
        """What `save_prompt` wrote. Raises InputError for another file, and for a prompt of another model."""
        return prompts.load(self, path)

    def prompt_of(self, voice: Any, persona: str | None, prompt: Any) -> Prefilled | None:
        """The prompt that is meant: given, in a file, or to be made of a voice and a persona; none of them."""
        if prompt is not None:
            if voice is not None or persona is not None:
                raise InputError(
                    "prompt: got it together with voice or persona, which it has already; give one of them"
                )
            if not isinstance(prompt, (Prefilled, str, Path)):
                raise InputError(f"prompt: got a {type(prompt).__name__}, expected what `prompt` returned, or its file")
            return one_row(prompt) if isinstance(prompt, Prefilled) else self.load_prompt(prompt)
        return None if voice is None and persona is None else self.prompt(voice, persona)

    @spelled_out(SessionSettings)
    def conversation(
        self, seed: int = 0, *, waiting: int = WAITING, voice: Any = None, persona: str | None = None,
        prompt: Any = None, **settings: Unpack[SessionSettings],
    ) -> AsyncConversation:  # fmt: skip
        """A conversation for an event loop: `async with model.conversation() as talk`; see `AsyncConversation`.

        `waiting` frames at most are on their way at a time; the settings are those of `session`.
        """
        given: Any = {"voice": voice, "persona": persona, "prompt": prompt, **settings}
        return AsyncConversation(lambda: self.session(seed, **given), waiting)

    def batch(
        self, slots: int, *, kv_bits: int | None = None, context: int | None = None, guidance: float | None = None,
        progress: bool = True,
    ) -> Batch:  # fmt: skip
        """Up to `slots` conversations in one step; see `Batch`. Raises InputError."""
        return Batch(self, slots, kv_bits=kv_bits, context=context, guidance=guidance, progress=progress)

    def get_unconditional_inputs(self, num_samples: int = 1) -> UnconditionalInput:
        """Initial tokens alone, the start of a conversation without a prompt: `generate(**inputs)`."""
        check_role(self, *BOTH_SIDES)
        num_samples = inputs.whole("num_samples", num_samples, 1)
        count, audio = self.config.num_codebooks, self.config.audio_vocab_size
        return UnconditionalInput(
            input_ids=mx.full((num_samples, 1), self.config.vocab_size, mx.int32),
            user_audio_codes=mx.full((num_samples, self.config.user_codebooks, 1), audio, mx.int32),
            moshi_audio_codes=mx.full((num_samples, count, 1), audio, mx.int32),
            attention_mask=mx.ones((num_samples, 1), mx.int32),
        )

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        user_input_values: Any = None,
        user_audio_codes: Any = None,
        moshi_input_values: Any = None,
        moshi_audio_codes: Any = None,
        past_key_values: State = None,
        inputs_embeds: Any = None,
        text_labels: Any = None,
        audio_labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> ConditionalGenerationOutput:
        """Text int [B, T], codes int [B, codebooks, T] or sound float [B, 1, samples] of both sides (codes win), or
        inputs_embeds [B, T, hidden] -> logits of every position. What is missing or -1 is no input.

        Without labels, position p sees column p as it is given: whoever wants delays and initial tokens puts them in.

        With text_labels int [B, T] or audio_labels int [B, num_codebooks, T] (negative: does not count) the inputs are
        streams, as those of `generate`: they are delayed and put behind their initial tokens here, so that the logits
        of index t are held to label t, and labels are the very input_ids and moshi_audio_codes. This is the loss that
        Kyutai's package trains with (`LMModel.forward` of moshi 0.2.13); `audio_logits` [B, num_codebooks, T, V] have
        their delays undone. transformers 5.23 holds the text of a position to the next label, its audio to the same
        one, delays no inputs, and returns no loss of the text alone; here loss = text_loss + depth_loss.

        `attention_mask` [B, T] is 0 where there is padding, before or behind a row. Raises InputError.
        """
        check_role(self, *BOTH_SIDES, "transcriber")  # a speaker is told what to say as it goes
        flags = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        if text_labels is not None or audio_labels is not None:
            if inputs_embeds is not None or past_key_values is not None:
                raise InputError("text_labels, audio_labels: expected whole streams beside them (input_ids and codes)")
            tokens = self.streams(input_ids, user_input_values, user_audio_codes, moshi_input_values, moshi_audio_codes)
            return teacher_forcing.run(self, tokens, attention_mask, text_labels, audio_labels, flags)
        if inputs_embeds is None:
            tokens = self.streams(input_ids, user_input_values, user_audio_codes, moshi_input_values, moshi_audio_codes)
            inputs_embeds = self.embed(tokens)
        out = self.decoder(
            None, attention_mask, None, past_key_values, inputs_embeds, use_cache, **flags
        )  # fmt: skip
        return ConditionalGenerationOutput(
            logits=out.logits,
            last_hidden_state=out.last_hidden_state,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )

    def streams(
        self,
        input_ids: Any = None,
        user_input_values: Any = None,
        user_audio_codes: Any = None,
        moshi_input_values: Any = None,
        moshi_audio_codes: Any = None,
    ) -> mx.array:
        """What is given of the three streams as tokens int32 [B, 1 + streams, T], -1 for what is not.

        Sound is encoded by Mimi, and its last frame filled with silence. Raises InputError where streams have unlike
        lengths or nothing is given at all.
        """
        config = self.config
        given: dict[str, mx.array] = {}
        counts = {"moshi_audio_codes": config.num_codebooks, "user_audio_codes": config.user_codebooks}
        if input_ids is not None:
            given["input_ids"] = inputs.tokens("input_ids", input_ids, (None, None), -1, config.vocab_size)[:, None]
        for name, codes, sound in (
            ("moshi_audio_codes", moshi_audio_codes, moshi_input_values),
            ("user_audio_codes", user_audio_codes, user_input_values),
        ):
            if codes is not None:
                given[name] = inputs.tokens(name, codes, (None, counts[name], None), -1, config.audio_vocab_size)
            elif sound is not None:
                samples = inputs.batch_of_sound(name.replace("audio_codes", "input_values"), sound)
                encoded = self.audio_encoder.encode(samples, num_quantizers=counts[name]).audio_codes
                given[name] = mx.stop_gradient(encoded)
        if not given:
            raise InputError("input_ids, moshi_audio_codes, user_audio_codes: got none of them, expected one or more")
        return _joined(given, {"input_ids": 1, **counts})

    generate = generate

    @classmethod
    @spelled_out(pretrained.ModelSettings)
    def from_pretrained(
        cls, path_or_hub_id: str | Path, **settings: Unpack[pretrained.ModelSettings]
    ) -> MoshiForConditionalGeneration:
        """`load` under the name that Hugging Face users know: a folder or hub id, in any layout.

        `config` replaces the checkpoint's: the same sizes, another window, say. `dtype` (or `torch_dtype`) is the type
        to run it in, such as "bfloat16"; None and "auto" keep the stored one. `revision` is a branch, tag or commit of
        the hub's repository. Raises CheckpointError or ConfigError.
        """
        return pretrained.moshi(cls, path_or_hub_id, settings)

    @property
    def dtype(self) -> mx.Dtype:
        """The type that the language model is run in; the codec is float32."""
        return self.decoder.model.dtype


def _joined(given: dict[str, mx.array], counts: dict[str, int]) -> mx.array:
    """The given streams [B, count, T] in the order of `counts`, -1 in the place of those that are not."""
    shapes = {name: (len(array), array.shape[2]) for name, array in given.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {batch} rows of {length}" for name, (batch, length) in shapes.items())
        raise InputError(f"{', '.join(given)}: got {listed}, expected streams of one length, a column every frame")
    batch, length = next(iter(shapes.values()))
    parts = [given.get(name, mx.full((batch, count, length), -1, mx.int32)) for name, count in counts.items()]
    return mx.concatenate(parts, axis=1)
