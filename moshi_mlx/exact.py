"""Exact float32 products on every chip: MLX's reduced precision is off unless the user asks for it.

From the M5 on, MLX computes float32 matrix products in TF32 (10 bits of mantissa), unless MLX_ENABLE_TF32 is 0; its
Metal backend reads that once, at the first such product. With it Mimi's codes differ from the reference's. Weights in
bfloat16 and quantized ones are not affected. To have TF32 all the same: MLX_ENABLE_TF32=1 in the environment.
"""

import os

SWITCH = "MLX_ENABLE_TF32"

os.environ.setdefault(SWITCH, "0")
