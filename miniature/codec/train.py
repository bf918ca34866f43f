"""Train the miniature's codec: `python -m miniature codec FOLDER`.

All of it first, then the decoder alone for the codes that will be: those of an encoder in the shipped weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from moshi_mlx import MimiConfig, MimiModel

from ..files import load_whole
from ..scores import stoi
from ..sizes import CLIP_FRAMES, CODEC
from ..training import Curve, Losses, Recipe, Trainer
from .data import held_out_sound, training_sound
from .losses import envelope_distance, spectral_distance
from .model import initialize, reconstruct

RECIPE = Recipe(steps=4000)
DECODER_RECIPE = Recipe(steps=2500, rate=5e-4, seed=1)
DECAY = 0.98  # of what is known of a codebook, each step
RESTART_EVERY, RESTARTED = 20, 16
UNUSED = 0.02  # times a step; the average is 8 x 12 frames / 256 entries = 0.375
SCORE_EVERY, SCORED = 500, 12
PHASES = ("codec", "decoder")  # files of each: NAME.safetensors, NAME.csv, NAME-scores.csv
HEARING = ("encoder", "encoder_transformer", "downsample")


def distance(sound: mx.array, target: mx.array) -> Losses:
    """How far a sound [B, T] is from the one that it should be."""
    spectral, wave = spectral_distance(sound, target), mx.abs(sound - target).mean()
    return {"loss": spectral + 2 * wave, "spectral": spectral, "wave": wave}


def loss(model: MimiModel, sound: mx.array) -> tuple[Losses, tuple[mx.array, mx.array]]:
    """sound [B, T] -> losses, and (codes, residuals) for the codebooks."""
    coded = reconstruct(model, sound)
    parts = distance(coded.sound, sound) | {"commitment": coded.commitment}
    return parts | {"loss": parts["loss"] + 0.25 * coded.commitment}, (coded.codes, coded.residuals)


def decoder_loss(model: MimiModel, sound: mx.array) -> tuple[Losses, None]:
    """Once the codes are settled: without the commitment to them, and with what makes speech intelligible."""
    coded = reconstruct(model, sound)
    parts = distance(coded.sound, sound) | {"envelope": envelope_distance(coded.sound, sound)}
    return parts | {"loss": parts["loss"] + parts["envelope"]}, None


def clips(sound: np.ndarray, rng: np.random.Generator, batch: int) -> np.ndarray:
    """Random clips of a long int16 sound: float32 [batch, CLIP_FRAMES frames of 80 ms]."""
    length = CLIP_FRAMES * CODEC.frame_size
    starts = rng.integers(0, len(sound) - length, batch)
    return np.stack([sound[start : start + length] for start in starts]).astype(np.float32) / 32767


class Codebooks:
    """Entries as the running means of the residuals that chose them (van den Oord et al., 2017, appendix A.1).

    usage [codebooks, entries], how often a step each is chosen; sums [codebooks, entries, dim], of those residuals.
    """

    def __init__(self, usage: np.ndarray, sums: np.ndarray) -> None:
        self.usage, self.sums = usage, sums

    def entries(self) -> mx.array:
        return mx.array(self.sums / self.usage[..., None])

    def learn(self, codes: np.ndarray, residuals: np.ndarray) -> None:
        """codes [B, K, frames], residuals [K, B, frames, dim] of a step."""
        for k, (usage, sums) in enumerate(zip(self.usage, self.sums, strict=True)):
            chosen, total = codes[:, k].ravel(), np.zeros_like(sums)
            np.add.at(total, chosen, residuals[k].reshape(len(chosen), -1))
            usage[:] = DECAY * usage + (1 - DECAY) * np.bincount(chosen, minlength=len(usage))
            sums[:] = DECAY * sums + (1 - DECAY) * total

    def restart(self, residuals: np.ndarray, rng: np.random.Generator) -> None:
        """Put entries that are hardly used where the encoder's residuals are."""
        for k, (usage, sums) in enumerate(zip(self.usage, self.sums, strict=True)):
            unused = rng.permutation(np.flatnonzero(usage < UNUSED))[:RESTARTED]
            found = residuals[k].reshape(-1, sums.shape[-1])
            usage[unused] = 5 * UNUSED
            sums[unused] = 5 * UNUSED * found[rng.choice(len(found), len(unused), replace=len(found) < len(unused))]


class CodecTrainer(Trainer):
    """With the codebooks' running means kept as well: extra["usage"] and extra["sums"]."""

    model: MimiModel

    def __init__(self, recipe: Recipe, sound: np.ndarray, config: MimiConfig = CODEC) -> None:
        model = MimiModel(config)
        initialize(model, recipe.seed)
        model.quantizer.freeze(keys=["half_norms", "embedding"], recurse=False)
        super().__init__(model, recipe, loss)
        self.sound = sound
        shape = model.quantizer.embedding.shape
        self.codebooks = Codebooks(np.ones(shape[:2], np.float32), np.zeros(shape, np.float32))

    def begin(self) -> None:
        """Codebooks from what the untrained encoder makes of the first clips, each of what those before it leave."""
        batch = mx.array(clips(self.sound, self.recipe.random(0), 4 * self.recipe.batch))
        for k, sums in enumerate(self.codebooks.sums):
            residual = np.array(reconstruct(self.model, batch).residuals)[k].reshape(-1, sums.shape[-1])
            sums[:] = residual[self.recipe.random(k).choice(len(residual), len(sums), len(residual) < len(sums))]
            self.model.quantizer.embedding = self.codebooks.entries()

    def advance(self) -> dict[str, float]:
        """A step of the networks, then of the codebooks."""
        rng = self.recipe.random(self.step_number)
        losses, shares = self.step(clips(self.sound, rng, self.recipe.batch))
        codes = np.concatenate([np.array(codes) for codes, _ in shares])
        residuals = np.concatenate([np.array(residuals) for _, residuals in shares], axis=1)
        self.codebooks.learn(codes, residuals)
        losses["unused"] = float((self.codebooks.usage < UNUSED).mean())
        if self.step_number % RESTART_EVERY == 0:
            self.codebooks.restart(residuals, rng)
        self.model.quantizer.embedding = self.codebooks.entries()
        return losses

    def save(self, path: Path) -> None:
        self.extra = {"usage": mx.array(self.codebooks.usage), "sums": mx.array(self.codebooks.sums)}
        super().save(path)

    def resume(self, path: Path) -> None:
        super().resume(path)
        if self.extra:
            self.codebooks = Codebooks(*(np.array(self.extra[name]) for name in ("usage", "sums")))


class DecoderTrainer(Trainer):
    """What makes codes of sound stays as it is."""

    model: MimiModel

    def __init__(self, recipe: Recipe, sound: np.ndarray, model: MimiModel) -> None:
        for name in HEARING:
            model[name].freeze()
        model.quantizer.freeze(keys=["half_norms", "embedding"], recurse=False)
        model.quantizer.input_proj.freeze()
        super().__init__(model, recipe, decoder_loss)
        self.sound = sound

    def advance(self) -> dict[str, float]:
        losses, _ = self.step(clips(self.sound, self.recipe.random(self.step_number), self.recipe.batch))
        return losses


def ready(model: MimiModel) -> MimiModel:
    """The model with what is derived of its codebooks, for the codec's own methods."""
    model.quantizer.half_norms = 0.5 * mx.square(model.quantizer.embedding).sum(axis=-1)
    return model


def score(model: MimiModel, sounds: list[np.ndarray]) -> float:
    """STOI of sounds in a row, each of which went through the codec as in a conversation (some are too short alone)."""
    ready(model)
    return stoi(np.concatenate(sounds), np.concatenate([through(model, sound) for sound in sounds]))


def through(model: MimiModel, sound: np.ndarray) -> np.ndarray:
    codes = model.encode(mx.array(sound)[None]).audio_codes
    return np.array(model.decode(codes).audio_values)[0, 0, : len(sound)]


def as_shipped(model: MimiModel) -> MimiModel:
    """The codec with weights that bfloat16 holds exactly, so that what is trained on its codes hears the same later."""
    model.update(tree_map(lambda value: value.astype(mx.bfloat16).astype(mx.float32), model.parameters()))
    return ready(model)


def train(folder: Path, say: Callable[[str], None] = print) -> MimiModel:
    """Train in `folder`, from where an earlier run there was ended; the model afterwards."""
    sound = training_sound(folder)
    whole = CodecTrainer(RECIPE, sound)
    whole.begin()
    _run(folder, PHASES[0], whole, say)
    decoder = DecoderTrainer(DECODER_RECIPE, sound, as_shipped(whole.model))
    _run(folder, PHASES[1], decoder, say)
    return as_shipped(decoder.model)


def _run(folder: Path, name: str, trainer: CodecTrainer | DecoderTrainer, say: Callable[[str], None]) -> None:
    recipe, weights, held_out = trainer.recipe, folder / f"{name}.safetensors", held_out_sound(folder)
    trainer.resume(weights)
    curve = Curve(folder / f"{name}.csv", recipe.report_every, trainer.step_number)
    scores = Curve(folder / f"{name}-scores.csv", 1, trainer.step_number)
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
    trainer.close()


def load(folder: Path) -> MimiModel:
    """The trained codec, as it ships."""
    model = MimiModel(CODEC)
    tensors, _ = load_whole(folder / f"{PHASES[1]}.safetensors")
    model.load_weights([(k.removeprefix("model."), v) for k, v in tensors.items() if k.startswith("model.")])
    return as_shipped(model)
