"""What the codec is made of, and what all configs have alike."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import Any

from ..errors import require
from .checks import as_python, check_heads, positive, whole_numbers

MOST_SAMPLES = 2**20  # of a frame


class Config:
    """What the three configs have alike: equality by their fields, and what follows from their attention heads."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int | None
    head_dim: int | None

    def __eq__(self, other: object) -> bool:
        """A config with the same fields, though of a class above or below this one."""
        alike = isinstance(other, type(self)) or isinstance(self, type(other))
        return alike and self._values() == other._values()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Values in a head: `head_dim`, or hidden_size / num_attention_heads."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, eq=False)
class MimiConfig(Config):
    """The codec (Moshi paper, section 3.3). `upsampling_ratios` are in decoder order, as in every published file.

    Sound at `sampling_rate` Hz becomes `frame_rate` frames a second of `num_quantizers` codes below `codebook_size`,
    the first `num_semantic_quantizers` of them semantic. `hidden_size`, `num_hidden_layers`, `num_attention_heads` and
    `sliding_window` (positions, `positions_per_frame` of them a frame) are of its transformers.

    >>> config = moshi_mlx.MimiConfig()
    >>> config.sampling_rate, config.frame_rate, config.frame_size, config.num_quantizers, config.codebook_size
    (24000, 12.5, 1920, 32, 2048)
    """

    sampling_rate: int = 24000
    frame_rate: float = 12.5
    hidden_size: int = 512
    num_filters: int = 64
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    last_kernel_size: int = 3
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    compress: int = 2
    codebook_size: int = 2048
    codebook_dim: int = 256
    num_quantizers: int = 32
    num_semantic_quantizers: int = 1
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 2048
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    sliding_window: int = 250
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        as_python(self)
        optional = ("upsampling_ratios", "num_key_value_heads", "head_dim")
        positive(self, *(f.name for f in fields(self) if f.name not in optional))
        check_heads(self)
        whole_numbers(self, "upsampling_ratios", 1, MOST_SAMPLES)
        require(
            self.frame_size <= MOST_SAMPLES and 1 <= len(self.upsampling_ratios) <= 16,
            f"MimiConfig: a frame of {self.frame_size} samples and {len(self.upsampling_ratios)} upsampling_ratios, "
            f"expected at most {MOST_SAMPLES} and 1 to 16",
        )
        stride = self.frame_size / self.hop_length
        require(
            stride == int(stride) and stride >= 2,
            f"MimiConfig: a frame of {self.frame_size} samples is not a whole multiple (2 or more) of the product "
            f"{self.hop_length} of upsampling_ratios {self.upsampling_ratios}",
        )
        require(
            self.num_quantizers > self.num_semantic_quantizers,
            f"MimiConfig: num_quantizers {self.num_quantizers} must exceed num_semantic_quantizers "
            f"{self.num_semantic_quantizers}",
        )

    @property
    def frame_size(self) -> int:
        """Samples in a frame: 1920."""
        return round(self.sampling_rate / self.frame_rate)

    @property
    def hop_length(self) -> int:
        """Samples to one position of the transformers: 960."""
        return prod(self.upsampling_ratios)

    @property
    def positions_per_frame(self) -> int:
        """Transformer positions in a frame: 2."""
        return self.frame_size // self.hop_length
