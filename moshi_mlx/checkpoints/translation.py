"""From one published layout to another: tables of which tensors of one say what tensors of the other say.

The names of Kyutai's MLX files, with one table for every stream and one matrix for every step of the depth decoder,
are what all other layouts are translated to and from. A piece moves values and never computes with them, so that it
is exact in both directions; it works on NumPy arrays of whatever bits and on MLX arrays alike. Of Mimi, the names of
Kyutai's published codec files take the place of the MLX names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from ..models.config import MimiConfig, MoshiConfig
from . import layouts
from .pieces import Heads, Kind, Norm, Piece, Same, Sets
from .safetensors import Tensor, TensorInfo

Shape = tuple[int, ...]
V = TypeVar("V")


# Kyutai's PyTorch layout.


def kyutai_pytorch(config: MoshiConfig, generation: int = 1, spare_sets: int = 0) -> Iterator[Piece]:
    """Generation 1 has the attention names of the published files, 2 those that newer versions of `moshi` save.
    A file to read may have `spare_sets` of the depth decoder beyond the config's."""
    depth = config.depth_decoder_config
    schedule = depth.schedule
    slices = [f"depformer.slices.{step}" for step in range(len(schedule))]
    users = [tuple(slices[i] for i in range(len(slices)) if schedule[i] == s) for s in range(depth.weight_sets)]
    yield from _table("text_emb", "text_emb", None, config.demuxed_text)
    yield from (_same(f"audio_embs.{i}.weight", f"emb.{i}.weight") for i in range(len(config.audio_delays)))
    for n in range(config.num_hidden_layers):
        layer = f"transformer.layers.{n}"
        yield from _norms([layer], layer, Norm(), "alpha")
        yield from _kyutai_attention((layer,), layer, generation, (0,))
        if config.cross_attention:
            yield from (_same(f"{layer}.norm_cross.{leaf}") for leaf in ("weight", "bias"))
            yield from _kyutai_attention((layer,), layer, generation, (0,), attention="cross_attention")
        yield from (_same(f"{layer}.gating.{part}.weight") for part in ("linear_in", "linear_out"))
    yield Piece(("out_norm.weight",), ("out_norm.alpha",), Norm())
    yield _same("text_linear.weight")
    yield from (_same(f"extra_heads.{n}.weight") for n in range(config.extra_heads))
    yield from (_same(row.theirs[0]) for row in layouts.conditions(config))
    for s, steps in enumerate(users):
        yield Piece(tuple(f"{one}.linear_in.weight" for one in steps), (f"depformer_in.{s}.weight",), Same())
    for step, one in enumerate(slices):
        table = f"depformer_emb.{step - 1}" if step else "depformer_text_emb"
        yield from _table(f"{one}.emb", table, depth.low_rank_embeddings, depth.demuxed_text and step == 0)
        if depth.output_norm:
            yield from (_same(f"{one}.norm.{leaf}", f"depformer_norms.{step}.{leaf}") for leaf in ("weight", "bias"))
        yield _same(f"{one}.linear_out.weight", f"linears.{step}.weight")
    if not slices:
        return
    for n in range(depth.num_hidden_layers):
        layer, inner = f"depformer.layers.{n}", [f"{one}.transformer.layers.{n}" for one in slices]
        yield from _norms(inner, layer, Norm(), "alpha")
        yield from _kyutai_attention(tuple(inner), layer, generation, schedule, spare_sets)
        for s, steps in enumerate(users):
            for part in ("linear_in", "linear_out"):
                ours = tuple(f"{one}.transformer.layers.{n}.gating.{part}.weight" for one in steps)
                yield Piece(ours, (f"{layer}.gating.{s}.{part}.weight",), Same())


def _table(mlx: str, theirs: str, low_rank: int | None, demuxed: bool) -> Iterator[Piece]:
    parts = ["", *(["out1.", "out2."] if demuxed else []), *(["low_rank."] if low_rank else [])]
    yield from (_same(f"{mlx}.{part}weight", f"{theirs}.{part}weight") for part in parts)


def _same(mlx: str, theirs: str = "") -> Piece:
    return Piece((mlx,), (theirs or mlx,), Same())


def _norms(mlx: list[str], theirs: str, kind: Kind, leaf: str, names: tuple[str, str] = ("norm1", "norm2")) -> Any:
    """The two norms of a layer, whose weights every MLX slice repeats."""
    for ours, name in zip(("norm1", "norm2"), names, strict=True):
        yield Piece(tuple(f"{layer}.{ours}.weight" for layer in mlx), (f"{theirs}.{name}.{leaf}",), kind)


def _kyutai_attention(
    mlx: tuple[str, ...], theirs: str, generation: int, schedule: tuple[int, ...], spare: int = 0,
    attention: str = "self_attn",
) -> Iterator[Piece]:  # fmt: skip
    for stem, published in (("in_proj", "in_proj_weight"), ("out_proj", "out_proj.weight")):
        ours = tuple(f"{layer}.{attention}.{stem}.weight" for layer in mlx)
        if generation == 1:
            yield Piece(ours, (f"{theirs}.{attention}.{published}",), Sets(schedule, stacked=False, spare=spare))
            continue
        for s in range(max(schedule) + 1):
            mine = tuple(name for name, of in zip(ours, schedule, strict=True) if of == s)
            yield Piece(mine, (f"{theirs}.{attention}.{stem}s.{s}.weight",), Same())


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
