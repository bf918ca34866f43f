"""OpenAI's Realtime protocol as values: what comes in, and what frames become, held to openai-python's own types."""

import base64
import json

import numpy as np
import pytest

from moshi_mlx import InputError
from moshi_mlx.conversation.frame import Frame
from moshi_mlx.serve.protocols import realtime
from moshi_mlx.serve.protocols.realtime import SILENT_FRAMES, Append, Cancel, Projection, Unsupported, Update

LOUD, SILENT = np.full(1920, 0.3, np.float32), np.zeros(1920, np.float32)


def event(name, **fields):
    return json.dumps({"type": name, **fields})


def frames(plan):
    """A letter a frame: w a word, s sound, . silence."""
    for letter in plan:
        yield Frame(LOUD if letter in "ws" else SILENT, " word" if letter == "w" else "", 0, None)


def events_of(plan, projection=None):
    projection = projection or Projection("moshiko")
    return [event for frame in frames(plan) for event in projection.said(frame, b"\0" * 3840)]


def names(events):
    return [event["type"] for event in events]


def test_what_comes_in():
    sound = np.array([0, 16384, -32768], "<i2")
    asked = realtime.parse(event("input_audio_buffer.append", audio=base64.b64encode(sound.tobytes()).decode()))
    assert isinstance(asked, Append)
    np.testing.assert_array_equal(asked.sound, [0, 0.5, -1])
    assert realtime.parse(event("session.update", session={"a": 1}, event_id="e")) == Update({"a": 1}, "e")
    assert realtime.parse(event("response.cancel")) == Cancel()


@pytest.mark.parametrize("name", [*realtime.UNSUPPORTED, "made.up", "x" * 500])
def test_what_cannot_be_done_is_answered_by_name(name):
    asked = realtime.parse(event(name, event_id="mine"))
    assert isinstance(asked, Unsupported)
    error = Projection("m").unsupported(asked)
    assert error["type"] == "error"
    assert (error["error"]["code"], error["error"]["event_id"]) == (realtime.CODES.get(name, "unsupported"), "mine")
    assert error["error"]["message"].startswith(name[:80])


@pytest.mark.parametrize("message", ["", "{", "[]", "3", '{"type": 3}', "{}", '"type"', "null", "\ud800"])
def test_what_is_no_event_is_named(message):
    with pytest.raises(InputError, match=r"^event: got"):
        realtime.parse(message)


@pytest.mark.parametrize("audio", ["%%%", 3, None, "AAA", base64.b64encode(b"abc").decode(), [], {}])
def test_what_is_no_sound_is_named(audio):
    with pytest.raises(InputError, match=r"^audio: got"):
        realtime.parse(event("input_audio_buffer.append", audio=audio))


def test_settings():
    assert realtime.settings_of({"temperature": 0.5, "seed": 3, "instructions": "x"}) == ({"temperature": 0.5}, 3)
    assert realtime.settings_of({}) == ({}, None)
    for session in ({"temperature": "hot"}, {"temperature": -1}, {"seed": -1}, {"seed": 1.5}, {"seed": True}):
        with pytest.raises(InputError):
            realtime.settings_of(session)


def test_an_utterance_is_a_response():
    events = events_of("..." + "s" + "w" + "." * SILENT_FRAMES + "....")
    assert names(events) == [
        "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added",
        "response.output_audio.delta", "response.output_audio_transcript.delta",
        *["response.output_audio.delta"] * (1 + SILENT_FRAMES),
        "response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done",
        "response.output_item.done", "conversation.item.done", "response.done",
    ]  # fmt: skip
    done = events[-1]["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"][0]["transcript"] == "word"
    assert done["usage"]["output_token_details"] == {"text_tokens": 1, "audio_tokens": 2 + SILENT_FRAMES}
    assert len({event["event_id"] for event in events}) == len(events)


def test_a_pause_within_an_utterance_does_not_end_it():
    events = events_of("w" + "." * (SILENT_FRAMES - 1) + "w" + "." * SILENT_FRAMES + "w")
    assert names(events).count("response.created") == 2
    first, second = (event["response"]["id"] for event in events if event["type"] == "response.created")
    assert first != second
    assert [e for e in events if e["type"] == "conversation.item.added"][1]["previous_item_id"] == "item_" + first[5:]


def test_silence_alone_is_nothing():
    assert events_of("." * 50) == []
    assert list(Projection("m").close()) == []


def test_cancel_closes_the_response_and_the_model_goes_on():
    projection = Projection("m")
    events = events_of("ww", projection)
    closing = list(projection.close("cancelled"))
    assert closing[-1]["response"]["status"] == "cancelled"
    assert "response.created" in names(events_of("w", projection))
    assert events


def test_openais_types_take_every_event():
    openai = pytest.importorskip("openai")
    from openai.types.realtime import RealtimeServerEvent
    from pydantic import TypeAdapter

    adapter = TypeAdapter(RealtimeServerEvent)
    projection = Projection("moshiko")
    asked = realtime.parse(event("response.create"))
    events = [projection.created(), projection.updated({"temperature": 0.5}), projection.unsupported(asked)]
    events += [*events_of("ws" + "." * SILENT_FRAMES + "w", projection), *projection.close("cancelled")]
    for each in events:
        parsed = adapter.validate_json(json.dumps(each), strict=True)
        assert parsed.type == each["type"]
    assert len(set(names(events))) == 15
    assert openai
