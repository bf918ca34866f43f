"""The doors to what is here, as methods of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..inputs import spelled_out
from ..models.sampling import StreamSettings
from .transcriber import Transcriber, transcribe
from .transcribers import Transcribers
from .transcript import Transcript

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Roles:
    """Mixed into `MoshiForConditionalGeneration`. Each refuses, by name, a model whose role is another one."""

    @spelled_out(StreamSettings)
    def transcriber(
        self, seed: int = 0, *, kv_bits: int | None = None, context: int | None = None, codebooks: int | None = None,
        refresh: bool | float | None = None, progress: bool = True, **settings: Unpack[StreamSettings],
    ) -> Transcriber:  # fmt: skip
        """Sound of any length in, words with times and pauses out, of an STT model: see `Transcriber`.

        Raises InputError for a setting out of range and for another model, TypeError for a name that does not exist.
        """
        given: Any = {"kv_bits": kv_bits, "context": context, "codebooks": codebooks, "refresh": refresh, **settings}
        return Transcriber(self, seed, progress=progress, **given)  # type: ignore[arg-type]

    def transcribers(
        self, slots: int, *, kv_bits: int | None = None, context: int | None = None, codebooks: int | None = None,
        refresh: bool | float | None = None, progress: bool = True,
    ) -> Transcribers:  # fmt: skip
        """Up to `slots` people in one step: see `Transcribers`. Raises InputError."""
        given: Any = {"kv_bits": kv_bits, "context": context, "codebooks": codebooks, "refresh": refresh}
        return Transcribers(self, slots, progress=progress, **given)  # type: ignore[arg-type]

    @spelled_out(StreamSettings)
    def transcribe(
        self, sound: Any, seed: int = 0, *, kv_bits: int | None = None, context: int | None = None,
        codebooks: int | None = None, refresh: bool | float | None = True, progress: bool = True,
        **settings: Unpack[StreamSettings],
    ) -> Transcript:  # fmt: skip
        """A whole sound, float [T] at 24000 Hz, or a sound file of any rate and channels -> its transcript.

        The settings are those of `transcriber`, but that the memory is refreshed at pauses, as in the command: a
        recording may last for hours. Raises InputError, and AudioError for a file that cannot be read.
        """
        given: Any = {"kv_bits": kv_bits, "context": context, "codebooks": codebooks, "refresh": refresh, **settings}
        return transcribe(self.transcriber(seed, progress=progress, **given), sound, progress)
