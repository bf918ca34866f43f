"""What one duplex frame launches on a Mac's GPU, counted on its compiled graph; nothing is run there.

`python -m bench roofline` prints it. The step is traced over weights that have shapes and no memory.

Counted on Metal's terms: a fused operation is one; norms, attention and the reading of quantized rows are one each; a
concatenation is a copy for each of its inputs; views are none; sorting more than one kernel holds takes two more for
each doubling, and a copy. A product is one, though Metal splits some in two. Not counted is the copy of a view that a
kernel does not take as it lies: one for each layer of Mimi's transformers, behind its attention to two positions.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx

from moshi_mlx import MoshiConfig, MoshiForConditionalGeneration
from moshi_mlx.checkpoints.filling import fill
from moshi_mlx.checkpoints.layouts import kyutai_mlx
from moshi_mlx.conversation import duplex
from moshi_mlx.errors import InputError
from moshi_mlx.inputs import compiles
from moshi_mlx.models.layers.demuxed import DemuxedEmbedding
from moshi_mlx.models.sampling import SORTED_AT_ONCE
from moshi_mlx.models.state import State, flatten, unflatten

from .. import cases, measure
from ..cases import SAMPLING, Work
from ..random_checkpoint import Bits, language_tensors

# A primitive that stands for one which Metal has and the CPU composes: what it is called in a graph, and the kind.
STANDS_FOR = {"CumSum": "norm", "CumMax": "attention", "CumLogAddExp": "dequantization",
              "CumMin": "quantization"}  # fmt: skip
KINDS = {
    "product": measure.PRODUCTS | {"GatherQMM"},
    "copy": measure.COPIES | {"Full"},
    "gather": measure.GATHERS,
    "cache write": measure.WRITES,
    "search": {"ArgPartition", "ArgReduce", "ArgSort", "Partition", "Sort"},
    "sum": {"Reduce", "Sum"},
}
PARTS = {
    "encode": "mimi-encode",
    "language": "",
    "depth": "depth-step",
    "decode": "mimi-decode",
    "frame": "duplex-frame",
}


def weightless(config: MoshiConfig, bits: Bits, dtype: mx.Dtype = mx.bfloat16) -> MoshiForConditionalGeneration:
    """A model as the loader makes it, whose weights have shape and type and take no memory. Mimi is float32."""
    model = MoshiForConditionalGeneration(config)
    tensors = dict(language_tensors(config, bits, dtype))  # lazy, and never evaluated
    fill(model, list(kyutai_mlx(config)), tensors)
    model.update(weightless_tree(model.parameters()))
    model.refresh()
    for _, module in model.named_modules():
        if isinstance(module, DemuxedEmbedding):  # what it derives is no parameter
            module._tables = weightless_tree({"tables": module._tables})["tables"]
    return model


def weightless_tree(tree: Any) -> Any:
    """The same tree of arrays, each of them one zero seen in its shape."""
    leaves = [(name, mx.broadcast_to(mx.zeros((), leaf.dtype), leaf.shape)) for name, leaf in flatten(tree)]
    mx.eval([leaf for _, leaf in leaves])
    return unflatten(leaves)


@contextmanager
def on_metal() -> Iterator[None]:
    """While open, what is traced is what a GPU would be given; its values mean nothing.

    Raises InputError where MLX compiles nothing, for there nothing is fused.
    """
    if not compiles():
        raise InputError("kernels are counted on compiled graphs, and MLX compiles nothing here; install g++")

    def one(primitive: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def stand_in(x: mx.array, *arguments: Any, **options: Any) -> mx.array:
            needed = [a for a in (*arguments, *options.values()) if isinstance(a, mx.array)]
            y = primitive(x, axis=-1)
            return mx.depends([y], needed)[0] if needed else y

        return stand_in

    sort = mx.partition

    def partition(x: mx.array, kth: int, axis: int) -> mx.array:
        y, blocks = sort(x, kth, axis=axis), -(-x.shape[axis] // SORTED_AT_ONCE)
        for _ in range(2 * (blocks - 1).bit_length() + (blocks > 1)):
            y = sort(y, kth, axis=axis)
        return y

    def dequantize(w: mx.array, scales: mx.array, *arguments: Any, bits: int, **options: Any) -> mx.array:
        rows = mx.broadcast_to(scales[..., :1], (*w.shape[:-1], w.shape[-1] * 32 // bits))
        return mx.depends([mx.logcumsumexp(rows, axis=-1)], [w])[0]

    def quantize(w: mx.array, group_size: int, bits: int) -> tuple[mx.array, ...]:
        y = mx.cummin(w, axis=-1)
        words = mx.broadcast_to(mx.array(0, mx.uint32), (*w.shape[:-1], w.shape[-1] * bits // 32))
        scales = y[..., : w.shape[-1] // group_size]
        return mx.depends([words], [y])[0], scales, scales

    with ExitStack() as patches:
        for name, primitive in (("rms_norm", mx.cumsum), ("layer_norm", mx.cumsum),
                                ("scaled_dot_product_attention", mx.cummax)):  # fmt: skip
            patches.enter_context(patch.object(mx.fast, name, one(primitive)))
        patches.enter_context(patch.object(mx, "partition", partition))
        patches.enter_context(patch.object(mx, "dequantize", dequantize))
        patches.enter_context(patch.object(mx, "quantize", quantize))
        patches.enter_context(patch.object(mx, "default_device", lambda: mx.Device(mx.gpu)))
        yield


def counted(step: Callable[..., Any], *arguments: Any) -> Counter[str]:
    """What a compiled function launches, by kind."""
    mx.eval(arguments)
    with on_metal():
        leaves = [leaf for _, leaf in flatten(list(mx.compile(step)(*arguments)))]
    text = io.StringIO()
    mx.export_to_dot(text, *leaves)
    names = re.findall(r'(\d+) \[label ?= ?"([^"]*)", shape=rectangle\]', text.getvalue())
    inputs = Counter(re.findall(r"-> (\d+)", text.getvalue()))
    found: Counter[str] = Counter()
    for node, name in names:
        if name not in measure.VIEWS:
            found[_kind(name)] += inputs[node] if name == "Concatenate" else 1
    return found


def _kind(name: str) -> str:
    return STANDS_FOR.get(name) or next((kind for kind, names in KINDS.items() if name in names), "elementwise")


def of_work(work: Work) -> Counter[str]:
    """Of one frame of a case, by kind."""
    return counted(work.step, work.given(0), weightless_tree(work.state()))


def of_parts(
    model: MoshiForConditionalGeneration, kv_bits: int | None = None, batch: int = 1
) -> dict[str, Counter[str]]:
    """Of the parts of a frame that a model has, and of the whole.

    `language` goes up to the text token (of a speaker: to its codes), `depth` samples the codes.
    """
    found, own, user = {}, model.config.num_codebooks, model.config.user_codebooks
    for part, case in PARTS.items():
        if (part in ("depth", "decode") and not own) or (part == "encode" and not user):
            continue
        work = cases.work(model, cases.Spec(case or "lm-step", context="full", frames=1, batch=batch, kv_bits=kv_bits))
        work = work if case or not (own and user) else work._replace(step=_language(model))
        found[part] = of_work(work)
    return found


def _language(model: MoshiForConditionalGeneration) -> Callable[[mx.array, State], Any]:
    return lambda codes, state: duplex.hear_codes(model, codes, state, SAMPLING)


def report(found: dict[str, Counter[str]]) -> str:
    """A row for each part."""
    kinds = sorted({kind for part in found.values() for kind in part}, key=lambda kind: -found["frame"][kind])
    rows = [[name, str(part.total()), *(str(part[kind]) for kind in kinds)] for name, part in found.items()]
    return measure.table(["part", "all", *kinds], rows)
