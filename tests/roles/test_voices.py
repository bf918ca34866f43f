"""Voices by name, file and array; and what is none, named."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from helpers import golden
from hub_stand_in import served
from roles_spoken import PREFIX, TTS

import moshi_mlx
from moshi_mlx import AudioError, CheckpointError, InputError
from moshi_mlx.roles import voices
from moshi_mlx.roles.voices import REPOSITORY, SLOTS, Voice, voices_of

FILE = TTS / "voice0.wav.1e68beda@240.safetensors"
VECTORS = np.array(mx.load(str(FILE))["speaker_wavs"])
NOISE = np.random.RandomState(0).uniform(-0.3, 0.3, 1920 * 5 + 7).astype(np.float32)


@pytest.fixture(scope="module")
def models():
    return {path.name: moshi_mlx.load(path, dtype="float32") for path in (TTS, PREFIX)}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with voices of this model, of another, and recordings."""
    soundfile.write(tmp_path / "recorded.wav", NOISE, 24000)
    with served(monkeypatch, tmp_path / "cache") as stand_in:
        stand_in.repositories[REPOSITORY] = {
            "expresso/happy.wav.1e68beda@240.safetensors": FILE.read_bytes(),
            "expresso/happy.wav.another@1.safetensors": b"",
            "expresso/happy.wav": (tmp_path / "recorded.wav").read_bytes(),
        }
        stand_in.repositories["me/voices"] = {"mine.wav.1e68beda@240.safetensors": FILE.read_bytes()}
        yield stand_in


NAMES = [
    "voice0",
    "voice0.wav",
    "voice0.wav.1e68beda@240.safetensors",
    str(FILE),
    FILE,
    VECTORS,
    Voice("x", VECTORS[0].T),
]


@pytest.mark.parametrize("given", NAMES, ids=lambda given: str(given)[:30])
def test_vectors_by_name_file_and_array(models, given):
    (voice,) = voices_of(models["tts"], given)
    np.testing.assert_array_equal(voice.vectors, VECTORS[0].T)


def test_slots_are_filled_in_order(models):
    slots, mask = voices.condition(models["tts"], voices_of(models["tts"], [VECTORS, 2 * VECTORS]))["speaker_wavs"]
    length = VECTORS.shape[2]
    assert slots.shape == (SLOTS * length, VECTORS.shape[1])
    np.testing.assert_array_equal(slots[length : 2 * length], 2 * VECTORS[0].T)
    np.testing.assert_array_equal(mask, np.arange(SLOTS * length) < 2 * length)
    assert not slots[2 * length :].any()
    assert voices.condition(models["tts"], voices_of(models["tts"], None)) == {}


def test_a_recording_is_gone_on_from(models, tmp_path):
    soundfile.write(tmp_path / "me.wav", NOISE, 24000, subtype="FLOAT")
    model = models["tts_prefix"]
    whole = model.audio_encoder.stream(4).encode(np.pad(NOISE, (0, 1913)))
    for given in (str(tmp_path / "me.wav"), NOISE):
        (voice,) = voices_of(model, given)
        np.testing.assert_array_equal(voice.codes, whole[:, :-2])
    codes = golden("family/tts_prefix/ref")["prefix"][1:]
    np.testing.assert_array_equal(voices_of(model, codes)[0].codes, codes)


def test_names_of_the_hub(models, hub):
    model = models["tts"]
    for name in ("expresso/happy", "expresso/happy.wav", "hf://me/voices/mine.wav"):
        assert voices_of(model, name)[0].vectors.shape == (5, 8)
    assert voices_of(models["tts_prefix"], "expresso/happy")[0].codes.shape == (4, 4)
    assert voices.names(voices.home_of(model)) == ["expresso/happy.wav", "voice0.wav"]
    assert voices.names(voices.home_of(models["tts_prefix"])) == ["expresso/happy.wav"]
    hub.refuse(503)
    assert voices_of(model, "expresso/happy")[0].vectors.shape == (5, 8)  # from the cache
    assert voices.names(voices.home_of(model)) == ["expresso/happy.wav", "voice0.wav"]


@pytest.mark.parametrize("name", ["expresso/hapy", "hf://me/voices/yours", "hf://nobody/voices/mine", "hf://me"])
def test_a_name_that_the_hub_does_not_have(models, hub, name):
    with pytest.raises(CheckpointError, match=f"^voice {name}: no such file") as raised:
        voices_of(models["tts"], name)
    assert ("did you mean expresso/happy.wav?" in str(raised.value)) == (name == "expresso/hapy")
    assert "\n" not in str(raised.value)


def broken(tmp_path, **tensors):
    path = tmp_path / "broken.safetensors"
    mx.save_safetensors(str(path), {name: mx.array(value) for name, value in tensors.items()})
    return path


REFUSED = {
    "no such file": lambda d: "/no/such/voice.safetensors",
    "no such file ": lambda d: d / "nothing.safetensors",
    "expected a name of kyutai": lambda d: 7.5,
    "made for another model: its vectors have 9": lambda d: np.zeros((1, 9, 5), np.float32),
    "got vectors of shape": lambda d: np.zeros((2, 8, 5), np.float32),
    "NaN or infinite": lambda d: np.full((1, 8, 5), np.nan, np.float32),
    "but this model takes vectors": lambda d: np.zeros((4, 5), np.int32),
    "got 6 voices; this model takes up to 5": lambda d: [VECTORS] * 6,
    "expected the same of each": lambda d: [VECTORS, VECTORS[:, :, :3]],
    "has no tensor 'speaker_wavs'": lambda d: broken(d, other=[1.0]),
    "is a recording": lambda d: shutil.copy(TTS.parents[1] / "question.flac", d / "me.wav"),
    "no safetensors file|cut short|safetensors": lambda d: shutil.copy(TTS / "tokenizer.model", d / "v.safetensors"),
}


@pytest.mark.parametrize("said", REFUSED, ids=lambda said: said[:30])
def test_what_is_no_voice_of_vectors(models, tmp_path, said):
    with pytest.raises((InputError, CheckpointError), match=said.strip()):
        voices.condition(models["tts"], voices_of(models["tts"], REFUSED[said](tmp_path)))


REFUSED_RECORDINGS = {
    "takes a recording": lambda d: FILE,
    "got 2 voices; this model takes one": lambda d: [NOISE, NOISE],
    "expected codes of shape": lambda d: np.zeros((3, 5), np.int32),
    "got codes from 0 to 48": lambda d: np.full((4, 5), 48, np.int32) - np.arange(5) * 12,
    "lasts 0.16 s, expected a recording of 0.24 s to 1.92 s": lambda d: NOISE[: 1920 * 2],
    "lasts 2.4 s": lambda d: np.tile(NOISE, 6)[: 1920 * 30],
    "NaN": lambda d: np.full(1920 * 5, np.nan, np.float32),
    "cannot be read|not a sound|sound": lambda d: shutil.copy(TTS / "tokenizer.model", d / "v.wav"),
}


@pytest.mark.parametrize("said", REFUSED_RECORDINGS, ids=lambda said: said[:30])
def test_what_is_no_recording(models, tmp_path, said):
    with pytest.raises((InputError, CheckpointError, AudioError), match=said):
        voices_of(models["tts_prefix"], REFUSED_RECORDINGS[said](tmp_path))


def test_a_checkpoint_without_its_id_takes_files_alone(models):
    model = moshi_mlx.load(TTS, dtype="float32")
    model.model_id = {}
    assert voices_of(model, FILE)[0].vectors is not None
    with pytest.raises(InputError, match=r"'model_id' in its config\.json"):
        voices_of(model, "voice0")
