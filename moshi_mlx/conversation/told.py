"""What a conversation is told once and for all, as parts of its state; and guidance, which asks twice.

With guidance a conversation has two rows of the temporal transformer: the second is told the opposite, or nothing, and
what is drawn from is null + (told - null) * guidance, text and codes alike (classifier-free guidance, as Kyutai's
`LMGen` has it: `cfg_coef`). Both rows go on with the same token. All else has one row a conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..inputs import FLOAT32_MOST, number
from ..models.moshi import Moshi
from ..models.state import State

AGAINST = {"description": "very_bad"}
"""What the second row is told of a condition, where a published program does not leave it out."""


def checked_guidance(value: Any) -> float:
    """The number itself. Raises InputError for what is none."""
    return float(number("guidance", value, -FLOAT32_MOST, FLOAT32_MOST))


def conversation_guidance(model: Moshi, value: Any) -> float:
    """The number itself, 1 where None. Raises InputError for what is none, and where there is nothing to guide by."""
    guidance = 1.0 if value is None else checked_guidance(value)
    if guidance != 1 and not model.conditions.names:
        raise InputError(f"guidance: got {guidance:g}, but this model takes no conditions to guide by; leave it out")
    return guidance


def check_takes_prompts(model: Moshi, name: str) -> None:
    """Raises InputError for a model that does not greet, nor is anybody: a translator."""
    if model.config.role == "translator":
        raise InputError(f"{name}: a translator takes none, it says what it hears; leave it out")


def said(model: Moshi, conditions: Mapping[str, Any] | None) -> dict[str, str | None]:
    """The conditions as a file says them: of a sequence only that there is one."""
    values = model.conditions.check(conditions)
    return {name: value if value is None or isinstance(value, str) else "sequence" for name, value in values.items()}


def against(model: Moshi) -> dict[str, Any]:
    """What the second row is told: the opposite where there is one, else nothing."""
    return {
        name: AGAINST.get(name) if AGAINST.get(name) in model.conditions.values_of(name) else None
        for name in model.conditions.names
    }


def told(model: Moshi, batch: int, conditions: Mapping[str, Any] | None = None, guidance: float = 1.0) -> State:
    """The parts of a temporal state that say the conditions of `batch` conversations alike. Raises InputError."""
    sides = [model.conditions.check(conditions)]
    if guidance != 1:
        sides.append(against(model))
    helium = model.decoder.model
    parts: State = {}
    vectors = [model.conditions.vector(side) for side in sides]
    if vectors[0] is not None:
        parts["condition"] = _rows(vectors, batch).astype(helium.dtype)
    sources = [source for side in sides if (source := model.conditions.source(side)) is not None]
    if sources:
        most = max(len(source) for source in sources)  # nothing is one vector, which attention sees as often
        sources = [mx.broadcast_to(source, (most, source.shape[1])) for source in sources]
        across = helium.transformer.across(_rows(sources, batch).astype(helium.dtype))
        parts["cross"] = across
    return parts


def _rows(sides: list[Any], batch: int) -> mx.array:
    """[sides * batch, ...]: first the rows that are told, then those that are told otherwise."""
    return mx.concatenate([mx.broadcast_to(side, (batch, *side.shape)) for side in sides])


def guided(logits: mx.array, rows: int, guidance: float) -> mx.array:
    """logits [rows, V], or [2 rows, V] of both sides -> those to draw from [rows, V]."""
    if len(logits) == rows:
        return logits
    said, null = mx.split(logits, 2)
    return null + (said - null) * guidance
