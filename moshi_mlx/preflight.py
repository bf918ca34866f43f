"""What a conversation will ask of this machine, said before it begins."""

from __future__ import annotations

import mlx.core as mx

from . import chips
from .errors import InputError
from .linear import Embedding
from .moshi import MoshiForConditionalGeneration
from .state import flatten


def weight_bytes(model: MoshiForConditionalGeneration) -> tuple[int, int]:
    """(bytes of all weights, bytes that a frame reads): of tables a frame reads a few rows, of all else everything."""
    arrays = {id(array): array.nbytes for _, array in flatten(model.parameters())}
    tables = {id(a) for m in model.modules() if isinstance(m, Embedding) for a in m.values() if isinstance(a, mx.array)}
    codec = model.config.audio_encoder_config
    books = model.audio_encoder.quantizer.embedding.nbytes
    unused = books * (codec.num_quantizers - model.config.user_codebooks) // codec.num_quantizers
    total = sum(arrays.values())
    return total, total - sum(size for key, size in arrays.items() if key in tables) - unused


def report(model: MoshiForConditionalGeneration) -> str:
    """One line: the weights and, on a chip whose memory bandwidth is published, the least time of a frame."""
    total, a_frame = weight_bytes(model)
    line = f"weights {size(total)}, {size(a_frame)} of them read in every frame of {chips.FRAME_MS:.0f} ms"
    try:
        chip = chips.find(str(mx.device_info().get("device_name", "")))[-1]
    except InputError:  # not an Apple chip that the table has
        return line
    bound = chips.frame_bound_ms(a_frame, chip.bandwidth)
    line += f"; {chip.name}'s {chip.bandwidth:g} GB/s take at least {bound:.0f} ms"
    return line + (", too long to keep up: try -q 4" if bound > chips.FRAME_MS else "")


def size(count: int) -> str:
    """Bytes for people."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
