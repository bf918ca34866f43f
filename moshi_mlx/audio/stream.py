"""A sound device as a stream: opened, noticed when it ends, opened again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import AudioError
from ..inputs import Samples
from . import portaudio

FIRST_TIMEOUT = 5.0  # seconds to the first callback; a sleeping or wireless device takes up to two
TIMEOUT = 2.0  # seconds without a callback after which a device is gone


class DeviceLost(AudioError):
    """A device that was open is gone."""


class DeviceStream:
    """A device: its stream, and the ring that the stream's callback fills or empties."""

    direction = ""

    def __init__(self, sample_rate: int, frame_size: int, device: str | None, device_rate: int | None) -> None:
        self.sample_rate, self.frame_size = sample_rate, frame_size
        self._wanted, self._forced_rate = device, device_rate
        self.chosen = device is not None
        """Whether a person chose it: the system's default device may be followed, a chosen one stays."""
        self.note: Callable[[str, int], None] | None = None
        """Called in the callback with the direction and how many samples it moved; it must be quick."""
        self._open(device)

    def _open(self, wanted: str | None) -> None:
        device = portaudio.find(wanted, self.direction)
        self.name = device.name
        self._wanted = None if wanted is None else device.name  # numbers change when devices do
        rates = [self._forced_rate] if self._forced_rate else [self.sample_rate, int(device.rate)]
        self._began = self._called = 0.0
        self._running = threading.Event()
        self._ended_itself = ended = threading.Event()

        def on_end() -> None:
            """On macOS a stream whose device went away ends, and is called active for ever."""
            ended.set()
            self._ring_ends()

        self._stream, self.rate = portaudio.open_stream(self.direction, device, rates, self._on_block, on_end)
        self._began = self._called = time.monotonic()

    def _on_block(self, data: Samples, frames: int, times: Any, status: Any) -> None:
        raise NotImplementedError

    def _ring_ends(self) -> None:
        raise NotImplementedError

    def _note_call(self) -> None:
        self._called = time.monotonic()
        self._running.set()

    def wait_running(self) -> bool:
        """Waits for the first callback: by then a wireless headset has changed over to the rate of its microphone."""
        return self._running.wait(FIRST_TIMEOUT)

    @property
    def device_latency(self) -> float:
        """Seconds that the device itself says it takes."""
        return float(self._stream.latency)

    @property
    def gone(self) -> bool:
        """It stopped, or has not called back for too long."""
        if self._ended_itself.is_set() or self._stream.closed or not self._is_active():
            return True
        patience = TIMEOUT if self._called > self._began else FIRST_TIMEOUT
        return time.monotonic() - self._called > patience

    def _is_active(self) -> bool:
        try:
            return bool(self._stream.active)
        except Exception:  # PortAudio itself is gone
            return False

    def reopen(self) -> None:
        """After `portaudio.look_again`: the same device, or else the default one. Raises AudioError."""
        try:
            self._open(self._wanted)
        except AudioError:
            if self._wanted is None:
                raise
            self._open(None)

    def close(self) -> None:
        """From any thread. Whoever waits for this device waits no more."""
        portaudio.close_stream(self._stream)
        self._ring_ends()
