"""Which microphone and speaker are the system's default just now.

PortAudio looks at that once, when it starts. Core Audio can be asked at any time (AudioObjectGetPropertyData of the
system object, CoreAudio/AudioHardware.h). Sound servers of Linux move a running stream by themselves.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from ..errors import AudioError

LIBRARY = "/System/Library/Frameworks/CoreAudio.framework/CoreAudio"
SYSTEM_OBJECT = 1  # kAudioObjectSystemObject
SELECTORS = {"Input": b"dIn ", "Output": b"dOut"}  # kAudioHardwarePropertyDefaultInputDevice, ...OutputDevice
GLOBAL_SCOPE, MAIN_ELEMENT = b"glob", 0
SECONDS = 0.5  # between two looks


class _Address(ctypes.Structure):
    """AudioObjectPropertyAddress."""

    _fields_ = (("selector", ctypes.c_uint32), ("scope", ctypes.c_uint32), ("element", ctypes.c_uint32))


def _code(four: bytes) -> int:
    return int.from_bytes(four, "big")


@functools.cache
def _core_audio() -> Any:
    return ctypes.CDLL(LIBRARY) if sys.platform == "darwin" else None


def current(direction: str) -> int | None:
    """A number that changes when the default device ("Input" or "Output") does; None where nobody can be asked."""
    library = _core_audio()
    if library is None:
        return None
    address = _Address(_code(SELECTORS[direction]), _code(GLOBAL_SCOPE), MAIN_ELEMENT)
    device, size = ctypes.c_uint32(0), ctypes.c_uint32(4)
    status = library.AudioObjectGetPropertyData(
        ctypes.c_uint32(SYSTEM_OBJECT), ctypes.byref(address), ctypes.c_uint32(0), None, ctypes.byref(size),
        ctypes.byref(device),
    )  # fmt: skip
    if status or not device.value:
        raise AudioError(f"Core Audio does not say which device is the default one (status {status})")
    return int(device.value)


class Watch:
    """Calls `changed(direction)` on a thread of its own when the default device of one of `directions` has changed.

    A change counts when it is the same at two looks: plugging in a headset changes things several times. There is no
    thread where nobody can be asked.
    """

    def __init__(
        self,
        directions: tuple[str, ...],
        changed: Callable[[str], None],
        look: Callable[[str], int | None] = current,
        seconds: float = SECONDS,
    ) -> None:
        self._changed, self._look, self._seconds = changed, look, seconds
        self._closed = threading.Event()
        known = {direction: self._seen(direction) for direction in directions}
        self._known = {direction: number for direction, number in known.items() if number is not None}
        self._thread = threading.Thread(target=self._run, name="default devices", daemon=True)
        if self._known:
            self._thread.start()

    def _seen(self, direction: str) -> int | None:
        try:
            return self._look(direction)
        except (AudioError, OSError):
            return None

    def _run(self) -> None:
        before = dict(self._known)
        while not self._closed.wait(self._seconds):
            for direction, known in self._known.items():
                now = self._seen(direction)
                if now is not None and now != known and now == before[direction]:
                    self._known[direction] = now
                    self._changed(direction)
                before[direction] = known if now is None else now

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
