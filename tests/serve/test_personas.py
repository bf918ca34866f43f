"""Voices and roles from the network: names only, read once, refused with a reason, and nobody else disturbed."""

import asyncio
import base64
import json
import shutil
from urllib.parse import quote

import aiohttp
import numpy as np
import personaplex
import pytest
from helpers import GOLDENS
from serving import SIZE, EchoBatch, Stub, connect, open_house, run, until, visit
from serving_time import Person, Scene

import moshi_mlx
from moshi_mlx import InputError
from moshi_mlx.serve import personas
from moshi_mlx.serve.personas import Persona, Prompts

ROLE = "You are a wise and friendly teacher."
SILENCE = np.zeros(SIZE, np.float32)
PATHS = ["../../etc/passwd", "/etc/passwd", "voices/NATF2.pt", "..", "../voices/NATF2", "C:\\voice.pt", "./NATF2", "~"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = personaplex.write(tmp_path_factory.mktemp("personaplex") / "model")
    (path / "voices").mkdir()
    shutil.copy(GOLDENS / "personaplex_bfloat16.pt", path / "voices" / "NATF2.pt")
    (path / "voices" / "BROKEN.pt").write_bytes(b"no voice")
    return path


def batch_of(folder, slots=2):
    """To be called on the model's thread."""
    return lambda: moshi_mlx.load(folder).batch(slots)


async def says(me, frames):
    """Silence, until Moshi has said so many frames -> its words."""
    await me.talk(frames)
    return me.words


def query(voice="", text="", **more):
    return "?" + "&".join(f"{name}={quote(str(value))}" for name, value in
                          {"voice_prompt": voice, "text_prompt": text, **more}.items())  # fmt: skip


@pytest.mark.parametrize("voice", ["NATF2", "NATF2.pt"])
def test_a_conversation_after_a_prompt_is_the_sessions(folder, voice):
    model = moshi_mlx.load(folder)
    session = model.session(voice="NATF2", persona=ROLE, seed=3)
    wanted = "".join(session.step(SILENCE).text for _ in range(6))
    length = model.prompt(voice="NATF2", persona=ROLE).length

    async def scene():
        async with open_house(batch_of(folder)) as (house, address):
            async with visit(address, query(voice, ROLE, seed=3)) as me:
                await me.handshake()
                row = house.engine.batch.rows[0]
                assert (row.positions, row._seed) == (length, 3)
                assert (await says(me, 8)).startswith(wanted)
            assert wanted
            assert house.health()["voices"] == ["BROKEN", "NATF2"]

    run(scene(), 120)


def refused(make, asked, words, code=1008, **rules):
    """Somebody who asks for that is told why; a neighbour goes on, and the place is free again."""

    async def scene():
        async with open_house(make, **rules) as (house, address), visit(address) as neighbour:
            await neighbour.handshake()
            async with visit(address, asked) as me:
                assert await me.until_closed() == code
                assert words in me.reason
                assert 0 not in me.kinds
                assert me.kinds[-1] == 5
                reason = me.reason
            await neighbour.talk(3)
            await until(lambda: house.doors.inside == 1)
            async with visit(address, query()) as next_one:
                await next_one.handshake()
            assert house.failure is None
            return reason

    run(scene(), 120)


@pytest.mark.parametrize("voice", ["NATF2.pt", "../../etc/passwd"])
def test_a_model_without_personas_leaves_them_aside(voice):
    async def scene():
        async with open_house(lambda: EchoBatch(2)) as (_, address), visit(address, query(voice, ROLE)) as me:
            await me.handshake()
            await me.talk(3)

    run(scene(), 60)


def test_what_a_model_with_personas_refuses(folder):
    """By name, without a path of this machine, and one after the other in the same house."""
    asked = [(query("NATM9"), "voice_prompt: got 'NATM9', a name that is unknown, expected it: one of BROKEN, NATF2"),
             (query("BROKEN"), "voice: the file of BROKEN cannot be read here"),
             (query("", "word " * 500), "the prompt has"),
             (query("", "w" * 6000), "")]  # fmt: skip

    async def scene():
        async with open_house(batch_of(folder)) as (house, address), visit(address) as neighbour:
            await neighbour.handshake()
            for each, words in asked:
                async with visit(address, each) as me:
                    assert await me.until_closed() == 1008
                    assert words in me.reason
                    assert str(folder) not in me.reason
                    assert me.kinds == [5]
                await neighbour.talk(2)
            await until(lambda: house.doors.inside == 1)
            assert len(house.engine.batch.rows) == 1

    run(scene(), 120)


@pytest.mark.parametrize("voice", PATHS)
def test_a_path_is_no_name(voice):
    with pytest.raises(InputError, match=r"^voice: got .*expected.*: one of NATF2$"):
        personas.heard(Persona.of(voice, ""), ["NATF2"])


def test_what_may_be_asked():
    for voices in (None, [], ["NATF2"]):
        assert personas.heard(Persona.of("", " \n"), voices) == Persona()
    assert personas.heard(Persona.of("NATF2.pt", ROLE), None) == Persona()
    assert personas.heard(Persona.of("NATF2.pt", ROLE), ["NATF2"]) == Persona("NATF2", ROLE)
    with pytest.raises(InputError, match="none, since this model came without voices"):
        personas.heard(Persona.of("NATF2", ""), [])
    with pytest.raises(InputError, match=r"^persona|^text: got 20001 characters"):
        personas.heard(Persona.of("", "x" * 20_001), ["NATF2"])


def test_prompts_are_kept_and_bounded():
    prompts = Prompts(Stub())
    first = prompts.of(Persona("NATF2", "abc"))
    assert prompts.of(Persona("NATF2", "abc")) is first
    assert prompts.of(Persona()) is None
    for i in range(personas.KEPT):
        prompts.of(Persona("", str(i)))
    assert not prompts.has(Persona("NATF2", "abc"))
    assert prompts.has(Persona("", "0"))
    prompts.of(Persona("", "x" * 99))
    assert prompts.has(Persona("", "x" * 99))
    assert sum(prompts.has(Persona("", str(i))) for i in range(personas.KEPT)) == 1  # of one frame each
    assert len(prompts._model.made) == personas.KEPT + 2


def test_a_broken_voice_does_not_tell_where_it_lies():
    with pytest.raises(InputError, match=r"^voice: the file of BROKEN cannot be read here$"):
        Prompts(Stub(names=("BROKEN",))).of(Persona("BROKEN"))


def test_one_new_prompt_in_a_tick_and_who_needs_none_does_not_wait():
    scene = Scene(slots=8)
    scene.batch.model = Stub()
    first, second, third, plain, same = (Person(i) for i in range(5))
    first.persona, second.persona, third.persona = Persona("", "a"), Persona("", "b"), Persona("GONE")
    same.persona = Persona("", "a")
    made = []

    def deliver(said):
        made.append([(each.person.seed, each.refused) for each in said])

    scene.engine._deliver = deliver
    scene.clock.at(0.1, lambda: [scene.engine.join(person) for person in (first, second, third, plain, same)])
    scene.run(2.0)
    reason = "voice: got 'GONE', a name that is unknown, expected it: one of NATF2"
    assert made == [[(0, ""), (3, "")], [(1, ""), (4, "")], [(2, reason)]]
    assert len(scene.batch.rows) == 4
    assert scene.batch.model.made == [(None, "a"), (None, "b")]


def test_who_leaves_before_the_prompt_is_read_is_forgotten():
    scene = Scene()
    scene.batch.model = Stub()
    first, second = Person(1), Person(2)
    first.persona, second.persona = Persona("", "a"), Persona("", "b")
    scene.clock.at(0.1, lambda: [scene.engine.join(first), scene.engine.join(second), scene.engine.leave(second)])
    scene.run(1.0)
    assert [who for _, who, _ in scene.said] == [first]
    assert scene.batch.model.made == [(None, "a")]


def test_two_restarts_at_once_are_one():
    scene, person = Scene(), Person()
    scene.clock.at(0.1, lambda: [scene.engine.join(person) for _ in range(3)])
    scene.run(1.0)
    assert len(scene.batch.rows) == 1


def sample(frames=1):
    return base64.b64encode(np.zeros(SIZE * frames, "<i2").tobytes()).decode()


async def event_of(ws, *names):
    """The next event of such a name."""
    while True:
        message = await ws.receive()
        assert message.type == aiohttp.WSMsgType.TEXT, message
        event = json.loads(message.data)
        if event["type"] in names:
            return event


async def ask(ws, **session):
    await ws.send_str(json.dumps({"type": "session.update", "session": session}))
    return await event_of(ws, "session.updated", "error")


def test_openais_voice_and_instructions(folder):
    length = moshi_mlx.load(folder).prompt(voice="NATF2", persona=ROLE).length

    async def scene():
        async with open_house(batch_of(folder)) as (house, address), connect(f"ws://{address}/v1/realtime") as ws:
            await event_of(ws, "session.created")
            for bad in ("marin", "../voices/NATF2.pt", 3):
                assert (await ask(ws, voice=bad, instructions=ROLE))["error"]["code"] == "invalid_value"
            await ask(ws, instructions=ROLE)
            updated = await ask(ws, audio={"output": {"voice": "NATF2"}})
            assert updated["session"]["instructions"] == ROLE
            assert updated["session"]["audio"]["output"]["voice"] == "NATF2"
            await ws.send_str(json.dumps({"type": "input_audio_buffer.append", "audio": sample()}))
            await until(lambda: [row for row in house.engine.batch.rows if row.positions > length])
            assert (await ask(ws, voice=""))["error"]["code"] == "unsupported"
            assert (await ask(ws, voice="NATF2", instructions=ROLE))["type"] == "session.updated"  # nothing new

    run(scene(), 120)


def test_openais_voice_and_instructions_of_a_model_without_personas():
    async def scene():
        async with open_house(lambda: EchoBatch(2)) as (_, address), connect(f"ws://{address}/v1/realtime") as ws:
            created = await event_of(ws, "session.created")
            assert (await ask(ws, voice=created["session"]["audio"]["output"]["voice"]))["type"] == "session.updated"
            assert (await ask(ws, voice="", instructions=""))["type"] == "session.updated"
            for asked in ({"voice": "alloy"}, {"instructions": ROLE}):  # as Pipecat always sends them
                assert (await ask(ws, **asked))["type"] == "session.updated"
            await ws.send_str(json.dumps({"type": "input_audio_buffer.append", "audio": sample(2)}))
            await event_of(ws, "response.created")  # the echo's word: the conversation goes on

    run(scene(), 60)


def test_a_role_too_long_ends_an_openai_conversation_with_a_reason(folder):
    async def scene():
        async with open_house(batch_of(folder)) as (house, address), connect(f"ws://{address}/v1/realtime") as ws:
            assert (await ask(ws, instructions="word " * 500))["type"] == "session.updated"
            await ws.send_str(json.dumps({"type": "input_audio_buffer.append", "audio": sample()}))
            error = (await event_of(ws, "error"))["error"]
            assert (error["code"], "the prompt has" in error["message"]) == ("persona", True)
            assert (await ws.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            assert ws.close_code == 1008
            assert house.failure is None

    run(scene(), 60)


def test_the_tasks_end(folder):
    """A refused person leaves no task behind."""

    async def scene():
        async with open_house(batch_of(folder)) as (_, address):
            before = len(asyncio.all_tasks())
            for _ in range(3):
                async with visit(address, query("NATM9")) as me:
                    await me.until_closed()
            await until(lambda: len(asyncio.all_tasks()) <= before)

    run(scene(), 60)
