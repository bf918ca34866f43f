"""What the fields of a config may be; what they may not is a ConfigError that names field, value and bounds."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import brief, require
from ..inputs import plain

# What a field may be at most. Beyond it no model is meant, and a kilobyte of config would ask for gigabytes.
MOST = {
    "num_hidden_layers": 1024, "num_codebooks": 1024, "num_quantizers": 1024, "num_residual_layers": 16,
    "dilation_growth_rate": 16, "compress": 1024, "kernel_size": 1024, "last_kernel_size": 1024,
    "residual_kernel_size": 1024, "sampling_rate": 10**6, "frame_rate": 10**6, "sliding_window": 2**20,
    "rope_theta": 1e12, "norm_eps": 0.1, "rms_norm_eps": 0.1, "initializer_range": 1000,
}  # fmt: skip
LEAST = {"rope_theta": 1.0, "frame_rate": 0.1, "norm_eps": 1e-20, "rms_norm_eps": 1e-20}
MOST_OF_A_SIZE = 2**31 - 1  # as many elements as MLX counts along an axis


def as_python(config: Any) -> None:
    """Numbers and arrays of NumPy and MLX, and lists, as Python's numbers and tuples, which compare and hash."""
    for one in fields(config):
        object.__setattr__(config, one.name, plain(getattr(config, one.name)))


def positive(config: Any, *names: str) -> None:
    """Raises ConfigError where a field is no positive number of its type, or an absurd one."""
    kinds = {f.name: (int, float) if f.type == "float" else (int,) for f in fields(config)}
    for name in names:
        value, most, least = getattr(config, name), MOST.get(name, MOST_OF_A_SIZE), LEAST.get(name, 0)
        where = f"{type(config).__name__}.{name}"
        number = isinstance(value, kinds[name]) and not isinstance(value, bool)
        require(number and value > 0, f"{where}: expected a positive number, got {brief(value)}")
        require(least <= value <= most, f"{where}: expected {least or 1} to {most}, got {brief(value)}")


def whole_numbers(config: object, name: str, low: int, high: int) -> None:
    """Raises ConfigError where a field is no list of whole numbers from low to high."""
    values = getattr(config, name)
    good = isinstance(values, (tuple, list)) and all(type(value) is int and low <= value <= high for value in values)
    where = f"{type(config).__name__}.{name}"
    require(good, f"{where}: expected a list of whole numbers from {low} to {high}, got {brief(values)}")


def only(config: object, **values: Any) -> None:
    """Fields that Hugging Face has, but of which only one value is honoured here."""
    for name, wanted in values.items():
        got = getattr(config, name)
        require(got == wanted, f"{type(config).__name__}.{name}: got {brief(got)}; only {wanted!r} is supported")


def check_heads(config: Any) -> None:
    name = type(config).__name__
    positive(config, *(part for part in ("num_key_value_heads", "head_dim") if getattr(config, part) is not None))
    require(
        config.head_dim is not None or config.hidden_size % config.num_attention_heads == 0,
        f"{name}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
        f"{config.num_attention_heads}",
    )
    require(
        config.num_attention_heads % config.key_value_heads == 0,
        f"{name}: num_attention_heads {config.num_attention_heads} is not a multiple of num_key_value_heads "
        f"{config.num_key_value_heads}",
    )
    require(
        not hasattr(config, "rope_theta") or config.head_width % 2 == 0,
        f"{name}: heads of {config.head_width} values; rotary positions need an even number",
    )
