"""Transcribers: several people in one step, each of whom joins, pauses, is refreshed and leaves alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .. import inputs
from ..conversation import duplex, rows
from ..conversation.codec import check_codebooks
from ..conversation.duplex import DuplexSampling
from ..conversation.rows import Parts, Slots, parts_of
from ..conversation.session import bound_memory, capacities, checked_context
from ..errors import InputError
from ..inputs import spelled_out
from ..models.layers.transformer import grow
from ..models.moshi import Moshi
from ..models.sampling import RowSampling, Sampling, StreamSettings
from ..models.state import State, where
from ..terminal.progress import steps
from . import listening
from .listener import Event, Listener, check_model, checked_refresh, flush_frames

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Transcribers(Slots[Listener]):
    """Up to `slots` people in one step. Made by `model.transcribers(slots)`.

    Rows join and leave between any two steps; those that a step is given no sound for pause, which costs them nothing.
    A row's words are those of a `Transcriber` with its seed and settings, whoever else is there. Not thread-safe: make
    it and use it on one thread. `kv_bits`, `context`, `codebooks`, `refresh` and `progress` are those of `Transcriber`.
    """

    def __init__(
        self,
        model: Moshi,
        slots: int,
        *,
        kv_bits: int | None = None,
        context: int | None = None,
        codebooks: int | None = None,
        refresh: bool | float | None = None,
        progress: bool = True,
    ) -> None:
        """Raises InputError, also for a model that does not transcribe."""
        check_model(model)
        codec = model.config.audio_encoder_config
        super().__init__(slots)
        self.sample_rate, self.frame_size = codec.sampling_rate, codec.frame_size
        self.context = checked_context(context, model.config.sliding_window)
        """The most frames that a row remembers."""
        self.model = model
        """Who listens in all of them."""
        self.codebooks = _checked_codebooks(model, codebooks)
        """The codebooks of the sound that the model is given; of the others it is given nothing."""
        self._kv_bits, self._refresh = kv_bits, checked_refresh(refresh)
        self._capacities = capacities(self.context, model.config.head_width, kv_bits)
        self._unfit: set[int] = set()  # places whose rings hold infinities
        self._turns = inputs.Turns()
        self._steps: dict[int | None, Any] = {}
        self._state: State = None
        self._encoder: State = None
        count = self.codebooks  # not `self`: MLX keeps what is compiled as long as its function
        self._encode = mx.compile(
            lambda sound, encoder, parts: listening.encode(model, sound, encoder, Parts(*parts), count)
        )
        bound_memory()
        self._begin()
        self._build_kernels(progress)

    # Who is there

    @spelled_out(StreamSettings)
    def join(self, seed: int = 0, **settings: Unpack[StreamSettings]) -> Listener:
        """Another person; settings of the text are those of `Transcriber`.

        Raises InputError where there is no free slot and for a setting out of range, TypeError for one that does not
        exist.
        """
        sampling, seed = self._sampling(settings), inputs.seed(seed)
        place = self._vacant()
        if not self._rows:
            self._begin()
        return self._join(place, seed, sampling)

    def _join(self, place: int, seed: int, sampling: DuplexSampling) -> Listener:
        if place in self._unfit:
            self._clear(place)
        row = self._rows[place] = Listener(self.model, place, seed, sampling, self.context, self._refresh)
        return row

    def reset(self, row: Listener, seed: int | None = None) -> Listener:
        """A new person in a row's place, with its settings and `seed` (None: its own) -> the new row."""
        place = self._place(row)
        return self._join(place, row._seed if seed is None else inputs.seed(seed), row.sampling)

    def _sampling(self, settings: Mapping[str, Any]) -> DuplexSampling:
        said: Any = {f"text_{name}": value for name, value in settings.items() if value is not None}
        return DuplexSampling.of({**self.model.sampling_defaults, **said})  # type: ignore[typeddict-item]

    # Steps

    def step(self, sounds: Mapping[Listener, Any]) -> dict[Listener, list[Event]]:
        """One frame of the rows that are given sound, float [frame_size] each -> the events of each.

        A row's first frame comes after a position that primes it and its prefix of silence, whose steps it takes
        alone. NaN and infinite samples, and those a million times too loud, are replaced by silence and counted in the
        row. Raises InputError, before anything is computed, for a row that has left and for sound of another shape or
        type.
        """
        with self._turns.taken("step"):
            given = {row: self._sound(row, sound) for row, sound in sounds.items()}
            return self._stepped({row: (sound, len(sound)) for row, sound in given.items()})

    def step_codes(self, codes: Mapping[Listener, Any]) -> dict[Listener, list[Event]]:
        """The same from Mimi codes of the sound: int [user codebooks] each, -1 where there is no input."""
        config = self.model.config
        with self._turns.taken("step_codes"):
            for row in codes:
                self._place(row)
            given = {
                row: np.array(inputs.tokens("codes", column, (config.user_codebooks,), -1, config.most_user_code))
                for row, column in codes.items()
            }
            for row in given:
                row.skip_prefix()  # what is before the codes is the caller's
            return self._stepped({row: (column, self.frame_size) for row, column in given.items()})

    def flush(self, row: Listener, partial: Any = None, frames: int | None = None) -> list[Event]:
        """Push silence through, as fast as it goes, until all that was said is written: its delay and a frame more.

        `partial` is sound that fills no frame, and is heard before; `frames` is another number of silent frames. The
        silence takes no time: words before and after it have the times of their sound. The others pause. Raises
        InputError.
        """
        with self._turns.taken("flush"):
            self._place(row)
            count = flush_frames(self.model.config) if frames is None else inputs.whole("frames", frames)
            sound = np.zeros(0, np.float32) if partial is None else inputs.sound("partial", partial, (None,))
            if len(sound) >= self.frame_size:
                raise InputError(f"partial: got {len(sound)} samples, expected fewer than a frame's {self.frame_size}")
            events: list[Event] = []
            sound, bad = inputs.silenced(sound)
            row.nonfinite_samples += bad
            for size in [len(sound)] * bool(len(sound)) + [0] * count:
                frame = np.pad(sound[:size], (0, self.frame_size - size))
                events += self._stepped({row: (frame, size)})[row]
            return [*events, *row.finish()]

    def refresh(self, row: Listener) -> None:
        """Empty a row's attention cache but for its last frames, whose text is still to come.

        Codec, clock and the word at hand are not touched. Raises InputError for a row that has left.
        """
        with self._turns.taken("refresh"):
            self._place(row)
            self._refreshed(row)

    def _stepped(self, given: Mapping[Listener, tuple[np.ndarray, int]]) -> dict[Listener, list[Event]]:
        """A frame, or the codes of one, of each row, and how many of its samples are not silence put in."""
        silence = (np.zeros(self.frame_size, np.float32), 0)
        while behind := [row for row in given if not row.ready]:
            self._advance({row: silence for row in behind if row.positions}, [r for r in behind if not r.positions])
        waiting = [row for row in self.rows if row not in given and not row.ready]
        in_passing = {row: silence for row in waiting if row.positions and _is_sound(given)}
        events = self._advance({**given, **in_passing}, [row for row in waiting if not row.positions])
        return {row: events[row] for row in given}

    def _advance(
        self, given: Mapping[Listener, tuple[np.ndarray, int]], priming: Collection[Listener]
    ) -> dict[Listener, list[Event]]:
        """The one evaluation of a step, and its outcome on the host."""
        takes_part = [*given, *priming]
        if not takes_part:
            return {}
        if any(row.positions == self._capacity for row in self._rows.values()) and self._capacity < self.context:
            self._grow()
        text, heads, codes, finite = self._evaluate(given, priming)
        self._unfit |= {row._place for row in takes_part if not finite[row._place]}
        events: dict[Listener, list[Event]] = {}
        for row in takes_part:
            if row not in given:
                row.primed(int(text[row._place]))
                continue
            row.fed(given[row][1])
            heard = row.heard(int(text[row._place]), heads[row._place, :, 0].tolist(), codes[row._place])
            events[row] = row.took(heard)
            if row.refresh_due:
                self._refreshed(row)
        return events

    def _evaluate(self, given: Mapping[Listener, Any], priming: Collection[Listener]) -> list[np.ndarray]:
        """A step of the state: text [B], heads [B, n, classes], codes [B, K], finite [B]."""
        parts = parts_of(self.slots, given, priming)
        codes, encoder = self._heard(given, parts)
        sampling, step = self._compiled()
        text, heads, finite, state = step(codes, self._state, parts, *sampling)
        self._state, self._encoder = state, encoder
        mx.eval(text, heads, codes, finite, state, encoder)
        return [np.array(part) for part in (text, heads, codes, finite)]

    def _heard(self, given: Mapping[Listener, tuple[np.ndarray, int]], parts: list[mx.array]) -> tuple[Any, State]:
        """The codes [B, K] of what each row is given: sound, or codes that pass by the encoder."""
        if not _is_sound(given):
            columns = np.zeros((self.slots, self.model.config.user_codebooks), np.int32)
            for row, (column, _) in given.items():
                columns[row._place] = column
            return mx.array(columns), self._encoder
        sound = np.zeros((self.slots, self.frame_size), np.float32)
        for row, (pcm, _) in given.items():
            sound[row._place] = pcm
        codes, encoder = self._encode(mx.array(sound), self._encoder, parts)
        return codes, encoder

    def _compiled(self) -> tuple[tuple[mx.array, ...], Any]:
        """The rows' settings as data, and the step for them: one without noise where every row is greedy."""
        free = Sampling(temperature=0)
        settings = [each.text for each in self._samplings(DuplexSampling(free, free))]
        drawn = None if all(one.greedy for one in settings) else RowSampling.of(settings)
        most, values = (drawn.most, (drawn.values,)) if drawn else (None, ())
        if most not in self._steps:
            model = self.model

            def step(codes: mx.array, state: State, parts: list[mx.array], *values: mx.array) -> Any:
                text = free if most is None else RowSampling(values[0], most)
                return listening.step(model, codes, state, Parts(*parts), DuplexSampling(text, free))

            self._steps[most] = mx.compile(step)
        return values, self._steps[most]

    # The state

    def _begin(self) -> None:
        """Nobody is there: the first caches again."""
        self._capacity = self._capacities[0]
        self._state = self._encoder = None  # freed before their successors are made
        state = duplex.init_state(self.model, [0] * self.slots, self._capacity, self._kv_bits)
        self._encoder = state.pop("encoder")
        self._state = state
        self._unfit.clear()

    def _grow(self) -> None:
        self._capacity = self._capacities[self._capacities.index(self._capacity) + 1]
        self._state["temporal"] = grow(self._state["temporal"], self._capacity)

    def _refreshed(self, row: Listener) -> None:
        temporal = listening.remembered(self.model, *row.recent(), self._kv_bits)
        rows.put(temporal, self._state["temporal"], row._place)
        mx.eval(self._state)
        row.was_refreshed()

    def _build_kernels(self, progress: bool) -> None:
        """Take a step with every size of cache that there will be, so that no frame waits for its compilation."""
        with steps("compiling", len(self._capacities), progress) as built:
            for capacity in self._capacities:
                if capacity > self._capacity:
                    self._grow()
                self._evaluate({}, [])
                built(1)
        self._begin()

    def _clear(self, place: int) -> None:
        """Empty the rings of a slot. Nothing else needs it: only infinities reach through a mask."""
        others = mx.arange(self.slots) != place
        self._state = where(others, self._state, rows.zeros(self._state))
        mx.eval(self._state)
        self._unfit.discard(place)

    # What people hand in

    def _sound(self, row: Listener, sound: Any) -> np.ndarray:
        self._place(row)
        pcm, bad = inputs.silenced(inputs.sound("sounds", sound, (self.frame_size,)))
        row.nonfinite_samples += bad
        return pcm


def _is_sound(given: Mapping[Listener, tuple[np.ndarray, int]]) -> bool:
    """Whether rows are given sound, and not codes."""
    return all(what.dtype == np.float32 for what, _ in given.values())


def _checked_codebooks(model: Moshi, codebooks: Any) -> int:
    """As many as there are, if None. Raises InputError."""
    most = model.config.user_codebooks
    if codebooks is None:
        return most
    count = check_codebooks(model.config.audio_encoder_config, codebooks)
    if count > most:
        raise InputError(f"codebooks: got {count}, expected at most the {most} that this model hears")
    return count
