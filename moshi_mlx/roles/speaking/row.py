"""One row of those who speak: the one mutable thing about an utterance, to which text is added."""

from __future__ import annotations

from ...conversation.duplex import DuplexSampling
from ...errors import InputError, brief
from . import utterance as utterances
from .utterance import Plan, Utterance


class SpeakerRow:
    """One utterance, from `Speakers.join` until `Speakers.leave`; text is added between steps, on their thread."""

    def __init__(self, place: int, plan: Plan, utterance: Utterance, sampling: DuplexSampling) -> None:
        self._place, self._plan, self._utterance, self.sampling = place, plan, utterance, sampling

    def add(self, text: str) -> None:
        """Further text, cut anywhere. Raises InputError after `end`, and for a pause of over ten minutes."""
        if not isinstance(text, str):
            raise InputError(f"text: got {brief(text)}, expected text")
        self._utterance = utterances.add(self._plan, self._utterance, text)

    def end(self) -> None:
        """The text is complete."""
        self._utterance = utterances.close(self._plan, self._utterance)

    @property
    def ready(self) -> bool:
        """Whether the next step will take this row on; else it waits for text (`add`), or all is said (`done`)."""
        return utterances.ready(self._plan, self._utterance)

    @property
    def done(self) -> bool:
        """Whether all is said."""
        return utterances.done(self._plan, self._utterance)

    @property
    def empty(self) -> bool:
        """Whether there was no word yet, and no pause."""
        return self._utterance.empty

    @property
    def positions(self) -> int:
        """Steps that it took part in so far."""
        return self._utterance.position
