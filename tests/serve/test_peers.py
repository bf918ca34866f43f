"""Other people's clients, unmodified, each asking the miniature the bundled question: they must hear the right answer.

openai-python comes with the test extra. The others are tried where they are installed: Pipecat (`pipecat-ai[openai]`),
LiveKit (`livekit-plugins-nvidia`), and Kyutai's client (the files of `moshi`, which need not be able to run a model).
"""

import asyncio
import base64
import contextlib
import importlib.util
import sys
import types

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from serving import SIZE, open_house, run

import moshi_mlx
from moshi_mlx.checkpoints.names import MINIATURE_FOLDER as MINIATURE

WORDS, FRAMES = "five", 110
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # their own; ten seconds of talk each


def question():
    sound, rate = soundfile.read(MINIATURE.parent / "question.flac", dtype="float32")
    assert rate == 24_000
    return np.concatenate([np.zeros(SIZE, np.float32), sound, np.zeros(FRAMES * SIZE, np.float32)])[: FRAMES * SIZE]


def frames():
    return question().reshape(-1, SIZE)


def pcm16(frame):
    return (frame * 32767).astype("<i2").tobytes()


async def paced(say):
    """Each frame at its time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for i, frame in enumerate(frames()):
        await asyncio.sleep(began + 0.08 * i - loop.time())
        await say(frame)


def miniature():
    return moshi_mlx.load(MINIATURE, dtype=mx.float32).batch(1)


def loudest(pcm):
    return np.abs(np.frombuffer(pcm, "<i2")).max(initial=0) / 32768


def test_openai_python():
    openai = pytest.importorskip("openai")

    async def scene():
        async with open_house(miniature) as (_, address):
            client = openai.AsyncOpenAI(api_key="none", base_url=f"http://{address}/v1")
            words, sound = "", b""
            async with client, client.realtime.connect(model="moshi") as connection:
                await connection.session.update(session={"type": "realtime", "temperature": 0.8, "seed": 0})

                async def say(frame):
                    await connection.input_audio_buffer.append(audio=base64.b64encode(pcm16(frame)).decode())

                speaking = asyncio.ensure_future(paced(say))
                async for event in connection:
                    if event.type == "response.output_audio_transcript.delta":
                        words += event.delta
                    elif event.type == "response.output_audio.delta":
                        sound += base64.b64decode(event.delta)
                    elif event.type == "response.done":
                        assert WORDS in event.response.output[0].content[0].transcript
                        break
                    assert event.type != "error", event
                speaking.cancel()
            assert WORDS in words
            assert loudest(sound) > 0.1

    run(scene(), 60)


def test_pipecat():
    pytest.importorskip("pipecat")
    from pipecat.frames.frames import EndFrame, ErrorFrame, InputAudioRawFrame, TTSAudioRawFrame, TTSTextFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.runner import PipelineRunner
    from pipecat.pipeline.task import PipelineParams, PipelineTask
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService

    class Ears(FrameProcessor):
        def __init__(self):
            super().__init__()
            self.words, self.sound, self.errors = "", b"", []

        async def process_frame(self, frame, direction):
            await super().process_frame(frame, direction)
            if isinstance(frame, TTSTextFrame):
                self.words += frame.text
            elif isinstance(frame, TTSAudioRawFrame):
                self.sound += frame.audio
            elif isinstance(frame, ErrorFrame):
                self.errors.append(frame)
            await self.push_frame(frame, direction)

    async def scene():
        async with open_house(miniature) as (_, address):
            service = OpenAIRealtimeLLMService(api_key="none", base_url=f"ws://{address}/v1/realtime")
            ears = Ears()
            task = PipelineTask(Pipeline([service, ears]), params=PipelineParams(), idle_timeout_secs=None)
            running = asyncio.ensure_future(PipelineRunner(handle_sigint=False).run(task))
            await asyncio.sleep(1)

            async def say(frame):
                await task.queue_frame(InputAudioRawFrame(audio=pcm16(frame), sample_rate=24_000, num_channels=1))

            await paced(say)
            await task.queue_frame(EndFrame())
            await running
            assert ears.errors == []
            assert WORDS in ears.words
            assert loudest(ears.sound) > 0.1

    run(scene(), 90)


def test_livekit():
    pytest.importorskip("livekit.plugins.nvidia")
    import aiohttp
    from livekit import rtc
    from livekit.plugins.nvidia.experimental.realtime import RealtimeModel

    async def scene():
        async with open_house(miniature) as (_, address), aiohttp.ClientSession() as http:
            model = RealtimeModel(base_url=f"ws://{address}", http_session=http, seed=0)
            session = model.session()
            words, sound, tasks = [], [], []

            def created(event):
                async def follow():
                    async for message in event.message_stream:

                        async def read(stream=message.text_stream):
                            async for text in stream:
                                words.append(text)

                        tasks.append(asyncio.ensure_future(read()))
                        async for frame in message.audio_stream:
                            sound.append(bytes(frame.data))

                tasks.append(asyncio.ensure_future(follow()))

            session.on("generation_created", created)

            async def say(frame):
                session.push_audio(rtc.AudioFrame(pcm16(frame), 24_000, 1, SIZE))

            await paced(say)
            await asyncio.sleep(0.5)
            await session.aclose()
            await asyncio.gather(*tasks)
            assert WORDS in "".join(words)
            assert loudest(b"".join(sound)) > 0.1

    run(scene(), 90)


@pytest.fixture
def moshi_client(monkeypatch):
    """moshi.client's own file, with a sound card that speaks the question, and without the models beside it."""
    found = importlib.util.find_spec("moshi")
    if found is None:
        pytest.skip("needs the files of moshi (pip install --no-deps moshi)")
    package = types.ModuleType("moshi")
    package.__path__ = list(found.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "moshi", package)

    class Stream:
        def __init__(self, callback, **_):
            self.callback = callback

        def __enter__(self):
            self.task = asyncio.ensure_future(self.play())

        def __exit__(self, *_):
            self.task.cancel()

    class Input(Stream):
        async def play(self):
            async def say(frame):
                self.callback(frame[:, None], SIZE, None, None)

            await paced(say)

    heard = []

    class Output(Stream):
        async def play(self):
            while True:
                out = np.zeros((SIZE, 1), np.float32)
                self.callback(out, SIZE, None, None)
                heard.append(out)
                await asyncio.sleep(0.08)

    card = types.SimpleNamespace(InputStream=Input, OutputStream=Output)
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    client = importlib.import_module("moshi.client")
    yield client, heard
    for name in [name for name in sys.modules if name.startswith("moshi.")]:
        monkeypatch.delitem(sys.modules, name)


def test_moshi_client(moshi_client):
    client, heard = moshi_client

    words, logs = [], []

    class Printer:
        def print_token(self, token, color=None):
            words.append(token)

        def log(self, level, message):
            logs.append(level)

        def print_header(self):
            pass

        print_pending = print_lag = print_header

    async def scene():
        async with open_house(miniature) as (_, address):
            host, port = address.split(":")
            arguments = types.SimpleNamespace(url=None, host=host, port=int(port), https=False)
            talking = asyncio.ensure_future(client.run(Printer(), arguments))
            await asyncio.sleep(0.08 * FRAMES + 1)
            talking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await talking
        assert WORDS in "".join(words)
        assert max(float(np.abs(out).max()) for out in heard) > 0.1
        assert set(logs) <= {"info", "warning"}  # it warns of every kind but sound and text

    run(scene(), 60)
