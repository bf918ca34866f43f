"""Kyutai's messages and queries, without a socket."""

import json

import pytest

from moshi_mlx import InputError
from moshi_mlx.serve.personas import Persona
from moshi_mlx.serve.protocols import kyutai
from moshi_mlx.serve.protocols.kyutai import Control, Kind, Message


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("payload", [b"", b"\x00", b"words", bytes(range(256))])
def test_messages_come_apart(kind, payload):
    assert kyutai.parse(bytes([kind]) + payload) == Message(kind, payload)


@pytest.mark.parametrize("first", [7, 8, 9, 77, 255])
def test_unknown_kinds_are_discarded(first):
    assert kyutai.parse(bytes([first]) + b"abc") is None


def test_an_empty_message_is_named():
    with pytest.raises(InputError, match=r"^message: got no byte"):
        kyutai.parse(b"")


@pytest.mark.parametrize(("payload", "control"), [(b"\0", Control.START), (b"\1", Control.END_TURN),
                                                  (b"\2", Control.PAUSE), (b"\3", Control.RESTART),
                                                  (b"\4", None), (b"", None), (b"\0\0", None)])  # fmt: skip
def test_controls(payload, control):
    assert kyutai.control_of(payload) == control


def test_what_the_server_says():
    assert kyutai.HANDSHAKE == b"\0"
    assert kyutai.audio(b"OggS") == b"\1OggS"
    assert kyutai.text(" é") == b"\2 \xc3\xa9"
    assert kyutai.error("full") == b"\5full"


def test_metadata_has_all_that_kyutais_page_wants():
    message = kyutai.metadata(kyutai.ask({"audio_topk": "9"}), "moshiko", "1.0")
    values = json.loads(message[1:])
    assert message[0] == 4
    names = """text_temperature text_topk audio_temperature audio_topk pad_mult repetition_penalty_context
        repetition_penalty lm_model_file instance_name"""
    assert set(names.split()) <= set(values)
    assert values["audio_topk"] == 9
    assert len(values["build_info"]) == 10
    assert all(isinstance(value, str) for value in values["build_info"].values())


def test_the_published_pages_query():
    query = {
        "text_temperature": "0.7", "text_topk": "25", "audio_temperature": "0.8", "audio_topk": "250", "pad_mult": "0",
        "text_seed": "3", "audio_seed": "5", "repetition_penalty_context": "64", "repetition_penalty": "1.0",
        "worker_auth_id": "x", "email": "a@b", "max_steps": "100",
    }  # fmt: skip
    ask = kyutai.ask(query)
    assert ask.settings == {"text_temperature": 0.7, "text_top_k": 25, "temperature": 0.8, "top_k": 250}
    assert (ask.seed, ask.max_frames, ask.pcm_rate) == (3 * 2**32 + 5, 100, None)


def test_personaplexes_query_and_none_at_all():
    ask = kyutai.ask({"voice_prompt": "NATF2.pt", "text_prompt": " You are kind.", "seed": "-1"})
    assert (ask.seed, ask.settings, ask.persona) == (2**64 - 1, {}, Persona("NATF2", "You are kind."))
    for empty in ({"voice_prompt": "", "text_prompt": ""}, {"voice_prompt": ".pt", "text_prompt": " "}, {}):
        assert kyutai.ask(empty).persona == Persona()
    first, second = kyutai.ask({}), kyutai.ask({"text_topk": "", "seed": ""})
    assert first.settings == second.settings == {}
    assert first.seed != second.seed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_topk", "0"), ("text_topk", "513"), ("audio_topk", "1.5"), ("audio_topk", "many"),
        ("audio_temperature", "-1"), ("text_temperature", "nan"), ("text_temperature", "inf"), ("max_steps", "soon"),
        ("seed", "1e3"), ("text_seed", "x"), ("pcm", "7999"), ("pcm", "200000"), ("pcm", "fast"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_named(name, value):
    with pytest.raises(InputError, match=r": got "):
        kyutai.ask({name: value})


def test_a_pcm_client_says_its_rate():
    assert kyutai.ask({"pcm": "44100"}).pcm_rate == 44100
