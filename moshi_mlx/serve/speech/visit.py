"""A person at one of the sockets: what is sent goes to the engine, what the engine makes goes back."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import WSCloseCode

from ...conversation.frame import Frame
from ...errors import InputError, MoshiError, brief
from ...models.sampling import SamplingSettings, StreamSettings
from ...roles import voices
from ..doors import Place
from ..engine import Said
from ..talk import SEND_SECONDS, End, Talk
from . import messages
from .engine import Line

if TYPE_CHECKING:
    from ..house import House

WAITING_FRAMES = 250  # 20 s of sound, or so many characters of text, wait at most; then reading waits
WAITING_TEXT = 256 * 1024
WAIT_SECONDS = 0.02
FORMAT = "PcmMessagePack"


class Visit(Talk):
    """Either kind. `on_their_way` counts what the engine has given, `taken` what was sent of it."""

    max_message = 2**20
    kinds: tuple[str, ...] = ()

    def __init__(self, house: House, query: Mapping[str, str]) -> None:
        super().__init__(house)
        self.seed = _number(query, "seed", int, 0)
        self.on_their_way = self.taken = 0
        self._said: asyncio.Queue[tuple[list[dict[str, Any]], float]] = asyncio.Queue()

    async def hear(self, message: Any) -> None:
        if isinstance(message, str):
            raise End("protocol", "got a text message, expected msgpack in binary ones", 1003)
        self._heard_at = time.monotonic()
        await self.took(messages.unpack(message, self.kinds))
        self.house.engine.wake()

    @abstractmethod
    async def took(self, message: Mapping[str, Any]) -> None:
        """A message of the person. Raises End, or InputError for what it cannot be."""

    async def _write(self, place: Place) -> None:
        await place.turn()
        await self.begin()
        await self.greet()
        while self.max_frames is None or self.frames < self.max_frames:
            said, made = await self._said.get()
            if said is messages.END:
                raise End("over", "all is said")
            self.frames += 1
            for message in said:
                await asyncio.wait_for(self.ws.send_bytes(messages.pack(message)), SEND_SECONDS)
            self.taken += 1
            self._heard_at = time.monotonic()
            self.house.engine.wake()
            self.house.figures.speaking.observe(time.monotonic() - made)
        raise End("over", f"the {self.max_frames} frames that were asked for are over")

    def deliver(self, said: Said, made: float) -> None:
        if said.refused:
            self.end(End("refused", said.refused, WSCloseCode.POLICY_VIOLATION))
        elif said.frame is None:
            self._primed.set()
        else:
            self._said.put_nowait((said.frame, made))  # type: ignore[arg-type]

    async def greet(self) -> None:
        await self.ws.send_bytes(messages.pack(messages.READY))

    async def speak(self, frame: Frame) -> None:
        raise AssertionError("a visit has messages, not frames")

    async def say_why(self, end: End) -> None:
        if end.label not in ("left", "gone", "over"):
            await self.ws.send_bytes(messages.pack(messages.error(end.reason)))


class Hearing(Visit):
    """/api/asr-streaming: Audio and Marker in, Step, Word, EndWord and Marker out."""

    protocol = "asr"
    kinds = ("Init", "Audio", "Marker")

    def __init__(self, house: House, query: Mapping[str, str]) -> None:
        super().__init__(house, query)
        given = {"temperature": _number(query, "temperature", float), "top_k": _number(query, "top_k", int)}
        self.settings: StreamSettings = {k: v for k, v in given.items() if v is not None}  # type: ignore[assignment]
        self.line, self.heard_frames = Line(house.frame_size), 0
        self.markers: deque[tuple[int, int]] = deque()

    async def took(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "Audio":
            self.line.push(messages.floats(message, "pcm"))
        elif message["type"] == "Marker":
            self.line.mark(messages.number(message, "id"))
        while self.line.frames > WAITING_FRAMES:  # the person's own sending waits
            self.house.engine.wake()
            await asyncio.sleep(WAIT_SECONDS)


class Speaking(Visit):
    """/api/tts_streaming: Text, Voice and Eos in, Audio and Text out; closed when all is said."""

    protocol = "tts"
    kinds = ("Text", "Voice", "Eos")

    def __init__(self, house: House, query: Mapping[str, str]) -> None:
        super().__init__(house, query)
        wanted = query.get("format", FORMAT)
        if wanted != FORMAT:
            raise InputError(f"format: got {brief(wanted)}, expected {FORMAT}")
        temperature, top_k = _number(query, "temperature", float), _number(query, "top_k", int)
        given = {"temperature": temperature, "text_temperature": temperature, "top_k": top_k}
        self.settings: SamplingSettings = {k: v for k, v in given.items() if v is not None}  # type: ignore[assignment]
        self.guidance: float | None = _number(query, "cfg_alpha", float)
        self.max_frames = _number(query, "max_seq_len", int)
        if self.max_frames is not None and self.max_frames < 1:
            raise InputError(f"max_seq_len: got {self.max_frames}, expected 1 or more")
        self.voice: Any = None
        self.texts: deque[str | None] = deque()
        self.waiting_text, self.finished, self._ended_text = 0, False, False
        self._name = query.get("voice") or None
        self._known = asyncio.Event()  # whose voice it is
        if self._name is not None:
            checked_name(self._name)

    async def begin(self) -> None:
        """With the voice by name at once, else with the first message, which may be a voice."""
        if self._name is not None:
            loop, model = asyncio.get_running_loop(), self.house.engine.batch.model
            try:
                self.voice = await loop.run_in_executor(None, named, voices.home_of(model), self._name)
            except MoshiError as error:
                raise End("voice", str(error), WSCloseCode.POLICY_VIOLATION) from None
            await super().begin()
        else:
            self.inside = True  # the place is this person's; the model is not asked yet
            self._heard_at = time.monotonic()

    async def took(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "Voice":
            if self._name is not None or self._known.is_set():
                raise InputError("Voice: got it when a voice was chosen already, or after the first text")
            self.voice = messages.vectors(message)
        if self._name is None and not self._known.is_set():
            self._known.set()
            self.house.engine.join(self)
        if message["type"] != "Voice":
            self._spoken(message)
        while self.waiting_text > WAITING_TEXT:
            await asyncio.sleep(WAIT_SECONDS)

    def _spoken(self, message: Mapping[str, Any]) -> None:
        if self._ended_text:
            raise InputError(f"{message['type']}: got it after Eos, which ends the text")
        if message["type"] == "Eos":
            self._ended_text = True
            self.texts.append(None)
            return
        text = messages.text(message)
        self.waiting_text += len(text)
        # A message is whole words, as Kyutai's server has it: two of them do not run into one.
        self.texts.append(f"{text} ")


def checked_name(name: str) -> str:
    """A voice's name as somebody far away may say it: never a path of this machine. Raises InputError."""
    parts = name.split("/")
    if not name.isprintable() or len(name) > 300 or name[:1] in "/~" or "\\" in name or {".", "..", ""} & set(parts):
        raise InputError(f"voice: got {brief(name)}, expected a name of {voices.REPOSITORY}")
    return name


def named(home: voices.Home, name: str) -> Path:
    """The file of a voice beside the checkpoint or on the hub; other files do not exist. Raises MoshiError."""
    if name.startswith("hf:"):
        raise InputError(f"voice: got {brief(name)}, expected a name of {voices.REPOSITORY}")
    stem = name.removesuffix(home.suffix) if home.suffix else name
    for folder in home.folders:
        for file in (f"{stem}{home.suffix}", f"{stem}.wav{home.suffix}"):
            if "/" not in name and (folder / file).is_file():
                return folder / file
    return voices.find(home, f"hf://{voices.REPOSITORY}/{name}")


def _number(query: Mapping[str, str], name: str, kind: Any, usual: Any = None) -> Any:
    """A number of the query. Raises InputError."""
    text = query.get(name)
    if text is None or text == "":
        return usual
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{name}: got {brief(text)}, expected a number") from None
