"""Many conversations that come, pause and go: who is there, and `duplex.step`, told what each row does in it.

Every row is computed in every step, so that the step has one shape. A row that has no part in it keeps its state, and
nothing of its rings is copied (`state.keep_paused`). A new row needs no step of its own: what is small of its state is
zeroed in passing, its rings need no clearing, and its priming position is one row of an ordinary step in which its
codec stands still.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from .. import inputs
from ..errors import InputError, brief
from ..models.moshi import Moshi
from ..models.sampling import RowSampling
from ..models.state import State, keep_paused
from . import duplex
from .duplex import DuplexSampling, Reply


class Occupant(Protocol):
    """What every row has."""

    sampling: DuplexSampling


R = TypeVar("R", bound=Occupant)


class Slots(Generic[R]):
    """Up to `slots` rows, which join and leave between any two steps."""

    def __init__(self, slots: int) -> None:
        self.slots = inputs.whole("slots", slots, 1)
        self._rows: dict[int, R] = {}

    @property
    def rows(self) -> list[R]:
        """Those that have joined and not left, longest there first."""
        return list(self._rows.values())

    @property
    def free(self) -> int:
        """How many more can join."""
        return self.slots - len(self._rows)

    def leave(self, row: R) -> None:
        """Ends a row; its slot is free. Raises InputError where it has left already."""
        del self._rows[self._place(row)]

    def _vacant(self) -> int:
        """The first free place. Raises InputError."""
        if not self.free:
            raise InputError(f"join: all {self.slots} slots are taken; let one leave first, or make more")
        return min(set(range(self.slots)) - set(self._rows))

    def _place(self, row: R) -> int:
        """Where a row is. Raises InputError for what is no row of these."""
        for place, there in self._rows.items():
            if there is row:
                return place
        raise InputError(f"row: got {brief(row)}, expected one that `join` returned here and that has not left")

    def _samplings(self, free: DuplexSampling) -> list[Any]:
        """The settings of every place, `free` where nobody is."""
        return [self._rows[place].sampling if place in self._rows else free for place in range(self.slots)]

    def _sampling_rows(self) -> tuple[RowSampling, RowSampling]:
        """The settings of text and sound as data; those of free slots do not matter."""
        settings = self._samplings(DuplexSampling())
        return RowSampling.of([each.text for each in settings]), RowSampling.of([each.audio for each in settings])


class Parts(NamedTuple):
    """What each row does in a step; all [B]."""

    begins: mx.array  # bool, a new conversation: its state counts as nothing
    primes: mx.array  # bool, takes position 0, which sees initial tokens alone
    hears: mx.array  # bool, takes its frame of sound
    keys: mx.array  # uint32 [B, 2], the random keys of the rows that begin
    known: mx.array | None = None  # int [B, num_codebooks], codes that a row's prompt says, -1 where there are none


def step(
    model: Moshi, sound: mx.array, state: State, parts: Parts, sampling: DuplexSampling
) -> tuple[Reply, mx.array, State]:
    """sound float [B, frame_size] -> the reply, whether each row is finite (bool [B]), state.

    The reply of a row that neither primes nor hears means nothing, nor do the codes and sound of one that primes.
    """
    before = begun(state, parts)
    codes, encoder = model.audio_encoder.encode_step(sound, before["encoder"], model.config.user_codebooks)
    codes = mx.where(parts.hears[:, None], codes[..., 0], 0)
    text, heard = duplex.hear_codes(model, codes, before, sampling)
    finite = mx.isfinite(heard["hidden"]).all(axis=-1).reshape(-1, len(text)).all(axis=0)  # of both rows, if guided
    reply, after = duplex.speak(model, text, heard, sampling, parts.known)
    finite &= mx.isfinite(reply.sound).all(axis=-1)
    decoder = after["decoder"]
    if parts.known is not None:  # where the prompt says anything, the column is the prompt's, and is not spoken
        decoder = keep_paused((parts.known < 0).all(axis=-1), decoder, zeros(decoder))
    codec = {
        name: keep_paused(parts.hears, now, before[name]) for name, now in (("encoder", encoder), ("decoder", decoder))
    }
    return reply, finite, {**keep_paused(parts.hears | parts.primes, after, before), **codec}


def parts_of(slots: int, hearing: Collection[Any], priming: Collection[Any]) -> list[mx.array]:
    """The arrays of `Parts` but for `known`, of rows that hear and of those that take their first position."""
    hears, primes = np.zeros(slots, bool), np.zeros(slots, bool)
    keys = np.zeros((slots, 2), np.uint32)
    for row in hearing:
        hears[row._place] = True
    for row in priming:
        primes[row._place] = True
        keys[row._place] = divmod(row._seed, 2**32)  # as mx.random.key
    return [mx.array(primes), mx.array(primes), mx.array(hears), mx.array(keys)]


def begun(state: State, parts: Parts) -> State:
    """The state before the step, of rows that begin as well."""
    nothing = keep_paused(~parts.begins, state, zeros(state))
    return {**nothing, "keys": mx.where(parts.begins[:, None], parts.keys, state["keys"])}


def zeros(state: State) -> State:
    """What a new conversation's state is, rings apart: `keep_paused` does not look at them."""
    if isinstance(state, dict):
        return {name: zeros(part) for name, part in state.items()}
    return [zeros(part) for part in state] if isinstance(state, list) else mx.zeros_like(state)


def at_offset(state: State, context: int) -> State:
    """The state with so many positions behind every row."""
    offset, temporal = (mx.full(part["offset"].shape, context, mx.int32) for part in (state, state["temporal"]))
    return {**state, "offset": offset, "temporal": {**state["temporal"], "offset": temporal}}


def put(row: State, state: State, place: int) -> None:
    """Write a state of one conversation into row `place` of that of many, in place.

    A ring with fewer slots than there are is put into the first ones. Nothing else of any array is touched.
    """
    if isinstance(row, dict):
        for name, part in row.items():
            put(part, state[name], place)
    elif isinstance(row, list):
        for part, into in zip(row, state, strict=True):
            put(part, into, place)
    else:
        place_of = (slice(place, place + 1), *(slice(0, size) for size in row.shape[1:]))
        state[place_of] = row.astype(state.dtype)
