"""The operations of a graph: MLX's primitives by name, with what each takes. `embed/src/operations.hpp` has the same.

What is not in the table cannot be exported, and is refused by name when a graph is traced.
"""

from __future__ import annotations

from typing import NamedTuple


class Operation(NamedTuple):
    """How many arrays and arguments an operation takes; `most` 0 means any number from `least` on."""

    least: int
    arguments: int = 0
    most: int | None = None
    outputs: int = 1  # 0: any number

    def takes(self, inputs: int, arguments: int, outputs: int) -> bool:
        most = self.least if self.most is None else self.most
        enough = inputs >= self.least and (most == 0 or inputs <= most)
        return enough and arguments == self.arguments and self.outputs in (0, outputs)


UNARY = (
    "Abs", "Ceil", "Cos", "Erf", "ErfInv", "Exp", "Expm1", "Floor", "Log1p", "LogicalNot", "Negative", "Round",
    "Sigmoid", "Sign", "Sin", "Square", "Tan", "Tanh", "Full", "Copy", "StopGradient", "Contiguous",
)  # fmt: skip
BINARY = (
    "Add", "Divide", "FloorDivide", "Greater", "GreaterEqual", "Less", "LessEqual", "LogAddExp", "LogicalAnd",
    "LogicalOr", "Matmul", "Maximum", "Minimum", "Multiply", "NotEqual", "Power", "Remainder", "Subtract",
)  # fmt: skip
OPERATIONS: dict[str, Operation] = {
    **{name: Operation(1) for name in UNARY},
    **{name: Operation(2) for name in BINARY},
    "AddMM": Operation(3, 2),  # alpha, beta
    "Arange": Operation(0, 4),  # start, stop, step, type
    "ArgPartition": Operation(1, 2),  # kth, axis
    "ArgReduce": Operation(1, 2),  # 0 least or 1 largest, axis
    "ArgSort": Operation(1, 1),
    "AsType": Operation(1, 1),
    "BitwiseBinary": Operation(2, 1),  # and, or, xor, shift left, shift right
    "Broadcast": Operation(1, 1),
    "Concatenate": Operation(1, 1, most=0),
    "Convolution": Operation(2, 7),  # strides, padding before and behind, dilations of kernel and input, groups, flip
    "Equal": Operation(2, 1),
    "ExpandDims": Operation(1, 1),
    "Flatten": Operation(1, 2),
    "Gather": Operation(1, 2, most=0),  # axes, sizes
    "GatherAxis": Operation(2, 1),
    "Log": Operation(1, 1),  # base 2, 10, e
    "LogSumExp": Operation(1),
    "Pad": Operation(2, 3),  # axes, before, behind
    "Partition": Operation(1, 2),
    "Quantize": Operation(1, 4, outputs=0),  # group size, bits, mode, false
    "QuantizedMatmul": Operation(3, 4, most=4),  # group size, bits, mode, transpose
    "RandomBits": Operation(1, 2),  # shape, bytes
    "Reduce": Operation(1, 2),  # and, or, sum, product, least, largest; axes
    "Reshape": Operation(1, 1),
    "Scan": Operation(1, 4),  # largest, least, sum, product, logaddexp; axis, reverse, inclusive
    "ScatterAxis": Operation(3, 2),  # 0 sum or 1 in place of, axis
    "Select": Operation(3),
    "Slice": Operation(1, 3),
    "SliceUpdate": Operation(2, 4),  # 4 in place of; start, stop, steps
    "Softmax": Operation(1, 1),
    "Sort": Operation(1, 1),
    "Split": Operation(1, 2, outputs=0),
    "Sqrt": Operation(1, 1),
    "Squeeze": Operation(1, 1),
    "Transpose": Operation(1, 1),
    "Unflatten": Operation(1, 2),
    "View": Operation(1, 1),
    # MLX's fused operations, and the choice of a token, which `tracing` keeps whole
    "RMSNorm": Operation(2, 1),  # eps
    "LayerNorm": Operation(3, 1),
    "RoPE": Operation(2, 4),  # dims, traditional, base, scale
    "Attention": Operation(3, 1, most=4),  # scale
    "Dequantize": Operation(2, 4, most=3),  # group size, bits, mode, type
    "Choose": Operation(1, 1),  # codebook
}
MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")
