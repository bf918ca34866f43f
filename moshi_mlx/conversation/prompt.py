"""A prompt in one prefill: streams that are given, and the live conversation that goes on from them.

The prompt is what `streams` aligns: initial tokens, then the columns of three synchronised streams, delayed. All of
its positions go through the temporal transformer in one pass, and the depth decoder is not asked for any of them. The
last position draws the first tokens that are free; what a position would draw for a delayed codebook where the prompt
already says it, is what the prompt says, and the depth decoder sees that too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..errors import InputError
from ..inputs import seed as whole_seed
from ..models.layers import cache as caches
from ..models.layers.transformer import grow
from ..models.moshi import Moshi
from ..models.state import State, flatten, unflatten
from . import duplex, streams
from .duplex import Adjust, DuplexSampling
from .told import against, guided, told

FILE_KIND = "moshi_mlx prompt 2"
FIRST_VALUES = 8


class Columns(NamedTuple):
    """The columns that every row begins with, initial tokens included, padding behind them."""

    columns: np.ndarray  # int [B, 1 + streams, L]
    lengths: np.ndarray  # int [B]
    embeds: mx.array | None = None  # [B, L, hidden] in the place of the columns' own


class Prefilled(NamedTuple):
    """Conversations after their prompt, before the first token is drawn. Serves any number of beginnings."""

    temporal: State
    hidden: mx.array  # [B, hidden] of the last position
    tail: np.ndarray  # int [B, 1 + streams, R], the prompt's last columns, newest last
    length: int  # positions of the longest row
    about: Mapping[str, str] = MappingProxyType({})  # what it was made of, for people and for `load`

    @property
    def capacity(self) -> int:
        """Cache slots."""
        return caches.capacity_of(self.temporal["layers"][0])


def prefill(
    model: Moshi, prompt: Columns, room: int = 0, conditions: Mapping[str, Any] | None = None, guidance: float = 1.0
) -> Prefilled:
    """The prompt in one pass, with place for `room` positions more. Lazy.

    With guidance (see `told`) `temporal` and `hidden` have two rows for each of the prompt's.
    """
    config, helium = model.config, model.decoder.model
    embeds, lengths = prompt.embeds, mx.array(prompt.lengths.astype(np.int32))
    if embeds is None:
        sides = [conditions] if guidance == 1 else [conditions, against(model)]
        columns = delayed(model, prompt.columns)
        embeds = mx.concatenate([model.embed(columns, side) for side in sides])
        lengths = mx.tile(lengths, len(sides))
    same = (prompt.lengths == embeds.shape[1]).all()
    x, temporal = helium.transformer.over_sequence(
        embeds.astype(helium.dtype), lengths=None if same else lengths, room=room
    )
    hidden = mx.take_along_axis(x, lengths[:, None, None] - 1, axis=1).squeeze(1)
    longest = 2 * max(config.audio_delays) + 1
    tail = np.stack([_before(prompt, back, streams.initial_tokens(config)) for back in range(longest, 0, -1)], axis=2)
    return Prefilled(temporal, helium.norm(hidden), tail, embeds.shape[1])


def delayed(model: Moshi, columns: np.ndarray) -> mx.array:
    """What each position of columns [B, 1 + streams, L] sees: every stream behind its delay."""
    return streams.shifted(mx.array(columns), [0, *model.config.audio_delays], streams.initial_tokens(model.config))


def _before(prompt: Columns, back: int, initial: list[int]) -> np.ndarray:
    """The column [B, 1 + streams] `back` before the prompt's end, initial tokens before its start."""
    index = prompt.lengths - back
    taken = np.take_along_axis(prompt.columns, np.maximum(index, 0)[:, None, None], axis=2)[:, :, 0]
    return np.where(index[:, None] >= 0, taken, np.array(initial)).astype(np.int32)


def begin(
    model: Moshi, prompt: Prefilled, seeds: list[int], sampling: DuplexSampling, adjust: Adjust | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> State:  # fmt: skip
    """The live state whose last position is the prompt's last; codec states are left to the caller.

    The text token is drawn from what `adjust` makes of its logits [B, vocab]. Conditions and the sampling's guidance
    are those that the prompt was read with.
    """
    own, user = duplex.delays_of(model.config)
    keys = mx.stack([mx.random.key(whole_seed(seed)) for seed in seeds])
    rows = len(prompt.tail)
    logits = guided(model.decoder.lm_head(prompt.hidden), rows, sampling.guidance)
    logits = logits if adjust is None else adjust(logits)
    text, codes, keys = duplex.sample_frame(model, prompt.hidden, logits, keys, sampling, *known(model, prompt, 0))

    def past(back: int, delays: tuple[int, ...], first: int) -> mx.array:
        """The tokens [B, K, 1] of streams from `first` on, `back` + delay columns before the prompt's end."""
        return mx.array(_tokens(prompt.tail, [back + delay for delay in delays], first))[:, :, None]

    return {
        # Rings and tokens hold what is before a stream's start: no position of this state needs to be told.
        "offset": mx.full((rows,), prompt.length + max(model.config.audio_delays) + 1, mx.int32),
        "keys": keys,
        "text": text,
        "own": mx.concatenate([*(past(i, own, 1) for i in range(max(own), 0, -1)), codes[:, :, None]], axis=2),
        "user": mx.concatenate([past(1 + i, (0,) * len(user), 1 + len(own)) for i in range(max(user), -1, -1)], axis=2),
        "temporal": {**prompt.temporal, **told(model, rows, conditions, sampling.guidance)},
    }


def known(model: Moshi, prompt: Prefilled, step: int) -> tuple[mx.array, ...]:
    """What the prompt says of the codes int [B, num_codebooks] that the position `step` after its last draws.

    -1 where it says nothing; nothing at all once it has been passed by the longest delay.
    """
    own, _ = duplex.delays_of(model.config)
    if step >= max(own):
        return ()
    said = _tokens(prompt.tail, [max(1, delay - step) for delay in own], 1)
    return (mx.array(np.where(np.array(own) > step, said, -1)),)


def _tokens(tail: np.ndarray, back: list[int], first: int) -> np.ndarray:
    """The tokens int [B, len(back)] of streams from `first` on, back[k] columns before the end."""
    return np.stack([tail[:, first + k, -n] for k, n in enumerate(back)], axis=1)


def one_row(prompt: Prefilled) -> Prefilled:
    """The prompt itself. Raises InputError where it is that of several conversations, or none."""
    if not isinstance(prompt, Prefilled) or len(prompt.hidden) != 1:
        raise InputError(f"prompt: got {type(prompt).__name__}, expected one that `model.prompt` made")
    return prompt


def checked(prompt: Any, context: int) -> Prefilled:
    """The prompt of one conversation that remembers `context` frames. Raises InputError."""
    length = one_row(prompt).length
    if length > context:
        raise InputError(f"prompt: has {length} frames, but the context is {context}; shorten it")
    return prompt


def trimmed(prompt: Prefilled) -> Prefilled:
    """With no more cache slots than positions."""
    layers = [
        {name: ring[..., : prompt.length, :] for name, ring in cache.items()} for cache in prompt.temporal["layers"]
    ]
    return prompt._replace(temporal={**prompt.temporal, "layers": layers})


def repeated(prompt: Prefilled, count: int) -> Prefilled:
    """With every row so many times."""
    if count == 1:
        return prompt
    temporal, hidden = tree_map(lambda leaf: mx.repeat(leaf, count, axis=0), (prompt.temporal, prompt.hidden))
    return prompt._replace(temporal=temporal, hidden=hidden, tail=np.repeat(prompt.tail, count, axis=0))


def grown(prompt: Prefilled, capacity: int) -> Prefilled:
    """With at least so many cache slots, or as many as there are where the context is full."""
    return prompt if capacity <= prompt.capacity else prompt._replace(temporal=grow(prompt.temporal, capacity))


def in_bits(prompt: Prefilled, kv_bits: int | None) -> Prefilled:
    """With its caches in 8 or 4 bits, where that is asked for."""
    if kv_bits is None:
        return prompt
    layers = [caches.packed(cache, kv_bits) for cache in prompt.temporal["layers"]]
    return prompt._replace(temporal={**prompt.temporal, "layers": layers})


# --- files ----------------------------------------------------------------------------------------------------------


def fingerprint(model: Moshi, whole: bool = False) -> str:
    """What tells models apart whose prompts must not be mixed up.

    Sizes, and of every parameter of the temporal transformer (of the model, with `whole`) its name, type and first
    values: so that another fine-tune or other bits are another model.
    """
    import hashlib

    config, digest = model.config, hashlib.sha256()
    digest.update(json.dumps([config.sliding_window, config.rope_theta, config.audio_delays]).encode())
    leaves = flatten((model if whole else model.decoder).parameters())
    digest.update(json.dumps([(name, leaf.shape, str(leaf.dtype)) for name, leaf in leaves]).encode())
    firsts = [leaf[(0,) * (leaf.ndim - 1)][:FIRST_VALUES].astype(mx.float32) for _, leaf in leaves]
    digest.update(np.array(mx.concatenate(firsts)).tobytes())
    return digest.hexdigest()[:16]


def save(model: Moshi, prompt: Prefilled, path: str | Path) -> None:
    """Write a prompt to a safetensors file, which is there whole or not at all. Raises InputError."""
    about = {"kind": FILE_KIND, "model": fingerprint(model), "length": str(prompt.length), **prompt.about}
    tree = {"temporal": prompt.temporal, "hidden": prompt.hidden, "tail": mx.array(prompt.tail)}
    write_file(path, dict(flatten(tree)), about, "the prompt")


def write_file(path: str | Path, arrays: dict[str, mx.array], about: dict[str, str], what: str) -> None:
    """Arrays and what is said of them, under a temporary name first. Raises InputError, which names `what`."""
    path = _path(path)
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}.safetensors")
    try:
        mx.save_safetensors(str(partial), arrays, about)
        os.replace(partial, path)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: {what} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)


def _path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path: got a {type(path).__name__}, expected the path of a file")
    return Path(path)


def load(model: Moshi, path: str | Path) -> Prefilled:
    """The prompt that `save` wrote. Raises InputError for another file, and for a prompt of another model."""
    arrays, about = read_file(path, FILE_KIND, "a prompt", "make it anew")
    if about.pop("model", "") != fingerprint(model):
        raise InputError(f"{path}: is a prompt of another model; make it anew with this one")
    tree: Any = unflatten(list(arrays.items()))
    try:
        length = int(about.pop("length"))
        prompt = Prefilled(tree["temporal"], tree["hidden"], np.array(tree["tail"]), length, about)
        _check_shapes(model, prompt)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: is no whole prompt; make it anew") from error
    return prompt


def read_file(path: str | Path, kind: str, what: str, advice: str) -> tuple[dict[str, mx.array], dict[str, str]]:
    """What `write_file` wrote with `kind`. Raises InputError, which names `what` and ends with the advice."""
    path = _path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {what} that was saved")
    try:
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: not a safetensors file, expected {what} that was saved") from error
    arrays, about = loaded
    if about.pop("kind", None) != kind:
        raise InputError(f"{path}: not {what} that was saved (or of another version); {advice}")
    return arrays, about


def _check_shapes(model: Moshi, prompt: Prefilled) -> None:
    """Raises ValueError where an array is not what `prefill` makes."""
    config, helium = model.config, model.decoder.model
    capacity = prompt.capacity
    wanted = dict(flatten(helium.init_state(1, capacity=capacity)))
    got = dict(flatten(prompt.temporal))
    rows, back = np.array(config.table_rows), 2 * max(config.audio_delays) + 1
    good = (
        {name: leaf.shape for name, leaf in wanted.items()} == {name: leaf.shape for name, leaf in got.items()}
        and prompt.hidden.shape == (1, config.hidden_size)
        and prompt.tail.shape == (1, len(rows), back)
        and 0 < prompt.length <= config.sliding_window
        and capacity <= config.sliding_window
        and bool((prompt.tail >= 0).all() and (prompt.tail < rows[:, None]).all())
    )
    if not good:
        raise ValueError("shapes")
