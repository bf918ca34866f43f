"""A conversation in Kyutai's protocol (see `kyutai`): the published page, moshi.client, moshi-cli, and our own page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import soxr

from ..conversation.frame import Frame
from .protocols import kyutai, opus
from .protocols.kyutai import Control, Kind
from .talk import End, Talk

if TYPE_CHECKING:
    from .house import House

_WHOLE_SAMPLES = 2  # bytes


class Pcm:
    """16-bit samples of a person's rate, there and back, for who has no Opus."""

    def __init__(self, theirs: int, ours: int) -> None:
        self._in = soxr.ResampleStream(theirs, ours, 1, dtype="float32", quality="MQ")
        self._out = soxr.ResampleStream(ours, theirs, 1, dtype="float32", quality="MQ")
        self._partial = b""

    def read(self, data: bytes) -> np.ndarray:
        data = self._partial + data
        whole = len(data) - len(data) % _WHOLE_SAMPLES
        self._partial = data[whole:]
        return np.asarray(self._in.resample_chunk(np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768))

    def write(self, sound: np.ndarray) -> bytes:
        return to_pcm16(self._out.resample_chunk(sound))


class OpusBothWays:
    def __init__(self, rate: int) -> None:
        self._reader, self._writer = opus.Reader(rate), opus.Writer(rate)
        self.read, self.write = self._reader.read, self._writer.write


class Chat(Talk):
    protocol = "kyutai"
    persona_names = ("voice_prompt", "text_prompt")

    def __init__(self, house: House, ask: kyutai.Ask) -> None:
        super().__init__(house)
        self.ask, self.seed, self.settings, self.max_frames = ask, ask.seed, ask.settings, ask.max_frames
        self.persona = ask.persona
        self._greeted = False
        self._coder: Any = Pcm(ask.pcm_rate, house.sample_rate) if ask.pcm_rate else OpusBothWays(house.sample_rate)

    async def hear(self, message: Any) -> None:
        if isinstance(message, str):
            raise End("protocol", "got a text message, expected binary ones", 1003)
        parsed = kyutai.parse(message)
        if parsed is None:
            return
        if parsed.kind == Kind.AUDIO:
            sound = self._coder.read(parsed.payload)  # before the handshake as well: the stream's headers are in it
            if self._greeted and not self.paused:
                self.heard(sound)
        elif parsed.kind == Kind.CONTROL and self._greeted:
            self._control(kyutai.control_of(parsed.payload))

    def _control(self, control: Control | None) -> None:
        if control == Control.RESTART:
            self.house.engine.join(self)
        elif control in (Control.PAUSE, Control.START):
            self.paused = control == Control.PAUSE
            if self.paused:
                self.inbox.clear()

    async def greet(self) -> None:
        await self.ws.send_bytes(kyutai.metadata(self.ask, self.house.model_name, self.house.version))
        await self.ws.send_bytes(kyutai.HANDSHAKE)
        self._greeted = True

    async def speak(self, frame: Frame) -> None:
        if frame.text:
            await self.ws.send_bytes(kyutai.text(frame.text))
        sound = np.zeros(self.house.frame_size, np.float32) if frame.pcm is None else frame.pcm
        await self.ws.send_bytes(kyutai.audio(self._coder.write(sound)))

    async def say_why(self, end: End) -> None:
        if end.label not in ("left", "gone"):
            await self.ws.send_bytes(kyutai.error(end.reason))

    def check_idle(self) -> None:
        if not self.paused:
            super().check_idle()


def to_pcm16(sound: np.ndarray) -> bytes:
    """float in [-1, 1] -> little-endian 16-bit samples."""
    return np.clip(np.rint(sound * 32767), -32768, 32767).astype("<i2").tobytes()
