"""What PortAudio may do wrong, with a stand-in for sounddevice; and which devices are the default ones."""

import sys
import threading
import types

import pytest

from moshi_mlx.audio import defaults, portaudio
from moshi_mlx.errors import AudioError


class PortAudioError(Exception):
    pass


class Stream:
    def __init__(self, module, rate, channels):
        self.module, self.rate, self.channels = module, rate, channels
        self.closed, self.active = False, True

    def start(self):
        self.module.call("start")

    def abort(self):
        self.module.call("abort")

    def close(self):
        self.closed = True
        self.module.call("close")


class Module(types.ModuleType):
    """`broken` names the calls that fail; `takes` are the (rate, channels) that devices take."""

    PortAudioError = PortAudioError

    def __init__(self):
        super().__init__("sounddevice")
        self.broken, self.takes, self.asked, self.streams = {}, {(24_000, 1)}, [], []
        self.default = types.SimpleNamespace(device=(0, 1))
        for direction in ("Input", "Output"):
            setattr(self, f"{direction}Stream", self.open)

    def call(self, name):
        if name in self.broken:
            raise self.broken[name]

    def open(self, rate, block, device, channels, **settings):
        self.call("open")
        self.asked.append((rate, channels))
        if (rate, channels) not in self.takes:
            raise PortAudioError(f"not at {rate} Hz on {channels}")
        self.streams.append(Stream(self, rate, channels))
        return self.streams[-1]

    def query_hostapis(self):
        self.call("query_hostapis")
        return ({"name": "Core Audio"},)

    def query_devices(self):
        self.call("query_devices")
        sizes = {"max_input_channels": 8, "max_output_channels": 8, "default_samplerate": 48_000.0, "hostapi": 0}
        return [{"name": name, **sizes} for name in ("USB mic", "USB box", "USB box 2")]

    def _terminate(self):
        self.call("_terminate")

    def _initialize(self):
        self.call("_initialize")


@pytest.fixture
def module(monkeypatch):
    module = Module()
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def opened(rates=(24_000, 48_000), direction="Input"):
    device = portaudio.find(None, direction)
    return portaudio.open_stream(direction, device, list(rates), lambda *_: None, lambda: None)


FAILURES = [PortAudioError("Host error"), OSError("broken"), ValueError("no device"), IndexError("list index")]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("call", ["query_hostapis", "query_devices", "_initialize", "open", "start"])
def test_any_call_may_fail_and_is_an_audio_error(module, call, failure):
    if call in ("open", "start") and isinstance(failure, IndexError):
        pytest.skip("what is opened has been listed")
    module.broken[call] = failure
    with pytest.raises(AudioError) as caught:
        portaudio.look_again() if call == "_initialize" else opened()
    assert "\n" not in str(caught.value)
    assert all(stream.closed for stream in module.streams)
    module.broken.clear()
    assert opened()[1] == 24_000


@pytest.mark.parametrize("call", ["abort", "close", "_terminate"])
def test_a_device_that_is_gone_may_be_closed_and_looked_for_again(module, call):
    stream, _ = opened()
    module.broken[call] = PortAudioError("gone")
    portaudio.close_stream(stream)
    portaudio.look_again()
    assert stream.closed


@pytest.mark.parametrize("direction", ["Input", "Output"])
@pytest.mark.parametrize(
    ("takes", "asked"),
    [
        ((24_000, 1), [(24_000, 1)]),
        ((24_000, 2), [(24_000, 1), (24_000, 2)]),
        ((24_000, 8), [(24_000, 1), (24_000, 2), (24_000, 8)]),
        ((48_000, 2), [(24_000, 1), (24_000, 2), (24_000, 8), (48_000, 1), (48_000, 2)]),
    ],
)
def test_as_few_channels_as_a_device_takes(module, direction, takes, asked):
    module.takes = {takes}
    stream, rate = opened(direction=direction)
    assert (rate, stream.channels) == takes
    assert module.asked == asked


def test_a_device_that_takes_nothing_says_why_at_first(module):
    module.takes = set()
    with pytest.raises(AudioError, match=r"no microphone can be opened \(not at 24000 Hz on 1\); connect one"):
        opened()


def test_names_and_numbers(module):
    assert portaudio.find("USB box", "Output").number == 1
    assert portaudio.find("2", "Output").name == "USB box 2"
    with pytest.raises(AudioError, match="'USB' matches several speakers: 'USB mic', 'USB box', 'USB box 2'"):
        portaudio.find("USB", "Output")
    with pytest.raises(AudioError, match="no microphone has the name or number '9'"):
        portaudio.find("9", "Input")


# The system's default devices


class System:
    def __init__(self, **devices):
        self.devices, self.looks = devices, 0
        self.changed, self.told = [], threading.Event()

    def look(self, direction):
        self.looks += 1
        number = self.devices[direction]
        if isinstance(number, Exception):
            raise number
        return number

    def tell(self, direction):
        self.changed.append(direction)
        self.told.set()

    def watch(self, *directions):
        return defaults.Watch(directions, self.tell, self.look, 0.001)


def test_a_changed_default_device_is_told_once():
    system = System(Input=5, Output=6)
    watch = system.watch("Input", "Output")
    system.devices["Output"] = 7
    assert system.told.wait(10)
    looks = system.looks
    while system.looks < looks + 20:
        system.told.wait(0.001)
    watch.close()
    assert system.changed == ["Output"]


def test_a_system_that_is_busy_says_nothing_for_a_while():
    system = System(Input=5)
    watch = system.watch("Input")
    system.devices["Input"] = AudioError("busy")
    looks = system.looks
    while system.looks < looks + 10:
        threading.Event().wait(0.001)
    system.devices["Input"] = 5
    while system.looks < looks + 20:
        threading.Event().wait(0.001)
    watch.close()
    assert system.changed == []


def test_devices_that_were_chosen_and_systems_that_nobody_can_ask_need_no_thread():
    before = threading.active_count()
    for watch in (System(Input=1).watch(), System(Input=None, Output=None).watch("Input", "Output")):
        assert threading.active_count() == before
        watch.close()


def test_what_is_asked_of_core_audio(monkeypatch):
    """AudioObjectGetPropertyData(1, {'dOut', 'glob', 0}, 0, NULL, &4, &device)."""
    asked = []

    class CoreAudio:
        status = 0

        def AudioObjectGetPropertyData(self, system, address, qualifiers, qualifier, size, device):
            given = address._obj
            asked.append((system.value, given.selector, given.scope, given.element, size._obj.value))
            device._obj.value = 73
            return self.status

    library = CoreAudio()
    monkeypatch.setattr(defaults, "_core_audio", lambda: library)
    assert defaults.current("Output") == 73
    assert asked == [(1, 0x644F7574, 0x676C6F62, 0, 4)]
    defaults.current("Input")
    assert asked[1][1] == 0x64496E20
    library.status = -50
    with pytest.raises(AudioError, match="status -50"):
        defaults.current("Input")


@pytest.mark.skipif(sys.platform == "darwin", reason="there Core Audio answers")
def test_elsewhere_nobody_is_asked():
    assert defaults.current("Input") is None
