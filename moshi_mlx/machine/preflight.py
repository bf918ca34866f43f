"""What a conversation will ask of this machine, found out and said before it begins."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..checkpoints import hub
from ..conversation import duplex
from ..conversation.session import BUFFER_CACHE_BYTES, Session
from ..errors import InputError, MoshiError
from ..models.layers.linear import Embedding
from ..models.moshi import Moshi
from ..models.state import flatten
from ..terminal.sizes import size
from . import chips

FRAMES = 12  # that are timed


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
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Plan(name, f"the folder {folder}", _folder_bytes(folder))
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
    """The memory that this machine has for a model: what macOS lets the GPU use, elsewhere all there is."""
    wired = mx.device_info().get("max_recommended_working_set_size")
    if wired:
        return int(wired)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(needed: int, what: str, advice: str) -> None:
    """Raises InputError where this machine cannot hold so many bytes."""
    usable = usable_bytes()
    if needed > usable:
        raise InputError(
            f"{what} takes {size(needed)}, this machine has {size(usable)} for it; {advice}, "
            "or go on all the same with --force"
        )


def conversation_bytes(model: Moshi, kv_bits: int | None = None) -> int:
    """Weights, the state of a conversation that fills the context, and what MLX keeps of freed buffers."""
    state = duplex.init_state(model, [0], kv_bits=kv_bits)  # lazy: nothing is taken
    return weight_bytes(model)[0] + sum(array.nbytes for _, array in flatten(state)) + BUFFER_CACHE_BYTES


def weight_bytes(model: Moshi) -> tuple[int, int]:
    """(bytes of all weights, bytes that a frame reads): of tables a frame reads a few rows, of all else everything."""
    arrays = {id(array): array.nbytes for _, array in flatten(model.parameters())}
    tables = {id(a) for m in model.modules() if isinstance(m, Embedding) for a in m.values() if isinstance(a, mx.array)}
    codec = model.config.audio_encoder_config
    books = model.audio_encoder.quantizer.embedding.nbytes
    unused = books * (codec.num_quantizers - model.config.user_codebooks) // codec.num_quantizers
    total = sum(arrays.values())
    return total, total - sum(size for key, size in arrays.items() if key in tables) - unused


def report(model: Moshi, kv_bits: int | None = None) -> str:
    """One line: the weights, and on a chip whose memory bandwidth is published the least time of a frame."""
    total, a_frame = weight_bytes(model)
    line = f"weights {size(total)}, {size(a_frame)} of them read in every frame of {chips.FRAME_MS:.0f} ms"
    line += f"; {size(conversation_bytes(model, kv_bits))} with a full context"
    try:
        chip = chips.find(str(mx.device_info().get("device_name", "")))[-1]
    except InputError:  # not an Apple chip that the table has
        return line
    bound = chips.frame_bound_ms(a_frame, chip.bandwidth)
    line += f"; {chip.name}'s {chip.bandwidth:g} GB/s take at least {bound:.0f} ms"
    return line + (", too long to keep up: try -q 4" if bound > chips.FRAME_MS else "")


def time_frames(session: Session, count: int = FRAMES) -> list[float]:
    """Seconds of each of `count` frames; the one before them, which compiles the step, is not counted."""
    seconds = []
    for _ in range(count + 1):
        started = time.perf_counter()
        session.step(np.zeros(session.frame_size, np.float32))
        seconds.append(time.perf_counter() - started)
    session.reset()
    return seconds[1:]


def check_speed(seconds: list[float], advice: str) -> str:
    """One line about the timed frames. Raises InputError where a frame takes longer than it lasts."""
    p50, p95 = (1e3 * float(np.percentile(seconds, percent)) for percent in (50, 95))
    limit = chips.FRAME_MS
    said = f"{len(seconds)} warm-up frames took p50 {p50:.0f} ms, p95 {p95:.0f} ms"
    if p50 >= limit:
        raise InputError(
            f"too slow for a conversation: {said}, and {limit:.0f} ms is what there is; {advice}, "
            "or go on all the same with --force"
        )
    return f"{said} of {limit:.0f} ms" + ("; now and then too slow" if p95 >= limit else "")
