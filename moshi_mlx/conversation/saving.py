"""A conversation in a file: all that its next frame depends on, so that it goes on later as if nothing had been."""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .. import inputs
from ..errors import InputError
from ..models.layers.transformer import grow
from ..models.state import State, flatten, unflatten
from . import duplex, prompt, told
from .prompt import Prefilled

if TYPE_CHECKING:
    from .session import Session

FILE_KIND = "moshi_mlx conversation 2"
# Settings that a file and the session that takes it share.
AGREE = ("kv_bits", "context", "wait_for_greeting", "guidance", "conditions")
TAIL = "prompt.tail"


def save(session: Session, path: str | os.PathLike[str]) -> None:
    """See `Session.save`."""
    arrays = dict(flatten({"state": session._state}))
    if session._begun is not None and session._steps < max(duplex.delays_of(session._model.config)[0]):
        arrays[TAIL] = mx.array(session._begun.tail)  # it still says some codes of the frames to come
    said = json.dumps(_said(session), sort_keys=True)
    model = prompt.fingerprint(session._model, whole=True)
    about = {"kind": FILE_KIND, "model": model, "conversation": said, "checksum": _checksum(arrays, said)}
    prompt.write_file(path, arrays, about, "the conversation")  # type: ignore[arg-type]


def restore(session: Session, path: str | os.PathLike[str]) -> None:
    """See `Session.restore`. All is read and checked before the session changes."""
    arrays, about = prompt.read_file(path, FILE_KIND, "a conversation", "save it anew")  # type: ignore[arg-type]
    if about.get("model") != prompt.fingerprint(session._model, whole=True):
        raise InputError(f"{path}: is a conversation of another model; load the model that it was saved with")
    try:
        if about["checksum"] != _checksum(arrays, about["conversation"]):
            raise ValueError("checksum")
        said = json.loads(about["conversation"])
        tail = arrays.pop(TAIL, None)
        _check_agreement(session, said, path)
        state = _whole(session, unflatten(list(arrays.items()))["state"], said["capacity"])
        taken = {name: said[name] for name in _said(session)}
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration, RecursionError) as error:
        raise InputError(f"{path}: the conversation in it is damaged; take another copy of the file") from error
    _take(session, state, taken, tail)


def _said(session: Session) -> dict[str, Any]:
    """All of a conversation that is not in its arrays."""
    gate, speech = session._gate, session._speech
    return {
        "kv_bits": None if session._kv_bits is None else int(session._kv_bits),
        "context": session.context,
        "wait_for_greeting": gate is not None,
        "guidance": session._guidance,
        "conditions": told.said(session._model, session._conditions),
        "seed": inputs.seed(session._seed),
        "capacity": session._capacity,
        "positions": session._positions,
        "steps": session._steps,
        "nonfinite_samples": session.nonfinite_samples,
        "pending_text": session._pending_text,
        "pending_bytes": session._text_of.pending.hex(),
        "speech": [speech.speaking, speech._quiet],
        "gate": None if gate is None else [gate.closed, gate._spoken, gate._frames],
    }


def _check_agreement(session: Session, said: dict[str, Any], path: Any) -> None:
    own = _said(session)
    for name in AGREE:
        if said[name] != own[name]:
            raise InputError(
                f"{path}: {name}: the conversation was saved with {said[name]}, this session has {own[name]}; "
                f"make one with {name}={said[name]}"
            )


def _whole(session: Session, state: State, capacity: int) -> State:
    """The state, in rings as this session has them. Raises ValueError where an array is not a conversation's."""
    wanted = flatten(session._new_state(0, capacity))  # lazy: takes no memory
    got = dict(flatten(state))
    if {name: (leaf.shape, leaf.dtype) for name, leaf in wanted} != {n: (a.shape, a.dtype) for n, a in got.items()}:
        raise ValueError("shapes")
    larger = next(size for size in session._capacities if size >= capacity)
    return state if larger == capacity else {**state, "temporal": grow(state["temporal"], larger)}


def _take(session: Session, state: State, said: dict[str, Any], tail: mx.array | None) -> None:
    mx.eval(state)
    waiting, (speaking, quiet) = bytes.fromhex(said["pending_bytes"]), said["speech"]
    session._state = state
    session._seed, session._positions, session._steps = said["seed"], said["positions"], said["steps"]
    session._capacity = next(size for size in session._capacities if size >= said["capacity"])
    session.nonfinite_samples = said["nonfinite_samples"]
    session._begun = None if tail is None else Prefilled(None, mx.zeros((1, 0)), np.array(tail), said["positions"])
    session._pending_text, session._text_of.pending = said["pending_text"], waiting
    session._speech.speaking, session._speech._quiet = speaking, quiet
    if session._gate is not None:
        session._gate.closed, session._gate._spoken, session._gate._frames = said["gate"]


def _checksum(arrays: dict[str, mx.array], said: str) -> str:
    """Of everything in a file: rings are large, so one that is quick and finds damage."""
    total = zlib.crc32(said.encode())
    for name, array in sorted(arrays.items()):
        total = zlib.crc32(f"{name} {array.shape} {array.dtype}".encode(), total)
        total = zlib.crc32(np.array(mx.contiguous(array).reshape(-1).view(mx.uint8)).data, total)
    return f"{total:08x}"
