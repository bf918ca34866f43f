"""Stand-ins for sounds, sessions, sources and sinks."""

import threading
from types import SimpleNamespace

import numpy as np

from moshi_mlx.audio.ring import Ring
from moshi_mlx.conversation.loop import Moment

RATE, SIZE = 24_000, 1920


def tone(seconds=1.0, rate=RATE, hertz=440.0, peak=0.5):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def loudest_hertz(samples, rate=RATE):
    return np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples))))) * rate / len(samples)


def in_thread(work):
    """Starts `work`, and gives a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def result():
        thread.join(10)
        return results[0]

    return result


def moment(number, text="", heard=0.25, said=0.5, lost=(0.0, 0.0), reset=False):
    frame = SimpleNamespace(text=text)
    ramp = np.arange(SIZE, dtype=np.float32) / SIZE
    return Moment(number, heard * ramp, said * ramp, frame, 0.0, 0.05, 0.0, (0, 0), lost, reset)


class EchoSession:
    """Has what the loop needs of a session. Gives no sound for the first `delay` frames, then what it heard."""

    sample_rate, frame_size = 24_000, SIZE

    def __init__(self, delay=0):
        self.delay = delay
        self.nonfinite_samples = 7
        self.threads = set()
        self.reset()

    def reset(self):
        self.heard = []

    def fill_context(self):
        pass

    def step(self, pcm):
        self.threads.add(threading.get_ident())
        self.nonfinite_samples += int(np.sum(~np.isfinite(pcm)))
        self.heard.append(np.nan_to_num(pcm))
        late = len(self.heard) > self.delay
        return SimpleNamespace(
            pcm=self.heard[-1 - self.delay] if late else None,
            text=" one" if late else "",
            text_token=3,
            speaking=True,
            audio_codes=np.zeros(8, np.int32) if late else None,
        )


class ListSink:
    def __init__(self):
        self.frames, self.drained, self.drops, self.lost_seconds = [], 0, 0, 0.0

    def write(self, pcm):
        self.frames.append(np.array(pcm))

    def drain(self):
        self.drained += 1

    def close(self):
        pass

    def abort(self):
        pass


class RingSource:
    """A live source without a device: another thread pushes frames, and `read` waits for them."""

    def __init__(self, count):
        self.drops, self.lost_seconds, self.backlog, self.latency = 2, 0.32, 0.0, None
        self.ring = Ring(10 * SIZE)
        self.left = count

    def read(self):
        if not self.left or not self.ring.wait_filled(SIZE, timeout=10) or not self.left:
            return None
        self.left -= 1
        frame = np.empty(SIZE, np.float32)
        self.ring.pull(frame)
        return frame

    def end(self):
        self.left = 0
        self.ring.end()

    def close(self):
        self.end()
