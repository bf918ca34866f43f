"""A Python function of arrays as a graph: what MLX does when it runs, as lines of text.

    moshi graph 1
    values 7                     how many values there are; each has a number
    weights 12:0 13:1            parameter 12 is value 0, ...
    in 2 3                       the inputs
    const 4 float32 [1] 0.5
    op Add 2,4 5                 operation, values it takes, values it makes, arguments
    op Slice 5 6 [0,0] [1,4] [1,1]
    out 6

MLX's export hands over every primitive with its arguments. Nothing in it names a device, a stream, a thread or a
version. MLX's fused operations, which would be taken apart on a machine without Metal, are kept whole: while a function
is traced they are marked by Metal kernels that nobody compiles.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from ..errors import ConfigError
from .operations import MODES, OPERATIONS

FORMAT = 1
MOST_CONSTANT_VALUES = 65_536  # more than that is a weight that was taken for a number

Function = Callable[..., Sequence[mx.array]]


class Markers:
    """`mark(op, ...)` stands in for an operation, for as long as a function is traced."""

    def __init__(self) -> None:
        self._kernels: dict[tuple[str, str, int], Any] = {}

    def __call__(
        self,
        op: str,
        arrays: Sequence[mx.array],
        shapes: Sequence[Sequence[int]],
        types: Sequence[mx.Dtype],
        *args: Any,
    ) -> list[mx.array]:
        key = (op, "// " + json.dumps([text(arg) for arg in args]), len(arrays))
        one = (1, 1, 1)
        try:
            if key not in self._kernels:
                outputs, inputs = ([f"{side}{i}" for i in range(n)] for side, n in (("o", len(shapes)), ("i", key[2])))
                self._kernels[key] = mx.fast.metal_kernel(f"marker_{op}", inputs, outputs, key[1])
            made: list[mx.array] = self._kernels[key](
                inputs=list(arrays), grid=one, threadgroup=one, output_shapes=list(shapes), output_dtypes=list(types)
            )
        except RuntimeError as error:
            raise ConfigError(f"MLX {version('mlx')} cannot trace here ({error}); use 0.32 or newer") from error
        return made


mark = Markers()


def _rope(kept: Any) -> Any:
    def rope(
        x: mx.array, dims: int, *, traditional: bool, base: Any, scale: float, offset: Any, freqs: Any = None
    ) -> Any:
        if freqs is not None or base is None:
            return kept(x, dims, traditional=traditional, base=base, scale=scale, offset=offset, freqs=freqs)
        offset = offset if isinstance(offset, mx.array) else mx.array(offset)
        return mark("RoPE", [x, offset], [x.shape], [x.dtype], dims, bool(traditional), float(base), float(scale))[0]

    return rope


def _attention(kept: Any) -> Any:
    def attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **others: Any) -> Any:
        if others or isinstance(mask, str):
            return kept(q, k, v, scale=scale, mask=mask, **others)
        inputs = [q, k, v] if mask is None else [q, k, v, mask]
        return mark("Attention", inputs, [(*q.shape[:-1], v.shape[-1])], [q.dtype], float(scale))[0]

    return attention


def _rms_norm(kept: Any) -> Any:
    def rms_norm(x: mx.array, weight: Any, eps: float, **_: Any) -> Any:
        return (
            kept(x, weight, eps)
            if weight is None
            else mark("RMSNorm", [x, weight], [x.shape], [x.dtype], float(eps))[0]
        )

    return rms_norm


def _layer_norm(kept: Any) -> Any:
    def layer_norm(x: mx.array, weight: Any, bias: Any, eps: float, **_: Any) -> Any:
        if weight is None or bias is None:
            return kept(x, weight, bias, eps)
        return mark("LayerNorm", [x, weight, bias], [x.shape], [x.dtype], float(eps))[0]

    return layer_norm


def _dequantize(kept: Any) -> Any:
    def dequantize(
        w: mx.array, scales: mx.array, biases: Any = None, group_size: Any = None, bits: Any = None,
        mode: str = "affine", *others: Any, dtype: Any = None, **more: Any,
    ) -> Any:  # fmt: skip
        if others or more or None in (group_size, bits):
            return kept(w, scales, biases, group_size, bits, mode, *others, dtype=dtype, **more)
        inputs = [w, scales] if biases is None else [w, scales, biases]
        kind = dtype or (scales.dtype if mode == "affine" else mx.bfloat16)
        shape = (*w.shape[:-1], w.shape[-1] * 32 // bits)
        return mark("Dequantize", inputs, [shape], [kind], group_size, bits, MODES.index(mode), kind)[0]

    return dequantize


@contextlib.contextmanager
def fused() -> Iterator[None]:
    """While this lasts, fused operations are marked, and how an array lies in memory is left to the runtime."""
    replaced: list[tuple[Any, str, Any]] = [
        (mx.fast, "rope", _rope),
        (mx.fast, "scaled_dot_product_attention", _attention),
        (mx.fast, "rms_norm", _rms_norm),
        (mx.fast, "layer_norm", _layer_norm),
        (mx, "dequantize", _dequantize),
        (mx, "contiguous", lambda _: lambda x, *args, **kwargs: x),
        (mx, "default_device", lambda _: lambda: mx.Device(mx.cpu)),  # a graph is the same wherever it is made
    ]
    kept = [getattr(place, name) for place, name, _ in replaced]
    for (place, name, made), before in zip(replaced, kept, strict=True):
        setattr(place, name, made(before))
    try:
        yield
    finally:
        for (place, name, _), before in zip(replaced, kept, strict=True):
            setattr(place, name, before)


def text(value: Any) -> str:
    """An argument as it stands in a graph, without spaces."""
    if isinstance(value, mx.Dtype):
        return str(value).removeprefix("mlx.core.").removesuffix("_")
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(text(each) for each in value) + "]"
    return str(int(value)) if isinstance(value, bool) else repr(value)


class _Lines:
    """What MLX's export tells, event after event, as lines."""

    def __init__(self, name: str) -> None:
        self.name, self.numbers, self.lines = name, dict[str, int](), list[str]()
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.used: set[int] = set()

    def number(self, value: str) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] == "inputs":
            self.inputs = [self.number(name) for name, *_ in event["inputs"]]
        elif event["type"] == "outputs":
            self.outputs = [self.number(name) for name, *_ in event["outputs"]]
        elif event["type"] == "constants":
            for name, value in event["constants"]:
                self.constant(self.number(name), value)
        elif event["type"] == "primitive":
            self.primitive(event)

    def constant(self, number: int, value: mx.array) -> None:
        if value.size > MOST_CONSTANT_VALUES:
            raise ConfigError(
                f"{self.name}: a constant of {value.size} values, shape {list(value.shape)}; expected a parameter"
            )
        wide = value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value
        flat: Any = wide.flatten().tolist()
        values = ",".join(text(each) for each in flat)
        self.lines.append(f"const {number} {text(value.dtype)} {text(list(value.shape))} {values}")

    def primitive(self, event: dict[str, Any]) -> None:
        op, args = event["name"], [text(arg) for arg in event["arguments"]]
        if op == "CustomKernel":
            op, args = _unmarked(event["arguments"])
        if op == "Arange":  # sizes stand here as floats, which hides that they are whole
            args = [text(int(arg) if arg == int(arg) else arg) for arg in event["arguments"]]
            args.append(text(event["outputs"][0][2]))
        inputs, outputs = ([self.number(n) for n, *_ in event[side]] for side in ("inputs", "outputs"))
        if op not in OPERATIONS:
            raise ConfigError(f"{self.name}: no operation {op!r} in a graph; known: {', '.join(sorted(OPERATIONS))}")
        if not OPERATIONS[op].takes(len(inputs), len(args), len(outputs)):
            got = f"{len(inputs)} arrays, {len(args)} arguments and {len(outputs)} results"
            raise ConfigError(f"{self.name}: operation {op!r} with {got}, expected {OPERATIONS[op]}")
        self.used.update(inputs)
        joined = [",".join(map(str, side)) or "-" for side in (inputs, outputs)]
        self.lines.append(" ".join(["op", op, *joined, *args]))


def _unmarked(arguments: Sequence[Any]) -> tuple[str, list[str]]:
    name = re.search(r"marker_([A-Za-z]+)", str(arguments[0]))
    settings = re.search(r"// (\[.*\])", str(arguments[1]))
    if not name or not settings:
        raise ConfigError(f"a Metal kernel of its own ({arguments[0]!r}) cannot be exported")
    return next(op for op in sorted(OPERATIONS, key=len, reverse=True) if name[1].startswith(op)), json.loads(
        settings[1]
    )


def trace(name: str, function: Function, weights: Sequence[mx.array], inputs: Sequence[mx.array]) -> str:
    """The graph of function(*weights, *inputs) -> arrays; weights that it does not use are left out.

    Raises ConfigError where something in it has no place in a graph.
    """
    lines = _Lines(name)
    try:
        with fused():
            mx.export_function(lines, function, *weights, *inputs)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be exported ({error})") from error
    given = lines.inputs[: len(weights)]
    used = [f"{index}:{number}" for index, number in enumerate(given) if number in lines.used | set(lines.outputs)]
    head = [f"moshi graph {FORMAT}", f"values {len(lines.numbers)}", " ".join(["weights", *used])]
    ends = (" ".join([side, *map(str, numbers)]) for side, numbers in
            (("in", lines.inputs[len(weights) :]), ("out", lines.outputs)))  # fmt: skip
    before, after = ends
    return "\n".join([*head, before, *lines.lines, after]) + "\n"
