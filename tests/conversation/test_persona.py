"""A voice and a role before the conversation: tokens as NVIDIA's own code draws them, live and offline."""

import json
import re
import shutil

import mlx.core as mx
import numpy as np
import personaplex
import pytest
from helpers import GOLDENS, GREEDY, golden, question
from personaplex import DELAY_2, SIZES, STUB

import moshi_mlx
from moshi_mlx import CheckpointError, InputError, MimiConfig, MoshiConfig
from moshi_mlx.checkpoints.configs import codec_keys
from moshi_mlx.conversation.persona import Voice, tagged
from moshi_mlx.conversation.speech import GreetingGate, SpeechDetector
from moshi_mlx.models import state

REF = golden("personaplex")
PERSONA = mx.load(str(GOLDENS / "personaplex.safetensors"), return_metadata=True)[1]["persona"]
VOICES = {
    "codes": REF["voice"],
    "float32": GOLDENS / "personaplex_float32.pt",
    "bfloat16": GOLDENS / "personaplex_bfloat16.pt",
    "persona": None,
}
CASES = [(name, alone) for name in VOICES for alone in (False, True) if (name, alone) != ("persona", False)]


def expected(voice, alone):
    """The reference's columns: of a voice with the persona, or `alone`; of the persona, always alone."""
    return REF["codes" if voice == "float32" and not alone else f"{voice}_alone" if alone else voice]


def given(voice, alone):
    return {"voice": VOICES[voice], "persona": None if alone and voice != "persona" else PERSONA}


def live(model, columns, **settings):
    """The columns [9, frames] of a greedy conversation, as the reference has them."""
    session = model.session(**GREEDY, **settings)
    first = int(np.array(session._state["text"])[0])
    frames = [session.step_codes(column) for column in columns.T]
    codes = np.stack([frame.audio_codes for frame in frames if frame.audio_codes is not None], axis=1)
    text = [first, *(frame.text_token for frame in frames)]
    return np.concatenate([np.array(text)[None, : codes.shape[1]], codes])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = personaplex.write(tmp_path_factory.mktemp("personaplex") / "full")
    (path / "voices" / "folder.pt").mkdir(parents=True)
    for name in ("NATF2.pt", "._NATF2.pt"):  # the second is what macOS leaves beside a file
        shutil.copy(VOICES["bfloat16"], path / "voices" / name)
    return path


@pytest.fixture(scope="module")
def plex(folder):
    return moshi_mlx.load(folder)


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("voice", "alone"), CASES)
def test_live_tokens_are_the_references(plex, voice, alone):
    got = live(plex, REF["user"][:, :100], **given(voice, alone))
    np.testing.assert_array_equal(got, expected(voice, alone))


@pytest.mark.parametrize(("voice", "alone"), CASES)
def test_generate_is_the_live_session(plex, voice, alone):
    out = plex.generate(
        **given(voice, alone), user_audio_codes=REF["user"][None], max_new_tokens=101, do_sample=False,
        return_audio_codes=True,
    )  # fmt: skip
    wanted = expected(voice, alone)
    np.testing.assert_array_equal(np.array(out.audio_codes)[0], wanted[1:])
    np.testing.assert_array_equal(np.array(out.sequences)[0, :100], wanted[0])


def test_generate_of_several_and_its_streamer(plex):
    settings = {"voice": "NATF2", "persona": PERSONA, "max_new_tokens": 5, "seed": 2, "return_audio_codes": True}
    both = plex.generate(**settings, num_return_sequences=2)
    frames = []

    class Streamer:
        put, end = frames.append, staticmethod(lambda: frames.append(None))

    alone = plex.generate(**settings | {"seed": 3}, streamer=Streamer())
    np.testing.assert_array_equal(np.array(both.audio_codes)[1:], np.array(alone.audio_codes))
    assert frames[-1] is None
    heard = np.concatenate([frame.pcm for frame in frames[:-1] if frame.pcm is not None])
    np.testing.assert_allclose(heard, np.array(alone.audio_sequences)[0, 0], atol=1e-5)


def mimi_config():
    return MimiConfig(**codec_keys.mimi_fields(personaplex.MIMI, "mimi_config.json"))


WAYS = {
    "full": {"config": STUB | SIZES},
    "full, plain type": {"config": {"model_type": "moshi", "mimi_config_name": "mimi_config.json"} | SIZES},
    "sizes beside a stub": {"config": STUB, "moshi_lm_kwargs__json": SIZES},
    "sizes alone": {"config": None, "moshi_lm_kwargs__json": SIZES},
    "file of eight": {"config": STUB | SIZES, "eight": True},
    "eight said, sixteen there": {"config": STUB | SIZES | {"dep_q": 8}},
}


def eight(weights):
    """The tensors of a file with Moshi's own depth slices alone."""
    kept = {}
    for name, value in weights.items():
        parts = name.split(".")
        number = next((int(part) for part in reversed(parts) if part.isdigit()), 0)
        if parts[0] in ("linears", "depformer_in") or ("gating" in parts[2:4] and parts[0] == "depformer"):
            if number >= 8:
                continue
        elif parts[0] == "depformer_emb" and number >= 7:
            continue
        elif parts[0] == "depformer" and "self_attn" in parts:
            value = value[: len(value) // 2]
        kept[name] = value
    return kept


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_say_the_sizes(tmp_path, way):
    files = dict(WAYS[way])
    weights = eight(personaplex.language_weights()) if files.pop("eight", False) else None
    model = moshi_mlx.load(personaplex.write(tmp_path / "model", weights=weights, **files))
    assert model.config.num_codebooks == model.config.user_codebooks == 8
    model.voices = model.voices or object()  # of the plain type with no voices beside it: a fine-tune, no PersonaPlex
    np.testing.assert_array_equal(live(model, REF["user"][:, :20], **given("codes", False)), REF["codes"][:, :20])


def test_a_stub_with_a_config_by_hand(tmp_path):
    folder = personaplex.write(tmp_path / "stub", config=STUB)
    config = MoshiConfig.from_kyutai(STUB | SIZES, "sizes", mimi_config())
    model = moshi_mlx.MoshiForConditionalGeneration.from_pretrained(folder, config=config)
    np.testing.assert_array_equal(live(model, REF["user"][:, :20], **given("codes", False)), REF["codes"][:, :20])


def test_a_stub_is_moshis_sizes(tmp_path):
    folder = personaplex.write(tmp_path / "stub", config=STUB)
    assert MoshiConfig.from_pretrained(folder) == MoshiConfig(audio_encoder_config=mimi_config())
    with pytest.raises(moshi_mlx.ConfigError, match="weights"):  # and this one is far smaller
        moshi_mlx.load(folder)


@pytest.mark.parametrize("voice", [REF["voice"], GOLDENS / "personaplex_delay2.pt"], ids=["codes", "published"])
def test_longer_delays(tmp_path, voice):
    model = moshi_mlx.load(personaplex.write(tmp_path / "later", STUB | DELAY_2, DELAY_2))
    np.testing.assert_array_equal(
        live(model, REF["user"][:, :101], voice=voice, persona=PERSONA)[:, :100], REF["delay2"]
    )
    out = model.generate(
        voice=voice, persona=PERSONA, user_audio_codes=REF["user"][None], max_new_tokens=102, do_sample=False,
        return_audio_codes=True,
    )  # fmt: skip
    np.testing.assert_array_equal(np.array(out.audio_codes)[0], REF["delay2"][1:])


def test_the_sound_begins_with_the_first_free_frame(tmp_path):
    for sizes, silent in ((SIZES, 0), (DELAY_2, 1)):
        model = moshi_mlx.load(personaplex.write(tmp_path / str(silent), STUB | sizes, sizes))
        session = model.session(voice=REF["voice"], persona=PERSONA, **GREEDY)
        frames = [session.step_codes(column) for column in REF["user"][:, :6].T]
        assert [frame.pcm is None for frame in frames] == [True] * silent + [False] * (6 - silent)
        codes = np.stack([frame.audio_codes for frame in frames[silent:]], axis=1)
        sound = np.concatenate([frame.pcm for frame in frames[silent:]])
        np.testing.assert_allclose(sound, model.audio_encoder.stream(8).decode(codes), atol=1e-5)


def test_a_hook_hears_the_same(plex):
    seen = []
    got = live(plex, REF["user"][:, :20], on_text=seen.append, **given("codes", False))
    np.testing.assert_array_equal(got, REF["codes"][:, :20])
    assert len(seen) == 20


# --- prompts that are kept ------------------------------------------------------------------------------------------


def test_a_prompt_is_reused(plex, tmp_path):
    prompt = plex.prompt(voice="NATF2", persona=PERSONA)
    plex.save_prompt(prompt, tmp_path / "teacher.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]
    for one in (prompt, prompt, tmp_path / "teacher.safetensors", str(tmp_path / "teacher.safetensors")):
        np.testing.assert_array_equal(live(plex, REF["user"][:, :60], prompt=one), REF["bfloat16"][:, :60])
    out = plex.generate(
        prompt=tmp_path / "teacher.safetensors", user_audio_codes=REF["user"][None], max_new_tokens=61,
        do_sample=False, return_audio_codes=True,
    )  # fmt: skip
    np.testing.assert_array_equal(np.array(out.audio_codes)[0], REF["bfloat16"][1:, :60])
    assert plex.load_prompt(tmp_path / "teacher.safetensors").about == {"voice": "NATF2", "persona": PERSONA}


def test_reset_begins_after_the_prompt_and_covers_every_leaf(plex):
    session = plex.session(voice="NATF2", persona=PERSONA, **GREEDY)
    fresh = dict(state.flatten(session._state))
    first = [session.step_codes(column).audio_codes for column in REF["user"][:, :5].T]
    moved = dict(state.flatten(session._state))
    assert moved.keys() == fresh.keys() == dict(state.flatten(plex.session()._state)).keys()
    session.reset()
    again = [session.step_codes(column).audio_codes for column in REF["user"][:, :5].T]
    np.testing.assert_array_equal(first, again)


def test_the_cache_in_eight_bits(tmp_path):
    sizes = SIZES | {"dim": 64, "num_heads": 2}
    model = moshi_mlx.load(personaplex.write(tmp_path / "wide", STUB | sizes, sizes))
    session = model.session(voice=REF["voice"], persona=PERSONA, kv_bits=8, **GREEDY)
    leaves = dict(state.flatten(session._state))
    packed = dict(state.flatten(model.session(kv_bits=8)._state))
    assert {name: leaf.dtype for name, leaf in leaves.items()} == {name: leaf.dtype for name, leaf in packed.items()}
    for column in REF["user"][:, :80].T:  # past the context
        session.step_codes(column)


def test_a_prompt_of_another_model_is_refused(plex, tmp_path):
    plex.save_prompt(plex.prompt(persona="a teacher"), tmp_path / "p.safetensors")
    other = moshi_mlx.load(personaplex.write(tmp_path / "later", STUB | DELAY_2, DELAY_2))
    half = moshi_mlx.load(plex.voices.folder, dtype=mx.bfloat16)
    tuned = moshi_mlx.load(plex.voices.folder)
    layer = tuned.decoder.model.transformer.layers[1].gating.linear_out
    layer.weight = layer.weight * 1.01
    for model in (other, half, tuned):
        with pytest.raises(InputError, match=r"p\.safetensors.*another model"):
            model.session(prompt=tmp_path / "p.safetensors")


def test_files_that_are_no_prompts_are_refused(plex, tmp_path):
    good = tmp_path / "p.safetensors"
    plex.save_prompt(plex.prompt(persona="a teacher"), good)
    arrays, about = mx.load(str(good), return_metadata=True)
    broken = {
        "cut": good.read_bytes()[:-50],
        "nothing": b"",
        "text": b"hello",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    for name in arrays:
        mx.save_safetensors(str(tmp_path / "less"), {k: v for k, v in arrays.items() if k != name}, about)
        shutil.move(tmp_path / "less.safetensors", tmp_path / f"without {name}")
        mx.save_safetensors(str(tmp_path / "deep"), {**arrays, name: arrays[name][None]}, about)
        shutil.move(tmp_path / "deep.safetensors", tmp_path / f"deep {name}")
    mx.save_safetensors(str(tmp_path / "long"), arrays, {**about, "length": "91"})
    mx.save_safetensors(str(tmp_path / "no length"), arrays, {k: v for k, v in about.items() if k != "length"})
    mx.save_safetensors(str(tmp_path / "plain"), arrays)
    good.unlink()
    files = [*sorted(path for path in tmp_path.iterdir() if path.is_file()), tmp_path / "missing", tmp_path]
    assert len(files) > 10
    for path in files:
        with pytest.raises(InputError, match="prompt"):
            plex.session(prompt=path)


# --- what people give ----------------------------------------------------------------------------------------------


def test_a_voice_by_name_by_path_and_from_sound(plex, tmp_path):
    import soundfile

    named = live(plex, REF["user"][:, :10], voice="NATF2", persona=PERSONA)
    np.testing.assert_array_equal(named, REF["bfloat16"][:, :10])
    np.testing.assert_array_equal(live(plex, REF["user"][:, :10], voice="NATF2.pt", persona=PERSONA), named)
    sound = question()[: 24000 * 2]
    soundfile.write(tmp_path / "own.wav", 0.3 * sound, 24000, subtype="FLOAT")
    from moshi_mlx.audio.loudness import loudness, matched

    codes = plex.audio_encoder.stream(8).encode(matched(sound, 24000, -24.0))
    assert loudness(matched(sound, 24000, -24.0), 24000) == pytest.approx(-24, abs=1e-3)
    wanted = live(plex, REF["user"][:, :10], voice=codes)
    for voice in (tmp_path / "own.wav", str(tmp_path / "own.wav"), sound):
        np.testing.assert_array_equal(live(plex, REF["user"][:, :10], voice=voice), wanted)


def test_a_role_is_tagged_once():
    assert tagged(" a teacher ") == tagged("<system> a teacher <system>") == "<system> a teacher <system>"


def refusals(plex, tmp_path):
    other = moshi_mlx.load(personaplex.write(tmp_path / "wide", STUB | SIZES | {"dim": 48}, SIZES | {"dim": 48}))
    return {
        "takes neither": lambda: moshi_mlx.load(GOLDENS / "moshi_tiny").session(persona="a teacher"),
        "moshi_tiny has|takes neither": lambda: moshi_mlx.load(GOLDENS / "moshi_tiny").generate(voice="NATF2"),
        "'NATX9' is no voice of .*NATF2": lambda: plex.session(voice="NATX9"),
        "no such file": lambda: plex.session(voice="./none.pt"),
        "own.wav.*cannot be read": lambda: plex.session(voice="./own.wav"),
        "another model.*24 and 17.*48 and 17": lambda: other.session(voice=VOICES["float32"]),
        "107 frames.*context is 90": lambda: plex.session(voice=np.zeros((8, 95), np.int32)),
        "persona: got int": lambda: plex.session(persona=3),
        r"codes float64|float64 of shape \[8, 4\]": lambda: plex.session(voice=np.zeros((8, 4))),
        r"int64 of shape \[7, 4\]": lambda: plex.session(voice=np.zeros((7, 4), int)),
        "values from 0 to 2048": lambda: plex.session(voice=np.array([[0, 2048]] * 8)),
        "values from -1": lambda: plex.session(voice=np.array([[0, -1]] * 8)),
        "expected 0.4 s": lambda: plex.session(voice=np.zeros(400, np.float32)),
        "is silent": lambda: plex.session(voice=np.zeros(24000, np.float32)),
        "NaN": lambda: plex.session(voice=np.full(24000, np.nan, np.float32)),
        "prompt: got it together": lambda: plex.session(voice="NATF2", prompt=plex.prompt(voice="NATF2")),
        "input_ids: got it together": lambda: plex.generate(voice="NATF2", input_ids=np.zeros((1, 3), int)),
        "moshi_audio_codes": lambda: plex.generate(voice="NATF2", moshi_audio_codes=np.zeros((1, 8, 3), int)),
        "got 2 rows": lambda: plex.generate(voice="NATF2", user_audio_codes=np.zeros((2, 8, 3), int)),
        "keeps 2 columns": lambda: plex.session(
            voice=Voice("x", embeds=np.zeros((3, 24), np.float32), ring=np.zeros((17, 1), int))
        ),
        "token 2049": lambda: plex.session(
            voice=Voice("x", embeds=np.zeros((3, 24), np.float32), ring=np.full((17, 4), 2049))
        ),
    }


def test_refusals_name_what_is_wrong(plex, tmp_path):
    for words, ask in refusals(plex, tmp_path).items():
        words = words.replace("keeps 2", "keeps 1")
        with pytest.raises(moshi_mlx.MoshiError, match=words):
            ask()


def test_a_name_is_never_a_path(plex, folder):
    secret = folder.parent / "secret.pt"
    shutil.copy(VOICES["float32"], secret)
    for name in ("../secret", "../../secret.pt", str(secret), "/etc/passwd", "voices/NATF2", ".", ""):
        with pytest.raises(InputError, match="no voice of"):
            plex.voices.read(name)


def test_a_persona_without_a_tokenizer(folder):
    model = moshi_mlx.load(folder)
    model.tokenizer = None
    with pytest.raises(InputError, match="tokenizer"):
        model.session(persona="a teacher")
    model.session(voice="NATF2")


def test_other_codebooks_have_no_prompt(model):
    model.voices = object()
    try:
        with pytest.raises(InputError, match="8 codebooks of 32"):
            model.session(persona="a teacher")
    finally:
        model.voices = None


def test_the_examples_of_the_docs_run(plex, tmp_path, monkeypatch):
    import soundfile

    monkeypatch.chdir(tmp_path)
    soundfile.write("me.wav", question()[:48000], 24000)
    monkeypatch.setattr(moshi_mlx, "load", lambda name: plex)
    text = (GOLDENS.parents[1] / "docs" / "personas.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    given = {"moshi_mlx": moshi_mlx, "pcm": question()[:1920]}
    for example in examples:
        exec(example, given)
    assert len(examples) == 2
    assert given["session"].step(given["pcm"]).pcm is not None
    assert (tmp_path / "pirate.safetensors").is_file()


# --- speaking -------------------------------------------------------------------------------------------------------


def loud(level):
    return np.full(1920, level, np.float32)


def test_speech_has_hysteresis_in_level_and_time():
    detector = SpeechDetector(0.08)
    hiss, speech, noise = loud(10 ** (-50 / 20)), loud(0.1), loud(10 ** (-60 / 20))
    said = [detector(pcm) for pcm in (hiss, None, speech, *[hiss] * 20, *[noise] * 7, speech, *[noise] * 7, None, hiss)]
    assert said == [False, False, *[True] * 36, False, False]


def test_the_gate_opens_after_the_greeting_or_in_the_end():
    gate = GreetingGate(0.08)
    states = []
    for speaking in (False, True, True, False):
        gate(speaking)
        states.append(gate.closed)
    assert states == [True, True, True, False]
    gate.reset()
    for _ in range(149):
        gate(False)
    assert gate.closed
    gate(False)
    assert not gate.closed


def test_events_are_the_frames_own(plex):
    heard, frames = [], []
    session = plex.session(voice="NATF2", on_speaking=lambda now: heard.append((len(frames), now)), **GREEDY)
    detector = SpeechDetector(0.08)
    for column in REF["user"][:, :20].T:
        frames.append(session.step_codes(column))
    wanted = [detector(frame.pcm) for frame in frames]
    assert [frame.speaking for frame in frames] == wanted
    changes = [(n, now) for n, (before, now) in enumerate(zip([False, *wanted], wanted, strict=False)) if before != now]
    assert heard == changes
    assert heard  # this model makes noise


def test_until_the_greeting_has_ended_the_user_is_silent(plex):
    settings = {"voice": "NATF2", "persona": PERSONA, **GREEDY}
    sound = question()[: 20 * 1920].reshape(-1, 1920)
    gated, free, quiet = (plex.session(**settings, **more) for more in ({"wait_for_greeting": True}, {}, {}))
    gated._gate._most = 5
    waited = [gated.step(frame).audio_codes for frame in sound]
    silent = [quiet.step(np.zeros_like(frame)).audio_codes for frame in sound]
    open_ = [free.step(frame).audio_codes for frame in sound]
    np.testing.assert_array_equal(waited[:5], silent[:5])
    assert not np.array_equal(waited, silent)
    assert not np.array_equal(open_[:5], silent[:5])


# --- files of voices ------------------------------------------------------------------------------------------------


def test_the_archive_of_voices(tmp_path, plex):
    import io
    import tarfile

    folder = personaplex.write(tmp_path / "model")
    with tarfile.open(folder / "voices.tgz", "w:gz") as archive:
        archive.add(VOICES["bfloat16"], "voices/NATF2.pt")
        archive.add(VOICES["float32"], "voices/VARM4.pt")
        archive.add(GOLDENS / "README.md", "voices/README.md")
        link = tarfile.TarInfo("voices/EVIL.pt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link, io.BytesIO())
    model = moshi_mlx.load(folder)
    assert model.voices.names() == ["NATF2", "VARM4"]
    np.testing.assert_array_equal(
        live(model, REF["user"][:, :10], voice="NATF2", persona=PERSONA), REF["bfloat16"][:, :10]
    )
    with pytest.raises(InputError, match=r"'EVIL' is no voice of .*NATF2, VARM4"):
        model.session(voice="EVIL")
    (folder / "voices.tgz").write_bytes(b"not an archive")
    with pytest.raises(CheckpointError, match=r"voices\.tgz: not an archive"):
        model.voices.names()


def test_convert_keeps_kind_and_voices(folder, tmp_path, capsys):
    from moshi_mlx.convert.cli import main

    for layout, bits in (("mlx", []), ("kyutai", []), ("mlx", ["-q", "--q-bits", "8", "--q-group-size", "32"])):
        path = tmp_path / f"{layout}{len(bits)}"
        assert main(["--hf-path", str(folder), "--mlx-path", str(path), "--to", layout, *bits]) == 0
        config = json.loads((path / "config.json").read_text())
        assert (config["model_type"], config["dep_q"]) == ("personaplex", 8)
        model = moshi_mlx.load(path)
        assert model.voices.names() == ["NATF2"]
        if not bits:
            got = live(model, REF["user"][:, :20], voice="NATF2", persona=PERSONA)
            np.testing.assert_array_equal(got, REF["bfloat16"][:, :20])
    capsys.readouterr()
    assert main(["inspect", str(folder), "--no-checksum"]) == 0
    said = capsys.readouterr().out
    assert "PersonaPlex" in said
    assert "NATF2" in said
    assert "8 of 16 steps" in said
    assert "moshi (PyTorch): no" in said


def test_saved_and_loaded_again(plex, tmp_path):
    plex.save_pretrained(tmp_path / "hf")
    model = moshi_mlx.load(tmp_path / "hf")
    got = live(model, REF["user"][:, :20], voice="NATF2", persona=PERSONA)
    np.testing.assert_array_equal(got, REF["bfloat16"][:, :20])


def test_every_slice_that_does_not_speak_is_still_looked_at(tmp_path):
    weights = personaplex.language_weights()
    for name in ("linears.9.weight", "depformer_emb.14.weight", "depformer.layers.1.gating.15.linear_out.weight"):
        less = {key: value for key, value in weights.items() if key != name}
        path = personaplex.write(tmp_path / f"less {name}", weights=less)
        with pytest.raises(CheckpointError, match=r"linears\.9|depformer_emb\.14|gating\.15|no place"):
            moshi_mlx.load(path)
        odd = {**weights, name: weights[name][:-1]}
        with pytest.raises(CheckpointError, match=name):
            moshi_mlx.load(personaplex.write(tmp_path / f"odd {name}", weights=odd))
    more = {**weights, "linears.16.weight": weights["linears.0.weight"]}
    with pytest.raises(CheckpointError, match="no place"):
        moshi_mlx.load(personaplex.write(tmp_path / "more", weights=more))
