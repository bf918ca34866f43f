"""Batch: several conversations in one step, which costs far less than a step for each. What the server builds on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .. import inputs
from ..inputs import spelled_out
from ..models.layers.transformer import grow
from ..models.moshi import Moshi
from ..models.roles import BOTH_SIDES, check_role
from ..models.sampling import RowSampling, SamplingSettings
from ..models.state import TOLD, State, flatten, where
from ..terminal.progress import steps
from . import duplex, rows
from . import prompt as prompts
from .duplex import DuplexSampling
from .frame import Frame
from .prompt import Prefilled
from .rows import Slots, parts_of
from .session import bound_memory, capacities, checked_context
from .speech import SpeechDetector
from .text import TextDecoder
from .told import check_takes_prompts, conversation_guidance

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Row:
    """One conversation of a batch, from `Batch.join` until `Batch.leave`. It says nothing about its place.

    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> batch = model.batch(1)
    >>> row = batch.join(seed=0)
    >>> row.primed, row.positions, row.sampling.audio.top_k
    (False, 0, 250)
    >>> frame = batch.step({row: np.zeros(1920, np.float32)})[row]
    >>> row.primed, row.positions  # the priming position, then a frame of 80 ms
    (True, 2)
    """

    def __init__(
        self, place: int, seed: int, sampling: DuplexSampling, text_of: TextDecoder, speech: SpeechDetector
    ) -> None:
        self._place, self._seed, self.sampling, self._text_of, self._speech = place, seed, sampling, text_of, speech
        self._pending_text = ""
        self._known: list[np.ndarray] = []  # what a prompt says of the next frames' codes: see `prompt.known`
        self.positions = 0
        """Frames so far, the priming one or the prompt's included: 0 until it is primed."""
        self.nonfinite_samples = 0
        """NaN and infinite samples that were replaced by silence so far."""

    @property
    def primed(self) -> bool:
        return self.positions > 0


class Batch(Slots[Row]):
    """Up to `slots` conversations in one step. Made by `model.batch(slots)`.

    Rows join and leave between any two steps; those that a step is given no sound for pause, which costs them
    nothing. A row's tokens are those of a `Session` with its seed and settings, whoever else is there (on Metal the
    order of sums, and with it a token now and then, depends on the size of the batch).

    A step takes the same time however many rows take part, so `slots` is to be no larger than needed. Memory: `slots`
    caches, each as large as the oldest conversation among them needs. Not thread-safe: make it and use it on one
    thread.

    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> batch = model.batch(2)
    >>> anna, bert = batch.join(seed=0), batch.join(seed=1, temperature=0)
    >>> quiet = np.zeros(batch.frame_size, np.float32)  # 1920 samples at 24000 Hz
    >>> frames = batch.step({anna: quiet, bert: quiet})
    >>> frames[anna].pcm.shape
    (1920,)
    >>> frames = batch.step({bert: quiet})  # anna pauses
    >>> batch.leave(anna)
    >>> batch.free
    1
    """

    def __init__(
        self,
        model: Moshi,
        slots: int,
        *,
        kv_bits: int | None = None,
        context: int | None = None,
        guidance: float | None = None,
        progress: bool = True,
    ) -> None:
        """kv_bits, context, guidance and progress are those of `Session`, of all rows alike. Raises InputError."""
        check_role(model, *BOTH_SIDES)
        self._guidance = conversation_guidance(model, guidance)
        config = model.config.audio_encoder_config
        super().__init__(slots)
        self.sample_rate, self.frame_size = config.sampling_rate, config.frame_size
        self.context = checked_context(context, model.config.sliding_window)
        """The most frames that a row remembers."""
        self.model = model
        """Who speaks in all of them."""
        self._kv_bits = kv_bits
        self._capacities = capacities(self.context, model.config.head_width, kv_bits)
        self._longest = max(duplex.delays_of(model.config)[0])  # delay of Moshi's own codebooks
        self._turns = inputs.Turns()
        self._unfit: set[int] = set()  # places whose rings hold infinities
        self._steps: dict[tuple[int, int], Any] = {}
        self._state: State = None
        bound_memory()
        self._begin()
        self._build_kernels(progress)

    # Who is there

    @spelled_out(SamplingSettings)
    def join(
        self, seed: int = 0, *, prompt: Prefilled | None = None, conditions: Mapping[str, Any] | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Row:  # fmt: skip
        """A new conversation, drawn as a session of that seed and those settings is (see `Session`).

        The next step primes it, in passing; given sound in that very step, it is primed by one step more before.
        A top_k of 0 or above 512 compiles another step, which takes a moment.

        `prompt`, what `model.prompt` returned, comes before the conversation, and may be given to any number of them.
        Its price is paid here: the prompt's keys and values are written into this row's part of the rings, in place,
        and the first token is drawn. The rings of the others are neither copied nor changed, unless the prompt is
        longer than any conversation here and all rings grow, as they do with a conversation that gets so old.

        `conditions` are this conversation's own, as those of `Session`; guidance is the batch's.

        Raises InputError where there is no free slot, for a prompt longer than the context and for a setting out of
        range, TypeError for one that does not exist.
        """
        sampling = self._sampling(settings)
        seed = inputs.seed(seed)
        if prompt is not None:
            check_takes_prompts(self.model, "prompt")
            prompt = prompts.checked(prompt, self.context)
        told = self.model.conditions.vector(conditions)
        place = self._vacant()
        if not self._rows:
            self._begin()
        text_of = TextDecoder(self.model.tokenizer, self.model.config.silent_text_tokens)
        speech = SpeechDetector(self.frame_size / self.sample_rate)
        row = self._rows[place] = Row(place, seed, sampling, text_of, speech)
        if place in self._unfit:
            self._clear(place)
        if told is not None:
            self._state["temporal"]["condition"][place] = told.astype(self._state["temporal"]["condition"].dtype)
        if prompt is not None:
            self._go_on(row, prompt)
        return row

    def _go_on(self, row: Row, prompt: Prefilled) -> None:
        """A row whose positions so far are a prompt's: its part of the state, written in place."""
        while self._capacity <= prompt.length and self._capacity < self.context:
            self._grow()
        prompt = prompts.in_bits(prompts.trimmed(prompt), self._kv_bits)
        codec = self.model.audio_encoder
        codecs = {"encoder": codec.init_encoder_state(1), "decoder": codec.init_decoder_state(1)}
        state = prompts.begin(self.model, prompt, [row._seed], row.sampling)
        rows.put({**state, **codecs}, self._state, row._place)
        mx.eval(self._state, state["text"])
        row.positions = prompt.length
        row._pending_text = row._text_of(int(np.array(state["text"])[0]))
        row._known = [np.array(prompts.known(self.model, prompt, step)[0])[0] for step in range(1, self._longest)]

    @spelled_out(SamplingSettings)
    def change(self, row: Row, **settings: Unpack[SamplingSettings]) -> None:
        """Other settings from the next step on; what is not named is the default again. Raises as `join`."""
        self._place(row)
        row.sampling = self._sampling(settings)

    def _sampling(self, settings: Any) -> DuplexSampling:
        said: Any = {**self.model.sampling_defaults, **settings}
        return DuplexSampling.of(said)

    # Steps

    def step(self, sounds: Mapping[Row, Any]) -> dict[Row, Frame]:
        """One frame of the rows that are given sound, float [frame_size] each -> what Moshi says in each.

        Rows that joined since the last step are primed in it. NaN and infinite samples, and those a million times too
        loud, are replaced by silence and counted in the row. Raises InputError, before anything is computed, for a row
        that has left, for sound of another shape or type, and where another call of it runs meanwhile.
        """
        with self._turns.taken("step"):
            given = {row: self._sound(row, sound) for row, sound in sounds.items()}
            if any(not row.primed for row in given):
                self._advance({}, [row for row in self.rows if not row.primed])
            return self._advance(given, [row for row in self.rows if not row.primed and row not in given])

    def _advance(self, given: Mapping[Row, np.ndarray], priming: Collection[Row]) -> dict[Row, Frame]:
        """The one evaluation of a step, and its outcome on the host."""
        takes_part = [*given, *priming]
        if not takes_part:
            return {}
        if any(row.positions == self._capacity for row in self._rows.values()) and self._capacity < self.context:
            self._grow()
        sound = np.zeros((self.slots, self.frame_size), np.float32)
        for row, pcm in given.items():
            sound[row._place] = pcm
        values = self._evaluate(sound, self._parts(given, priming))
        self._unfit |= {row._place for row in takes_part if not values[-1][row._place]}
        return self._frames(given, takes_part, values[:-1])

    def _evaluate(self, sound: np.ndarray, parts: list[mx.array]) -> list[np.ndarray]:
        """A step of the state: what it replied, and whether each row is finite."""
        text, audio = self._sampling_rows()
        step = self._compiled(text.most, audio.most)
        reply, finite, self._state = step(mx.array(sound), self._state, parts, text.values, audio.values)
        mx.eval(reply, finite, self._state)
        return [np.array(part) for part in (*reply, finite)]

    def _parts(self, given: Mapping[Row, Any], priming: Collection[Row]) -> list[mx.array]:
        """The arrays of `rows.Parts`."""
        parts = parts_of(self.slots, given, priming)
        return [*parts, self._known(given)] if self._longest > 1 else parts

    def _known(self, given: Iterable[Row]) -> mx.array:
        """The codes that prompts say already, -1 where they are to be drawn. Always there, so that the step is one."""
        known = np.full((self.slots, self.model.config.num_codebooks), -1, np.int32)
        for row in given:
            if row._known:
                known[row._place] = row._known[0]
        return mx.array(known)

    def _frames(self, given: Mapping[Row, Any], takes_part: list[Row], reply: list[np.ndarray]) -> dict[Row, Frame]:
        frames = {}
        for row in takes_part:
            row.positions += 1
            token, codes, sound, ready = (part[row._place] for part in reply)
            if row._known:  # the newest complete column is the prompt's still: Moshi's sound begins after it
                del row._known[0]
                ready = False
            text, row._pending_text = row._pending_text + row._text_of(int(token)), ""
            if row not in given:  # priming samples a text token before there is a frame to hand it out with
                row._pending_text = text
            else:
                pcm, column = (np.array(sound), np.array(codes)) if ready else (None, None)
                frames[row] = Frame(pcm, text, int(token), column, row._speech(pcm))
        return frames

    def _compiled(self, text_most: int, audio_most: int) -> Any:
        """The step for cuts among so many tokens."""
        if (text_most, audio_most) not in self._steps:
            model, guidance = self.model, self._guidance  # not `self`: MLX keeps what is compiled with its function

            def step(sound: mx.array, state: State, parts: list[mx.array], text: mx.array, audio: mx.array) -> Any:
                streams = (RowSampling(text, text_most), RowSampling(audio, audio_most))
                sampling = DuplexSampling(*streams, guidance=guidance)
                return rows.step(model, sound, state, rows.Parts(*parts), sampling)

            self._steps[text_most, audio_most] = mx.compile(step)
        return self._steps[text_most, audio_most]

    # The state

    def _begin(self) -> None:
        """Nobody is there: the first caches again."""
        self._capacity = self._capacities[0]
        self._state = None  # freed before its successor is made
        seeds = [0] * self.slots
        self._state = duplex.init_state(self.model, seeds, self._capacity, self._kv_bits, None, self._guidance)
        self._unfit.clear()

    def _grow(self) -> None:
        self._capacity = self._capacities[self._capacities.index(self._capacity) + 1]
        self._state["temporal"] = grow(self._state["temporal"], self._capacity)

    def _build_kernels(self, progress: bool) -> None:
        """Take a step with every size of cache that there will be, so that no frame waits for its compilation."""
        with steps("compiling", len(self._capacities), progress) as built:
            for capacity in self._capacities:
                if capacity > self._capacity:
                    self._grow()
                self._evaluate(np.zeros((self.slots, self.frame_size), np.float32), self._parts({}, []))
                built(1)
        self._begin()

    def fill_context(self) -> None:
        """Go to where every row's whole context is full (of nothing): what a step costs from there on. For measuring.

        It lasts until nobody is left and somebody joins.
        """
        while self._capacity < self.context:
            self._grow()
        self._state = rows.at_offset(self._state, self.context)
        mx.eval(self._state)
        for row in self._rows.values():
            row.positions = self.context

    def _clear(self, place: int) -> None:
        """Empty the rings of a slot. Nothing else needs it: only infinities reach through a mask."""
        others, temporal = mx.arange(self.slots) != place, self._state["temporal"]
        told = {name: part for name, part in temporal.items() if name in TOLD}
        self._state = where(others, self._state, rows.zeros(self._state))
        self._state["temporal"] |= told
        mx.eval(self._state)
        self._unfit.discard(place)

    # What people hand in

    def _sound(self, row: Row, sound: Any) -> np.ndarray:
        self._place(row)
        pcm, bad = inputs.silenced(inputs.sound("sounds", sound, (self.frame_size,)))
        row.nonfinite_samples += bad
        return pcm


def state_bytes(batch: Batch) -> int:
    """Bytes of the caches and tails that a batch holds now."""
    return sum(array.nbytes for _, array in flatten(batch._state))
