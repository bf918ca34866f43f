"""Who runs a model of which role, and the check at a door that a model has a role that fits."""

from __future__ import annotations

from typing import Any

from ..errors import InputError

KINDS = {
    "dialogue": ("dialogue model (Moshi)", "local"),
    "translator": ("translator (Hibiki)", "translate"),
    "transcriber": ("transcriber (STT)", "transcribe"),
    "speaker": ("speaker (TTS)", "say"),
}
"""What a model of each role is called, and the command that runs it."""
BOTH_SIDES = ("dialogue", "translator")
"""The roles that hear and speak at once: a `Session` runs them."""


def check_role(model: Any, *wanted: str) -> None:
    """Raises InputError, which names the command that runs it, for a model (or config) of another role."""
    role = getattr(model, "config", model).role
    if role not in wanted:
        got, command = KINDS[role]
        expected = " or a ".join(KINDS[each][0] for each in wanted)
        raise InputError(f"model: got a {got}, expected a {expected}; python -m moshi_mlx.{command} runs it")
