"""Session: one conversation for people who embed Moshi. The one mutable object of the package."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .. import inputs
from ..errors import InputError
from ..inputs import Turns, scalar, silenced, sound, spelled_out, tokens
from ..models.layers.cache import reads_unseen_slots
from ..models.layers.transformer import grow
from ..models.moshi import Moshi
from ..models.roles import BOTH_SIDES, check_role
from ..models.sampling import MOSHI, SamplingSettings
from ..models.state import State
from ..terminal.progress import steps
from . import duplex, rows, saving
from . import prompt as prompts
from .duplex import DuplexSampling
from .frame import Frame, OnSpeaking, OnText
from .prompt import Prefilled
from .speech import GreetingGate, SpeechDetector
from .text import TextDecoder
from .told import check_takes_prompts, conversation_guidance

if TYPE_CHECKING:
    from typing_extensions import Unpack

FIRST_CAPACITY = 256  # slots, where a young conversation keeps a small ring
# What MLX may keep of freed buffers. Without a limit it took 8 GB more over a long conversation.
BUFFER_CACHE_BYTES = 512 * 2**20


class Session:
    """A conversation. Made by `model.session(...)`; primed, so the first frame that it gets is seen at once.

    temperature (0: greedy), top_k (0: no cut), top_p (over 0 to 1) and min_p (0 to 1) are of Moshi's sound, the same
    with `text_` before them of its text (see `Sampling`). kv_bits (8 or 4) is how the attention cache is kept;
    `context` is how many frames the conversation remembers (default: the model's context, which is the most). Raises
    InputError for a setting out of range, TypeError for one that does not exist.

    Making one builds every kernel that its frames will need, which takes seconds where they are new to the machine:
    `progress` shows a bar then, on standard error, where that is a terminal.

    on_text(token) is called once a frame with the sampled text token, before the depth decoder sees it: it returns
    another token to say that instead, or None to keep it. With it a frame is two evaluations, without it one. What it
    raises ends the call to `step`, and the frame counts as spoken with the sampled token.

    `prompt` comes before the conversation, and before each that `reset` begins: see `prompt` of the model.
    on_speaking(now) is called when `frame.speaking` changes, before `step` returns. With `wait_for_greeting` the user
    is heard as silence until Moshi has spoken and is silent again, at most 12 s: noise cannot cut its greeting off.
    A translator takes neither of the two.

    `conditions` are what the model is told of the conversation, by name (Hibiki: `{"description": "very_good"}`, which
    it is told anyway); `guidance` other than 1 asks it a second time, told the opposite, and goes that many times as
    far from there to here (Hibiki: 3 sounds more like the speaker). It makes the temporal transformer work on two rows.

    MLX work belongs to a thread, so make it, step it and reset it on one thread. A call while another one runs, on
    another thread or from a hook, is refused with InputError and changes nothing.

    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> talk = model.session(seed=0, temperature=0.8)
    >>> talk.sample_rate, talk.frame_size
    (24000, 1920)
    >>> frames = [talk.step(np.zeros(1920, np.float32)) for _ in range(3)]
    >>> np.concatenate([frame.pcm for frame in frames]).shape
    (5760,)
    """

    @spelled_out(SamplingSettings, MOSHI)
    def __init__(
        self,
        model: Moshi,
        seed: int = 0,
        *,
        kv_bits: int | None = None,
        context: int | None = None,
        on_text: OnText | None = None,
        prompt: Prefilled | None = None,
        on_speaking: OnSpeaking | None = None,
        wait_for_greeting: bool = False,
        guidance: float | None = None,
        conditions: Mapping[str, Any] | None = None,
        progress: bool = True,
        **settings: Unpack[SamplingSettings],
    ) -> None:
        check_role(model, *BOTH_SIDES)
        self._guidance, self._conditions = conversation_guidance(model, guidance), conditions
        sampling = DuplexSampling.of(settings, self._guidance)
        config = model.config.audio_encoder_config
        self.sample_rate, self.frame_size = config.sampling_rate, config.frame_size
        self.nonfinite_samples = 0
        """Samples that were NaN, infinite or a million times too loud, and were replaced by silence, so far."""
        self._model, self._seed, self._sampling, self._kv_bits = model, seed, sampling, kv_bits
        self.context = checked_context(context, model.config.sliding_window)
        """The most frames that are remembered."""
        self._capacities = capacities(self.context, model.config.head_width, kv_bits)
        mimi, after_codes = model.audio_encoder, duplex.step_codes if on_text is None else duplex.hear_codes
        self._encode = mx.compile(lambda sound, state: mimi.encode_step(sound, state, model.config.user_codebooks))
        self._step_codes, self._speak = (
            mx.compile(lambda given, state, *known, part=part: part(model, given, state, sampling, *known))
            for part in (after_codes, duplex.speak)
        )
        for name, hook in (("on_text", on_text), ("on_speaking", on_speaking)):
            if hook is not None and not callable(hook):
                raise InputError(f"{name}: got {hook!r}, expected a function")
        self._on_text, self._on_speaking = on_text, on_speaking
        if prompt is not None or wait_for_greeting:
            check_takes_prompts(model, "wait_for_greeting" if prompt is None else "prompt")
        self._prompt = None if prompt is None else prompts.in_bits(prompts.checked(prompt, self.context), kv_bits)
        self._speech = SpeechDetector(self.frame_size / self.sample_rate)
        self._gate = GreetingGate(self.frame_size / self.sample_rate) if wait_for_greeting else None
        self._turns = Turns()
        bound_memory()
        self.reset()
        self._build_kernels(progress)

    def reset(self, seed: int | None = None) -> None:
        """Begin a new conversation, the same as a new session with this one's settings and `seed` (None: its own).

        Raises InputError for a seed that is no whole number.
        """
        with self._turns.taken("reset"):
            self._seed = self._seed if seed is None else inputs.seed(seed)
            self._reset()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation, as it is between two frames, to a safetensors file: there whole or not at all.

        Raises InputError where it cannot be written.
        """
        with self._turns.taken("save"):
            saving.save(self, path)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on with the conversation that `save` wrote, frame for frame as it would have gone on itself.

        How tokens are drawn, and the hooks, are this session's. Raises InputError, and changes nothing, where the file
        is damaged, of another model, or of a session with another kv_bits, context or wait_for_greeting.
        """
        with self._turns.taken("restore"):
            saving.restore(self, path)

    def _reset(self) -> None:
        self._state: State = None  # freed before its successor is made
        self._steps, self._begun = 0, self._prompt
        self._speech.reset()
        if self._gate:
            self._gate.reset()
        first_token = self._begin() if self._prompt is None else self._go_on(self._prompt)
        self._text_of = TextDecoder(self._model.tokenizer, self._model.config.silent_text_tokens)
        # Priming samples a text token before there is a frame to hand it out with: it goes with the first.
        self._pending_text = self._text_of(int(np.array(first_token)[0]))

    def _begin(self) -> mx.array:
        """Position 0 of a conversation without a prompt: the first text token."""
        self._capacity, self._positions = self._capacities[0], 1
        state = self._new_state(self._seed, self._capacity)
        first_token, self._state = duplex.prime(self._model, state, self._sampling)
        mx.eval(first_token, self._state)
        return first_token

    def _new_state(self, seed: int, capacity: int) -> State:
        told = (self._conditions, self._guidance)
        return duplex.init_state(self._model, [seed], capacity, self._kv_bits, *told)

    def _go_on(self, prompt: Prefilled) -> mx.array:
        """The positions of a prompt, which are done already: the text token that follows them."""
        codec = self._model.audio_encoder
        codecs = {"encoder": codec.init_encoder_state(1), "decoder": codec.init_decoder_state(1)}
        self._capacity = next(size for size in self._capacities if size > prompt.length or size == self.context)
        self._positions = prompt.length
        prompt = prompts.grown(prompt, self._capacity)
        state = prompts.begin(self._model, prompt, [self._seed], self._sampling)
        self._state = {**state, **codecs}
        mx.eval(self._state)
        return self._state["text"]

    def _build_kernels(self, progress: bool) -> None:
        """Take a frame with every ring that the conversation will have, and begin anew.

        MLX traces a step when it is first called and builds a kernel when it is first evaluated: 0.2 to 0.8 s each on
        a Mac, some seconds altogether, which no frame may wait for.
        """
        sizes = [size for size in self._capacities if size >= self._capacity]
        with steps("compiling", 2 * len(sizes), progress) as built:
            if self._known(1):
                self._take_silence(lambda parts: None, self._known(1))
            for capacity in sizes:
                if capacity > self._capacity:
                    self._grow()
                self._take_silence(built)
        self.reset()

    def _take_silence(self, built: Callable[[int], object], known: tuple[mx.array, ...] = ()) -> None:
        """A frame in two parts, encoding and the rest, so that a person sees it move."""
        codes, encoder = self._encode(mx.zeros((1, self.frame_size)), self._state["encoder"])
        mx.eval(codes, encoder)
        built(1)
        state = {**self._state, "encoder": encoder}
        reply, self._state = self._step_codes(codes[..., 0], state, *(() if self._on_text else known))
        if self._on_text:
            reply, self._state = self._speak(reply, self._state, *known)
        mx.eval(reply, self._state)
        built(1)

    def fill_context(self) -> None:
        """Go to where the whole context is full (of nothing), and a frame costs what it costs from there on.

        For measuring: `reset` begins a conversation again.
        """
        while self._capacity < self.context:
            self._grow()
        self._state = rows.at_offset(self._state, self.context)
        mx.eval(self._state)
        self._positions = self.context

    def _known(self, step: int) -> tuple[mx.array, ...]:
        """What the prompt says of the codes that frame `step`, from 1, draws: only where delays are longer than 1."""
        return () if self._begun is None else prompts.known(self._model, self._begun, step)

    def _step(self, sound: mx.array, state: State, *known: mx.array) -> Any:
        """`_step_codes` from sound: encoding is traced on its own, so that both ways share all that follows."""
        codes, encoder = self._encode(sound, state["encoder"])
        return self._step_codes(codes[..., 0], {**state, "encoder": encoder}, *known)

    def step(self, pcm: Any) -> Frame:
        """One frame: pcm float [frame_size] at sample_rate, what the user says -> what Moshi says meanwhile.

        Samples that are NaN, infinite or beyond a million are replaced by silence and counted in `nonfinite_samples`.
        Raises InputError for another shape, for samples that are not floats, and where another call runs meanwhile.
        """
        with self._turns.taken("step"):
            pcm, bad = silenced(sound("pcm", pcm, (self.frame_size,)))
            self.nonfinite_samples += bad
            if self._gate and self._gate.closed:
                pcm = np.zeros_like(pcm)
            return self._advance(self._step, mx.array(pcm[None]))

    def step_codes(self, codes: Any) -> Frame:
        """One frame from Mimi codes of the user's sound: int [user codebooks], -1 where there is no input.

        Raises InputError for another shape or a code that Mimi does not have, and where another call runs meanwhile.
        """
        config = self._model.config
        with self._turns.taken("step_codes"):
            codes = tokens("codes", codes, (config.user_codebooks,), -1, config.most_user_code)
            if self._gate and self._gate.closed:
                return self._advance(self._step, mx.zeros((1, self.frame_size)))
            return self._advance(self._step_codes, codes[None])

    def _advance(self, step: Any, given: mx.array) -> Frame:
        """The one evaluation of a frame, and its outcome on the host."""
        if self._positions == self._capacity < self.context:
            self._grow()
        self._steps += 1
        known = self._known(self._steps)
        reply, self._state = step(given, self._state, *(() if self._on_text else known))
        self._positions += 1
        if self._on_text:
            reply = self._hooked(self._on_text, reply, known)
        mx.eval(reply, self._state)
        text, codes, sound, ready = (np.array(part)[0] for part in reply)  # evaluated: nothing is computed any more
        return self._watched(self._frame(text, codes, sound, ready and not self._held()))

    def _held(self) -> bool:
        """Whether the newest complete column still is the prompt's; Moshi's sound begins after it."""
        held = self._begun is not None and self._steps < max(duplex.delays_of(self._model.config)[0])
        if held:
            self._state["decoder"] = self._model.audio_encoder.init_decoder_state(1)
        return held

    def _watched(self, frame: Frame) -> Frame:
        """The frame with whether Moshi speaks; who wants to know when that changes is told."""
        before = self._speech.speaking
        speaking = self._speech(frame.pcm)
        if self._gate:
            self._gate(speaking)
        if self._on_speaking and speaking != before:
            self._on_speaking(speaking)
        return frame._replace(speaking=speaking)

    def _hooked(self, on_text: OnText, text: mx.array, known: tuple[mx.array, ...]) -> Any:
        """The second half of a frame, after the hook had its say."""
        mx.eval(text, self._state)
        try:
            chosen = on_text(int(np.array(text)[0]))
            if chosen is not None:
                text = mx.array([self._checked(chosen)], text.dtype)
        except BaseException:  # the state must end as one between frames
            _, self._state = self._speak(text, self._state, *known)
            mx.eval(self._state)
            raise
        reply, self._state = self._speak(text, self._state, *known)
        return reply

    def _checked(self, token: Any) -> int:
        size = self._model.config.vocab_size
        token = scalar(token)
        if not isinstance(token, (int, np.integer)) or isinstance(token, bool) or not 0 <= token < size:
            raise InputError(f"on_text: returned {token!r}, expected None or a text token from 0 to {size - 1}")
        return int(token)

    def _grow(self) -> None:
        """The ring is full and the context is not: go on with the next larger one."""
        self._capacity = self._capacities[self._capacities.index(self._capacity) + 1]
        self._state["temporal"] = grow(self._state["temporal"], self._capacity)

    def _frame(self, text_token: Any, codes: np.ndarray, sound: np.ndarray, ready: Any) -> Frame:
        token = int(text_token)
        text, self._pending_text = self._pending_text + self._text_of(token), ""
        return Frame(sound, text, token, codes) if ready else Frame(None, text, token, None)


def capacities(context: int, head_dim: int, kv_bits: int | None = None) -> list[int]:
    """The slots of a conversation's rings, from the first to those that hold the whole context.

    Where attention reads slots that are not seen yet, small rings save a young conversation time, and a longer one
    pays a copy of all keys and values each time that they grow. Where it skips them, growing would cost a stutter
    and save nothing: the first ring is the last.
    """
    if not reads_unseen_slots(head_dim, kv_bits):
        return [context]
    sizes = [min(FIRST_CAPACITY, context)]
    while sizes[-1] < context:
        sizes.append(min(2 * sizes[-1], context))
    return sizes


def checked_context(context: int | None, most: int) -> int:
    if context is None:
        return most
    if not isinstance(context, (int, np.integer)) or isinstance(context, bool) or not 1 <= context <= most:
        raise InputError(f"context: got {context!r}, expected 1 to {most} frames, or None for all of them")
    return int(context)


def bound_memory() -> None:
    """Bound what MLX keeps of freed buffers, and wire the weights where the machine offers it (Metal)."""
    mx.set_cache_limit(min(BUFFER_CACHE_BYTES, mx.set_cache_limit(BUFFER_CACHE_BYTES)))
    wired = mx.device_info().get("max_recommended_working_set_size")
    if wired:
        mx.set_wired_limit(int(wired))
