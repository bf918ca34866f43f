"""Acoustic echo cancellation: what the speaker played is taken out of what the microphone heard.

By WebRTC's audio processing module (AEC3) as the `livekit` package carries it: the extra `echo`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import AudioError
from ..inputs import Samples
from ..terminal.version import install

BLOCK_SECONDS = 0.01  # the module's own
AHEAD_SECONDS = 0.06  # by how much the speaker's blocks may run ahead of the microphone's


class EchoCanceller:
    """Call it with what was heard, in order; it fetches from `played` what was played meanwhile.

    Both sides advance by their own devices' clocks and are paired block by block; the module itself finds the delay
    between them (up to half a second and more) and follows it. Raises AudioError where the extra is not installed.
    """

    def __init__(self, sample_rate: int, played: Callable[[], Samples]) -> None:
        self._rate, self._played = sample_rate, played
        self._block = round(sample_rate * BLOCK_SECONDS)
        self._far, self._near = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._frame, self._module = _load()

    def __call__(self, heard: Samples) -> Samples:
        """heard float32 [N] -> the same without the echo [M], N and M alike up to a block that waits for more."""
        self._far = np.concatenate([self._far, self._played()])
        self._near = np.concatenate([self._near, heard])
        cleaned = [np.zeros(0, np.float32)]
        while len(self._near) >= self._block:
            if len(self._far) >= self._block:
                self._hear_far()
            near, self._near = np.split(self._near, [self._block])
            frame = self._pack(near)
            self._module.process_stream(frame)
            cleaned.append(np.frombuffer(bytes(frame.data), np.int16) / np.float32(32767))
        while len(self._far) > AHEAD_SECONDS * self._rate:  # played while nothing was heard
            self._hear_far()
        return np.concatenate(cleaned)

    def _hear_far(self) -> None:
        far, self._far = np.split(self._far, [self._block])
        self._module.process_reverse_stream(self._pack(far))

    def _pack(self, sound: Samples) -> Any:
        finite = np.nan_to_num(sound, nan=0.0, posinf=1.0, neginf=-1.0)
        pcm16 = np.rint(np.clip(finite, -1.0, 1.0) * 32767).astype(np.int16)
        return self._frame(pcm16.tobytes(), self._rate, 1, len(sound))


def _load() -> tuple[Any, Any]:
    """The class of the module's frames, and a new module that cancels echo and does nothing else."""
    try:
        from livekit import rtc
    except ImportError as error:
        raise AudioError(
            f"--echo-cancel needs the package livekit, which is not installed; {install('echo')}, or wear headphones"
        ) from error
    module = rtc.AudioProcessingModule(
        echo_cancellation=True, noise_suppression=False, high_pass_filter=False, auto_gain_control=False
    )
    return rtc.AudioFrame, module
