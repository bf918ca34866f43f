"""The sound devices: which there are, whether the microphone may be heard, and a second through both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..audio import devices, portaudio
from ..errors import AudioError
from .finding import NOTE, OK, PROBLEM, Finding, without_names
from .microphone import ALLOW, permission

RATE, SIZE = 24_000, 1920
FRAMES = 13  # a second and a bit
HERTZ, PEAK = 440.0, 0.05  # of the tone that is played: soft


def listed() -> Iterator[Finding]:
    """The devices by name for the person, by kind and rate for the report."""
    found = portaudio.devices()
    values = [{"inputs": d.inputs, "outputs": d.outputs, "rate": d.rate, "default_for": list(d.default_for),
               "host": d.host, "built_in": bool(portaudio.BUILT_IN.search(d.name))} for d in found]  # fmt: skip
    said = "; ".join(f"{d.name} {d.rate:g} Hz{' (default)' if d.default_for else ''}" for d in found) or "none"
    defaults = {direction for device in found for direction in device.default_for}
    lacking = [portaudio.NAMES[direction] for direction in ("Input", "Output") if direction not in defaults]
    todo = f"connect a {' and a '.join(lacking)}, or talk through files (--input, --output)" if lacking else ""
    yield Finding("devices", PROBLEM if lacking else OK, said, todo, {"devices": values})


def privacy() -> Iterator[Finding]:
    state = permission()
    verdict = PROBLEM if state in ("denied", "restricted") else OK
    yield Finding(
        "microphone", verdict, f"permission: {state}", ALLOW if verdict == PROBLEM else "", {"permission": state}
    )


def loop() -> Iterator[Finding]:
    """A second from the microphone while a soft tone is played on the speaker."""
    try:
        heard, values = _one_second()
    except AudioError as error:
        yield Finding("one second", PROBLEM, str(error), values={"error": without_names(str(error))})
        return
    peak, level = float(np.abs(heard).max()), _tone_db(heard)
    values |= {"peak": round(peak, 4), "zeros": not heard.any(), "tone_db": round(level, 1)}
    said = f"{values['frames']} frames in {values['seconds']:.2f} s at {values['input_rate']} and "
    said += f"{values['output_rate']} Hz; loudest {peak:.3f}, the tone {'heard' if level > 10 else 'not heard'}"
    if values["zeros"]:
        yield Finding("one second", PROBLEM, f"{said}: the microphone gives nothing but zeros", ALLOW, values)
    elif values["seconds"] > 1.5 * FRAMES * SIZE / RATE or values["lost"]:
        todo = "close other programs that use sound, or choose other devices (--list-devices)"
        yield Finding("one second", NOTE, f"{said}; sound came late or was lost {values['lost']} times", todo, values)
    else:
        yield Finding("one second", OK, said, "", values)


def _one_second() -> tuple[np.ndarray, dict[str, Any]]:
    """What the microphone heard, float32 [samples] at 24 kHz. The microphone is opened first, as in a conversation."""
    tone = (PEAK * np.sin(2 * np.pi * HERTZ * np.arange(FRAMES * SIZE) / RATE)).astype(np.float32).reshape(-1, SIZE)
    microphone = devices.Microphone(RATE, SIZE)
    try:
        speaker = devices.Speaker(RATE, SIZE)
        try:
            heard, began = [], time.monotonic()
            for frame in tone:
                if not microphone.fill():
                    raise AudioError("the microphone stopped")
                heard.append(microphone.take())
                speaker.write(frame)
            seconds = time.monotonic() - began
            values = {"frames": len(heard), "seconds": round(seconds, 3), "input_rate": microphone.rate,
                      "output_rate": speaker.rate, "lost": microphone.overflows + speaker.drops}  # fmt: skip
        finally:
            speaker.close()
    finally:
        microphone.close()
    return np.concatenate(heard), values


def _tone_db(sound: np.ndarray) -> float:
    """How far the tone stands above its surroundings, in dB."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) + 1e-9
    at = round(HERTZ * len(sound) / RATE)
    around = np.concatenate([spectrum[at - 60 : at - 10], spectrum[at + 10 : at + 60]])
    return float(20 * np.log10(spectrum[at - 2 : at + 3].max() / np.median(around)))
