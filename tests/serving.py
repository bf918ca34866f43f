"""A house to visit: the server on a free port with a batch that echoes, and people who come to it."""

import asyncio
import contextlib
import io
import itertools
import logging
from types import SimpleNamespace

import aiohttp
import numpy as np

from moshi_mlx import CheckpointError, InputError
from moshi_mlx.conversation.frame import Frame
from moshi_mlx.serve.app import Listener
from moshi_mlx.serve.guard import Guard
from moshi_mlx.serve.house import House, Rules
from moshi_mlx.serve.protocols.opus import Reader, Writer

SIZE = 1920


class Stub:
    """A model whose prompts are as long as the role."""

    def __init__(self, context=100, names=("NATF2",)):
        self.config, self.made = SimpleNamespace(sliding_window=context), []
        self.voices = SimpleNamespace(names=lambda: list(names), read=lambda name: name)

    def prompt(self, voice=None, persona=None):
        if voice == "BROKEN":
            raise CheckpointError("/home/me/voices/BROKEN.pt: not a voice")
        self.made.append((voice, persona))
        return SimpleNamespace(length=len(persona or ""))


class EchoRow:
    def __init__(self, seed, settings, prompt):
        self.seed, self.settings, self.prompt, self.positions = seed, settings, prompt, 0


class EchoBatch:
    """What the engine needs of a batch: each row says what it hears, and every tenth frame a word with its seed."""

    frame_size, sample_rate = SIZE, 24_000

    def __init__(self, slots):
        self.slots, self.rows, self.steps, self.most = slots, [], 0, 0
        self.model = None  # which has no personas

    @property
    def free(self):
        return self.slots - len(self.rows)

    def join(self, seed=0, prompt=None, **settings):
        if not self.free:
            raise InputError("join: all slots are taken")
        row = EchoRow(seed, settings, prompt)
        self.rows.append(row)
        self.most = max(self.most, len(self.rows))
        return row

    def fill_context(self):
        pass

    def leave(self, row):
        self.rows.remove(row)

    def step(self, sounds):
        self.steps += 1
        assert all(row in self.rows and row.positions for row in sounds), "a row that left, or was not primed"
        frames = {}
        for row in self.rows:
            if row in sounds or not row.positions:
                row.positions += 1
            if row in sounds:
                word = f" {row.seed}" if row.positions % 10 == 2 else ""
                frames[row] = Frame(np.array(sounds[row]), word, 0, None)
        return frames


@contextlib.asynccontextmanager
async def open_house(
    make_batch=None, slots=2, token=None, origins=(), log=None, context=None, role="dialogue", **rules
):
    """-> the house, and its address without the scheme."""
    quiet = logging.getLogger("moshi_mlx.tests.quiet")
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    guard = Guard("127.0.0.1", token, tuple(origins))
    house = House(make_batch or (lambda: EchoBatch(slots)), guard, Rules(**rules), "echo", "0", log or quiet, role=role)
    listener = Listener(house)
    try:
        await house.open()
        port = await listener.open("127.0.0.1", 0, context)
        yield house, f"127.0.0.1:{port}"
    finally:
        await house.close()
        await listener.close()


def run(scene, seconds=40):
    """A scene of a test, with a moment at the end for sockets that were cut to be closed."""

    async def whole():
        try:
            await asyncio.wait_for(scene, seconds)
        finally:
            await asyncio.sleep(0.05)

    asyncio.run(whole())


async def until(condition, seconds=10.0):
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "it does not come true"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def connect(url, **options):
    async with aiohttp.ClientSession() as session, session.ws_connect(url, **options) as ws:
        yield ws


class Visitor:
    """Somebody who speaks Kyutai's protocol in real time."""

    def __init__(self, ws):
        self.ws, self.words, self.kinds = ws, "", []
        self.writer, self.reader = Writer(24_000), Reader(24_000)
        self.heard = []
        self.reason = None

    async def read(self):
        """One message; None at the end."""
        message = await self.ws.receive()
        if message.type != aiohttp.WSMsgType.BINARY:
            return None
        kind, payload = message.data[0], message.data[1:]
        self.kinds.append(kind)
        if kind == 1:
            self.heard.append(self.reader.read(payload))
        elif kind == 2:
            self.words += payload.decode()
        elif kind == 5:
            self.reason = payload.decode()
        return kind

    async def handshake(self):
        while True:
            kind = await self.read()
            assert kind is not None, f"closed before the handshake: {self.reason}"
            if kind == 0:
                return

    async def say(self, sound):
        await self.ws.send_bytes(b"\x01" + self.writer.write(sound))

    async def until_closed(self):
        while await self.read() is not None:
            pass
        return self.ws.close_code

    async def talk(self, frames, sound=None):
        """Says so many frames, 80 ms each, and goes on in silence until as many are heard."""
        sound = np.zeros(SIZE * frames, np.float32) if sound is None else sound

        async def speak():
            loop = asyncio.get_running_loop()
            began = loop.time()
            for i in itertools.count():
                await asyncio.sleep(began + 0.08 * i - loop.time())
                await self.say(sound[SIZE * i : SIZE * (i + 1)] if i < frames else np.zeros(SIZE, np.float32))

        speaking = asyncio.ensure_future(speak())
        try:
            while sum(map(len, self.heard)) < SIZE * frames:
                assert await self.read() is not None, self.reason
        finally:
            speaking.cancel()


@contextlib.asynccontextmanager
async def visit(address, query="", **options):
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"ws://{address}/api/chat{query}", max_msg_size=0, **options) as ws,
    ):
        yield Visitor(ws)


class Lines(logging.Handler):
    """What a server logs."""

    def __init__(self):
        super().__init__()
        self.stream = io.StringIO()
        self.log = logging.getLogger(f"moshi_mlx.tests.{id(self)}")
        self.log.propagate = False
        self.log.setLevel(logging.INFO)
        self.log.addHandler(self)
        self.records = []

    def emit(self, record):
        self.records.append(record)
