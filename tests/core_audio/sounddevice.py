"""A stand-in for the package of that name on a Mac: put this folder before it on PYTHONPATH.

Its devices call back in real time. What they do wrong is said by the environment:
STOP      seconds that stopping a stream takes (Core Audio: 0.1 and more)
SOUND     amplitude of what the microphone hears; 0 is what macOS gives to a program without permission
ENDS      seconds after which the first microphone ends while its stream stays "active", as when it is pulled out
DOWN      how often PortAudio fails to start again after that
CHANNELS  the only number of channels that devices take
NOISE     what is written to file descriptor 2 with every device that opens
"""

import os
import threading
import time

import numpy as np


class PortAudioError(Exception):
    pass


class Flags:
    input_overflow = output_underflow = False


class default:
    device = (0, 1)


def setting(name, otherwise=0.0):
    return float(os.environ.get(name, otherwise))


CHANNELS = int(setting("CHANNELS", 1))
state = {"initialized": 1, "down": int(setting("DOWN")), "ended": False, "log": []}


def _check():
    if not state["initialized"]:
        raise PortAudioError("PortAudio not initialized")


def query_hostapis():
    _check()
    return ({"name": "Core Audio"},)


def query_devices():
    _check()
    kinds = (("MacBook Pro Microphone", CHANNELS, 0), ("MacBook Pro Speakers", 0, max(2, CHANNELS)))
    return [
        {"name": name, "hostapi": 0, "max_input_channels": ins, "max_output_channels": outs,
         "default_samplerate": 48_000.0}
        for name, ins, outs in kinds
    ]  # fmt: skip


def _terminate():
    _check()
    state["initialized"] -= 1


def _initialize():
    if state["down"]:
        state["down"] -= 1
        raise PortAudioError("Error initializing PortAudio: Internal PortAudio error")
    state["initialized"] += 1


class Stream:
    latency = 0.02

    def __init__(self, rate, block, device, channels, dtype, latency, callback, finished_callback):
        _check()
        if "CHANNELS" in os.environ and channels != CHANNELS:
            raise PortAudioError("Invalid number of channels")
        self.rate, self.block, self.channels = rate, block, channels
        self.callback, self.finished = callback, finished_callback
        self.closed = self.active = False
        if os.environ.get("NOISE"):
            os.write(2, os.environ["NOISE"].encode() + b"\n")
        state["log"].append(type(self).__name__)

    def start(self):
        self.active, self.began = True, time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        n, amplitude = 0, setting("SOUND", 0.1) * isinstance(self, InputStream)
        while self.active:
            data = np.full((self.block, self.channels), amplitude, np.float32)
            self.callback(data, self.block, None, Flags)
            n += 1
            if self._ends(n * self.block / self.rate):
                self.finished()
                return
            time.sleep(max(0.0, self.began + n * self.block / self.rate - time.monotonic()))
        self.finished()

    def _ends(self, seconds):
        if state["ended"] or not isinstance(self, InputStream) or not 0 < setting("ENDS") < seconds:
            return False
        state["ended"] = True
        return True

    def abort(self):
        time.sleep(setting("STOP"))
        self.active = False

    def close(self):
        self.active, self.closed = False, True


class InputStream(Stream):
    pass


class OutputStream(Stream):
    pass
