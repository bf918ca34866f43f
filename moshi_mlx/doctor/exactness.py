"""Whether this machine computes what the reference does: the goldens that ship, through every way of running them.

`assets/golden` is a tiny random Moshi, and what Kyutai's own packages made of it (`tests/goldens/ship.py`).
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints.filling import fill, language_tensors_of
from ..checkpoints.layouts import kyutai_mlx
from ..checkpoints.safetensors import load_lazily
from ..checkpoints.writing import save
from ..conversation import duplex
from ..conversation.duplex import DuplexSampling
from ..huggingface.loading import load
from ..models import state as states
from ..models.moshi import Moshi
from ..models.sampling import Sampling
from .finding import OK, PROBLEM, Finding

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
GREEDY = DuplexSampling(Sampling(0), Sampling(0))
STEPS = 100  # frames of each conversation; its context of 64 is full by then
LAYOUTS = ("mlx", "kyutai", "huggingface")
KINDS = {"q4": (4, 32, "affine"), "q8": (8, 32, "affine"), "mxfp4": (4, 32, "mxfp4")}
TOLERANCE = 2e-3  # of the logits' spread: what another order of float32 sums may change
PCM_TOLERANCE = 1e-4
TODO = "the tokens are not the reference's: send the report (--report FILE)"


@functools.cache
def golden() -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in load_lazily(GOLDEN / "expected.safetensors").items()}


def tiny(folder: Path = GOLDEN) -> Any:
    return load(folder, dtype=mx.float32)


def tone() -> np.ndarray:
    """1.2 s of the formula that the reference encoded: float32 [28800]."""
    turn = 2 * np.pi * np.arange(15 * 1920, dtype=np.float64) / 24_000
    return (0.3 * np.sin(220 * turn) * np.sin(1.5 * turn) + 0.1 * np.sin(3111 * turn)).astype(np.float32)


def codec() -> Iterator[Finding]:
    """Mimi: codes from sound, and sound from codes, frame by frame."""
    model, expected = tiny(), golden()
    codes = model.audio_encoder.stream(10).encode(tone())
    yield _same("Mimi's codes", codes, expected["codes_tone"])
    sound = model.audio_encoder.stream(8).decode(expected["codes8"])
    far = float(np.abs(sound[::32] - expected["pcm_every_32"]).max())
    verdict = OK if far < PCM_TOLERANCE else PROBLEM
    yield Finding("Mimi's sound", verdict, f"within {far:.1e}", "" if verdict == OK else TODO, {"difference": far})


def tokens() -> Iterator[Finding]:
    """The language model, compiled as in a conversation, and in the plain steps that it is compiled from."""
    model = tiny()
    yield _conversation("tokens, compiled", _compiled(model))
    yield _conversation("tokens, eager", _eager(model))
    yield _conversation("tokens, batch of two", _batch(model))


def layouts() -> Iterator[Finding]:
    """Each layout, written here from the golden one and loaded again."""
    model = tiny()
    with tempfile.TemporaryDirectory() as folder:
        for layout in LAYOUTS:
            save(model, Path(folder) / layout, layout)
            yield _conversation(f"tokens, {layout} layout", _compiled(tiny(Path(folder) / layout), STEPS // 4))


def quantized() -> Iterator[Finding]:
    """Quantized matrices against what they stand for, as plain ones, over the same tokens."""
    for name, kind in KINDS.items():
        far = quantized_difference(kind)
        verdict = OK if far < TOLERANCE else PROBLEM
        yield Finding(f"logits, {name}", verdict, f"within {far:.1e} of their spread", "" if verdict == OK else TODO,
                      {"difference": far})  # fmt: skip


def quantized_difference(kind: tuple[int, int, str]) -> float:
    """The largest difference of a logit, in standard deviations: steps of one position, and 32 at once."""
    model = tiny()
    small, plain = _copies(model, kind)
    user = golden()["user"][None, :, :32]
    text = np.zeros((1, 1, 32), np.int32)
    given = mx.array(np.concatenate([text, user[:, :8], user], axis=1).astype(np.int32))
    worst = 0.0
    for width in (1, 32):
        logits = [_logits(one, given, width) for one in (small, plain)]
        worst = max(worst, float(np.abs(logits[0] - logits[1]).max() / logits[1].std()))
    return worst


def _logits(model: Moshi, given: mx.array, width: int) -> np.ndarray:
    step = mx.compile(model.decoder.step)
    state = model.decoder.model.init_state(1, positions=width)
    parts = []
    for begin in range(0, given.shape[2], width):
        _, logits, state = step(given[:, :, begin : begin + width], state)
        mx.eval(logits, state)
        parts.append(np.array(logits))
    return np.concatenate(parts, axis=1)


def _copies(model: Moshi, kind: tuple[int, int, str]) -> tuple[Moshi, Moshi]:
    """The model with every matrix that can be quantized so, and with the matrices that those stand for."""
    bits, group_size, mode = kind
    small: dict[str, mx.array] = {}
    plain: dict[str, mx.array] = {}
    for name, value in language_tensors_of(model).items():
        if value.ndim != 2 or value.shape[1] % group_size:
            small[name] = plain[name] = value
            continue
        parts = mx.quantize(value, group_size=group_size, bits=bits, mode=mode)
        stem = name.removesuffix(".weight")
        small |= dict(zip((f"{stem}.weight", f"{stem}.scales", f"{stem}.biases"), parts, strict=False))
        plain[name] = mx.dequantize(*parts, group_size=group_size, bits=bits, mode=mode).astype(mx.float32)
    return _filled(model, small), _filled(model, plain)


def _filled(model: Moshi, tensors: dict[str, mx.array]) -> Moshi:
    made = Moshi(model.config)
    fill(made, list(kyutai_mlx(model.config)), tensors)
    return made


Outcome = tuple[np.ndarray, np.ndarray]
"""(text tokens [T], codes [8, T]) of a conversation, from its first frame."""


def _compiled(model: Any, steps: int = STEPS) -> Outcome:
    session = model.session(temperature=0, text_temperature=0, progress=False)
    frames = [session.step_codes(column) for column in golden()["user"].T[:steps].astype(np.int32)]
    codes = [frame.audio_codes for frame in frames if frame.audio_codes is not None]
    return np.array([frame.text_token for frame in frames]), np.stack(codes, axis=1)


def _eager(model: Moshi) -> Outcome:
    return _stepped(model, [0], lambda column: column[None])[0]


def _batch(model: Moshi) -> Outcome:
    """Of two conversations in one state, the second of which hears another user, the first."""
    return _stepped(model, [0, 1], lambda column: np.stack([column, column[::-1]]))[0]


def _stepped(model: Moshi, seeds: list[int], given: Callable[[np.ndarray], np.ndarray]) -> list[Outcome]:
    """Conversations through the pure step, STEPS frames."""
    each = [duplex.prime(model, duplex.init_state(model, [seed]), GREEDY)[1] for seed in seeds]
    state = states.stack(each)
    text, codes = [], []
    for column in golden()["user"].T[:STEPS].astype(np.int32):
        reply, state = duplex.step_codes(model, mx.array(given(column)), state, GREEDY)
        mx.eval(reply, state)
        text.append(np.array(reply.text))
        if np.array(reply.ready).all():
            codes.append(np.array(reply.codes))
    return [(np.stack(text)[:, row], np.stack(codes, axis=-1)[row]) for row in range(len(seeds))]


def _conversation(what: str, got: Outcome) -> Finding:
    """Against the reference's: its text has the priming token first, its codes are whole columns."""
    text, codes = got
    expected = golden()
    reference = np.concatenate([expected["text"][None, 1 : len(text) + 1], expected["audio"][:, : len(text)]])
    return _same(
        what, np.concatenate([text[None], _wide(codes, len(text))]), _wide(reference, len(text)), codes.shape[1]
    )


def _wide(tokens: np.ndarray, length: int) -> np.ndarray:
    return np.pad(tokens[:, :length], ((0, 0), (0, max(0, length - tokens.shape[1]))))


def _same(what: str, got: np.ndarray, expected: np.ndarray, columns: int | None = None) -> Finding:
    columns = columns or expected.shape[-1]
    wrong = int((got[..., :columns] != expected[..., :columns]).sum()) if got.shape == expected.shape else got.size
    said = f"{wrong} of {expected[..., :columns].size} differ" if wrong else f"all {expected[..., :columns].size} equal"
    return Finding(what, PROBLEM if wrong else OK, said, TODO if wrong else "", {"wrong": wrong, "of": expected.size})
