"""The server over real sockets, with a batch that echoes: coming, waiting, talking, leaving, nothing left behind."""

import asyncio
import base64
import gc
import json
import os
import ssl
import threading

import aiohttp
import numpy as np
import pytest
from serving import SIZE, EchoBatch, Lines, Visitor, connect, open_house, run, until, visit

from moshi_mlx.serve.talk import End

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(20 * SIZE) / 24_000)).astype(np.float32)


async def get(address, path, **options):
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}", **options) as answer:
        return answer.status, dict(answer.headers), await answer.read()


def test_a_conversation():
    async def scene():
        async with open_house() as (house, address), visit(address, "?seed=7&audio_topk=9") as me:
            await me.handshake()
            assert me.kinds == [4, 0]
            await me.talk(20, TONE)
            sound = np.concatenate(me.heard)
            assert np.abs(np.fft.rfft(sound[4800:28800])).argmax() == 440
            assert me.words.startswith(" 7 7")
            row = house.engine.batch.rows[0]
            assert (row.seed, row.settings) == (7, {"top_k": 9})
            await me.ws.close()
            await until(lambda: not house.talks)
            await until(lambda: not house.engine.people)

    run(scene())


def test_what_is_said_before_the_handshake_is_thrown_away_but_not_its_headers():
    """As moshi.client and moshi-cli do, who begin at once."""

    async def scene():
        async with open_house(slots=1) as (house, address), visit(address) as first:
            await first.handshake()
            async with visit(address) as second:
                for i in range(5):
                    await second.say(TONE[SIZE * i : SIZE * (i + 1)])
                await until(lambda: house.doors.waiting == 1)
                await asyncio.sleep(0.2)
                await first.ws.close()
                await second.handshake()
                await second.talk(6)  # silence
                assert np.abs(np.concatenate(second.heard)[SIZE:]).max() < 0.01

    run(scene())


def test_the_line_and_a_full_house():
    async def scene():
        async with open_house(slots=1, queue=1) as (house, address), visit(address) as first:
            await first.handshake()
            async with visit(address) as second:
                await until(lambda: house.doors.waiting == 1)
                status, headers, body = await get(address, "/api/chat", headers={
                    "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode()})  # fmt: skip
                assert status == 503
                assert int(headers["Retry-After"]) > 0
                assert b"all 1 slots are taken" in body
                status, _, body = await get(address, "/health")
                assert (status, json.loads(body)) == (
                    200,
                    {"status": "ok", "model": "echo", "role": "dialogue", "slots": 1, "free": 0, "waiting": 1},
                )
                assert second.kinds == []
                await first.ws.close()
                await second.handshake()
            await until(lambda: house.doors.inside == 0)

    run(scene())


def test_who_leaves_the_line_is_noticed():
    async def scene():
        async with open_house(slots=1) as (house, address), visit(address) as first:
            await first.handshake()
            async with visit(address):
                await until(lambda: house.doors.waiting == 1)
            await until(lambda: house.doors.waiting == 0)
            assert house.doors.inside == 1

    run(scene())


def test_pause_restart_and_unknown_controls():
    async def scene():
        async with open_house() as (house, address), visit(address, "?seed=5") as me:
            await me.handshake()
            for message in (b"\x03", b"\x03\x00", b"\x03\x01", b"\x03\x09", b"\x63abc", b"\x06", b"\x04{}"):
                await me.ws.send_bytes(message)
            await me.talk(4, TONE)
            before = house.engine.batch.rows[0]
            await me.ws.send_bytes(b"\x03\x03")
            await until(lambda: house.engine.batch.rows and house.engine.batch.rows[0] is not before)
            await me.ws.send_bytes(b"\x03\x02")
            talk = next(iter(house.talks))
            await until(lambda: talk.paused)
            await me.say(TONE[:SIZE])
            await asyncio.sleep(0.2)
            assert house.engine.batch.rows[0].positions <= 1
            await me.ws.send_bytes(b"\x03\x00")
            me.heard.clear()
            await me.talk(4, TONE)

    run(scene())


def test_samples_instead_of_opus():
    async def scene():
        async with open_house() as (_, address), visit(address, "?pcm=48000") as me:
            await me.handshake()
            tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000) * 32767).astype("<i2")
            heard = b""
            for i in range(0, 48_000, 960):
                data = tone[i : i + 960].tobytes()
                await me.ws.send_bytes(b"\1" + data[:501])  # cut inside a sample
                await me.ws.send_bytes(b"\1" + data[501:])
                await asyncio.sleep(0.02)
            while len(heard) < 2 * 38_400:
                message = await me.ws.receive()
                heard += message.data[1:] if message.data[0] == 1 else b""
            sound = np.frombuffer(heard, "<i2")[9600:33_600]
            assert np.abs(np.fft.rfft(sound)).argmax() == 220  # half a second

    run(scene())


def test_max_steps_and_max_minutes():
    async def scene():
        async with open_house(max_minutes=0.01) as (_, address):
            async with visit(address, "?max_steps=3") as me:
                await me.handshake()
                await me.say(TONE[: 5 * SIZE])
                assert await me.until_closed() == 1000
                assert "3 frames" in me.reason
                assert sum(map(len, me.heard)) == 3 * SIZE
            async with visit(address) as me:
                await me.handshake()
                assert await me.until_closed() == 1000
                assert "0.01 minutes are over" in me.reason

    run(scene())


def test_idle_people_are_told_and_let_go(monkeypatch):
    monkeypatch.setattr("moshi_mlx.serve.talk.IDLE_SECONDS", 0.3)
    monkeypatch.setattr("moshi_mlx.serve.house.WATCH_SECONDS", 0.1)

    async def scene():
        async with open_house() as (_, address), visit(address) as me:
            await me.handshake()
            assert await me.until_closed() == 1008
            assert "no sound" in me.reason

    run(scene())


def test_draining():
    async def scene():
        async with open_house(slots=1, drain_seconds=0.6) as (house, address):
            async with visit(address) as inside, visit(address) as waiting:
                await inside.handshake()
                await until(lambda: house.doors.waiting == 1)
                draining = asyncio.ensure_future(house.drain())
                assert await waiting.until_closed() == 1001
                assert "about to end" in waiting.reason
                status, _, body = await get(address, "/health")
                assert (status, json.loads(body)["status"]) == (503, "draining")
                with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                    async with visit(address):
                        pass
                await inside.talk(3, TONE)  # goes on meanwhile
                assert not house.over.is_set()
                await inside.ws.close()
                await draining
            assert house.over.is_set()

    run(scene())


def test_closing_tells_everybody():
    async def scene():
        async with open_house(slots=2) as (house, address), visit(address) as me:
            await me.handshake()
            closing = asyncio.ensure_future(house.close())
            assert await me.until_closed() == 1001
            assert me.reason == "the server ends"
            await closing

    run(scene())


def test_a_model_that_fails_is_told_to_all_and_ends_the_server():
    class Broken(EchoBatch):
        def step(self, sounds):
            if sounds:
                raise RuntimeError("out of memory")
            return super().step(sounds)

    async def scene():
        async with open_house(lambda: Broken(2)) as (house, address), visit(address) as me, visit(address) as other:
            await me.handshake()
            await other.handshake()
            await me.say(TONE[: 2 * SIZE])
            assert await me.until_closed() == 1011
            assert await other.until_closed() == 1011
            await house.over.wait()
            assert isinstance(house.failure, RuntimeError)
            assert (await get(address, "/health"))[0] == 503

    run(scene())


def test_a_model_that_does_not_load_is_raised():
    def make():
        raise RuntimeError("no such checkpoint")

    async def scene():
        with pytest.raises(RuntimeError, match="no such checkpoint"):
            async with open_house(make):
                pass

    run(scene())


@pytest.mark.slow
def test_100_people_in_turn_on_4_slots_leave_nothing_behind():
    """No task, thread, descriptor or row stays, and everybody hears himself alone."""

    async def scene():
        async with open_house(slots=4, queue=100) as (house, address):
            async with aiohttp.ClientSession() as session:

                async def person(number):
                    async with session.ws_connect(f"ws://{address}/api/chat?seed={number}") as ws:
                        me = Visitor(ws)
                        await me.handshake()
                        await me.talk(2 + number % 3)
                        assert set(me.words.split()) == {str(number)}
                        if number % 4 == 0:  # some vanish without a word
                            ws._response.connection.transport.abort()

                await asyncio.gather(*(person(number) for number in range(8)))  # threads of pools are there
                await until(lambda: not house.talks)
                before = (len(asyncio.all_tasks()), threading.active_count())
                gc.collect()
                objects = len(gc.get_objects())
                await asyncio.gather(*(person(number) for number in range(8, 108)))
                await until(lambda: not house.talks and not house.engine.people)
                assert house.engine.batch.most == 4
                assert house.engine.batch.rows == []
            await asyncio.sleep(0.05)
            gc.collect()
            assert len(asyncio.all_tasks()) <= before[0]
            assert threading.active_count() <= before[1]
            assert len(gc.get_objects()) < objects + 5000
            assert house.doors.inside == house.doors.waiting == 0

    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    run(scene(), 60)
    gc.collect()
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2


def test_metrics_count():
    async def scene():
        async with open_house(slots=3) as (_, address):
            async with visit(address) as me:
                await me.handshake()
                await me.talk(5, TONE)
                status, headers, body = await get(address, "/metrics")
            text = body.decode()
            assert status == 200
            assert headers["Content-Type"].startswith("text/plain")
            lines = [
                "moshi_slots 3.0",
                "moshi_people 1.0",
                'moshi_conversations_total{protocol="kyutai"} 1.0',
                "moshi_frames_total",
                "moshi_step_seconds_count",
                "moshi_speaking_seconds_bucket",
            ]
            for line in lines:
                assert line in text

    run(scene())


FILES = {
    "/": "text/html",
    "/page.js": "text/javascript",
    "/coder.js": "text/javascript",
    "/worklet.js": "text/javascript",
    "/page.css": "text/css",
    "/icon.svg": "image/svg+xml",
}


def test_the_page_and_its_files():
    async def scene():
        async with open_house() as (_, address):
            size = 0
            for path, kind in FILES.items():
                status, headers, body = await get(address, path)
                assert status == 200
                assert headers["Content-Type"].startswith(kind)
                assert "default-src 'self'" in headers["Content-Security-Policy"]
                size += len(body)
            assert size < 25_000
            assert (await get(address, "/api/chat"))[0] == 426

    run(scene())


def test_logs_name_what_happened_and_no_query():
    lines = Lines()

    async def scene():
        async with open_house(log=lines.log, token="sesame") as (_, address):
            async with visit(address, "?auth_id=sesame&email=me@example.org") as me:
                await me.handshake()
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                async with visit(address, "?auth_id=sesamo"):
                    pass

    run(scene())
    said = [record.getMessage() for record in lines.records]
    assert {"came", "left", "refused"} <= set(said)
    everything = str([vars(record) for record in lines.records])
    assert "sesam" not in everything
    assert "example.org" not in everything


def test_realtime_over_a_socket():
    async def scene():
        path = "/v1/realtime?model=moshi"
        async with open_house() as (house, address), connect(f"ws://{address}{path}", protocols=("realtime",)) as ws:

            async def event():
                return json.loads((await ws.receive()).data)

            assert ws.protocol == "realtime"
            created = await event()
            assert created["type"] == "session.created"
            assert created["session"]["audio"]["input"]["turn_detection"] is None
            await ws.send_json({"type": "session.update", "session": {"seed": 9, "temperature": 0.5, "tools": []}})
            assert (await event())["session"]["temperature"] == 0.5
            await ws.send_json({"type": "response.create", "event_id": "e1"})
            assert (await event())["error"]["event_id"] == "e1"
            await ws.send_str("no JSON")
            assert (await event())["error"]["code"] == "invalid_value"
            pcm = (TONE * 32767).astype("<i2").tobytes()
            await ws.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()})
            names, heard = [], b""
            while names.count("response.output_audio.delta") < 20:
                each = await event()
                names.append(each["type"])
                heard += base64.b64decode(each["delta"]) if each["type"] == "response.output_audio.delta" else b""
            assert heard == pcm
            assert names[0] == "response.created"
            row = house.engine.batch.rows[0]
            assert (row.seed, row.settings) == (9, {"temperature": 0.5})
            await ws.send_json({"type": "session.update", "session": {"temperature": 0.9}})
            while (each := await event())["type"] != "error":
                pass
            assert each["error"]["code"] == "unsupported"
            await ws.send_json({"type": "response.cancel"})
            while (each := await event())["type"] != "response.done":
                pass
            assert each["response"]["status"] == "cancelled"

    run(scene())


def test_https(tmp_path):
    import subprocess

    from moshi_mlx import InputError
    from moshi_mlx.serve.app import tls

    with pytest.raises(InputError, match=r"^--ssl: got a folder without cert.pem"):
        tls(tmp_path)
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)

    async def scene():
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE  # as moshi-cli
        async with (
            open_house(context=tls(tmp_path)) as (_, address),
            connect(f"wss://{address}/api/chat", ssl=anybody) as ws,
        ):
            me = Visitor(ws)
            await me.handshake()
            await me.talk(2, TONE)

    run(scene())
    (tmp_path / "key.pem").write_text("nonsense")
    with pytest.raises(InputError, match=r"^--ssl: got files"):
        tls(tmp_path)


def test_the_first_reason_counts():
    async def scene():
        async with open_house() as (house, address), visit(address) as me:
            await me.handshake()
            talk = next(iter(house.talks))
            talk.end(End("over", "first", 1000))
            talk.end(End("slow", "second", 1008))
            assert await me.until_closed() == 1000
            assert me.reason == "first"

    run(scene())
