"""Who people want to talk to: voices by name and roles as text, read once and kept for the next who asks for the same.

A name comes from the network, so it is looked up in the list of the model's voices and is never part of a path.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple, cast

from ..checkpoints.personas.voices import stem_of
from ..conversation.prompt import Prefilled
from ..errors import AudioError, CheckpointError, InputError, MoshiError

KEPT = 8  # prompts, and all of them together no longer than the model's context: about 1.5 GB of a 7B model
MOST_CHARACTERS = 20_000  # of a role; what fits a context of 3000 tokens is shorter


class Persona(NamedTuple):
    """What a person asks for; empty is nothing."""

    voice: str = ""
    text: str = ""

    @classmethod
    def of(cls, voice: str | None, text: str | None) -> Persona:
        return cls(stem_of((voice or "").strip()), (text or "").strip())


def heard(asked: Persona, voices: list[str] | None, names: tuple[str, str] = Persona._fields) -> Persona:
    """What a model of these voices makes of it. Raises InputError for what cannot be had.

    A model of no personas at all (None) leaves it aside: LiveKit's plugin and Pipecat always send some, and want to
    talk with any Moshi. `names` are what the protocol calls a voice and a role.
    """
    if voices is None or not any(asked):
        return Persona()
    if asked.voice and asked.voice not in voices:
        known = f"one of {', '.join(voices)}" if voices else "none, since this model came without voices"
        kind = "a path, expected a name" if {"/", "\\"} & set(asked.voice) else "a name that is unknown, expected it"
        raise InputError(f"{names[0]}: got {asked.voice[:60]!r}, {kind}: {known}")
    if len(asked.text) > MOST_CHARACTERS:
        raise InputError(f"{names[1]}: got {len(asked.text)} characters, expected {MOST_CHARACTERS} at most")
    return asked


class Prompts:
    """The prompts of a model (None: nobody's), used on its thread alone."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: OrderedDict[Persona, Prefilled] = OrderedDict()  # longest unused first
        self.voices: list[str] | None = None
        """The names that may be asked for, as they were at the start; None where the model takes no personas."""
        if model is not None and model.voices is not None:
            self.voices = model.voices.names()

    def has(self, asked: Persona) -> bool:
        """Whether it takes no time."""
        return not any(asked) or asked in self._kept

    def of(self, asked: Persona) -> Prefilled | None:
        """The prompt, None where nothing is asked for. Raises InputError for what cannot be had."""
        if not any(asked):
            return None
        if asked not in self._kept:
            heard(asked, self.voices)
            self._kept[asked] = self._made(asked)
        self._kept.move_to_end(asked)
        most = self._model.config.sliding_window
        while len(self._kept) > 1 and (len(self._kept) > KEPT or self._frames() > most):
            self._kept.popitem(last=False)
        return self._kept[asked]

    def _made(self, asked: Persona) -> Prefilled:
        persona = asked.text or None
        if not asked.voice:
            return cast(Prefilled, self._model.prompt(persona=persona))
        broken = f"voice: the file of {asked.voice} cannot be read here"  # its path is nobody's business
        try:
            voice = self._model.voices.read(asked.voice)
        except (MoshiError, OSError) as error:
            raise InputError(broken) from error
        try:
            return cast(Prefilled, self._model.prompt(voice=voice, persona=persona))
        except (CheckpointError, AudioError, OSError) as error:
            raise InputError(broken) from error

    def _frames(self) -> int:
        return sum(prompt.length for prompt in self._kept.values())
