"""Peers that mean harm or know no better: each is closed with a reason, and nobody else notices."""

import asyncio
import base64
import contextlib
import json
import os
import socket
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from serving import SIZE, Visitor, connect, open_house, run, until, visit

pytestmark = pytest.mark.slow

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(20 * SIZE) / 24_000)).astype(np.float32)


@contextlib.asynccontextmanager
async def witness(house, address):
    """Somebody who talks all the while, and of whose sound no frame may be missing."""
    async with visit(address, "?seed=1") as me:
        await me.handshake()
        talking = asyncio.ensure_future(me.talk(20, TONE))
        await asyncio.sleep(0.1)
        yield
        await talking
        assert np.abs(np.fft.rfft(np.concatenate(me.heard)[4800:28800])).argmax() == 440
        assert me.reason is None


async def closes(address, act, path="/api/chat"):
    """What a peer who does that is told: (code, reason). On a thread, so that its work keeps nobody here waiting."""
    return await asyncio.to_thread(lambda: asyncio.run(_closes(address, act, path)))


async def _closes(address, act, path):
    async with aiohttp.ClientSession() as session, session.ws_connect(f"ws://{address}{path}") as ws:
        me = Visitor(ws)
        if path == "/api/chat":
            await me.handshake()
        else:
            await ws.receive()
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            await act(ws)
        if path == "/api/chat":
            return await me.until_closed(), me.reason
        while (message := await ws.receive()).type == aiohttp.WSMsgType.TEXT:
            me.reason = json.loads(message.data).get("error", {}).get("message", me.reason)
        return ws.close_code, me.reason


async def garbage(ws):
    await ws.send_bytes(b"\x01" + os.urandom(500))


async def text_frame(ws):
    await ws.send_str("hello")


async def empty(ws):
    await ws.send_bytes(b"")


async def large(ws):
    await ws.send_bytes(b"\x01" + bytes(5 * 2**20))


# Who is still sending when it is closed may miss the reason: the connection is reset.
TOO_BIG, TOO_MUCH = (1009, 1006), (1008, 1006)


def send_64_mb(address, path):
    """On a thread: a websocket's header that announces 64 MB, and all of them."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as peer:
        key = base64.b64encode(bytes(16)).decode()
        peer.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert b" 101 " in peer.recv(4096)
        with contextlib.suppress(ConnectionError):
            peer.sendall(b"\x82\xff" + (64 * 2**20).to_bytes(8, "big") + bytes(4))  # a mask of zeros changes nothing
            for _ in range(64):
                peer.sendall(bytes(2**20))
            while peer.recv(4096):
                pass


@pytest.mark.parametrize("path", ["/api/chat", "/v1/realtime"])
def test_64_mb_are_not_taken(path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def scene():
        async with open_house(slots=3) as (house, address), witness(house, address):
            before = resident()
            await asyncio.wait_for(asyncio.to_thread(send_64_mb, address, path), 20)
            await until(lambda: len(house.talks) == 1)
            assert resident() - before < 32 * 2**20

    run(scene())


async def flood(ws):
    """Ten minutes of sound at once."""
    writer = Visitor(ws).writer
    pages = [writer.write(np.zeros(SIZE, np.float32)) for _ in range(50)]
    for _ in range(150):
        for page in pages:
            await ws.send_bytes(b"\x01" + page)


@pytest.mark.parametrize(
    ("act", "code", "reason"),
    [
        (garbage, (1008,), "no Ogg/Opus"),
        (text_frame, (1003,), "text message"),
        (empty, (1008,), "no byte"),
        (large, TOO_BIG, None),
        (flood, TOO_MUCH, "ahead of time"),
    ],
)
def test_peers_are_closed_with_a_reason_and_nobody_is_disturbed(act, code, reason):
    async def scene():
        async with open_house(slots=3) as (house, address), witness(house, address):
            got, said = await closes(address, act)
            assert got in code
            assert reason is None or got == 1006 or reason in said
            await until(lambda: len(house.talks) == 1)
            assert house.doors.inside == 1

    run(scene())


async def binary_frame(ws):
    await ws.send_bytes(b"\x01abc")


async def ten_minutes(ws):
    audio = base64.b64encode(bytes(48_000)).decode()
    for _ in range(600):
        await ws.send_json({"type": "input_audio_buffer.append", "audio": audio})


@pytest.mark.parametrize(
    ("act", "code", "reason"),
    [(binary_frame, (1003,), "binary message"), (large, TOO_BIG, None), (ten_minutes, TOO_MUCH, "ahead of time")],
)  # fmt: skip
def test_realtime_peers_too(act, code, reason):
    async def scene():
        async with open_house(slots=3) as (house, address), witness(house, address):
            got, said = await closes(address, act, "/v1/realtime")
            assert got in code
            assert reason is None or got == 1006 or reason in said

    run(scene())


def test_bad_events_are_answered_and_end_nothing():
    async def scene():
        async with open_house() as (house, address), connect(f"ws://{address}/v1/realtime") as ws:
            await ws.receive()
            for text in ("", "{", "[]", "null", '{"type": "input_audio_buffer.append", "audio": 3}', "\x00" * 100,
                         "[" * 10_000, '{"a":' * 10_000, "1" * 10_000,
                         '{"type": "session.update", "session": {"temperature": "hot"}}'):  # fmt: skip
                await ws.send_str(text)
                error = json.loads((await ws.receive()).data)
                assert error["type"] == "error"
                assert error["error"]["code"] == "invalid_value"
            assert len(house.talks) == 1

    run(scene())


def test_a_slow_reader_is_let_go(monkeypatch):
    monkeypatch.setattr("moshi_mlx.serve.talk.OUTBOX", 5)

    async def scene():
        house_of_two = open_house(slots=2)
        async with house_of_two as (house, address), witness(house, address), visit(address, "?pcm=192000") as me:
            await me.handshake()
            talk = next(talk for talk in house.talks if talk.seed != 1)
            mine, theirs = me.ws._response.connection.transport, talk.ws._writer.transport
            mine.pause_reading()  # and so the buffers fill; a smaller one to receive into can stall both ways
            theirs.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            for _ in range(200):
                if talk._ended.done():
                    break
                await me.ws.send_bytes(b"\1" + bytes(2 * 15_360))
                await asyncio.sleep(0.08)
            assert talk._ended.result().label == "slow"
            await until(lambda: len(house.talks) == 1)
            me.ws._response.connection.transport.abort()

    run(scene())


def test_a_closed_house_leaves_no_connection_of_who_does_not_read():
    async def scene():
        async with contextlib.AsyncExitStack() as client:
            async with open_house() as (house, address):
                me = await client.enter_async_context(visit(address, "?pcm=192000"))
                await me.handshake()
                me.ws._response.connection.transport.pause_reading()
                theirs = next(iter(house.talks)).ws._writer.transport
                theirs.write(bytes(50_000_000))
            await asyncio.sleep(0)
            assert theirs.get_extra_info("socket").fileno() == -1
            me.ws._response.connection.transport.abort()

    run(scene())


def test_half_open_connections_are_dropped(monkeypatch):
    """Those that never ask, and those that vanish without closing."""
    monkeypatch.setattr("moshi_mlx.serve.app.FIRST_REQUEST_SECONDS", 0.3)
    monkeypatch.setattr("moshi_mlx.serve.talk.HEARTBEAT", 0.4)

    async def scene():
        async with open_house(slots=2) as (house, address), witness(house, address):
            host, port = address.split(":")
            silent = [socket.create_connection((host, int(port))) for _ in range(50)]
            silent[0].send(b"GET / HT")
            async with visit(address, autoping=False) as vanished:
                await vanished.handshake()
                await until(lambda: len(house.talks) == 1, 5)
            loop = asyncio.get_running_loop()
            for each in silent:
                each.setblocking(False)
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.wait_for(loop.sock_recv(each, 10), 3) == b""
                each.close()

    run(scene())


async def raw(address, request):
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(2000), 5)
    writer.close()
    return answer


PATHS = """
/../../etc/passwd /%2e%2e/%2e%2e/etc/passwd /..%2f..%2fetc/passwd //etc/passwd /page/../app.py /index.html%00.js /app.py
/.git/config /\\..\\app.py
"""


@pytest.mark.parametrize("path", PATHS.split())
def test_there_is_no_path_to_walk_out_of(path):
    async def scene():
        async with open_house() as (_, address):
            answer = await raw(address, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert answer.split()[1] in (b"404", b"400")
            assert b"root:" not in answer
            assert b"import" not in answer

    run(scene())


NO_REQUESTS = [
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"GET / HTTP/1.1\r\n\r\n",
    b"X" * 100_000 + b"\r\n\r\n",
    b"GET /api/chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /api/chat?text_topk=many HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", NO_REQUESTS)
def test_what_is_no_request_is_refused(request_bytes):
    async def scene():
        async with open_house() as (house, address):
            answer = await raw(address, request_bytes)
            assert not answer or answer.split()[1][:1] == b"4"
            assert not house.talks
            assert house.doors.inside == 0

    run(scene())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8998", "Origin": "http://evil.example:8998"}, 403),
        ({"Authorization": "Bearer wrong"}, 401),
    ],
)
def test_foreign_pages_names_and_tokens(headers, status):
    token = "sesame" if status == 401 else None

    async def scene():
        async with open_house(token=token) as (house, address):
            for path in ("/api/chat", "/v1/realtime"):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    async with aiohttp.ClientSession() as session:
                        await session.ws_connect(f"ws://{address}{path}", headers=headers)
                assert refused.value.status == status
            assert house.doors.inside == 0

    run(scene())


def test_a_crowd_at_the_door_costs_nobody_his_place():
    async def scene():
        async with open_house(slots=2, queue=3) as (house, address), witness(house, address):
            async with aiohttp.ClientSession() as session:

                async def knock():
                    try:
                        async with session.ws_connect(f"ws://{address}/api/chat"):
                            await asyncio.sleep(0.2)
                            return "in"
                    except aiohttp.WSServerHandshakeError as error:
                        return error.status

                got = await asyncio.gather(*(knock() for _ in range(60)))
                assert set(got) == {"in", 503}
            await until(lambda: house.doors.inside == 1 and house.doors.waiting == 0)

    run(scene())
