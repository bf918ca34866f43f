"""Sound devices through PortAudio: which there are, opening one, looking again after one is gone.

sounddevice is imported where it is used, so that sound files need no PortAudio.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..errors import AudioError

BLOCK_SECONDS = 0.02  # what a callback moves at once
HINT = "connect one, or use --input and --output with sound files, or --demo"
NAMES = {"Input": "microphone", "Output": "speaker"}
# How a Mac, and the drivers of other laptops, name what is in the case.
BUILT_IN = re.compile(r"macbook|imac|built-?in|internal|^default$", re.IGNORECASE)


class Device(NamedTuple):
    """A device as PortAudio numbers it: the numbers hold until the devices change."""

    number: int
    name: str
    host: str
    inputs: int
    outputs: int
    rate: float
    default_for: tuple[str, ...]  # of "Input", "Output"

    def __str__(self) -> str:
        used = " and ".join(NAMES[direction] for direction in self.default_for)
        line = f"{self.number:3}  {self.name} ({self.host}), {self.inputs} in, {self.outputs} out, {self.rate:g} Hz"
        return line + (f"  <- default {used}" if used else "")


def _module() -> Any:
    try:
        import sounddevice
    except OSError as error:  # there is no PortAudio library
        raise AudioError(f"no sound device can be used ({error}); install PortAudio, or use --input and --output "
                         "with sound files, or --demo") from error  # fmt: skip
    return sounddevice


@contextlib.contextmanager
def _calls() -> Iterator[Any]:
    """The module. Any of its calls may fail, also those that list devices, while a sound system is down."""
    sounddevice = _module()
    try:
        yield sounddevice
    except (sounddevice.PortAudioError, OSError, ValueError, LookupError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"no sound device can be used ({error}); {HINT}") from error


def devices() -> list[Device]:
    """All devices that PortAudio finds. Raises AudioError where there is no PortAudio, or it does not answer."""
    with _calls() as sounddevice:
        hosts = sounddevice.query_hostapis()
        defaults = dict(zip(("Input", "Output"), sounddevice.default.device, strict=True))
        return [
            Device(
                number, info["name"], hosts[info["hostapi"]]["name"], info["max_input_channels"],
                info["max_output_channels"], info["default_samplerate"],
                tuple(direction for direction, default in defaults.items() if default == number),
            )
            for number, info in enumerate(sounddevice.query_devices())
        ]  # fmt: skip


def find(wanted: str | None, direction: str) -> Device:
    """The device of that number or name (the whole name, or a part that only one has); None is the default one.

    Raises AudioError where there is none, or more than one.
    """
    listed = devices()
    able = [device for device in listed if (device.inputs if direction == "Input" else device.outputs)]
    if wanted is None:
        found = [device for device in able if direction in device.default_for]
    elif wanted.isdigit():
        found = [device for device in able if device.number == int(wanted)]
    else:
        named = [device for device in able if device.name == wanted]
        found = named or [device for device in able if wanted.lower() in device.name.lower()]
    if len(found) == 1 or len({device.name for device in found}) == 1:
        return found[0]
    what = NAMES[direction]
    if wanted is None:
        raise AudioError(f"no {what} can be opened (there is no default one); {HINT}")
    if found:
        raise AudioError(f"{what}: {wanted!r} matches several {what}s: {', '.join(repr(d.name) for d in found)}; give "
                         "a number or more of the name (--list-devices shows them)")  # fmt: skip
    raise AudioError(f"{what}: no {what} has the name or number {wanted!r}; --list-devices shows them")


def open_stream(
    direction: str, device: Device, rates: list[int], callback: Callable[..., None], ended: Callable[[], None]
) -> tuple[Any, int]:
    """-> a running stream, and its rate: the first of `rates` that the device takes, on as few channels as it takes.

    One channel, or where a device knows no such thing two, or all it has. `ended` is called when it stops, whoever
    stopped it. Raises AudioError where it cannot be opened.
    """
    sounddevice = _module()
    failure: Exception | None = None
    most = device.inputs if direction == "Input" else device.outputs
    for rate, channels in itertools.product(rates, sorted({1, min(2, most), most})):
        stream = None
        try:
            stream = getattr(sounddevice, f"{direction}Stream")(
                rate, round(rate * BLOCK_SECONDS), device=device.number, channels=channels, dtype="float32",
                latency="low", callback=callback, finished_callback=ended,
            )  # fmt: skip
            stream.start()
        except (sounddevice.PortAudioError, OSError, ValueError) as error:
            failure = failure or error
            if stream is not None:  # it opened, and did not start
                close_stream(stream)
        else:
            return stream, rate
    raise AudioError(f"no {NAMES[direction]} can be opened ({failure}); {HINT}") from failure


def close_stream(stream: Any) -> None:
    """Stops a stream, also one whose device is gone. macOS takes 100 ms for that and more, sometimes seconds."""
    if stream.closed:
        return
    for step in (stream.abort, stream.close):
        with contextlib.suppress(AudioError), _calls():
            step()


def look_again() -> None:
    """PortAudio lists devices once: start it anew. All streams must be closed.

    Raises AudioError where it does not start, which a sound system that is down makes it do; then try again later.
    """
    with contextlib.suppress(AudioError), _calls() as sounddevice:  # it may never have started
        sounddevice._terminate()
    with _calls() as sounddevice:
        sounddevice._initialize()


def same_case(microphone: str, speaker: str) -> bool:
    """Whether the names are those of a laptop's own microphone and speaker, which hear each other."""
    return bool(BUILT_IN.search(microphone) and BUILT_IN.search(speaker))
