"""From trained codec to shipped folder: the language model's base, its training, the quantized forms, the export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import soundfile
from moshi_mlx.convert import cli

import moshi_mlx
from moshi_mlx import MoshiForConditionalGeneration
from moshi_mlx.checkpoints import writing
from moshi_mlx.checkpoints.finding import MIMI_NAME
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.errors import MoshiError
from moshi_mlx.local import options
from moshi_mlx.train import __main__ as trainer
from moshi_mlx.train.saving import CHECKPOINT_NAME, STATE_NAME

from . import evaluate, language, live
from .codec import train as codec
from .codec.data import held_out_sound, to_int16
from .conversations import dialogues, streams
from .conversations.dialogues import Rendering
from .conversations.questions import PROCESSES
from .files import load_whole, save_whole
from .talk.speech import SAMPLE_RATE
from .training import plot_curves

Say = Callable[[str], None]
RECIPE = Path(__file__).with_name("language.yaml")
ASSETS = Path(moshi_mlx.__file__).parent / "assets"
MOST_BYTES = 12_000_000  # of all that ships
RENDERINGS = 100
CARD = """\
# The miniature

A Moshi of 9 M parameters, for the demo of moshi_mlx: trained from nothing on synthetic speech. docs/miniature.md of the
repository says how, and how well it talks. MIT licence, as the package.
"""
PORT = 32323


def base(folder: Path) -> Path:
    """folder/base: the trained codec, the tokenizer and a language model that knows nothing yet, in float32."""
    path = folder / "base"
    if not path.exists():
        writing.save(language.new(codec.load(folder)), path)
    return path


def train(folder: Path, say: Say = print) -> None:
    """Put conversations together and train on them, going on where an earlier run was ended."""
    model, prepared, run = base(folder), folder / "prepared", folder / "language"
    heard = [f"--data={folder / 'dialogues'}", f"--output={prepared / 'heard'}"]
    _run(trainer.main, ["prepare", "--keep-and-shift", f"--model={model}", *heard])
    streams.write(moshi_mlx.load(model), folder, prepared / "train", say=say)
    shutil.copytree(prepared / "heard" / "train", prepared / "valid", dirs_exist_ok=True)
    resumed = [f"--resume-adapter-file={run / STATE_NAME}"] if (run / STATE_NAME).exists() else []
    settings = [f"--model={model}", f"--data={prepared}", f"--adapter-path={run}", *resumed]
    _launch([f"--config={RECIPE}", *settings])
    say(f"{run / CHECKPOINT_NAME}: trained")


def _launch(arguments: list[str]) -> None:
    """`moshi_mlx.train` in processes that share every batch: what mlx.launch does, whose own loop takes half a core."""
    command = [sys.executable, "-m", "moshi_mlx.train", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder, "hosts.json")
        hosts.write_text(json.dumps([[f"127.0.0.1:{PORT + rank}"] for rank in range(PROCESSES)]))
        places = [os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(PROCESSES)]
        processes = [subprocess.Popen(command, env=place) for place in places]
        try:
            while all(process.poll() is None for process in processes):
                time.sleep(0.5)
            status = max(abs(process.returncode or 0) for process in processes)
            if not status:  # one has ended well, the others will
                status = max(abs(process.wait()) for process in processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if status:
        raise MoshiError(f"moshi_mlx.train: ended with status {status}")


def _run(command: Callable[[list[str]], int], arguments: list[str]) -> None:
    status = command(arguments)
    if status:
        raise MoshiError(f"{arguments[0]}: ended with status {status}")


def quantized(folder: Path, bits: int) -> Path:
    """The trained checkpoint with a language model of so many bits."""
    target, source = folder / f"q{bits}", folder / "language" / CHECKPOINT_NAME
    arguments = [f"--hf-path={source}", f"--mlx-path={target}", "--overwrite", "--dtype=bfloat16"]
    _run(cli.main, [*arguments, "-q", f"--q-bits={bits}"])
    _halve_codec(target / MIMI_NAME)
    return target


def _halve_codec(path: Path) -> None:
    """The codec's file in bfloat16, which holds all that `as_shipped` left."""
    tensors, metadata = load_whole(path)
    save_whole(path, {name: value.astype(mx.bfloat16) for name, value in tensors.items()}, metadata)


def scores(folder: Path, say: Say = print, renderings: int = RENDERINGS) -> dict[str, Any]:
    """How every form answers held-out questions and the codec alone sounds, to folder/scores.json, with pictures."""
    dialogues.replies()  # first, in a fresh engine: as the model heard them in training
    asked, interrupting = dialogues.held_out(renderings), dialogues.interruptions()
    model, found = moshi_mlx.load(folder / "language" / CHECKPOINT_NAME), {}
    for name, said in _all_forms(folder, model, asked + interrupting).items():
        heard = said[: len(asked)]
        result = evaluate.score(model, asked, heard)
        pairs = list(zip(said[len(asked) :], interrupting, strict=True))
        gave_way = sum(evaluate.gave_way(model, *pair) for pair in pairs)
        found[name] = result._asdict() | {"interrupted": len(pairs), "gave_way": gave_way}
        say(
            f"{name}: {result.answered} of {result.asked} answered, {result.silent} silent, STOI {result.stoi:.3f}, "
            f"gave way to {gave_way} of {len(pairs)} interruptions"
        )
        if name == "q8 live":
            evaluate.picture(asked[0], heard[0], folder / "spectrograms.png")
    found["codec"] = {"stoi": codec.score(codec.load(folder), held_out_sound(folder))}
    say(f"codec alone: STOI {found['codec']['stoi']:.3f}")
    (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n")
    draw_codec(folder)
    return found


def _all_forms(
    folder: Path, model: MoshiForConditionalGeneration, renderings: list[Rendering]
) -> dict[str, list[evaluate.Heard]]:
    """What is said by the weights as they are, and by the live command with fewer bits meanwhile."""
    live_forms = {f"q{bits} live": quantized(folder, bits) for bits in (8, 4)}
    samplings = {"float32 greedy": evaluate.GREEDY, "float32": DuplexSampling()}
    with ThreadPoolExecutor(PROCESSES) as pool:
        talking = {name: pool.submit(live.ask, path, renderings) for name, path in live_forms.items()}
        said = {name: evaluate.ask(model, renderings, sampling) for name, sampling in samplings.items()}
        return said | {name: talk.result() for name, talk in talking.items()}


def draw_codec(folder: Path) -> None:
    """The codec's curves, those of both phases: folder/codec.png, decoder.png and their -stoi.png."""
    for name in codec.PHASES:
        panels = {"loss": ["loss", "spectral", "envelope"], "waveform": ["wave"]}
        plot_curves(panels, folder / f"{name}.csv", folder / f"{name}.png")
        plot_curves({"STOI, held out": ["stoi"]}, folder / f"{name}-scores.csv", folder / f"{name}-stoi.png")


def export(folder: Path, assets: Path = ASSETS, say: Say = print) -> None:
    """The 8-bit form and the demo's question to `assets`, if together they are small enough."""
    made = quantized(folder, 8)
    text, sound = dialogues.demonstration()
    question = made / options.DEMO_INPUT.name
    soundfile.write(question, to_int16(sound), SAMPLE_RATE)
    (made / "README.md").write_text(CARD)
    size = sum(file.stat().st_size for file in made.iterdir())
    if size > MOST_BYTES:
        raise MoshiError(f"{made}: {size} bytes with the question, expected at most {MOST_BYTES}")
    question.rename(assets / options.DEMO_INPUT.name)
    (assets / options.DEMO_TEXT.name).write_text(text + "\n")
    shutil.rmtree(assets / options.DEMO_MODEL.name, ignore_errors=True)
    shutil.copytree(made, assets / options.DEMO_MODEL.name)
    say(f"{assets}: {size / 1e6:.2f} MB with the question")
