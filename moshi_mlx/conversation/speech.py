"""When Moshi speaks and when it is silent, from its sound, with hysteresis in level and in time."""

from __future__ import annotations

import numpy as np

SPEAKING_DB = -45.0  # root mean square of a frame, full scale 0 dB: from here on Moshi speaks
SILENT_DB = -55.0  # below this it is silent,
SILENT_SECONDS = 0.6  # once it has been for so long
GREETING_SECONDS = 12.0  # a greeting that has not ended by then is not waited for any longer


def level_db(sound: np.ndarray) -> float:
    """The power of `sound` relative to full scale, in dB; -120 for digital silence."""
    power = float(np.mean(np.square(sound, dtype=np.float64))) if len(sound) else 0.0
    return 10.0 * float(np.log10(max(power, 1e-12)))


class SpeechDetector:
    """Frames of Moshi's sound, one by one -> whether it speaks.

    It begins with the first loud frame, and ends when no frame has been above the lower level for SILENT_SECONDS: a
    pause for breath ends nothing, and noise between the two levels changes nothing.
    """

    def __init__(self, frame_seconds: float) -> None:
        self._patience = max(1, round(SILENT_SECONDS / frame_seconds))
        self.reset()

    def reset(self) -> None:
        """Silent again."""
        self.speaking, self._quiet = False, 0

    def __call__(self, pcm: np.ndarray | None) -> bool:
        """The next frame; None is silence."""
        level = -200.0 if pcm is None else level_db(pcm)
        self._quiet = 0 if level >= SILENT_DB else self._quiet + 1
        if level >= SPEAKING_DB:
            self.speaking = True
        elif self._quiet >= self._patience:
            self.speaking = False
        return self.speaking


class GreetingGate:
    """Whether Moshi is still to be left alone: until it has spoken and is silent again, at most GREETING_SECONDS."""

    def __init__(self, frame_seconds: float) -> None:
        self._most = round(GREETING_SECONDS / frame_seconds)
        self.reset()

    def reset(self) -> None:
        """A greeting is to come."""
        self.closed, self._spoken, self._frames = True, False, 0

    def __call__(self, speaking: bool) -> None:
        """The next frame of Moshi's side."""
        self._frames += 1
        self._spoken = self._spoken or speaking
        if (self._spoken and not speaking) or self._frames >= self._most:
            self.closed = False
