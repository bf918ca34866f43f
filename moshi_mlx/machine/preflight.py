"""What a conversation will ask of this machine, found out and said before it begins."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoints import hub
from ..conversation import duplex
from ..conversation.session import BUFFER_CACHE_BYTES
from ..errors import InputError, MoshiError
from ..models.layers.linear import Embedding, Linear
from ..models.moshi import Moshi
from ..models.state import flatten
from ..terminal.sizes import size
from . import chips

FRAMES = 12  # that are timed
SECOND_LOOK = 25  # frames, where those were too slow
ANYWAY = ", or go on all the same with --force"
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
Q4_BITS = 5  # of a weight in 4 bits, its part of a group's scale and bias included
wait = time.sleep


class Plan(NamedTuple):
    """What is to be loaded: its name, where it lies, its bytes, and how many of those are still to be fetched."""

    name: str
    where: str
    size: int
    to_fetch: int = 0

    def __str__(self) -> str:
        fetch = f", {size(self.to_fetch)} to download" if self.to_fetch else ""
        return f"{self.name}: {size(self.size)} from {self.where}{fetch}"


def plan(name: str) -> Plan | None:
    """Of a folder or a hub id; None where nothing can be said of it before it is loaded."""
    folder = hub.named_folder(name)
    if folder.is_dir():
        return Plan(name, "this folder", _folder_bytes(folder))
    if folder.exists() or not hub.is_hub_id(name):
        return None
    cached = hub.cached(name)
    if cached:
        return Plan(name, f"the hub's cache, {cached}", _folder_bytes(cached))
    sizes = hub.sizes(name)
    return Plan(name, "the Hugging Face hub", *sizes) if sizes else None


def _folder_bytes(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in hub.files_of(folder))
    except (OSError, MoshiError):  # loading says what is wrong
        return 0


def usable_bytes() -> int:
    """The memory that this machine has for a model: what macOS lets the GPU use, elsewhere what a process may have."""
    wired = mx.device_info().get("max_recommended_working_set_size")
    if wired:
        return int(wired)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def check_memory(needed: int, what: str, advice: str) -> None:
    """Raises InputError where this machine cannot hold so many bytes."""
    usable = usable_bytes()
    if needed > usable:
        raise InputError(f"{what} takes {size(needed)}, this machine has {size(usable)} for it; {advice}{ANYWAY}")


def conversation_bytes(
    model: Moshi, kv_bits: int | None = None, context: int | None = None, guidance: float = 1.0
) -> int:
    """Weights, the state of a conversation that fills the context, and what MLX keeps of freed buffers."""
    state = duplex.init_state(model, [0], context, kv_bits, None, guidance)  # lazy: nothing is taken
    return weight_bytes(model)[0] + sum(array.nbytes for _, array in flatten(state)) + BUFFER_CACHE_BYTES


def frame_bytes(model: Moshi, kv_bits: int | None = None, context: int | None = None, guidance: float = 1.0) -> int:
    """What a frame reads once the context is full: weights, keys and values (with guidance those of two rows)."""
    cache = model.decoder.model.init_state(1 if guidance == 1 else 2, capacity=context, kv_bits=kv_bits)
    return weight_bytes(model)[1] + sum(array.nbytes for _, array in flatten(cache))


def weight_bytes(model: Moshi) -> tuple[int, int]:
    """(bytes of all weights, bytes that a frame reads): of tables a frame reads a few rows, of all else everything."""
    arrays = {id(array): array.nbytes for _, array in flatten(model.parameters())}
    tables = {id(a) for m in model.modules() if isinstance(m, Embedding) for a in m.values() if isinstance(a, mx.array)}
    codec = model.config.audio_encoder_config
    books = model.audio_encoder.quantizer.embedding.nbytes
    unused = books * (codec.num_quantizers - model.config.user_codebooks) // codec.num_quantizers
    total = sum(arrays.values())
    return total, total - sum(size for key, size in arrays.items() if key in tables) - unused


def report(model: Moshi, kv_bits: int | None = None, context: int | None = None, guidance: float = 1.0) -> str:
    """One line: the weights, and on a chip whose memory bandwidth is known the least time of a frame."""
    a_frame = frame_bytes(model, kv_bits, context, guidance)
    line = f"weights {size(weight_bytes(model)[0])}; with a full context {size(a_frame)} read in every frame of "
    line += f"{chips.FRAME_MS:.0f} ms, {size(conversation_bytes(model, kv_bits, context, guidance))} in memory"
    info = mx.device_info()
    chip = chips.of_machine(info)
    if chip is None and mx.default_device() == mx.Device(mx.cpu):
        return line  # timing frames says it
    bandwidth = chip.bandwidth if chip else chips.measured_bandwidth()
    name = chip.name if chip else f"{info.get('device_name', 'this chip')} (measured)"
    bound = chips.frame_bound_ms(a_frame, bandwidth)
    line += f"; {name}'s {bandwidth:.4g} GB/s take at least {bound:.0f} ms"
    if bound <= chips.FRAME_MS:
        return line
    return line + ", too long to keep up" + (": try -q 4" if saved_by_4_bits(model) else "")


def saved_by_4_bits(model: Moshi) -> int:
    """Bytes that matrices in 4 bits, groups of 32, would save of the language model; 0 where it is near that."""
    saved = 0
    for part in (model.decoder, model.depth_decoder):
        for module in part.modules():
            if isinstance(module, (Linear, Embedding, nn.QuantizedLinear)):
                held = sum(a.nbytes for a in module.values() if isinstance(a, mx.array))
                weights = module.weight.size * (32 // module.bits if "scales" in module else 1)
                saved += max(0, held - weights * Q4_BITS // 8)
    return saved if saved > weight_bytes(model)[0] // 20 else 0


def takes_kv_bits(model: Moshi) -> bool:
    """Whether its attention cache can be kept in 8 or 4 bits."""
    return model.config.head_width % 32 == 0


def time_frames(session: Any, count: int = FRAMES) -> list[float]:
    """Seconds of each of `count` frames at a full context, one every 80 ms as in a conversation.

    A GPU clocks down between frames, which frames back to back would hide. One before them, in which a machine also
    takes the weights into its memory, is not counted; with a count of 0 it is all.
    """
    fill = getattr(session, "fill_context", None)  # what stands in for a Session may have no context
    if fill and count:
        fill()
    seconds = []
    for _ in range(count + 1):
        started = time.perf_counter()
        session.step(np.zeros(session.frame_size, np.float32))
        seconds.append(time.perf_counter() - started)
        if count:
            wait(max(0.0, chips.FRAME_MS / 1e3 - seconds[-1]))
    session.reset()
    return seconds[1:]


def time_live(session: Any) -> list[float]:
    """`time_frames`, and once more, longer, where they were too slow: something else may have been running."""
    seconds = time_frames(session)
    return time_frames(session, SECOND_LOOK) if median_ms(seconds) >= chips.FRAME_MS else seconds


def median_ms(seconds: list[float]) -> float:
    return 1e3 * float(np.median(seconds))


def check_speed(seconds: list[float], advice: str) -> str:
    """One line about the timed frames. Raises InputError where a frame takes longer than it lasts."""
    p50, p95 = median_ms(seconds), 1e3 * float(np.percentile(seconds, 95))
    limit = chips.FRAME_MS
    if p50 >= limit:
        raise InputError(
            f"too slow to talk live: with a full context a frame takes {p50:.0f} ms (median of {len(seconds)}), it "
            f"must take less than {limit:.0f}; {advice}{ANYWAY}"
        )
    line = f"a frame takes {p50:.0f} ms with a full context, 95% within {p95:.0f}, and lasts {limit:.0f}"
    return line + ("; some frames are too slow" if p95 >= limit else "")
