"""The settings of a training run, from flags and from a YAML or TOML file, under the names of mlx_lm.lora."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers
import numpy as np

from ..errors import ConfigError, brief, clipped
from ..terminal.arguments import Parser
from ..terminal.version import install
from .files import is_file, read_text, say

PROGRAM = "moshi_mlx.train"
OPTIMIZERS: dict[str, tuple[Callable[..., mlx.optimizers.Optimizer], dict[str, Any]]] = {
    # Kyutai's settings of AdamW (moshi-finetune, train.py and finetune/args.py)
    "adamw": (mlx.optimizers.AdamW, {"betas": [0.9, 0.95], "weight_decay": 0.1, "bias_correction": True}),
    "adam": (mlx.optimizers.Adam, {"bias_correction": True}),
    "sgd": (mlx.optimizers.SGD, {}),
}
FAULTS = (TypeError, ValueError, IndexError, KeyError, AttributeError, ArithmeticError, RuntimeError)
LARGEST = 2**31 - 1  # of any number
MOST_SEGMENTS = 1 << 16  # in an iteration
LARGEST_FILE = 10**6  # bytes of a configuration file
SCHEDULES = ("cosine_decay", "exponential_decay", "linear_schedule", "step_decay")


def _flag(help: str, default: Any, kind: Any = str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, "kind": kind, **more})


@dataclass(frozen=True)
class Options:
    """A run. Where Kyutai's trainer has a default, it is the default here."""

    model: str = _flag("the base: a folder or hub id; a quantized one makes QLoRA", "")
    data: str = _flag("folder that `prepare` wrote: train/ and, for validation, valid/", "")
    fine_tune_type: str = _flag("lora: adapters; full: all weights", "lora", choices=("lora", "full"))
    adapter_path: str = _flag("folder for what is written", "adapters")
    resume_adapter_file: str | None = _flag(
        "start from these weights; a run's adapters.safetensors or training_state.safetensors goes on with it exactly",
        None,
    )
    iters: int = _flag("iterations", 1000, int, least=1)
    batch_size: int = _flag("segments in a batch", 4, int, least=1)
    grad_accumulation_steps: int = _flag("batches to an iteration", 1, int, least=1)
    duration_sec: float = _flag("length of a segment in seconds", 100.0, float, above=0)
    learning_rate: float = _flag("learning rate", 2e-6, float, above=0)
    lr_schedule: dict[str, Any] | None = field(default=None, metadata={"kind": None})
    optimizer: str = _flag("which optimizer", "adamw", choices=tuple(OPTIMIZERS))
    optimizer_config: dict[str, dict[str, Any]] = field(default_factory=dict, metadata={"kind": None})
    max_grad_norm: float = _flag("the gradient's norm is clipped here; 0: never", 1.0, float, least=0)
    num_layers: int = _flag("only the last N layers of the temporal transformer; -1: all", -1, int, least=-1)
    rank: int = _flag("of the adapters", 128, int, least=1, most=1 << 14)
    scale: float = _flag("of the adapters", 2.0, float, above=0)
    first_codebook_weight_multiplier: float = _flag("weight of the semantic codebook", 100.0, float, above=0)
    text_padding_weight: float = _flag("weight of text padding", 0.5, float, least=0)
    grad_checkpoint: bool = _flag("compute layers twice to save memory", False, bool)
    compile: bool | None = _flag("compile the step (default: only on a GPU)", None, bool)
    steps_per_report: int = _flag("iterations between reports", 10, int, least=1)
    steps_per_eval: int = _flag("iterations between validations", 200, int, least=1)
    val_batches: int = _flag("batches of a validation; -1: all", 25, int, least=-1)
    save_every: int = _flag("iterations between saves", 100, int, least=1)
    deterministic: bool = _flag(
        "full: sum the tables' gradients in a fixed order, so that a run on a GPU repeats digit for digit", False, bool
    )
    seed: int = _flag("of the adapters' first values and the data's order", 0, int, least=0)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _check(f, getattr(self, f.name))
        for name in ("model", "data"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is missing: pass --{name} or put it into the configuration file")
        at_once = self.batch_size * self.grad_accumulation_steps
        if at_once > MOST_SEGMENTS:
            raise ConfigError(
                f"batch_size and grad_accumulation_steps make {at_once} segments an iteration, expected "
                f"{MOST_SEGMENTS} at most"
            )
        self.schedule()
        self.make_optimizer()

    def make_optimizer(self) -> mlx.optimizers.Optimizer:
        """A new optimizer. Raises ConfigError for a setting that it does not have, or cannot compute with."""
        build, defaults = OPTIMIZERS[self.optimizer]
        unknown = sorted(set(map(str, self.optimizer_config)) - set(OPTIMIZERS))
        try:
            if unknown:
                raise ValueError(f"no optimizer is called {brief(unknown[0])}")
            chosen = self.optimizer_config.get(self.optimizer) or {}
            if not isinstance(chosen, Mapping):
                raise ValueError(f"{self.optimizer} is {brief(chosen)}")
            made = [build(learning_rate=self.learning_rate, **{**defaults, **chosen}) for _ in range(2)]
            _try(made[0])
        except FAULTS as error:
            hint = f"expected settings of mlx.optimizers.{build.__name__}"
            raise ConfigError(f"optimizer_config: {clipped(str(error))}; {hint}") from error
        return made[1]

    def schedule(self) -> Callable[[int], float]:
        """Iterations done -> learning rate. Raises ConfigError where `lr_schedule` makes no sense."""
        if self.lr_schedule is None:
            return lambda done: self.learning_rate
        settings = dict(self.lr_schedule)
        name, arguments = settings.pop("name", None), settings.pop("arguments", [])
        warmup, warmup_init = settings.pop("warmup", 0), settings.pop("warmup_init", 0.0)
        expected = f"expected name (one of {', '.join(SCHEDULES)}), arguments, warmup and warmup_init"
        if name not in SCHEDULES or settings:
            raise ConfigError(f"lr_schedule: got {brief(self.lr_schedule)}, {expected}")
        try:
            rate = getattr(mlx.optimizers, name)(*arguments)
            if warmup:
                rising = mlx.optimizers.linear_schedule(warmup_init, float(arguments[0]), warmup)
                rate = mlx.optimizers.join_schedules([rising, rate], [warmup + 1])
            for done in (0, warmup, self.iters):
                if not 0 <= _value(rate, done) < float("inf"):
                    raise ValueError(f"it gives {_value(rate, done)} after {done} iterations")
        except FAULTS as error:
            raise ConfigError(f"lr_schedule: {clipped(str(error))}; {expected}") from error
        return lambda done: _value(rate, done)


def _try(optimizer: mlx.optimizers.Optimizer) -> None:
    """Two updates of one weight. Raises ValueError where they give no number, and what the optimizer raises."""
    weights = {"weight": mx.ones((1,))}
    optimizer.init(weights)
    for _ in range(2):
        weights = optimizer.apply_gradients({"weight": mx.ones((1,))}, weights)
    if not np.isfinite(np.array(weights["weight"])).all():
        raise ValueError("an update with these settings gives no number")


def _value(rate: Callable[[mx.array], mx.array], done: int) -> float:
    return float(np.array(rate(mx.array(done))))


def _check(f: dataclasses.Field[Any], value: Any) -> None:
    kind, least, above = f.metadata.get("kind"), f.metadata.get("least"), f.metadata.get("above")
    if value is None and f.default is None:
        return
    accepted: Any = {None: dict, float: (int, float)}.get(kind, kind)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
        names = {None: "a mapping", int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ConfigError(f"{f.name} is {brief(value)}, expected {names[kind]}")
    if least is not None and not least <= value < float("inf"):
        raise ConfigError(f"{f.name} is {value!r}, expected {least} or more")
    if above is not None and not above < value < float("inf"):
        raise ConfigError(f"{f.name} is {value!r}, expected more than {above}")
    most = f.metadata.get("most", LARGEST)
    if kind in (int, float) and value > most:
        raise ConfigError(f"{f.name} is {brief(value)}, expected {most} or less")
    if "choices" in f.metadata and value not in f.metadata["choices"]:
        raise ConfigError(f"{f.name} is {brief(value)}, expected one of {', '.join(f.metadata['choices'])}")


def parser() -> argparse.ArgumentParser:
    made = Parser(
        f"python -m {PROGRAM}",
        description="Fine-tune Moshi on conversations that `python -m moshi_mlx.train prepare` has encoded.",
        epilog="prepare --help shows the options of `prepare`; docs/training.md is the guide.",
    )
    made.add_argument("-c", "--config", type=Path, metavar="FILE", help="YAML or TOML; flags win over what it says")
    for f in dataclasses.fields(Options):
        kind = f.metadata["kind"]
        if kind is None:
            continue
        flag, text = "--" + f.name.replace("_", "-"), f.metadata["help"]
        if kind is bool:
            made.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        shown = text if f.default in ("", None) else f"{text} (default: {f.default})"
        choices = f.metadata.get("choices")
        made.add_argument(flag, type=kind, choices=choices, help=shown, metavar=None if choices else _metavar(f))
    return made


def _metavar(f: dataclasses.Field[Any]) -> str:
    return "N" if f.metadata["kind"] in (int, float) else f.name.rsplit("_", 1)[-1].upper()


def read(argv: Sequence[str] | None) -> Options:
    """The options of a command line, over those of its --config file. Raises ConfigError."""
    flags = {name: value for name, value in vars(parser().parse_args(argv)).items() if value is not None}
    path = flags.pop("config", None)
    said = from_file(path) if path else {}
    if "learning_rate" in flags and said.pop("lr_schedule", None):
        say(f"--learning-rate {flags['learning_rate']:g} in place of the lr_schedule of {path}")
    return Options(**{**said, **flags})


def from_file(path: Path) -> dict[str, Any]:
    """Settings of a configuration file, as keys of `Options`. Raises ConfigError, naming file and key."""
    values = dict(_parsed(path))
    lora = values.pop("lora_parameters", None) or {}
    if not isinstance(lora, Mapping) or lora.get("dropout"):
        raise ConfigError(f"{path}: key 'lora_parameters' is {brief(lora)}, expected rank and scale, and no dropout")
    values |= {key: value for key, value in lora.items() if key != "dropout"}
    known = {f.name for f in dataclasses.fields(Options)}
    unknown = sorted(set(values) - known, key=str)
    if unknown:
        raise ConfigError(f"{path}: unknown key {brief(unknown[0])} (its value: {brief(values[unknown[0]])})")
    kinds = {f.name: f.metadata["kind"] for f in dataclasses.fields(Options)}
    return {key: value if kinds[key] is str else _numbers(value) for key, value in values.items()}


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-5, without a point, as text: here it is a number, at any depth."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    written = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if written else value


def _parsed(path: Path) -> Mapping[str, Any]:
    if not is_file(path):
        raise ConfigError(f"{path}: no such configuration file")
    text = read_text(path, LARGEST_FILE, ConfigError)
    try:
        values = _toml(text) if path.suffix == ".toml" else _yaml(text)
    except ImportError as error:
        raise ConfigError(f"{path}: {error.name} is needed to read it: {install('train')}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {clipped(str(error))}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected settings, one `name: value` on a line")
    return values


def _toml(text: str) -> Any:
    try:
        import tomllib as reader
    except ImportError:  # Python 3.10
        import tomli as reader
    return reader.loads(text)


def _yaml(text: str) -> Any:
    import yaml

    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("has an alias (*name); write its value there")
        return yaml.safe_load(text)
    except (yaml.YAMLError, TypeError, AttributeError) as error:  # the last two: keys that are mappings
        raise ValueError(error) from error
