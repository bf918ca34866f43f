"""From one published layout to another: tables of which tensors of one say what tensors of the other say.

The names of Kyutai's MLX files, with one table for every stream and one matrix for every step of the depth decoder,
are what all other layouts are translated to and from. A piece moves values and never computes with them, so that it
is exact in both directions; it works on NumPy arrays of whatever bits and on MLX arrays alike. Of Mimi, the names of
Kyutai's published codec files take the place of the MLX names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from ..models.config import MimiConfig, MoshiConfig
from . import layouts
from .safetensors import Tensor, TensorInfo

Shape = tuple[int, ...]
V = TypeVar("V")


class Kind(Protocol):
    """How the arrays of a piece become each other."""

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        """The i-th MLX tensor of the piece."""

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        """The j-th of the other layout's."""


class Piece(NamedTuple):
    """Tensors of the MLX layout, and those of another layout that say the same."""

    mlx: tuple[str, ...]
    theirs: tuple[str, ...]
    kind: Kind


def _join(parts: Sequence[Any], axis: int = 0) -> Any:
    if len(parts) == 1:
        return parts[0]
    return (mx if isinstance(parts[0], mx.array) else np).concatenate(list(parts), axis=axis)


class Same:
    """The same tensor; where there are several MLX names, its repetitions."""

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        return theirs[0]

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        return mlx[0]


class Norm(Same):
    """[D], of which Kyutai's PyTorch layout makes [1, 1, D]."""

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        return theirs[0].reshape(-1)

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        return mlx[0].reshape(1, 1, -1)


class Sets:
    """One tensor that holds a matrix for every set of weights: joined along the rows, or stacked on a new axis.

    `schedule[i]` is the set that the i-th MLX tensor is; `spare` sets behind those are never read.
    """

    def __init__(self, schedule: tuple[int, ...], stacked: bool, spare: int = 0) -> None:
        self.schedule, self.stacked, self.spare = schedule, stacked, spare
        self.firsts = [schedule.index(s) for s in range(max(schedule) + 1)]

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        return self.split(theirs[0])[self.schedule[i]]

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        parts = [mlx[i] for i in self.firsts]
        parts += parts[-1:] * self.spare  # only ever for a shape
        return self.stack(parts) if self.stacked else _join(parts)

    def stack(self, parts: list[Any]) -> Any:
        return _join([part[None] for part in parts])

    def split(self, whole: Any) -> list[Any]:
        sets = len(self.firsts)
        rows = len(whole) // (sets + self.spare)
        return [whole[s] if self.stacked else whole[s * rows : (s + 1) * rows] for s in range(sets)]


class Heads:
    """Queries, keys and values apart, [q, in], [k, in], [v, in], which MLX has joined along the rows.

    Queries and keys turn by interleaved pairs there, by halves here: with `rotary`, the rows of each head change
    places. `schedule` is that of `Sets` where the tensors are stacked.
    """

    def __init__(self, queries: int, keys: int, head_dim: int, rotary: bool, schedule: tuple[int, ...] = ()) -> None:
        self.heads, self.head_dim, self.rotary = (queries, keys, keys), head_dim, rotary
        self.sets = Sets(schedule, stacked=True) if schedule else None

    def gather(self, theirs: Sequence[Any], i: int) -> Any:
        parts = [self.sets.gather([part], i) for part in theirs] if self.sets else theirs
        return _join([self._turned(part, j, (2, -1)) for j, part in enumerate(parts)])

    def scatter(self, mlx: Sequence[Any], j: int) -> Any:
        start = sum(self.heads[:j]) * self.head_dim
        rows = [whole[start : start + self.heads[j] * self.head_dim] for whole in mlx]
        if self.sets:
            return self.sets.scatter(rows, 0)
        return self._turned(rows[0], j, (-1, 2))

    def _turned(self, rows: Any, j: int, order: tuple[int, int]) -> Any:
        """Rows [heads * head_dim, in] of queries (j 0) or keys (j 1), from pairs to halves or back by `order`."""
        if not self.rotary or j == 2:
            return rows
        return rows.reshape(self.heads[j], *order, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


# Kyutai's PyTorch layout.


def kyutai_pytorch(config: MoshiConfig, generation: int = 1, spare_sets: int = 0) -> Iterator[Piece]:
    """Generation 1 has the attention names of the published files, 2 those that newer versions of `moshi` save.
    A file to read may have `spare_sets` of the depth decoder beyond the config's."""
    depth = config.depth_decoder_config
    schedule = depth.schedule
    slices = [f"depformer.slices.{step}" for step in range(len(schedule))]
    users = [tuple(slices[i] for i in range(len(slices)) if schedule[i] == s) for s in range(max(schedule) + 1)]
    yield _same("text_emb.weight")
    yield from (_same(f"audio_embs.{i}.weight", f"emb.{i}.weight") for i in range(len(config.audio_delays)))
    for n in range(config.num_hidden_layers):
        layer = f"transformer.layers.{n}"
        yield from _norms([layer], layer, Norm(), "alpha")
        yield from _kyutai_attention((layer,), layer, generation, (0,))
        yield from (_same(f"{layer}.gating.{part}.weight") for part in ("linear_in", "linear_out"))
    yield Piece(("out_norm.weight",), ("out_norm.alpha",), Norm())
    yield _same("text_linear.weight")
    for s, steps in enumerate(users):
        yield Piece(tuple(f"{one}.linear_in.weight" for one in steps), (f"depformer_in.{s}.weight",), Same())
    for step, one in enumerate(slices):
        table = f"depformer_emb.{step - 1}" if step else "depformer_text_emb"
        yield _same(f"{one}.emb.weight", f"{table}.weight")
        if depth.low_rank_embeddings:
            yield _same(f"{one}.emb.low_rank.weight", f"{table}.low_rank.weight")
        yield _same(f"{one}.linear_out.weight", f"linears.{step}.weight")
    for n in range(depth.num_hidden_layers):
        layer, inner = f"depformer.layers.{n}", [f"{one}.transformer.layers.{n}" for one in slices]
        yield from _norms(inner, layer, Norm(), "alpha")
        yield from _kyutai_attention(tuple(inner), layer, generation, schedule, spare_sets)
        for s, steps in enumerate(users):
            for part in ("linear_in", "linear_out"):
                ours = tuple(f"{one}.transformer.layers.{n}.gating.{part}.weight" for one in steps)
                yield Piece(ours, (f"{layer}.gating.{s}.{part}.weight",), Same())


def _same(mlx: str, theirs: str = "") -> Piece:
    return Piece((mlx,), (theirs or mlx,), Same())


def _norms(mlx: list[str], theirs: str, kind: Kind, leaf: str, names: tuple[str, str] = ("norm1", "norm2")) -> Any:
    """The two norms of a layer, whose weights every MLX slice repeats."""
    for ours, name in zip(("norm1", "norm2"), names, strict=True):
        yield Piece(tuple(f"{layer}.{ours}.weight" for layer in mlx), (f"{theirs}.{name}.{leaf}",), kind)


def _kyutai_attention(
    mlx: tuple[str, ...], theirs: str, generation: int, schedule: tuple[int, ...], spare: int = 0
) -> Iterator[Piece]:
    for stem, published in (("in_proj", "in_proj_weight"), ("out_proj", "out_proj.weight")):
        ours = tuple(f"{layer}.self_attn.{stem}.weight" for layer in mlx)
        if generation == 1:
            yield Piece(ours, (f"{theirs}.self_attn.{published}",), Sets(schedule, stacked=False, spare=spare))
            continue
        for s in range(max(schedule) + 1):
            mine = tuple(name for name, of in zip(ours, schedule, strict=True) if of == s)
            yield Piece(mine, (f"{theirs}.self_attn.{stem}s.{s}.weight",), Same())


# Hugging Face's layout.

_HF_NORMS = ("input_layernorm", "post_attention_layernorm")


def hugging_face(config: MoshiConfig) -> Iterator[Piece]:
    """The language model's tensors under the names of `transformers`."""
    depth = config.depth_decoder_config
    slices = [f"depformer.slices.{step}" for step in range(len(depth.schedule))]
    stacked = Sets(tuple(range(len(slices))), stacked=True)
    yield _same("text_emb.weight", "decoder.model.embed_tokens.weight")
    yield from (_same(f"audio_embs.{i}.weight", f"embed_tokens.{i}.weight") for i in range(len(config.audio_delays)))
    for n in range(config.num_hidden_layers):
        ours, theirs = f"transformer.layers.{n}", f"decoder.model.layers.{n}"
        yield from _norms([ours], theirs, Same(), "weight", _HF_NORMS)
        yield from _hf_attention((ours,), theirs, Heads(*_head_sizes(config), rotary=True), Same())
        yield from (_same(f"{ours}.gating.{a}.weight", f"{theirs}.mlp.{b}.weight") for a, b in _HF_MLP)
    yield _same("out_norm.weight", "decoder.model.norm.weight")
    yield _same("text_linear.weight", "decoder.lm_head.weight")
    yield Piece(
        tuple(f"{one}.linear_in.weight" for one in slices), ("depth_decoder.input_projections.weight",), stacked
    )
    for step, one in enumerate(slices):
        table = f"embed_tokens.{step - 1}" if step else "text_embed_tokens"
        yield _same(f"{one}.emb.weight", f"depth_decoder.{table}.weight")
    yield Piece(tuple(f"{one}.linear_out.weight" for one in slices), ("depth_decoder.lm_heads.weight",), stacked)
    for n in range(depth.num_hidden_layers):
        theirs, inner = f"depth_decoder.layers.{n}", tuple(f"{one}.transformer.layers.{n}" for one in slices)
        yield from _norms(list(inner), theirs, Same(), "weight", _HF_NORMS)
        heads = Heads(*_head_sizes(depth), rotary=False, schedule=stacked.schedule)
        yield from _hf_attention(inner, theirs, heads, stacked)
        for a, b in _HF_MLP:
            yield Piece(tuple(f"{layer}.gating.{a}.weight" for layer in inner), (f"{theirs}.mlp.{b}.weight",), stacked)


_HF_MLP = (("linear_in", "fc1"), ("linear_out", "fc2"))


def _head_sizes(config: Any) -> tuple[int, int, int]:
    return config.num_attention_heads, config.key_value_heads, config.head_width


def _hf_attention(mlx: tuple[str, ...], theirs: str, heads: Kind, out: Kind) -> Iterator[Piece]:
    apart = tuple(f"{theirs}.self_attn.{x}_proj.linear.weight" for x in "qkv")
    yield Piece(tuple(f"{layer}.self_attn.in_proj.weight" for layer in mlx), apart, heads)
    joined = tuple(f"{layer}.self_attn.out_proj.weight" for layer in mlx)
    yield Piece(joined, (f"{theirs}.self_attn.o_proj.linear.weight",), out)


# Mimi. Its layers keep their numbers in every layout; only what stands around the numbers is named otherwise.

_HF_MIMI = (
    (".model.", ".layers."), (".convtr.convtr.convtr.", ".conv."), (".conv.conv.conv.", ".conv."),
    (".convtr.convtr.", ".conv."), (".conv.conv.", ".conv."), ("_transformer.transformer.", "_transformer."),
    ("quantizer.rvq_first.vq.", "quantizer.semantic_residual_vector_quantizer."),
    ("quantizer.rvq_first.", "quantizer.semantic_residual_vector_quantizer."),
    ("quantizer.rvq_rest.vq.", "quantizer.acoustic_residual_vector_quantizer."),
    ("quantizer.rvq_rest.", "quantizer.acoustic_residual_vector_quantizer."),
    ("._codebook.", ".codebook."), ("._initialized", ".initialized"), (".embedding_sum", ".embed_sum"),
    (".linear1.", ".mlp.fc1."), (".linear2.", ".mlp.fc2."), (".self_attn.out_proj.", ".self_attn.o_proj."),
    (".norm1.", ".input_layernorm."), (".norm2.", ".post_attention_layernorm."),
    (".layer_scale_1.", ".self_attn_layer_scale."), (".layer_scale_2.", ".mlp_layer_scale."),
)  # fmt: skip
HF_MIMI_PREFIX = "audio_encoder."


def mimi_kyutai(config: MimiConfig, generation: int = 1) -> Iterator[Piece]:
    """Kyutai's codec files; generation 2 has `in_projs.0.weight` for `in_proj_weight`."""
    for name in layouts.mimi_names(config):
        theirs = name
        if generation == 2:
            theirs = name.replace("in_proj_weight", "in_projs.0.weight").replace(
                "out_proj.weight", "out_projs.0.weight"
            )
        yield _same(name, theirs)


def mimi_hugging_face(config: MimiConfig) -> Iterator[Piece]:
    """The codec inside Hugging Face's layout."""
    heads = Heads(*_head_sizes(config), rotary=True)
    for name in layouts.mimi_names(config):
        theirs = HF_MIMI_PREFIX + name
        for kyutai, hugging in _HF_MIMI:
            theirs = theirs.replace(kyutai, hugging)
        if name.endswith("in_proj_weight"):
            apart = tuple(theirs.replace("in_proj_weight", f"{x}_proj.weight") for x in "qkv")
            yield Piece((name,), apart, heads)
        else:
            yield _same(name, theirs)


# What is done with the tables.


def to_mlx(pieces: Iterable[Piece], tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """MLX arrays of another layout under the MLX names, lazily; pieces whose tensors are not there are left out."""
    found = [piece for piece in pieces if all(name in tensors for name in piece.theirs)]
    return {
        name: piece.kind.gather([tensors[other] for other in piece.theirs], i)
        for piece in found
        for i, name in enumerate(piece.mlx)
    }


def read_as_mlx(pieces: Iterable[Piece], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of stored tensors, each read when it is wanted."""
    made: dict[str, Tensor] = {}
    for piece in pieces:
        if all(name in tensors for name in piece.theirs):
            parts = _alike(piece.theirs, tensors)
            made |= {name: _moved(piece.kind.gather, parts, i) for i, name in enumerate(piece.mlx)}
    return made


def from_mlx(pieces: Iterable[Piece], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors of the MLX layout under another layout's names; pieces that are not there are left out."""
    made: dict[str, Tensor] = {}
    for piece in pieces:
        if all(name in tensors for name in piece.mlx):
            parts = _alike(piece.mlx, tensors)
            parts = [_repeated(piece, parts, i) for i in range(len(parts))]
            made |= {name: _moved(piece.kind.scatter, parts, j) for j, name in enumerate(piece.theirs)}
    return made


def expected_shapes(pieces: Iterable[Piece], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of another layout's tensors, from those of the MLX layout."""
    return {
        name: _shape(piece.kind.scatter, [shapes[ours] for ours in piece.mlx], j)
        for piece in pieces
        for j, name in enumerate(piece.theirs)
    }


def _alike(names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors of one piece, which must be of one type."""
    parts = [tensors[name] for name in names]
    for name, part in zip(names, parts, strict=True):
        if part.info.dtype != parts[0].info.dtype:
            raise CheckpointError(
                f"tensor {name!r} is {part.info.dtype} and {names[0]!r} {parts[0].info.dtype}; expected one type, "
                "for another layout has them in one tensor"
            )
    return parts


def _repeated(piece: Piece, parts: list[Tensor], i: int) -> Tensor:
    """The i-th tensor of a piece. Reading it raises CheckpointError where one that must repeat it does not."""
    kind = piece.kind
    schedule = kind.schedule if isinstance(kind, Sets) else (0,) * len(parts) if isinstance(kind, Same) else ()
    others = [n for n in range(i + 1, len(schedule)) if schedule[n] == schedule[i]]
    if not others:
        return parts[i]

    def read() -> np.ndarray:
        first = parts[i].read()
        for n in others:
            if parts[n].read().tobytes() != first.tobytes():
                raise CheckpointError(
                    f"tensor {piece.mlx[n]!r} is another than {piece.mlx[i]!r}, but the layout to write has one for "
                    f"both in {piece.theirs[0]!r}; only the MLX layout can hold this model"
                )
        return first

    return Tensor(parts[i].info, read)


def _moved(move: Callable[[Sequence[Any], int], Any], parts: list[Tensor], n: int) -> Tensor:
    info = TensorInfo(parts[0].info.dtype, _shape(move, [part.info.shape for part in parts], n))
    return Tensor(info, lambda: move([part.read() for part in parts], n))


def _shape(move: Callable[[Sequence[Any], int], Any], shapes: Sequence[Shape], n: int) -> Shape:
    """The shape of what `move` makes: tried on zeros that are never evaluated."""
    return tuple(move([mx.zeros(shape, mx.bool_) for shape in shapes], n).shape)
