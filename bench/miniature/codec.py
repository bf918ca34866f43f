"""Train the miniature's codec: `python -m bench.miniature codec FOLDER`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx.config import MimiConfig
from moshi_mlx.mimi import MimiModel

from .codec_data import held_out_sound, training_sound
from .codec_model import initialize, reconstruct
from .files import load_whole
from .losses import spectral_distance
from .scores import stoi
from .sizes import CLIP_FRAMES, CODEC
from .training import Curve, Losses, Recipe, Trainer

RECIPE = Recipe(steps=8000)
RESTART_EVERY, RESTARTED = 100, 32
SCORE_EVERY, SCORED = 500, 12
FILES = ("codec.safetensors", "codec.csv", "codec-scores.csv")


def loss(model: MimiModel, sound: mx.array) -> tuple[Losses, tuple[mx.array, mx.array]]:
    """sound [B, T] -> losses, and (codes, residuals) for the restart of codebooks."""
    coded = reconstruct(model, sound)
    spectral = spectral_distance(coded.sound, sound)
    wave = mx.abs(coded.sound - sound).mean()
    total = spectral + 2 * wave + coded.codebook_error + 0.25 * coded.commitment_error
    parts = {"loss": total, "spectral": spectral, "wave": wave, "commitment": coded.commitment_error}
    return parts, (coded.codes, coded.residuals)


def clips(sound: np.ndarray, rng: np.random.Generator, batch: int) -> mx.array:
    """Random clips of a long int16 sound: float32 [batch, CLIP_FRAMES frames of 80 ms]."""
    length = CLIP_FRAMES * CODEC.frame_size
    starts = rng.integers(0, len(sound) - length, batch)
    return mx.array(np.stack([sound[start : start + length] for start in starts]).astype(np.float32) / 32767)


class CodecTrainer(Trainer):
    """With the codebooks' usage since their last restart kept as well: extra["usage"] [codebooks, entries]."""

    model: MimiModel

    def __init__(self, recipe: Recipe, sound: np.ndarray, config: MimiConfig = CODEC) -> None:
        model = MimiModel(config)
        initialize(model, recipe.seed)
        model.quantizer.freeze(keys=["half_norms"])
        super().__init__(model, recipe, loss)
        self.sound = sound
        self.extra = {"usage": mx.zeros(model.quantizer.half_norms.shape, mx.int32)}

    def begin(self) -> None:
        """Codebooks from what the untrained encoder makes of the first clips, each of what those before it leave."""
        batch = clips(self.sound, self.recipe.random(0), 4 * self.recipe.batch)
        books = self.model.quantizer.embedding
        for k in range(len(books)):
            residual = np.array(reconstruct(self.model, batch).residuals)[k].reshape(-1, books.shape[-1])
            rows = self.recipe.random(k).choice(len(residual), books.shape[1], replace=len(residual) < books.shape[1])
            books[k] = mx.array(residual[rows])
            mx.eval(books)

    def advance(self) -> dict[str, float]:
        """A step, and now and then a restart of unused entries."""
        rng = self.recipe.random(self.step_number)
        losses, (codes, residuals) = self.step(clips(self.sound, rng, self.recipe.batch))
        usage, codes = np.array(self.extra["usage"]), np.array(codes)
        for k in range(len(usage)):
            usage[k] += np.bincount(codes[:, k].ravel(), minlength=usage.shape[1]).astype(usage.dtype)
        losses["unused"] = float((usage == 0).mean())
        if self.step_number % RESTART_EVERY == 0:
            self._restart(usage, np.array(residuals), rng)
            usage[:] = 0
        self.extra["usage"] = mx.array(usage)
        return losses

    def _restart(self, usage: np.ndarray, residuals: np.ndarray, rng: np.random.Generator) -> None:
        """Put unused entries where the encoder's residuals are."""
        books = np.array(self.model.quantizer.embedding)
        for k, book in enumerate(books):
            unused = rng.permutation(np.flatnonzero(usage[k] == 0))[:RESTARTED]
            found = residuals[k].reshape(-1, book.shape[-1])
            book[unused] = found[rng.choice(len(found), len(unused), replace=len(found) < len(unused))]
        self.model.quantizer.embedding = mx.array(books)


def ready(model: MimiModel) -> MimiModel:
    """The model with what is derived of its codebooks, for the codec's own methods."""
    model.quantizer.half_norms = 0.5 * mx.square(model.quantizer.embedding).sum(axis=-1)
    return model


def score(model: MimiModel, sounds: list[np.ndarray]) -> float:
    """STOI of sounds in a row, each of which went through the codec as in a conversation (some are too short alone)."""
    ready(model)
    return stoi(np.concatenate(sounds), np.concatenate([through(model, sound) for sound in sounds]))


def through(model: MimiModel, sound: np.ndarray) -> np.ndarray:
    return np.array(model.decode(model.encode(mx.array(sound)[None])))[0, : len(sound)]


def train(folder: Path, recipe: Recipe = RECIPE, say: Callable[[str], None] = print) -> MimiModel:
    """Train in `folder`, from where an earlier run there was ended; the model afterwards."""
    weights, curve_file, scores_file = (folder / name for name in FILES)
    trainer = CodecTrainer(recipe, training_sound(folder))
    trainer.begin()
    trainer.resume(weights)
    held_out = held_out_sound(folder)
    curve = Curve(curve_file, recipe.report_every, trainer.step_number)
    scores = Curve(scores_file, 1, trainer.step_number)
    while trainer.step_number < recipe.steps:
        losses = trainer.advance()
        row = curve.add(trainer.step_number, losses)
        if row:
            say(" ".join(f"{name} {value}" for name, value in row.items()))
        if trainer.step_number % SCORE_EVERY == 0:
            values = {"stoi": score(trainer.model, held_out[:SCORED])}
            say(str(scores.add(trainer.step_number, values)))
        if trainer.step_number % recipe.save_every == 0 or trainer.step_number == recipe.steps:
            trainer.save(weights)
    return ready(trainer.model)


def load(folder: Path) -> MimiModel:
    """The codec as it was last saved in `folder`."""
    model = MimiModel(CODEC)
    tensors, _ = load_whole(folder / FILES[0])
    model.load_weights([(k.removeprefix("model."), v) for k, v in tensors.items() if k.startswith("model.")])
    return ready(model)
