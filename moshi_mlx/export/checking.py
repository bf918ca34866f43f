"""Whether a bundle says what the Session says, here and now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..audio.files import read_sound
from ..checkpoints.reading import Checkpoint, build
from ..conversation.duplex import DuplexSampling
from ..conversation.session import Session
from ..models.moshi import Moshi
from ..models.sampling import MOSHI, SamplingSettings
from .running import Bundle
from .talking import Talk

FRAMES = 20
QUESTION = Path(__file__).parents[1] / "assets" / "question.flac"
SETTINGS: dict[str, SamplingSettings] = {
    "sampled": MOSHI,
    "greedy": {**MOSHI, "temperature": 0, "text_temperature": 0},
}


class Difference(NamedTuple):
    """Between the frames of a bundle and those of the Session."""

    settings: str
    frames: int
    tokens: int  # that differ
    sound: float  # largest difference of a sample

    @property
    def equal(self) -> bool:
        return self.tokens == 0 and self.sound <= 1e-5


def differences(
    folder: Path, checkpoint: Checkpoint, dtype: mx.Dtype | None, kv_bits: int | None, frames: int = FRAMES,
    conditions: Mapping[str, Any] | None = None, guidance: float | None = None,
) -> Iterator[Difference]:  # fmt: skip
    """The spoken question, by the bundle and by the Session, for each of `SETTINGS`."""
    bundle, model = Bundle(folder, checkpoint.folder), build(checkpoint, dtype, Moshi)
    mx.eval(model.parameters())
    sound = _question(bundle.number("sample_rate"), bundle.number("frame_size"), frames)
    for name, settings in SETTINGS.items():
        told: Any = {"conditions": conditions, "guidance": guidance}
        session = Session(model, 7, kv_bits=kv_bits, progress=False, **told, **settings)
        talk = Talk(bundle, 7, DuplexSampling.of(settings))
        tokens, most = 0, 0.0
        for pcm in sound:
            ours, theirs = talk.step(pcm), session.step(pcm)
            tokens += ours.text_token != theirs.text_token
            if ours.pcm is None or theirs.pcm is None or ours.audio_codes is None or theirs.audio_codes is None:
                tokens += (ours.pcm is None) != (theirs.pcm is None)
                continue
            tokens += int((ours.audio_codes != theirs.audio_codes).sum())
            most = max(most, float(np.abs(ours.pcm - theirs.pcm).max()))
        yield Difference(name, len(sound), tokens, most)


def _question(sample_rate: int, frame_size: int, frames: int) -> np.ndarray:
    return (
        np.resize(read_sound(QUESTION, sample_rate), frames * frame_size).astype(np.float32).reshape(frames, frame_size)
    )
