"""STT and TTS at the sockets of Kyutai's Rust server, driven as Unmute's clients drive them."""

import asyncio
import contextlib

import aiohttp
import msgpack
import numpy as np
import pytest
import serving
from aiohttp import WSMsgType
from family import loaded
from serving import SIZE, run, until

from moshi_mlx import InputError
from moshi_mlx.roles.listener import EndWord, Step, Word
from moshi_mlx.serve.speech import messages
from moshi_mlx.serve.speech.engine import Line
from moshi_mlx.serve.speech.visit import checked_name

KEY = {"kyutai-api-key": "public_token"}
TEXT = "good morning you can talk"


@contextlib.asynccontextmanager
async def transcribing(slots=2, **rules):
    async with serving.open_house(
        lambda: loaded("stt").transcribers(slots, progress=False), role="transcriber", token="public_token", **rules
    ) as opened:
        yield opened


@contextlib.asynccontextmanager
async def speaking(slots=2, kind="tts", **rules):
    async with serving.open_house(
        lambda: loaded(kind).speakers(slots, progress=False), role="speaker", token="public_token", **rules
    ) as opened:
        yield opened


class Client:
    """A websocket of msgpack maps, which first hears Ready, as Unmute's have it."""

    def __init__(self, ws):
        self.ws = ws

    async def send(self, **message):
        await self.ws.send_bytes(msgpack.packb(message))

    async def read(self):
        """A message; None at the end."""
        message = await self.ws.receive()
        return msgpack.unpackb(message.data) if message.type == WSMsgType.BINARY else None

    async def until(self, kind):
        """All messages up to one of this kind, or the end."""
        found = []
        while (message := await self.read()) is not None:
            found.append(message)
            if message["type"] == kind:
                break
        return found


@contextlib.asynccontextmanager
async def visit(address, path, query="", headers=KEY):
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"ws://{address}{path}{query}", headers=headers, max_msg_size=0) as ws,
    ):
        yield Client(ws)


def sound(frames, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(frames * SIZE)).astype(np.float32)


def transcribed(pcm):
    """What the transcriber says alone, in the messages of the socket."""
    transcriber = loaded("stt").transcribers(1, progress=False)
    row = transcriber.join()
    said = [event for frame in pcm.reshape(-1, SIZE) for event in transcriber.step({row: frame})[row]]
    return [message for event in said if (message := messages.of_event(event, 0))]


def same(got, wanted):
    """Messages of the same words at the same times; probabilities as exact as float32 is sent."""
    assert [m["type"] for m in got] == [m["type"] for m in wanted]
    for one, other in zip(got, wanted, strict=True):
        for name, value in other.items():
            if name not in ("type", "buffered_pcm"):
                assert one[name] == (value if isinstance(value, (str, int)) else pytest.approx(value, abs=1e-4)), name


def test_speech_is_transcribed_as_it_is_offline():
    pcm = sound(30)

    async def scene():
        async with transcribing() as (_, address), visit(address, "/api/asr-streaming") as client:
            assert await client.read() == {"type": "Ready"}
            for part in np.array_split(pcm, 13):  # in pieces of any length
                await client.send(type="Audio", pcm=part.tolist())
            got = []
            while sum(m["type"] == "Step" for m in got) < 30:
                got.append(await client.read())
            wanted = transcribed(pcm)
            last = max(n for n, m in enumerate(wanted) if m["type"] == "Step") + 1
            same(got, wanted[:last])
            assert len(got[-1]["prs"]) == 4

    run(scene())


def test_a_marker_comes_back_when_what_was_before_it_is_written():
    async def scene():
        async with transcribing() as (_, address), visit(address, "/api/asr-streaming") as client:
            await client.read()
            await client.send(type="Audio", pcm=sound(5).tolist())
            await client.send(type="Marker", id=77)
            await client.send(type="Audio", pcm=[0.0] * (7 * SIZE))  # the flush, faster than time
            found = await client.until("Marker")
            assert found[-1] == {"type": "Marker", "id": 77}
            assert sum(m["type"] == "Step" for m in found) == 5 + 6  # the delay of half a second

    run(scene())


def test_several_people_are_heard_as_each_alone():
    async def talk(address, seed, pause):
        pcm = sound(20, seed)
        async with visit(address, "/api/asr-streaming") as client:
            await client.read()
            for frame in pcm.reshape(-1, SIZE):
                await client.send(type="Audio", pcm=frame.tolist())
                await asyncio.sleep(pause)
            got = []
            while sum(m["type"] == "Step" for m in got) < 20:
                got.append(await client.read())
        wanted = transcribed(pcm)
        same(got, wanted[: len(got)])

    async def scene():
        async with transcribing(3) as (_, address):
            await asyncio.gather(*(talk(address, seed, 0.003 * seed) for seed in range(3)))
            await talk(address, 7, 0)  # in a slot that others have left

    run(scene(), 90)


def test_who_comes_when_all_slots_are_taken_is_told_in_words():
    async def scene():
        async with transcribing(1, queue=0) as (_, address), visit(address, "/api/asr-streaming") as client:
            await client.read()
            async with visit(address, "/api/asr-streaming") as other:
                refused = await other.read()
                assert refused["type"] == "Error"
                assert "1 slots are taken" in refused["message"]
                assert await other.read() is None
            await client.send(type="Audio", pcm=sound(1).tolist())
            assert (await client.until("Step"))[-1]["type"] == "Step"

    run(scene())


def spoken(kind, text, voice=None, seed=0):
    """What a speaker says alone: sound, and words with times."""
    model = loaded(kind)
    speaker = model.speakers(1, progress=False)
    row = speaker.join(voice, seed)
    row.add(text)
    row.end()
    pcm, words = [], []
    while not row.done:
        frame = speaker.step()[row]
        words += frame.words
        if frame.pcm is not None:
            pcm.append(frame.pcm)
    return np.concatenate(pcm), words


async def say(address, words, query="?seed=3&format=PcmMessagePack", voice=None, pause=0.0):
    async with visit(address, "/api/tts_streaming", query) as client:
        assert await client.read() == {"type": "Ready"}
        if voice is not None:
            await client.send(type="Voice", embeddings=voice.reshape(-1).tolist(), shape=list(voice.shape))
        for word in words:
            await client.send(type="Text", text=word)
            await asyncio.sleep(pause)
        await client.send(type="Eos")
        found = await client.until("nothing")
    assert all(m["type"] in ("Audio", "Text") for m in found), [m for m in found if m["type"] == "Error"]
    sound = np.concatenate([np.array(m["pcm"], np.float32) for m in found if m["type"] == "Audio"])
    return sound, [(m["text"], m["start_s"], m["stop_s"]) for m in found if m["type"] == "Text"]


@pytest.mark.parametrize("kind", ["tts", "tts_prefix"])
def test_a_text_is_spoken_as_it_is_offline(kind):
    wanted, times = spoken(kind, TEXT, seed=3)

    async def scene():
        async with speaking(kind=kind) as (_, address):
            for pause in (0.0, 0.02):
                got, words = await say(address, TEXT.split(), pause=pause)
                assert words == [(word, pytest.approx(a), pytest.approx(b)) for word, a, b in times]
                np.testing.assert_allclose(got, wanted, atol=1e-5)

    run(scene(), 90)


def test_several_people_are_spoken_to_as_each_alone():
    texts = [TEXT, "the fox is here", "past seven"]
    wanted = [spoken("tts", text, seed=3)[0] for text in texts]

    async def scene():
        async with speaking(3) as (_, address):
            found = await asyncio.gather(*(say(address, text.split(), pause=0.01 * n) for n, text in enumerate(texts)))
            for (got, _), alone in zip(found, wanted, strict=True):
                np.testing.assert_allclose(got, alone, atol=1e-5)

    run(scene(), 90)


def test_a_voice_of_the_clients_own():
    dim = next(one.dim for one in loaded("tts").config.conditions if one.is_sequence)
    voice = np.random.default_rng(1).standard_normal((1, dim, 5)).astype(np.float32)
    wanted, _ = spoken("tts", TEXT, voice, 3)

    async def scene():
        async with speaking() as (_, address):
            got, _ = await say(address, TEXT.split(), voice=voice)
            np.testing.assert_allclose(got, wanted, atol=1e-5)

    run(scene())


BAD = {
    "no msgpack": (b"\xc1\xff", "no msgpack"),
    "no map": (msgpack.packb([1]), "got type None"),
    "another kind": (msgpack.packb({"type": "Nonsense"}), "got type 'Nonsense'"),
    "sound that is text": (msgpack.packb({"type": "Audio", "pcm": "loud"}), "pcm is 'loud'"),
    "sound of texts": (msgpack.packb({"type": "Audio", "pcm": ["a"]}), "expected a list of numbers"),
    "a marker without a number": (msgpack.packb({"type": "Marker", "id": "x"}), "id is 'x'"),
    "a map in a map": (msgpack.packb({"type": {"type": "Audio"}}), "got type"),
    "cut short": (msgpack.packb({"type": "Audio", "pcm": [0.5] * 9})[:-3], "no msgpack"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_client_sends_ends_that_visit_alone(name):
    message, reason = BAD[name]

    async def scene():
        async with transcribing() as (_, address), visit(address, "/api/asr-streaming") as other:
            await other.read()
            async with visit(address, "/api/asr-streaming") as client:
                await client.read()
                await client.ws.send_bytes(message)
                found = await client.until("Error")
                assert reason in found[-1]["message"]
                assert await client.read() is None
            await other.send(type="Audio", pcm=sound(1).tolist())
            assert (await other.until("Step"))[-1]["type"] == "Step"

    run(scene())


TTS_BAD = {
    "text that is none": ({"type": "Text", "text": 5}, "text is 5"),
    "after the end": (({"type": "Eos"}, {"type": "Text", "text": "more"}), "after Eos"),
    "a voice too late": (
        ({"type": "Text", "text": "a"}, {"type": "Voice", "embeddings": [], "shape": []}), "after the",
    ),
    "a voice of another shape": ({"type": "Voice", "embeddings": [0.5] * 6, "shape": [1, 2, 4]}, "shape is"),
    "a voice for another model": ({"type": "Voice", "embeddings": [0.5] * 6, "shape": [1, 2, 3]}, "another model"),
    "a pause of an hour": (
        {"type": "Text", "text": '<break time="3600s"/> now'}, "3600",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TTS_BAD)
def test_what_no_speaker_can_take_ends_that_visit_alone(name):
    sent, reason = TTS_BAD[name]

    async def scene():
        async with speaking(1) as (house, address):
            async with visit(address, "/api/tts_streaming") as client:
                await client.read()
                for message in sent if isinstance(sent, tuple) else (sent,):
                    await client.ws.send_bytes(msgpack.packb(message))
                found = await client.until("Error")
                assert reason in found[-1]["message"]
            await until(lambda: house.engine.people == 0)
            got, _ = await say(address, ["you"])
            assert len(got)

    run(scene())


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("?format=Opus", "format"), ("?seed=x", "seed"), ("?cfg_alpha=x", "cfg_alpha"),
        ("?max_seq_len=0", "max_seq_len"),
        ("?voice=../../etc/passwd", "voice"), ("?voice=/etc/passwd", "voice"), ("?voice=~root/x", "voice"),
        ("?voice=a%00b", "voice"), ("?voice=" + "x" * 400, "voice"),
    ],
)  # fmt: skip
def test_a_query_that_cannot_be_is_refused_before_the_socket(query, reason):
    async def scene():
        async with speaking(1) as (_, address), aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"ws://{address}/api/tts_streaming{query}", headers=KEY)
            assert caught.value.status == 400

    run(scene())


def test_names_of_voices_are_never_paths():
    for name in ("/x", "../x", "a/../b", "~x", "a\\b", "a\nb", "", "a//b", "./a"):
        with pytest.raises(InputError, match="voice: got"):
            checked_name(name)
    assert checked_name("expresso/ex03-ex01_happy_001_channel1_334s.wav")


def test_a_voice_that_there_is_not_is_said(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    async def scene():
        async with speaking(1) as (_, address), visit(address, "/api/tts_streaming", "?voice=nobody") as client:
            found = await client.until("Error")
            assert "nobody" in found[-1]["message"]

    run(scene())


def test_who_does_not_read_is_not_worked_for_and_delays_nobody():
    async def scene():
        async with speaking(2) as (house, address):
            async with visit(address, "/api/tts_streaming") as slow:
                await slow.read()
                for _ in range(40):
                    await slow.send(type="Text", text="one two three four five six seven eight nine ten")
                got, _ = await say(address, TEXT.split())
                assert len(got)
            await until(lambda: house.engine.people == 0)

    run(scene(), 90)


def test_sockets_of_another_role_say_where_to_go():
    async def status(address, path):
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"ws://{address}{path}", headers=KEY)
            return caught.value.status

    async def scene():
        async with transcribing() as (_, address):
            for path in ("/api/chat", "/v1/realtime", "/api/tts_streaming"):
                assert await status(address, path) == 404
        async with serving.open_house(token="public_token") as (_, address):
            for path in ("/api/asr-streaming", "/api/tts_streaming"):
                assert await status(address, path) == 404

    run(scene())


def test_what_is_asked_besides():
    async def scene():
        async with transcribing() as (_, address), aiohttp.ClientSession() as session:
            for path, words in (("/api/build_info", "version"), ("/health", "transcriber"), ("/", "/api/asr-streaming"),
                                ("/metrics", "moshi_slots 2.0")):  # fmt: skip
                async with session.get(f"http://{address}{path}") as answer:
                    assert answer.status == 200
                    assert words in await answer.text()
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"ws://{address}/api/asr-streaming")  # without the key
            assert caught.value.status == 401

    run(scene())


def test_a_line_gives_frames_and_markers_in_order():
    line = Line(4)
    line.push(np.arange(6, dtype=np.float32))
    line.mark(1)
    line.push(np.arange(3, dtype=np.float32))
    assert line.markers() == []
    assert line.frame().tolist() == [0, 1, 2, 3]
    assert line.markers() == [1]
    assert line.frame().tolist() == [4, 5, 0, 1]
    assert line.frame() is None


def test_messages_are_those_of_kyutais_server():
    assert messages.of_event(Word("hi", 0.5), 0) == {"type": "Word", "text": "hi", "start_time": 0.5}
    assert messages.of_event(EndWord(0.9), 0) == {"type": "EndWord", "stop_time": 0.9}
    step = messages.of_event(Step(4, 0.32, 3, (0.1, 0.2, 0.3, 0.4), 0.3), 1920)
    assert step == {"type": "Step", "step_idx": 4, "prs": [0.1, 0.2, 0.3, 0.4], "buffered_pcm": 1920}
