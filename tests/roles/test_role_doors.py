"""Every door that a model goes through, tried with a model of every role: it works, or says which command runs it."""

import asyncio
import warnings

import numpy as np
import pytest
from family import FAMILY, ROLES, loaded
from serving import SIZE, open_house, run, visit
from training import tones

import moshi_mlx
from moshi_mlx import DuplexSampling, InputError
from moshi_mlx.conversation.session import Session
from moshi_mlx.export.bundle import export
from moshi_mlx.local.__main__ import main as local
from moshi_mlx.models.roles import KINDS
from moshi_mlx.say.__main__ import main as say
from moshi_mlx.serve import options as serving
from moshi_mlx.serve.__main__ import make_batch
from moshi_mlx.train.__main__ import main as train
from moshi_mlx.transcribe.__main__ import main as transcribe
from moshi_mlx.translate.__main__ import main as translate

BOTH = ("dialogue", "translator")


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    monkeypatch.setattr("moshi_mlx.conversation.session.Session._build_kernels", lambda self, progress: None)
    monkeypatch.setattr("moshi_mlx.conversation.batch.Batch._build_kernels", lambda self, progress: None)


@pytest.fixture(scope="module")
def models():
    return {role: loaded(kind) for role, kind in ROLES.items()}


async def talked(model):
    async with model.conversation(progress=False) as talk:
        await talk.step(np.zeros(talk.frame_size, np.float32))


def step_exported(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        moshi_mlx.export_step(model, folder / "step.mlxfn", DuplexSampling())


def served(model, path, folder):
    arguments = serving.parse(["--model", str(path), "--slots", "1"])
    batch = make_batch(arguments, lambda line: None)
    if model.config.role == "speaker":
        batch.join(())
        batch.step()
    else:
        batch.step({batch.join(): np.zeros(batch.frame_size, np.float32)})


def command(main, *arguments):
    """A command that ends well, or with an InputError's line."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main([str(each) for each in arguments])
    if status:
        raise InputError(said.getvalue().splitlines()[-1].partition("error: ")[2])


def locally(model, path, folder):
    tones(folder, count=1)
    command(local, "--input", folder / "0.wav", "--output", folder / "out.wav", "--model", path, "--tail", 0)


def prepared(model, path, folder):
    tones(folder / "sounds", count=1)
    command(train, "prepare", "--model", path, "--data", folder / "sounds", "--output", folder / "prepared" / "train")


def trained(model, path, folder):
    (folder / "nothing").mkdir()
    try:
        command(train, "--model", path, "--data", folder / "nothing", "--adapter-path", folder / "adapter")
    except InputError as error:
        if "no prepared data" not in str(error):  # which is looked for behind the door
            raise


def translated(model, path, folder):
    tones(folder, count=1)
    command(translate, folder / "0.wav", "--output", folder / "out.wav", "--model", path, "--tail", 0)


def written_down(model, path, folder):
    tones(folder, count=1)
    command(transcribe, folder / "0.wav", "--model", path)


def said(model, path, folder):
    command(say, "time", "--output", folder / "out.wav", "--model", path, "--voice", "none")


def transcribed(model, path, folder):
    model.transcribe(np.zeros(2000, np.float32), progress=False)


DOORS = {
    "session": (BOTH, lambda model, path, folder: model.session(progress=False)),
    "Session": (BOTH, lambda model, path, folder: Session(model, progress=False)),
    "conversation": (BOTH, lambda model, path, folder: asyncio.run(talked(model))),
    "batch": (BOTH, lambda model, path, folder: model.batch(1, progress=False)),
    "generate": (BOTH, lambda model, path, folder: model.generate(max_new_tokens=2)),
    "translator": (("translator",), lambda model, path, folder: model.translator(progress=False)),
    "translate": (("translator",), lambda model, path, folder: model.translate(np.zeros(2000, np.float32), tail=0)),
    "forward": ((*BOTH, "transcriber"), lambda model, path, folder: model(input_ids=np.full((1, 3), 5))),
    "get_unconditional_inputs": (BOTH, lambda model, path, folder: model.get_unconditional_inputs()),
    "transcriber": (("transcriber",), lambda model, path, folder: model.transcriber(progress=False)),
    "transcribers": (("transcriber",), lambda model, path, folder: model.transcribers(1, progress=False)),
    "transcribe": (("transcriber",), transcribed),
    "speaker": (("speaker",), lambda model, path, folder: model.speaker(progress=False)),
    "speakers": (("speaker",), lambda model, path, folder: model.speakers(1, progress=False)),
    "export": (BOTH, lambda model, path, folder: export(path, folder / "bundle")),
    "export_step": (BOTH, lambda model, path, folder: step_exported(model, folder)),
    "serve": (tuple(ROLES), served),
    "local": (("dialogue",), locally),
    "moshi_mlx.translate": (("translator",), translated),
    "moshi_mlx.transcribe": (("transcriber",), written_down),
    "moshi_mlx.say": (("speaker",), said),
    "prepare": (BOTH, prepared),
    "train": (BOTH, trained),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("door", DOORS)
def test_every_door(models, tmp_path, door, role):
    welcome, through = DOORS[door]
    if role in welcome:
        through(models[role], FAMILY / ROLES[role], tmp_path)
        return
    name, runs = KINDS[role]
    with pytest.raises(InputError) as refused:
        through(models[role], FAMILY / ROLES[role], tmp_path)
    expected = " or a ".join(KINDS[each][0] for each in welcome)
    assert str(refused.value) == f"model: got a {name}, expected a {expected}; python -m moshi_mlx.{runs} runs it"
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".mlxfn", ".graph")]


@pytest.mark.parametrize("role", ["translator", "transcriber", "speaker"])
@pytest.mark.parametrize("given", [{"voice": "NATF0"}, {"persona": "a pirate"}, {"prompt": "kept.safetensors"}])
def test_a_persona_is_for_a_personaplex(models, role, given):
    with pytest.raises(InputError):
        models[role].session(progress=False, **given)


@pytest.mark.slow
def test_a_hibiki_is_served_at_kyutais_door():
    async def scene():
        async with (
            open_house(lambda: loaded("hibiki").batch(2, guidance=3, progress=False)) as (_, address),
            visit(address) as anna,
            visit(address, "?text_seed=3&audio_seed=5") as bert,
        ):
            for each in (anna, bert):
                await each.handshake()
            heard = np.random.default_rng(0).uniform(-0.3, 0.3, 12 * SIZE).astype(np.float32)
            await asyncio.gather(anna.talk(12, heard), bert.talk(12, heard))
            assert anna.words or bert.words

    run(scene())
