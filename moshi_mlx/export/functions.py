"""The step of a conversation in the parts that a bundle holds, each traced from the very code that `Session` runs.

    prepare              published tensors -> parameters
    begin                -> small, temporal, encoder, decoder: the state of a new conversation
    encode               sound, encoder -> codes, encoder
    think.CAPACITY       codes, small, temporal -> logits, hidden, small, temporal
    noise                key -> noise of the text, noise of each codebook, key
    sample.KIND          logits, noise, temperature, top_p, log_min_p -> token
    depth                text, hidden, small -> column, ready, small
    decode               column, small, decoder -> sound, decoder
    grow.CAPACITY        temporal -> temporal of the next capacity

`temporal` are the caches of the temporal transformer, `small` the rest of the state (tokens, offset). In `depth` the
choice of a codebook's token is an operation of its own, `Choose`; the runtime runs `sample.KIND` there, for which the
settings of the conversation decide: greedy, or a letter for each of k (only of the likeliest), p (top_p), m (min_p) and
c (a temperature so low that logits are moved before they are divided by it), or all. The sizes are symbols in
`sample`, so that any top_k will do.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any, NamedTuple, cast

import mlx.core as mx

from ..checkpoints.reading import Checkpoint, build
from ..checkpoints.translation import to_mlx
from ..conversation import duplex, session
from ..models import sampling
from ..models.layers.transformer import grow
from ..models.moshi import Moshi
from ..models.state import State, flatten, unflatten
from .parameters import of_parameters, places, values
from .symbols import with_symbols
from .tracing import mark, trace

KINDS = "kpmc"
# Vocabulary (V) and how many of the likeliest a draw is among (K).
SAMPLE_POINTS: list[tuple[int, ...]] = [(97, 11), (151, 17), (89, 31), (211, 5)]


class _Stream:
    """In the place of a `Sampling` while a step is traced: what it is asked to choose from is noted and marked."""

    greedy = False

    def __init__(self) -> None:
        self.asked: list[mx.array] = []

    def choose(self, logits: mx.array, noise: mx.array) -> mx.array:
        self.asked.append(logits)
        return mark("Choose", [logits], [(len(logits),)], [mx.uint32], len(self.asked) - 1)[0]


def _traced(text: _Stream, audio: _Stream, guidance: float = 1.0) -> duplex.DuplexSampling:
    return duplex.DuplexSampling(text=cast(Any, text), audio=cast(Any, audio), guidance=guidance)


class Told(NamedTuple):
    """What all conversations of a bundle are told: see `Session`."""

    conditions: dict[str, Any] | None = None
    guidance: float = 1.0


class Given(NamedTuple):
    """In the place of a `Part`: its tensors are at hand."""

    pieces: Any
    tensors: dict[str, mx.array]

    def load(self) -> dict[str, mx.array]:
        return to_mlx(self.pieces, dict(self.tensors)) if self.pieces else dict(self.tensors)


class StateNames(NamedTuple):
    """The state of one conversation, its leaves named in the order that they are passed in."""

    small: list[str]
    temporal: list[str]
    encoder: list[str]
    decoder: list[str]

    @classmethod
    def of(cls, state: State) -> StateNames:
        names = [name for name, _ in flatten(state) if name != "keys"]
        parts = [[n for n in names if n.split(".")[0] == part] for part in ("temporal", "encoder", "decoder")]
        return cls([n for n in names if not any(n in part for part in parts)], *parts)


def tree(names: list[str], arrays: tuple[mx.array, ...]) -> State:
    return unflatten(list(zip(names, arrays, strict=True)))


def leaves(state: State, names: list[str]) -> list[mx.array]:
    found = dict(flatten(state))
    return [found[name] for name in names]


def capacities(context: int) -> list[int]:
    """The slots of the rings that a conversation goes through, on a device where attention reads all of them."""
    sizes = [min(session.FIRST_CAPACITY, context)]
    while sizes[-1] < context:
        sizes.append(min(2 * sizes[-1], context))
    return sizes


class Functions:
    """All the graphs of a model, by name: `graphs()`."""

    def __init__(self, model: Moshi, kv_bits: int | None, told: Told | None = None) -> None:
        self.model, self.config, self._kv_bits, self._told = model, model.config, kv_bits, told or Told()
        self.places = places(model)
        self.capacities = capacities(model.config.sliding_window)
        self.states = {size: self._new_state(size) for size in self.capacities}
        self.names = StateNames.of(self.states[self.capacities[0]])

    def _new_state(self, size: int) -> State:
        return duplex.init_state(self.model, [0], size, self._kv_bits, *self._told)

    def _begin(self) -> list[mx.array]:
        return leaves(self._new_state(self.capacities[0]), [name for part in self.names for name in part])

    def graphs(self) -> dict[str, str]:
        small, temporal, encoder, decoder = self.names
        first = self.states[self.capacities[0]]
        column = mx.zeros((1, self.config.num_codebooks), mx.int32)
        codes = mx.zeros((1, self.config.user_codebooks), mx.int32)
        text, hidden = mx.zeros((1,), mx.int32), self.hidden_of_step()
        sound = mx.zeros((1, self.config.audio_encoder_config.frame_size))
        made = {
            "begin": self._trace("begin", self._begin),
            "encode": self._trace("encode", self._encode, sound, *leaves(first, encoder)),
            "depth": self._trace("depth", self._depth, text, hidden, *leaves(first, small)),
            "decode": self._trace("decode", self._decode, column, *leaves(first, small), *leaves(first, decoder)),
            "noise": self._noise(),
            **samples(),
        }
        for size, state in self.states.items():
            name = f"think.{size}"
            made[name] = self._trace(name, self._think, codes, *leaves(state, small), *leaves(state, temporal))
        for size, wider in pairwise(self.capacities):
            made[f"grow.{size}"] = self._grow(size, wider)
        return made

    def _trace(self, name: str, function: Any, *inputs: mx.array) -> str:
        return trace(name, of_parameters(self.places, function), values(self.places), inputs)

    def hidden_of_step(self) -> mx.array:
        """A value of the hidden state's shape and type; it is never evaluated."""
        codes = mx.zeros((1, self.config.user_codebooks), mx.int32)
        sampling = duplex.DuplexSampling(guidance=self._told.guidance)
        _, heard = duplex.hear_codes(self.model, codes, self.states[self.capacities[0]], sampling)
        hidden = heard["hidden"]
        return mx.zeros(hidden.shape, hidden.dtype)

    def _encode(self, sound: mx.array, *encoder: mx.array) -> list[mx.array]:
        state = tree(self.names.encoder, encoder)["encoder"]
        codes, after = self.model.audio_encoder.encode_step(sound, state, self.config.user_codebooks)
        return [codes[..., 0], *leaves({"encoder": after}, self.names.encoder)]

    def _think(self, codes: mx.array, *state: mx.array) -> list[mx.array]:
        names = [*self.names.small, *self.names.temporal]
        stream = _Stream()
        before = {**tree(names, state), "keys": mx.zeros((1, 2), mx.uint32)}
        sampling = _traced(stream, _Stream(), self._told.guidance)
        _, heard = duplex.hear_codes(self.model, codes, before, sampling)
        return [stream.asked[0], heard["hidden"], *leaves(heard, names)]

    def _depth(self, text: mx.array, hidden: mx.array, *small: mx.array) -> list[mx.array]:
        heard = tree(self.names.small, small)
        ready = heard["offset"] >= max(duplex.delays_of(self.config)[0])
        heard |= {"hidden": hidden, "noise": mx.zeros((1, self.config.num_codebooks))}
        sampling = _traced(_Stream(), _Stream(), self._told.guidance)
        column, after = duplex.depth_step(self.model, text, heard, sampling)
        return [column, ready, *leaves(after, self.names.small)]

    def _decode(self, column: mx.array, *state: mx.array) -> list[mx.array]:
        count = len(self.names.small)
        offset = tree(self.names.small, state[:count])["offset"]
        decoder = tree(self.names.decoder, state[count:])["decoder"]
        sound, after = duplex.voice(self.model, column, offset, decoder)
        return [sound, *leaves({"decoder": after}, self.names.decoder)]

    def _grow(self, size: int, wider: int) -> str:
        names = self.names.temporal

        def growing(*temporal: mx.array) -> list[mx.array]:
            return leaves({"temporal": grow(tree(names, temporal)["temporal"], wider)}, names)

        return trace(f"grow.{size}", growing, [], leaves(self.states[size], names))

    def _noise(self) -> str:
        streams = _traced(_Stream(), _Stream())

        def noise(key: mx.array) -> list[mx.array]:
            text, codes, after = duplex.draw_noise(self.model, key, streams)
            return [text, *mx.split(codes, self.config.num_codebooks, axis=-1), after]

        return trace("noise", noise, [], [mx.zeros((1, 2), mx.uint32)])


def samples() -> dict[str, str]:
    """`sample.KIND` for every kind of settings."""
    made = {"sample.greedy": _sample("greedy")}
    for marks in product(*(("", letter) for letter in KINDS)):
        kind = "".join(marks)
        made[f"sample.{kind or 'all'}"] = _sample(kind)
    return made


def _sample(kind: str) -> str:
    def at(vocabulary: int, candidates: int) -> str:
        kept = candidates if "k" in kind else vocabulary

        def choose(logits: mx.array, noise: mx.array, heat: mx.array, p: mx.array, log_m: mx.array) -> list[mx.array]:
            if kind == "greedy":
                return [sampling.sample(logits, noise, sampling.Sampling(temperature=0))]
            top_p, log_min_p = p if "p" in kind else None, log_m if "m" in kind else None
            return [sampling.draw(logits, noise, kept, heat, top_p, log_min_p, "c" in kind)]

        # bfloat16, so that the cast to float32 is in the graph
        logits, noise = mx.zeros((1, vocabulary), mx.bfloat16), mx.zeros((1, vocabulary))
        return trace(f"sample.{kind}", choose, [], [logits, noise, *(mx.zeros(()) for _ in range(3))])

    return with_symbols(f"sample.{kind}", "VK", SAMPLE_POINTS, at)


def prepare(checkpoint: Checkpoint, dtype: mx.Dtype | None, tensors: list[mx.array]) -> str:
    """The graph from the published tensors, the language model's and then the codec's, to the parameters."""

    def prepared(*arrays: mx.array) -> list[mx.array]:
        count = len(checkpoint.language.tensors)
        parts: list[Any] = [
            Given(part.pieces, dict(zip(sorted(part.tensors), some, strict=True)))
            for part, some in ((checkpoint.language, arrays[:count]), (checkpoint.mimi, arrays[count:]))
        ]
        fresh = build(checkpoint._replace(language=parts[0], mimi=parts[1], tokenizer=None), dtype, Moshi)
        return values(places(fresh))

    return trace("prepare", prepared, [], tensors)
