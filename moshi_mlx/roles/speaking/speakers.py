"""Speakers: several utterances in one step, each with its voice and text, that begin, wait for text and end alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import mlx.core as mx
import numpy as np

from ... import inputs
from ...conversation import duplex, rows
from ...conversation.codec import check_codebooks
from ...conversation.duplex import DuplexSampling
from ...conversation.rows import Slots
from ...conversation.session import bound_memory, checked_context
from ...errors import InputError
from ...inputs import spelled_out
from ...models.moshi import Moshi
from ...models.roles import check_role
from ...models.sampling import RowSampling, SamplingSettings
from ...models.state import State, take
from ...terminal.progress import steps as progress_of
from .. import voices
from ..script import Reader
from . import step as steps
from . import utterance as utterances
from .row import SpeakerRow
from .utterance import Plan, Spoken

if TYPE_CHECKING:
    from typing_extensions import Unpack

GUIDANCE = 2.0
USUAL: SamplingSettings = {"temperature": 0.6, "text_temperature": 0.6}
"""What the published programs draw with, where a checkpoint does not say."""
CFG = "cfg"  # the condition that says to a distilled model how much guidance it is to speak as with


class SpeakersSettings(TypedDict, total=False):
    """What speakers take beside their model: see `Speaker`."""

    guidance: float | None
    codebooks: int | None
    kv_bits: int | None
    context: int | None
    padding_between: int | None
    padding_bonus: float | None
    progress: bool | None


class Speakers(Slots[SpeakerRow]):
    """Up to `slots` utterances in one step. Made by `model.speakers(slots)`; the settings are those of `Speaker`.

    `voice` is that of rows that are given none. `sampling` are settings that all rows have: they are compiled into the
    step, which is a bit faster. Without it each row has its own (`join`), and a change compiles nothing.

    Rows join and leave between any two steps; one that waits for text stands still, which costs it nothing. A row's
    sound is that of a `Speaker` with its voice, seed and settings, whoever else is there. A step takes the same time
    however many rows take part. Not thread-safe: make it and use it on one thread.

    >>> speakers = model.speakers(2)
    >>> row = speakers.join("expresso/ex03-ex01_happy_001_channel1_334s", seed=1)
    >>> row.add("Good morning.")
    >>> row.end()
    >>> while not row.done:
    ...     spoken = speakers.step()[row]  # its pcm is None in the first ones
    >>> speakers.leave(row)
    """

    @spelled_out(SpeakersSettings)
    def __init__(
        self, model: Moshi, slots: int, *, voice: Any = None, sampling: SamplingSettings | None = None,
        **settings: Unpack[SpeakersSettings],
    ) -> None:  # fmt: skip
        check_role(model, "speaker")
        if model.tokenizer is None:
            raise InputError("model: has no tokenizer, without which no text can be spoken")
        said: dict[str, Any] = dict(settings)
        config, codec = model.config, model.config.audio_encoder_config
        super().__init__(slots)
        self.model = model
        self.sample_rate, self.frame_size = codec.sampling_rate, codec.frame_size
        self.context = checked_context(said.get("context"), config.sliding_window)
        """The most frames that a row remembers."""
        self.codebooks = checked_codebooks(model, said.get("codebooks"))
        """How many of a column's are drawn: fewer are faster, and sound worse."""
        self.distilled = CFG in model.conditions.names
        """Whether guidance is something that the model is told, which costs nothing; else it is asked twice."""
        self.guidance = checked_guidance(model, said.get("guidance"))
        self._kv_bits = said.get("kv_bits")
        self._bonus = inputs.number("padding_bonus", said.get("padding_bonus") or 0.0, -inputs.LOUDEST, inputs.LOUDEST)
        between = said.get("padding_between")
        self._between = 1 if between is None else inputs.whole("padding_between", between)
        self._coefficient = 1.0 if self.distilled else self.guidance
        self._voices = voices.voices_of(model, voice)
        self._alike = None if sampling is None else self._sampling(sampling)
        self._turns = inputs.Turns()
        self._halves: dict[Any, Any] = {}
        self._state: State = None
        bound_memory()
        self._begin()
        self._build_kernels(bool(said.get("progress", True)))

    # Who is there

    @spelled_out(SamplingSettings)
    def join(
        self, voice: Any = None, seed: int = 0, *, guidance: float | None = None, turns: bool | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> SpeakerRow:  # fmt: skip
        """A new utterance, whose text comes by `add`. `voice` is what `Speaker` takes; () is none.

        `turns`: each line of the text is the other speaker's turn (default: where there are two voices). `guidance` may
        differ from the others' where the model was distilled for it. Raises InputError where there is no free slot, for
        a voice that is none of this model and for a setting out of range, TypeError for one that does not exist.
        """
        given = self._voices if voice is None else voices.voices_of(self.model, voice)
        if self._alike and settings:
            raise InputError(f"join: got {', '.join(settings)}, but all rows have the settings of `sampling`")
        sampling, seed = self._alike or self._sampling(settings), inputs.seed(seed)
        guidance = self._guidance(guidance)
        place = self._vacant()
        if self._state is None:  # a step failed
            self._begin()
        codes = next((each.codes for each in given if each.codes is not None), None)
        self._put(place, seed, given, guidance, 0 if codes is None else codes.shape[1])
        plan = self._plan(len(given) > 1 if turns is None else bool(turns))
        row = self._rows[place] = SpeakerRow(place, plan, utterances.begin(plan, codes), sampling)
        return row

    def _plan(self, turns: bool) -> Plan:
        rate = self.sample_rate / self.frame_size
        reader = Reader(self.model.tokenizer, rate, self._between, voices.takes_vectors(self.model))
        return Plan.of(self.model.config, reader, turns)

    def _sampling(self, settings: Any) -> DuplexSampling:
        said: Any = {**USUAL, **self.model.sampling_defaults, **settings}
        return DuplexSampling.of(said)

    def _guidance(self, guidance: float | None) -> float:
        if guidance is None:
            return self.guidance
        if not self.distilled and guidance != self.guidance:
            raise InputError(f"guidance: got {guidance:g}, but all rows of this model have {self.guidance:g}")
        return checked_guidance(self.model, guidance)

    # Steps

    def step(self, among: Collection[SpeakerRow] | None = None) -> dict[SpeakerRow, Spoken]:
        """A position of every row that is ready -> what those say in it; their first ones have no sound yet.

        `among`: only of these. No row is ready: nothing is computed. Raises InputError where another call of it runs
        meanwhile. Whatever else ends it (Ctrl-C, a memory that is full) ends all utterances: their rows have left.
        """
        with self._turns.taken("step"):
            taking = [row for row in self.rows if row.ready and (among is None or row in among)]
            return self._advance(taking) if taking else {}

    def _advance(self, taking: Sequence[SpeakerRow]) -> dict[SpeakerRow, Spoken]:
        silent = all(utterances.silent(row._plan, row._utterance) for row in taking)
        takes_part, decodes = np.zeros(self.slots, bool), np.zeros(self.slots, bool)
        replaced = np.full((self.slots, self.model.config.num_codebooks), utterances.NOTHING, np.int32)
        for row in taking:
            takes_part[row._place], decodes[row._place] = True, utterances.decodes(row._plan, row._utterance)
            replaced[row._place] = utterances.replaced(row._plan, row._utterance)
        parts = [mx.array(takes_part), mx.array(decodes), mx.array(replaced)]
        text = np.zeros(self.slots, np.int32)
        said: dict[SpeakerRow, Any] = {}
        before = {row: row._utterance for row in taking}

        def answer(asked: np.ndarray) -> np.ndarray:
            for row in taking:
                number, words, after = utterances.answer(row._plan, row._utterance, int(asked[row._place]))
                text[row._place], said[row], row._utterance = number, words, after
            return text

        try:
            column, sound = self._evaluate(parts, answer, silent)
        except BaseException:  # Ctrl-C, no memory: the state was consumed, and nobody can go on from it
            self._rows.clear()
            self._state = None
            raise
        frames = {}
        for row in taking:
            pcm, codes = np.clip(sound[row._place], -1, 1), column[row._place]
            is_heard = utterances.is_heard(row._plan, before[row])
            frames[row] = Spoken(pcm, codes, said[row]) if is_heard else Spoken(None, None, said[row])
        return frames

    def _evaluate(self, parts: list[mx.array], answer: Any, silent: bool) -> tuple[np.ndarray, np.ndarray]:
        """Both halves of a step, and between them what the rows are given."""
        text, audio = self._sampling_sides()
        ask, say = self._compiled(text, audio, silent)
        values = [side.values for side in (text, audio) if isinstance(side, RowSampling)]
        asked, heard = ask(self._state, parts[0], *values)
        self._state = None  # consumed, so that the rings are written in place
        mx.eval(asked, heard)
        given = mx.array(answer(np.array(asked)))
        column, sound, self._state = say(given, heard, parts, *values)
        del heard
        mx.eval(column, sound, self._state)
        return np.array(column), np.array(sound)

    def _sampling_sides(self) -> tuple[Any, Any]:
        """The settings of text and sound: of all alike, or of each row; those of free slots do not matter."""
        if self._alike:
            return self._alike.text, self._alike.audio
        return self._sampling_rows()

    def _compiled(self, text: Any, audio: Any, silent: bool) -> Any:
        """Both halves of the step. Values of rows are arguments of theirs, so that what counts is the longest cut."""
        key = (*(side.most if isinstance(side, RowSampling) else side for side in (text, audio)), silent)
        if key not in self._halves:
            most = [side.most if isinstance(side, RowSampling) else 0 for side in (text, audio)]
            # Not `self`: MLX keeps what is compiled as long as its function, which would keep the speakers then.
            model, coefficient, bonus, codebooks = self.model, self._coefficient, self._bonus, self.codebooks

            def sampling(values: tuple[mx.array, ...]) -> DuplexSampling:
                both = [*map(RowSampling, values, most)] if values else [text, audio]
                return DuplexSampling(both[0], both[1], coefficient, guides_text=False)

            def ask(state: State, takes_part: mx.array, *values: mx.array) -> Any:
                return steps.ask(model, state, takes_part, sampling(values), bonus)

            def say(given: mx.array, heard: State, parts: list[mx.array], *values: mx.array) -> Any:
                done = steps.Parts(*parts)
                return steps.say(model, given, heard, done, sampling(values), codebooks, silent)

            self._halves[key] = mx.compile(ask), mx.compile(say)
        return self._halves[key]

    # The state

    def _begin(self) -> None:
        """Room for rows that look at as many vectors as the usual voice has."""
        length = max([1, *(voices.SLOTS * len(each.vectors) for each in self._voices if each.vectors is not None)])
        self._state = None  # freed before its successor is made
        self._state = duplex.init_state(
            self.model, [0] * self.slots, self.context, self._kv_bits, guidance=self._coefficient
        )
        if self._coefficient != 1:
            self._state["unseen"] = mx.full((self.slots,), -1, mx.int32)
        if "cross" in self._state["temporal"]:
            self._state["temporal"]["cross"] = _repeated(self._state["temporal"]["cross"], length)
        mx.eval(self._state)
        self._length = length

    def _put(self, place: int, seed: int, given: Sequence[voices.Voice], guidance: float, prefix: int) -> None:
        """The state of a new utterance, written into its place."""
        told = {**voices.condition(self.model, given), **({CFG: f"{guidance:.1f}"} if self.distilled else {})}
        row = duplex.init_state(self.model, [seed], self.context, self._kv_bits, told, self._coefficient)
        if self._coefficient != 1:  # a recording is hidden from guidance's second row
            row["unseen"] = mx.array([prefix + self.model.config.audio_start if prefix else -1])
        if "cross" in row["temporal"]:
            self._make_room(row)
        sides = row.pop("temporal")
        for side in range(len(sides["offset"])):
            rows.put(take(sides, side), self._state["temporal"], place + side * self.slots)
        rows.put(row, {name: part for name, part in self._state.items() if name != "temporal"}, place)
        mx.eval(self._state)

    def _make_room(self, row: State) -> None:
        """Bring what a row and the others look at to one length: no voice is one vector, as good as many of it."""
        cross = row["temporal"]["cross"]
        length = _length(cross)
        if length == 1:
            row["temporal"]["cross"] = _repeated(cross, self._length)
        elif length != self._length:
            if self._length != 1 and self._rows:
                raise InputError(
                    f"voice: got {length // voices.SLOTS} vectors a voice, but those that speak meanwhile have "
                    f"{self._length // voices.SLOTS}"
                )
            others, self._length = _first(self._state["temporal"]["cross"]), length
            self._state["temporal"]["cross"] = _repeated(others, length)

    def _build_kernels(self, progress: bool) -> None:
        """Take a step of each kind with no row, so that no utterance waits for its compilation."""
        nothing = np.full((self.slots, self.model.config.num_codebooks), utterances.NOTHING, np.int32)
        nobody = mx.zeros((self.slots,), mx.bool_)
        with progress_of("compiling", 2, progress) as built:
            for silent in (True, False):
                parts = [nobody, nobody, mx.array(nothing)]
                self._evaluate(parts, lambda asked: np.zeros(self.slots, np.int32), silent)
                built(1)
        self._begin()


# --- what is looked at ----------------------------------------------------------------------------------------------


def _length(cross: State) -> int:
    """How many vectors are looked at; keys and values are [B, H, S, D]."""
    return int(_leaf(cross).shape[2])


def _leaf(cross: State) -> mx.array:
    while not isinstance(cross, mx.array):
        cross = next(iter(cross.values())) if isinstance(cross, dict) else cross[0]
    return cross


def _map(change: Any, cross: State) -> State:
    from mlx.utils import tree_map

    return tree_map(change, cross)


def _repeated(cross: State, length: int) -> State:
    """The one vector that is looked at, as often."""
    return _map(lambda leaf: mx.repeat(leaf, length, axis=2), cross)


def _first(cross: State) -> State:
    return _map(lambda leaf: leaf[:, :, :1], cross)


# --- what people hand in --------------------------------------------------------------------------------------------


def checked_codebooks(model: Moshi, count: Any) -> int:
    """How many codebooks are drawn. Raises InputError."""
    most = model.config.num_codebooks
    if count is None:
        return most
    least = model.config.audio_encoder_config.num_semantic_quantizers
    return check_codebooks(model.config.audio_encoder_config, inputs.whole("codebooks", count, least, most))


def checked_guidance(model: Moshi, value: Any) -> float:
    """The number itself; GUIDANCE where None. Raises InputError where a distilled model was not made for it."""
    number = inputs.number("guidance", GUIDANCE if value is None else value, 0.0, 100.0)
    if CFG in model.conditions.names:
        known = model.conditions.values_of(CFG)
        if f"{number:.1f}" not in known or abs(number - float(f"{number:.1f}")) > 1e-6:
            raise InputError(f"guidance: got {number:g}, expected one of {', '.join(known)}, which this model knows")
    return number
