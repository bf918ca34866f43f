"""How a command loads a model: its size and what it warns of are said, and what does not fit is refused before."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ..checkpoints import hub
from ..errors import InputError
from ..terminal.progress import Loading
from . import preflight

SMALLER = "use a smaller or quantized checkpoint, or --kv-bits 8"
Say = Callable[[str], object]


@contextlib.contextmanager
def forced(force: bool, say: Say) -> Iterator[None]:
    """Within, what a person may overrule is only said where it is overruled."""
    try:
        yield
    except InputError as error:
        if not force:
            raise
        say(f"warning: {str(error).removesuffix(preflight.ANYWAY)}")


def load(name: str, read: Callable[[], Any], say: Say, *, force: bool, quiet: bool, advice: str = SMALLER) -> Any:
    """The model that `read` gives. `advice`: what to do where not even its files fit; `quiet`: no bars of the hub."""
    if quiet:
        hub.be_quiet()
    plan = preflight.plan(name)
    say(f"loading {plan or name} ...")
    if plan:
        with forced(force, say):
            preflight.check_memory(plan.size, f"{name} alone", advice)
    with Loading(plan.size if plan else 0), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = read()
    for warning in told:
        say(f"warning: {warning.message}")
    return model


def check_conversation(
    model: Any, what: str, say: Say, *, force: bool, kv_bits: int | None, context: int | None
) -> None:
    """Raises InputError where the model with a full context does not fit."""
    with forced(force, say):
        preflight.check_memory(preflight.conversation_bytes(model, kv_bits, context), what, SMALLER)
