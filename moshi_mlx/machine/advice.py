"""What would help a machine that is too small or too slow for a conversation, with the figures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..models.layers.cache import KV_BITS
from ..models.moshi import Moshi
from ..terminal.sizes import size
from . import chips, preflight
from .chips import FRAME_MS

LEAST_CONTEXT = 250  # frames, 20 s: with less, a conversation forgets what it is about
CONTEXT_STEP = 125  # frames, 10 s
MARGIN = 0.95  # of a frame that a prediction may take


class Asked(NamedTuple):
    """How a conversation is to be held: the flags that bear on its speed and memory."""

    model: str
    kv_bits: int | None = None
    context: int | None = None

    @property
    def is_own(self) -> bool:
        """Whether the checkpoint was named with --model, so that -q and --voice choose nothing."""
        return not self.model.startswith(("kyutai/moshiko-mlx-", "kyutai/moshika-mlx-"))

    @property
    def fewer_bits(self) -> str:
        return "a copy in 4 bits (moshi_mlx.convert -q)" if self.is_own else "-q 4"


def before_loading(asked: Asked) -> str:
    """What to try where not even the files fit."""
    if asked.is_own or not asked.model.endswith("-q4"):
        return f"use {asked.fewer_bits}"
    return "close other programs" + ("" if asked.kv_bits else ", use --kv-bits 8")


def for_speed(model: Any, asked: Asked, ms: float) -> str:
    """What would bring a frame of `ms` below 80, taking time to follow the bytes that a frame reads."""
    if not isinstance(model, Moshi):
        return before_loading(asked)
    now = preflight.frame_bytes(model, asked.kv_bits, asked.context)

    def predicted(saved: int, kv_bits: int | None, context: int | None) -> float:
        return ms * (preflight.frame_bytes(model, kv_bits, context) - saved) / now

    helps = _helps(model, asked, predicted, MARGIN * FRAME_MS, lambda value: f"about {value:.0f} ms")
    return ", ".join([*library(), *helps]) or "close other programs; nothing else would bring it below 80"


def for_memory(model: Any, asked: Asked, usable: int) -> str:
    """What would make a conversation fit into so many bytes."""
    if not isinstance(model, Moshi):
        return before_loading(asked)

    def held(saved: int, kv_bits: int | None, context: int | None) -> float:
        return preflight.conversation_bytes(model, kv_bits, context) - saved

    helps = _helps(model, asked, held, usable, lambda value: size(int(value)))
    return ", ".join(helps) or "no setting makes it fit"


def _helps(
    model: Moshi,
    asked: Asked,
    cost: Callable[[int, int | None, int | None], float],
    limit: float,
    said: Callable[[float], str],
) -> Iterator[str]:
    """Each change that alone brings the cost below the limit; or else all of them together, if they do."""
    saved = preflight.saved_by_4_bits(model)
    narrow = [bits for bits in KV_BITS if preflight.takes_kv_bits(model) and bits < (asked.kv_bits or 16)]
    choices: list[tuple[str, int, int | None]] = [(f"--kv-bits {bits}", 0, bits) for bits in narrow]
    if saved:
        together = [(f"{asked.fewer_bits} with {name}", saved, bits) for name, _, bits in choices]
        choices = [(asked.fewer_bits, saved, asked.kv_bits), *choices, *together]
    found = [(name, cost(less, bits, asked.context)) for name, less, bits in choices]
    helping = [(name, value) for name, value in found if value < limit]
    helping = [(name, value) for name, value in helping if not _needless(name, dict(helping))]
    yield from (f"{name}: {said(value)}" for name, value in helping if " with " not in name or len(helping) == 1)
    most = asked.context or model.config.sliding_window
    for context in range(most - most % CONTEXT_STEP, LEAST_CONTEXT - 1, -CONTEXT_STEP):
        value = cost(0, asked.kv_bits, context)
        if context < most and value < limit:
            yield f"--context {context} (it remembers {context * FRAME_MS / 1e3:.0f} s): {said(value)}"
            return


def _needless(name: str, helping: dict[str, float]) -> bool:
    """Whether it takes 4 bits where 8 would do."""
    return name.endswith("--kv-bits 4") and name.removesuffix("4") + "8" in helping


def for_many(model: Any, device: str) -> str:
    """What would let a device of this name hold more conversations in one step; "" where its weights are read once."""
    modes = {module.mode for module in model.modules() if isinstance(module, nn.QuantizedLinear)}
    if not any(chips.reads_anew(device, mode) for mode in modes):
        return ""
    return (
        f"{device} reads these weights anew for each person at once; a copy in mxfp4 is read once for all: "
        "python -m moshi_mlx.convert -q --q-mode mxfp4"
    )


def library() -> Iterator[str]:
    """What to do about the slow BLAS of MLX's wheel for Linux; nothing where another one is in its place."""
    if sys.platform != "linux" or mx.default_device() != mx.Device(mx.cpu):
        return
    mapped = Path("/proc/self/maps").read_text()
    if not any(name in mapped for name in ("openblas", "libmkl", "libblis")):
        yield "preload OpenBLAS (README: many times faster)"
