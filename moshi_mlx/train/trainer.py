"""A training run, from its options to its files."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..checkpoints import adapters
from ..conversation.session import bound_memory
from ..errors import ConfigError
from ..huggingface.loading import load
from ..models.roles import BOTH_SIDES, check_role
from . import dataset, saving
from . import weights as trained
from .curves import KINDS, Curve, Losses
from .dataset import Dataset
from .files import say
from .loss import Batch, Factors, batches
from .options import Options
from .prepare import settings_of
from .saving import Progress, Saved
from .steps import Steps


def is_first() -> bool:
    """Whether this process is the one that writes and reports."""
    return bool(mx.distributed.init().rank() == 0)


class Trainer:
    """A run. With several processes each computes its share of every iteration; the first one writes and reports.

    Raises ConfigError, CheckpointError or InputError, before anything is written, for what cannot be trained.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = Path(options.adapter_path)
        self._group = mx.distributed.init()
        self._first = self._group.rank() == 0
        resumed = saving.resume(options) if self._first else None
        if self._first and resumed is None:
            saving.refuse_to_overwrite(self.folder)
        self._say(f"loading {options.model} ...")
        self.model = load(options.model)
        check_role(self.model, *BOTH_SIDES)
        self._frame_rate = self.model.config.audio_encoder_config.frame_rate
        bound_memory()
        self._data, self._valid = self._datasets()
        self._optimizer, self._rate = options.make_optimizer(), options.schedule()
        self.progress = self._begin(resumed)
        self._saved = self.progress.done  # iterations
        settings = (options.max_grad_norm, options.grad_checkpoint, options.compile, self._group)
        self._steps = Steps(self.model, self._optimizer, *settings)

    @property
    def is_alone(self) -> bool:
        """Whether no other process takes part: then the run may be stopped after any iteration."""
        return bool(self._group.size() == 1)

    def _say(self, line: str) -> None:
        if self._first:
            say(line)

    def _datasets(self) -> tuple[Dataset, Dataset | None]:
        settings, folder = settings_of(self.model), Path(self.options.data)
        frames = round(self.options.duration_sec * self._frame_rate)
        if frames < 2:
            raise ConfigError(f"duration_sec is {self.options.duration_sec}, expected two frames of 0.08 s or more")
        data = dataset.load(folder / "train", settings, frames)
        valid = dataset.load(folder / "valid", settings, data.frames) if (folder / "valid").is_dir() else None
        seconds = data.frames / self._frame_rate
        count = f"{len(data)} segments" if len(data) > 1 else "1 segment"
        self._say(f"{count} of {seconds:.1f} s to train on, {len(valid or ())} to validate with")
        return data, valid

    def _begin(self, resumed: Saved | None) -> Progress:
        """What the run begins with, or goes on from: the same in every process."""
        o = self.options
        chosen = trained.choose(self.model, o.fine_tune_type, o.num_layers, o.rank, o.scale, o.seed)
        if o.deterministic:
            trained.order_gradients(self.model)
        self._say(f"training {sum(w.size for w in chosen.values()) / 1e6:.3f} M weights")
        self._optimizer.init(chosen)
        mine = Progress(0, chosen, self._optimizer.state)
        if resumed is not None:
            mine = saving.like(resumed, mine)
            self._say(f"continuing after iteration {resumed.done}")
        elif o.resume_adapter_file is not None and self._first:
            mine = mine._replace(weights=chosen | self._start_from(o.resume_adapter_file))
        if self.is_alone:
            return mine
        weights, optimizer = tree_map(self._broadcast, (mine.weights, mine.optimizer))
        return Progress(int(np.array(self._broadcast(mx.array(mine.done)))), weights, optimizer)

    def _broadcast(self, value: mx.array) -> mx.array:
        """The value that the first process has; evaluated at once, for all must exchange in the same order."""
        shared = mx.distributed.all_sum(value if self._first else mx.zeros_like(value), group=self._group)
        mx.eval(shared)
        return shared

    def _start_from(self, file: str) -> trained.Weights:
        """The weights of an adapter that this run begins with."""
        if self.options.fine_tune_type != "lora":
            raise ConfigError(
                f"resume_adapter_file {file}: no run to continue; to start from a checkpoint, use --model"
            )
        adapter = adapters.read(file, self.model.config)
        if adapter.scale != self.options.scale:
            raise ConfigError(f"{adapter.path}: was trained with scale {adapter.scale:g}, not {self.options.scale:g}")
        return trained.of_adapter(self.model, adapter, self.options.rank)

    def run(self, stop: threading.Event) -> bool:
        """Train to the last iteration, or until `stop` is set; what is done is saved. False where it was stopped."""
        curve = self._curve()
        if self.progress.done >= self.options.iters:
            self._say(f"nothing to do: {self.progress.done} iterations are done, of {self.options.iters}")
        if self.progress.done == 0:
            self._validate(curve)
        began, since = time.monotonic(), self.progress.done
        for n in range(self.progress.done + 1, self.options.iters + 1):
            self._iterate(curve)
            last = n == self.options.iters
            if n % self.options.steps_per_report == 0 or last:
                self._report(curve, (n - since) / (time.monotonic() - began))
                began, since = time.monotonic(), n
            if n % self.options.steps_per_eval == 0 or last:
                self._validate(curve)
            if n % self.options.save_every == 0 or last or stop.is_set():
                self._save(curve)
            if stop.is_set():
                return last
        return True

    def _curve(self) -> Curve | None:
        if not self._first:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return Curve(self.folder, self.progress.done)

    def _share(self, tokens: np.ndarray) -> tuple[list[Batch], np.ndarray]:
        """This process's batches of segments that all of them see, and the weights of each kind of loss."""
        o, size = self.options, self._group.size()
        factors = Factors(o.first_codebook_weight_multiplier, o.text_padding_weight)
        parts, sums = batches(tokens, self.model.config, factors, len(tokens) // o.batch_size)
        return parts[self._group.rank() :: size], sums

    def _iterate(self, curve: Curve | None) -> None:
        o, (done, weights, optimizer) = self.options, self.progress
        count = o.batch_size * o.grad_accumulation_steps * self._group.size()
        parts, sums = self._share(self._data.draw(done * count, count, o.seed))
        rate = self._rate(done)
        weights, optimizer, kinds = self._steps.train(weights, optimizer, parts, rate)
        self.progress = Progress(done + 1, weights, optimizer)
        keep_buffers()
        self._note(curve, _row(done + 1, "train", kinds, sums, rate))

    def _note(self, curve: Curve | None, row: Losses) -> None:
        """A row for the curve. Raises ConfigError where the loss is no number any more."""
        if curve:
            curve.add(row)
        if not np.isfinite(row.loss):
            raise self._lost(f"iteration {row.iteration}: the {row.split} loss is {row.loss}")

    def _lost(self, what: str) -> ConfigError:
        kept = f"iteration {self._saved} is kept in {self.folder}" if self._saved else "nothing was saved yet"
        return ConfigError(f"{what}, so the run ends; {kept}; a lower learning rate, or one that warms up, may help")

    def _validate(self, curve: Curve | None) -> None:
        if self._valid is None:
            return
        o, at_once = self.options, self.options.batch_size * self._group.size()
        most = len(self._valid) if o.val_batches == -1 else min(o.val_batches * at_once, len(self._valid))
        tokens = self._valid.rows(list(range(most)))
        tokens = np.pad(tokens, [(0, -most % at_once), (0, 0), (0, 0)], constant_values=dataset.NOTHING)
        parts, sums = self._share(tokens)
        kinds = self._steps.validate(self.progress.weights, parts)
        done = self.progress.done
        row = _row(done, "valid", kinds, sums, self._rate(done))
        self._say(f"iteration {done}: valid {_spoken(row)}")
        self._note(curve, row)

    def _report(self, curve: Curve | None, speed: float) -> None:
        if not curve:
            return
        rows = [row for row in curve.rows if row.split == "train"][-self.options.steps_per_report :]
        mean = Losses(rows[-1].iteration, "train", *np.mean([row[2:] for row in rows], axis=0))
        o = self.options
        sound = speed * o.batch_size * o.grad_accumulation_steps * self._group.size() * self._data.frames
        say(
            f"iteration {mean.iteration}: train {_spoken(mean)}, learning rate {rows[-1].learning_rate:.3g}, "
            f"{speed:.3g} iterations/s, {sound / self._frame_rate:.3g} s of sound/s, "
            f"peak memory {mx.get_peak_memory() / 1e9:.3f} GB"
        )

    def _save(self, curve: Curve | None) -> None:
        if not saving.is_finite(self.progress):  # in every process, so that none waits for another
            raise self._lost(f"iteration {self.progress.done}: the weights are no numbers any more")
        if curve:
            curve.sync()
            saving.save(self.folder, self.progress, self.options, self.model)
            curve.draw()
            say(f"iteration {self.progress.done}: saved in {self.folder}")
        self._saved = self.progress.done


def keep_buffers() -> None:
    """Let MLX keep the memory of an iteration's activations for the next one.

    The bound that suits a conversation is far below it: Metal would give the rest back to the system, and take it
    again, in every iteration. What is kept and what is in use come to the peak at most.
    """
    spare = mx.get_peak_memory() - mx.get_active_memory()
    mx.set_cache_limit(max(spare, mx.set_cache_limit(max(spare, 0))))


def _row(iteration: int, split: str, kinds: mx.array, sums: np.ndarray, rate: float) -> Losses:
    """Losses from weighted sums by kind and the sums of their weights; a kind that no target has is nan."""
    values = np.array(kinds, np.float64)
    means = np.divide(values, sums, out=np.full(len(KINDS), np.nan), where=sums > 0)
    return Losses(iteration, split, float(values.sum()), float(means[0]), float(means[1]), float(means[2]), rate)


def _spoken(row: Losses) -> str:
    return f"loss {row.loss:.4f} (text {row.text:.4f}, semantic {row.semantic:.4f}, acoustic {row.acoustic:.4f})"
