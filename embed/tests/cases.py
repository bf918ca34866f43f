"""Cases for the tests of `embed/`: bundles, and what the Session says for them, as files.

    python embed/tests/cases.py bundles FOLDER       checkpoints and bundles (MLX 0.32 or newer)
    python embed/tests/cases.py references FOLDER [NAME ...]    the Session's frames, with whatever MLX runs this
    python embed/tests/cases.py text FOLDER          random tokens of 32000 pieces, and their fragments

A folder FOLDER/NAME holds checkpoint/ and bundle/; FOLDER/NAME.SETTINGS.txt is a line of settings (seed, temperature,
top_k, top_p, min_p, the same of the text) and a line for each frame (text token, 1 when ready, codes, the text in
hexadecimal), FOLDER/NAME.SETTINGS.f32 the sound. FOLDER/sound.f32 is what the user says.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from family import FAMILY  # noqa: E402

GOLDENS, MINIATURE = ROOT / "tests" / "goldens", ROOT / "moshi_mlx" / "assets" / "miniature"
FRAMES = 100
KEYS = ("temperature", "top_k", "top_p", "min_p", "text_temperature", "text_top_k", "text_top_p", "text_min_p")
SETTINGS = {  # seed, then KEYS
    "sampled": (7, 0.8, 250, 1, 0, 0.7, 25, 1, 0),
    "greedy": (0, 0, 0, 1, 0, 0, 0, 1, 0),
    "mixed": (3, 0.9, 7, 1, 0, 0, 0, 1, 0),
    "cold": (4, 1e-33, 12, 1, 0, 1e-35, 3, 1, 0),
    "narrow": (2**40 + 5, 1.2, 9, 0.8, 0.05, 1.1, 5, 0.9, 0.01),
}


class Case(NamedTuple):
    """How a checkpoint is made, and how it is run."""

    base: Path = GOLDENS / "moshi_tiny"
    convert: tuple[str, ...] = ()  # flags
    delay: int | None = None
    dtype: str | None = "float32"
    kv_bits: int | None = None
    first: int | None = None  # slots of the cache to begin with
    guidance: float | None = None
    settings: tuple[str, ...] = ("sampled", "greedy")


Q = ("-q", "--q-group-size", "32")
CASES = {
    "tiny": Case(settings=tuple(SETTINGS)),  # a context of 64 frames, which wraps
    "grows": Case(first=16),
    "delay2": Case(delay=2),
    "schedule": Case(GOLDENS / "moshi_schedule", settings=("sampled",)),
    "bf16": Case(dtype="bfloat16"),
    "q4": Case(convert=(*Q, "--q-bits", "4"), dtype=None),
    "q8": Case(convert=(*Q, "--q-bits", "8"), dtype=None),
    "mxfp4": Case(convert=("-q", "--q-mode", "mxfp4"), dtype=None),
    "miniature": Case(MINIATURE, dtype=None, settings=("sampled",)),
    "kv8": Case(MINIATURE, dtype=None, kv_bits=8, first=32, settings=("greedy",)),
    "hibiki": Case(FAMILY / "hibiki"),
    "guided": Case(FAMILY / "hibiki", guidance=3.0, first=16),
    "zero": Case(FAMILY / "hibiki_zero", settings=("sampled",)),
}


def make_checkpoint(case: Case, folder: Path) -> None:
    source = folder.with_name("source")
    shutil.copytree(case.base, source)
    if case.base.parent == GOLDENS:
        for name in ("mimi.safetensors", "mimi_config.json", "tokenizer.model"):
            shutil.copy(GOLDENS / "moshi_tiny" / name, source / name)
        config = json.loads((source / "config.json").read_text())
        names = {
            "mimi_name": "mimi.safetensors",
            "tokenizer_name": "tokenizer.model",
            "mimi_config_name": "mimi_config.json",
        }
        config |= names | ({"delays": [0] + ([0] + [case.delay] * 7) * 2} if case.delay else {})
        (source / "config.json").write_text(json.dumps(config))
    if not case.convert:
        source.rename(folder)
        return
    command = [sys.executable, "-m", "moshi_mlx.convert", "--hf-path", source, "--mlx-path", folder, *case.convert]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    shutil.rmtree(source)


def bundles(folder: Path) -> None:
    import mlx.core as mx

    from moshi_mlx.conversation import session
    from moshi_mlx.export import bundle

    folder.mkdir(parents=True, exist_ok=True)
    sound().tofile(folder / "sound.f32")
    for name, case in CASES.items():
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        make_checkpoint(case, place / "checkpoint")
        session.FIRST_CAPACITY = case.first or 256
        dtype = getattr(mx, case.dtype) if case.dtype else None
        bundle.export(place / "checkpoint", place / "bundle", dtype, case.kv_bits, guidance=case.guidance)


def sound() -> np.ndarray:
    from helpers import question

    return np.resize(question(), FRAMES * 1920).astype(np.float32)


def references(folder: Path, *names: str) -> None:
    import mlx.core as mx

    import moshi_mlx
    from moshi_mlx.conversation import session

    frames = np.fromfile(folder / "sound.f32", np.float32).reshape(FRAMES, -1)
    for name, case in CASES.items():
        if names and name not in names:
            continue
        session.FIRST_CAPACITY = case.first or 256
        model = moshi_mlx.load(folder / name / "checkpoint", getattr(mx, case.dtype) if case.dtype else None)
        for settings in case.settings:
            seed, *values = SETTINGS[settings]
            told = {"kv_bits": case.kv_bits, "guidance": case.guidance}
            talk = model.session(seed, **told, **dict(zip(KEYS, values, strict=True)))
            said, count = [talk.step(frame) for frame in frames], model.config.num_codebooks
            write_reference(folder / f"{name}.{settings}", settings, said, count)


def write_reference(stem: Path, settings: str, frames: list[Any], codebooks: int) -> None:
    lines = [" ".join(map(str, SETTINGS[settings]))]
    pcm = np.zeros((len(frames), 1920), np.float32)
    for n, frame in enumerate(frames):
        ready = frame.pcm is not None
        codes = frame.audio_codes if ready else [-1] * codebooks
        pcm[n] = frame.pcm if ready else 0
        lines.append(" ".join(map(str, [frame.text_token, int(ready), *codes, f"x{frame.text.encode().hex()}"])))
    stem.with_name(stem.name + ".txt").write_text("\n".join(lines) + "\n")
    pcm.tofile(stem.with_name(stem.name + ".f32"))


def text(folder: Path) -> None:
    """Pieces as a tokenizer of 32000 has them, all bytes included, in no order at all."""
    from moshi_mlx.conversation.text import TextDecoder
    from moshi_mlx.export.bundle import text_table

    class Tokenizer:
        def __init__(self) -> None:
            letters = "abcdefgéßñ你好🙂 ▁"
            words = ["".join(rng.choice(letters) for _ in range(rng.randint(1, 5))) for _ in range(31_740)]
            self.pieces = ["<unk>", "<s>", "</s>", "▁"] + [f"<0x{n:02X}>" for n in range(256)] + words

        def is_control(self, token: int) -> bool:
            return token in (1, 2)

        def is_byte(self, token: int) -> bool:
            return 4 <= token < 260

        def id_to_piece(self, token: int) -> str:
            return self.pieces[token]

    rng = random.Random(5)
    tokenizer, silent = Tokenizer(), (0, 3)
    (folder / "text.bin").write_bytes(text_table(tokenizer, 32_000, silent))
    decoder = TextDecoder(tokenizer, silent)
    some = [rng.choice([rng.randrange(4, 260), rng.randrange(32_000), *"é🙂你".encode()]) for _ in range(20_000)]
    lines = [f"{token} x{decoder(token).encode().hex()}" for token in some]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    {"bundles": bundles, "references": references, "text": text}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
