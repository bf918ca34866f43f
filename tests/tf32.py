"""A stand-in for the float32 products of an M5: `python -m pytest -p tf32 tests/models` runs any test on it.

As Metal does from the M5 on, it rounds both operands of a float32 product of two rows or more to 10 bits of mantissa,
unless MLX_ENABLE_TF32 is "0" when the first such product is computed. Quantized products and other types are left as
they are.
"""

import functools
import os

import mlx.core as mx

KEPT = 0xFFFFE000  # sign, exponent and the upper 10 bits of the mantissa
HALF = 0x0FFF  # half of what is cut off, less one: ties go to the even one


@functools.cache
def enabled():
    return os.environ.get("MLX_ENABLE_TF32", "1") != "0"


def rounded(x):
    bits = x.view(mx.uint32)
    return ((bits + HALF + ((bits >> 13) & 1)) & mx.array(KEPT, mx.uint32)).view(mx.float32)


def rows(a, b):
    """Of the product, as Metal counts them: a stack of matrices times one matrix is one tall product."""
    if a.ndim == 1:
        return 1
    return a.size // a.shape[-1] if b.ndim == 2 else a.shape[-2]


def operands(a, b):
    tall = a.dtype == b.dtype == mx.float32 and rows(a, b) > 1 and b.ndim > 1 and b.shape[-1] > 1
    return (rounded(a), rounded(b)) if tall and enabled() else (a, b)


def install():
    matmul, addmm = mx.matmul, mx.addmm
    attention = mx.fast.scaled_dot_product_attention

    def attend(q, k, v, **options):
        if q.dtype == mx.float32 and q.shape[2] > 8 and enabled():  # up to 8 rows another kernel is used
            q, k, v = rounded(q), rounded(k), rounded(v)
        return attention(q, k, v, **options)

    mx.matmul = lambda a, b, **options: matmul(*operands(a, b), **options)
    mx.addmm = lambda c, a, b, *rest, **options: addmm(c, *operands(a, b), *rest, **options)
    mx.array.__matmul__ = lambda a, b: mx.matmul(a, b)
    mx.fast.scaled_dot_product_attention = attend


def pytest_configure():
    """As a plugin (`-p tf32`): whoever only imports this module changes nothing."""
    install()
