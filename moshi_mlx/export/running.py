"""A bundle run in Python, as `embed/src` runs it in C++: for `--check`, and to hold the graphs to the Session.

The operations are those of `operations`, each as the MLX function of that meaning.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..checkpoints.safetensors import load_lazily
from ..errors import CheckpointError
from .bundle import MANIFEST, fingerprint
from .operations import MODES
from .tracing import FORMAT

Arrays = list[mx.array]
DTYPES = {
    name: getattr(mx, name)
    for name in (
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "float32",
        "bfloat16",
    )
}
DTYPES |= {"bool": mx.bool_}
SCANS = (mx.cummax, mx.cummin, mx.cumsum, mx.cumprod, mx.logcumsumexp)
REDUCTIONS = (mx.all, mx.any, mx.sum, mx.prod, mx.min, mx.max)
BITWISE = (mx.bitwise_and, mx.bitwise_or, mx.bitwise_xor, mx.left_shift, mx.right_shift)
LOGARITHMS = (mx.log2, mx.log10, mx.log)


def _slices(start: Any, stop: Any, steps: Any) -> tuple[slice, ...]:
    return tuple(slice(a, None if b < 0 > c else b, c) for a, b, c in zip(start, stop, steps, strict=True))


def _updated(x: mx.array, update: mx.array, start: Any, stop: Any, steps: Any) -> mx.array:
    x = x + 0
    x[_slices(start, stop, steps)] = update
    return x


def _gather(x: mx.array, indices: Sequence[mx.array], axes: Any, sizes: Any) -> mx.array:
    """Along the given axes one row an index, along the others all of them."""
    whole = [i for i in range(x.ndim) if i not in axes]
    if any(sizes[i] != 1 for i in axes) or any(sizes[i] != x.shape[i] for i in whole):
        raise NotImplementedError(f"Gather of sizes {sizes}")
    rows = x.transpose(*axes, *whole)[tuple(indices)]
    shape = [1 if i in axes else x.shape[i] for i in range(x.ndim)]
    return rows.reshape(*rows.shape[: rows.ndim - len(whole)], *shape)


def _padded(x: mx.array, value: mx.array, axes: Any, before: Any, behind: Any) -> mx.array:
    sizes = [(0, 0)] * x.ndim
    for axis, *size in zip(axes, before, behind, strict=True):
        sizes[axis] = (size[0], size[1])
    return mx.pad(x, sizes, constant_values=value)


def _bits(key: mx.array, shape: Any, width: int) -> mx.array:
    """Random words, which Python's MLX has no function for: keys are pairs of them, and uniform numbers are their
    quotients by 2**32. An odd number of words comes as float32, which is what becomes of them anyway.
    """
    count, key = math.prod(shape), key.reshape(2)
    if count % 2 == 0:
        return mx.random.split(key, count // 2).reshape(shape)
    return mx.random.uniform(shape=shape, key=key) * 2.0**32


def _quantized_matmul(x: tuple[mx.array, ...], group: int, bits: int, mode: int, transpose: int) -> mx.array:
    biases = x[3] if len(x) > 3 else None
    return mx.quantized_matmul(x[0], x[1], x[2], biases, bool(transpose), group, bits, MODES[mode])


def _dequantize(x: tuple[mx.array, ...], group: int, bits: int, mode: int, dtype: mx.Dtype) -> mx.array:
    return mx.dequantize(x[0], x[1], x[2] if len(x) > 2 else None, group, bits, MODES[mode], dtype=dtype)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "Abs": mx.abs, "Ceil": mx.ceil, "Cos": mx.cos, "Erf": mx.erf, "ErfInv": mx.erfinv, "Exp": mx.exp,
    "Expm1": mx.expm1, "Floor": mx.floor, "Log1p": mx.log1p, "LogicalNot": mx.logical_not, "Negative": mx.negative,
    "Round": mx.round, "Sigmoid": mx.sigmoid, "Sign": mx.sign, "Sin": mx.sin, "Square": mx.square, "Tan": mx.tan,
    "Tanh": mx.tanh, **dict.fromkeys(("Full", "Copy", "StopGradient", "Contiguous"), lambda x: x),
    "Add": mx.add, "Divide": mx.divide, "FloorDivide": mx.floor_divide, "Greater": mx.greater,
    "GreaterEqual": mx.greater_equal, "Less": mx.less, "LessEqual": mx.less_equal, "LogAddExp": mx.logaddexp,
    "LogicalAnd": mx.logical_and, "LogicalOr": mx.logical_or, "Matmul": mx.matmul, "Maximum": mx.maximum,
    "Minimum": mx.minimum, "Multiply": mx.multiply, "NotEqual": mx.not_equal, "Power": mx.power,
    "Remainder": mx.remainder, "Subtract": mx.subtract,
    "AddMM": lambda a, b, c, alpha, beta: mx.addmm(c, a, b, alpha=alpha, beta=beta),
    "Arange": lambda start, stop, step, dtype: mx.arange(start, stop, step, dtype),
    "ArgPartition": lambda x, kth, axis: mx.argpartition(x, kth, axis=axis),
    "ArgReduce": lambda x, most, axis: (mx.argmax if most else mx.argmin)(x, axis=axis, keepdims=True),
    "ArgSort": lambda x, axis: mx.argsort(x, axis=axis),
    "AsType": lambda x, dtype: x.astype(dtype),
    "BitwiseBinary": lambda a, b, which: BITWISE[which](a, b),
    "Broadcast": mx.broadcast_to,
    "Concatenate": lambda *x: mx.concatenate(list(x[:-1]), axis=x[-1]),
    "Convolution": lambda x, w, strides, before, behind, kernel, spread, groups, flip: mx.conv_general(
        x, w, strides, (before, behind), kernel, spread, groups, bool(flip)),
    "Equal": lambda a, b, nan: mx.equal(a, b),
    "ExpandDims": mx.expand_dims,
    "Flatten": mx.flatten,
    "Gather": lambda *x: _gather(x[0], x[1:-2], x[-2], x[-1]),
    "GatherAxis": lambda x, index, axis: mx.take_along_axis(x, index, axis=axis),
    "Log": lambda x, base: LOGARITHMS[base](x),
    "LogSumExp": lambda x: mx.logsumexp(x, axis=-1, keepdims=True),
    "Pad": _padded,
    "Partition": lambda x, kth, axis: mx.partition(x, kth, axis=axis),
    "Quantize": lambda x, group, bits, mode, _: mx.quantize(x, group_size=group, bits=bits, mode=MODES[mode]),
    "QuantizedMatmul": lambda *x: _quantized_matmul(x[:-4], *x[-4:]),
    "RandomBits": _bits,
    "Reduce": lambda x, which, axes: REDUCTIONS[which](x, axis=axes, keepdims=True),
    "Reshape": mx.reshape,
    "Scan": lambda x, which, axis, reverse, inclusive: SCANS[which](
        x, axis=axis, reverse=bool(reverse), inclusive=bool(inclusive)),
    "ScatterAxis": lambda x, index, new, which, axis: mx.put_along_axis(x, index, new, axis=axis),
    "Select": mx.where,
    "Slice": lambda x, start, stop, steps: x[_slices(start, stop, steps)],
    "SliceUpdate": lambda x, new, which, start, stop, steps: _updated(x, new, start, stop, steps),
    "Softmax": lambda x, precise: mx.softmax(x, axis=-1, precise=bool(precise)),
    "Sort": lambda x, axis: mx.sort(x, axis=axis),
    "Split": lambda x, ends, axis: mx.split(x, ends, axis=axis),
    "Sqrt": lambda x, inverse: mx.rsqrt(x) if inverse else mx.sqrt(x),
    "Squeeze": mx.squeeze,
    "Transpose": mx.transpose,
    "Unflatten": mx.unflatten,
    "View": mx.view,
    "RMSNorm": mx.fast.rms_norm,
    "LayerNorm": mx.fast.layer_norm,
    "RoPE": lambda x, offset, dims, traditional, base, scale: mx.fast.rope(
        x, dims, traditional=bool(traditional), base=base, scale=scale, offset=offset),
    "Attention": lambda q, k, v, *more: mx.fast.scaled_dot_product_attention(
        q, k, v, scale=more[-1], mask=more[0] if len(more) > 1 else None),
    "Dequantize": lambda *x: _dequantize(x[:-4], *x[-4:]),
}  # fmt: skip


class Node(NamedTuple):
    op: str
    inputs: list[int]
    outputs: list[int]
    arguments: list[Any]


class Graph:
    """A graph of text. `choose(codebook, logits)` is asked where it has a `Choose`; `symbols` are its sizes."""

    def __init__(self, text: str, parameters: Arrays, symbols: dict[str, int] | None = None) -> None:
        self._symbols = symbols or {}
        self._fixed: dict[int, mx.array] = {}
        self._nodes: list[Node] = []
        self._ends: dict[str, list[int]] = {}
        first, *lines = text.splitlines()
        if first != f"moshi graph {FORMAT}":
            raise CheckpointError(f"got {first!r}, expected 'moshi graph {FORMAT}'")
        for line in lines:
            kind, *words = line.split(" ")
            if kind == "weights":
                pairs = (word.split(":") for word in words)
                self._fixed |= {int(number): parameters[int(index)] for index, number in pairs}
            elif kind in ("in", "out"):
                self._ends[kind] = [int(word) for word in words]
            elif kind == "const":
                number, dtype, shape, values = words
                flat = self._value(f"[{values}]")
                self._fixed[int(number)] = mx.array(flat, DTYPES[dtype]).reshape(self._value(shape))
            elif kind == "op":
                inputs, outputs = (
                    [] if side == "-" else [int(each) for each in side.split(",")] for side in words[1:3]
                )
                self._nodes.append(Node(words[0], inputs, outputs, [self._value(word) for word in words[3:]]))

    def _value(self, word: str) -> Any:
        if word.startswith("["):
            return [self._value(each) for each in word[1:-1].split(",") if each]
        if word in DTYPES:
            return DTYPES[word]
        try:
            return int(word)
        except ValueError:
            pass
        try:
            return float(word)
        except ValueError:
            return sum(self._term(term) for term in word.replace("-", "+-").split("+") if term)

    def _term(self, term: str) -> int:
        sign, term = (-1, term[1:]) if term.startswith("-") else (1, term)
        factor, _, symbol = term.rpartition("*")
        number = int(symbol) if symbol.isdigit() else self._symbols[symbol]
        return sign * int(factor or 1) * number

    def __call__(self, *inputs: mx.array, choose: Callable[[int, mx.array], mx.array] | None = None) -> Arrays:
        values = self._fixed | dict(zip(self._ends["in"], inputs, strict=True))
        for node in self._nodes:
            given = [values[number] for number in node.inputs]
            if node.op == "Choose":
                assert choose is not None
                made: Any = choose(node.arguments[0], given[0])
            else:
                made = OPERATIONS[node.op](*given, *node.arguments)
            values |= zip(node.outputs, made if isinstance(made, (list, tuple)) else [made], strict=True)
        return [values[number] for number in self._ends["out"]]


class Bundle:
    """A bundle and its weights, ready to begin conversations."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.values, self.weights, self.tensors = read_manifest(folder)
        for name, expected in zip(self.weights, self.values["fingerprints"].split(), strict=True):
            if fingerprint(checkpoint / name) != expected:
                raise CheckpointError(f"{checkpoint / name}: another file than {folder} was made of; export it again")
        loaded = [load_lazily(checkpoint / name) for name in self.weights]
        given = [loaded[int(line.split(" ")[0])][line.split(" ", 3)[3]] for line in self.tensors]
        self.parameters = self.graph("prepare", [])(*given)
        self.parameters = [mx.contiguous(value) for value in self.parameters]
        mx.eval(self.parameters)
        capacities = self.values["capacities"].split()
        self.think = {int(size): self.graph(f"think.{size}", self.parameters) for size in capacities}
        self.grow = {int(size): self.graph(f"grow.{size}", []) for size in capacities[:-1]}
        self.begin, self.encode, self.depth, self.decode = (
            self.graph(name, self.parameters) for name in ("begin", "encode", "depth", "decode")
        )

    def number(self, key: str) -> int:
        return int(self.values[key])

    def graph(self, name: str, parameters: Arrays, **symbols: int) -> Graph:
        return Graph((self.folder / f"{name}.graph").read_text(), parameters, symbols)


def read_manifest(folder: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Values, names of weight files and lines of tensors; every file is what it was when it was written.

    Raises CheckpointError.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
        body, end = text[: text.rindex("end ")], text[text.rindex("end ") :]
        if end != f"end {zlib.crc32(body.encode()):08x}\n":
            raise ValueError("damaged")
        lines = [line.partition(" ") for line in body.splitlines()]
        if lines[0] != ("moshi_bundle", " ", str(FORMAT)):
            raise ValueError(f"format {lines[0][2]}, expected {FORMAT}")
        for crc, size, name in (line[2].split(" ", 2) for line in lines if line[0] == "file"):
            data = (folder / name).read_bytes()
            if len(data) != int(size) or zlib.crc32(data) != int(crc, 16):
                raise ValueError(f"{name} is damaged")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a bundle that can be read ({error})") from error
    values = {key: value for key, _, value in lines if key not in ("file", "weights", "tensor")}
    weights, tensors = ([value for key, _, value in lines if key == kind] for kind in ("weights", "tensor"))
    return values, weights, tensors
