"""What a Moshi is made of: frozen dataclasses under the names that Hugging Face gives their fields.

Every field is read by some module here, or held to the one value that this package honours. Configuration files are
read and written by `checkpoints.kyutai_config` and `checkpoints.huggingface_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, ClassVar

from ..errors import brief, require
from .checks import as_python, check_heads, only, positive, whole_numbers

MOST_FRAMES = 1000  # of a delay
MOST_SAMPLES = 2**20  # of a frame
MOST_DEPTH_LAYERS = 4096  # of all steps together


class _Config:
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


def _fields_of(config: Any) -> dict[str, Any]:
    """The fields of a config, or the dict of them that stands for one."""
    known = isinstance(config, (Mapping, _Config))
    require(known, f"MoshiConfig: got {brief(config)} for a part's config, expected one or a dict of its fields")
    return dict(config) if isinstance(config, Mapping) else {f.name: getattr(config, f.name) for f in fields(config)}


@dataclass(frozen=True, eq=False)
class MimiConfig(_Config):
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


@dataclass(frozen=True, eq=False)
class MoshiDepthConfig(_Config):
    """The depth decoder: one step for each codebook of a frame, each with weights of its own.

    `weights_per_step_schedule[step]` says which set of weights a step uses, where steps share them.
    `low_rank_embeddings` is the width of the embedding tables before their projection to `hidden_size`.
    `use_cache` says whether a forward pass returns its keys and values by default.

    >>> config = moshi_mlx.MoshiDepthConfig()
    >>> config.num_codebooks, config.hidden_size, config.num_hidden_layers
    (8, 1024, 6)
    """

    vocab_size: int = 32000
    hidden_size: int = 1024
    input_size: int = 4096
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    audio_vocab_size: int = 2048
    max_position_embeddings: int = 9
    hidden_act: str = "silu"
    head_dim: int | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    sliding_window: int = 8
    attention_dropout: float = 0.0
    ffn_dim: int = 5632
    rms_norm_eps: float = 1e-8
    num_codebooks: int = 8
    tie_word_embeddings: bool = False
    weights_per_step_schedule: tuple[int, ...] | None = None
    low_rank_embeddings: int | None = None

    def __post_init__(self) -> None:
        as_python(self)
        positive(self, "vocab_size", "hidden_size", "input_size", "num_hidden_layers", "num_attention_heads")
        positive(self, "audio_vocab_size", "ffn_dim", "num_codebooks", "rms_norm_eps", "initializer_range")
        only(self, hidden_act="silu", attention_dropout=0.0, tie_word_embeddings=False)
        check_heads(self)
        require(self.ffn_dim % 2 == 0, f"MoshiDepthConfig.ffn_dim: expected an even number, got {self.ffn_dim}")
        for name in ("sliding_window", "max_position_embeddings"):  # every step sees all steps before it
            require(
                getattr(self, name) >= self.num_codebooks,
                f"MoshiDepthConfig.{name}: got {getattr(self, name)}, expected at least num_codebooks "
                f"{self.num_codebooks}",
            )
        if self.weights_per_step_schedule is not None:
            whole_numbers(self, "weights_per_step_schedule", 0, self.num_codebooks - 1)
        if self.low_rank_embeddings is not None:
            positive(self, "low_rank_embeddings")
        require(
            self.num_codebooks * self.num_hidden_layers <= MOST_DEPTH_LAYERS,
            f"MoshiDepthConfig: {self.num_codebooks} codebooks of {self.num_hidden_layers} layers each, expected at "
            f"most {MOST_DEPTH_LAYERS} layers in all",
        )
        sets = sorted(set(self.schedule))
        require(
            len(self.schedule) == self.num_codebooks and sets == list(range(len(sets))),
            f"MoshiDepthConfig.weights_per_step_schedule: expected {self.num_codebooks} numbers of weight sets "
            f"counted from 0, got {brief(self.weights_per_step_schedule)}",
        )

    @property
    def schedule(self) -> tuple[int, ...]:
        """The set of weights of each step."""
        return self.weights_per_step_schedule or tuple(range(self.num_codebooks))


@dataclass(frozen=True, eq=False)
class MoshiConfig(_Config):
    """Helium and the streams around it. `ffn_dim` is twice the hidden width of the gated MLP, as Hugging Face has it.

    `num_codebooks` streams are generated; `audio_delays` has one delay, in frames, for every audio stream that the
    model reads: Moshi's own codebooks first, then the user's (default: 0, then 1, on both sides). With no delays at
    all it is a model of text alone. Both sub-configs may be given as dicts of fields.

    >>> config = moshi_mlx.MoshiConfig()  # Moshi 7B
    >>> config.hidden_size, config.num_hidden_layers, config.sliding_window  # the context: 3000 frames, 4 minutes
    (4096, 32, 3000)
    >>> config.vocab_size, config.num_codebooks, config.audio_delays[:8]
    (32000, 8, (0, 1, 1, 1, 1, 1, 1, 1))
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    audio_vocab_size: int = None  # type: ignore[assignment]  # the codec's codebook_size
    max_position_embeddings: int = 3000
    rope_theta: float = 10000.0
    hidden_act: str = "silu"
    head_dim: int | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    sliding_window: int = 3000
    attention_dropout: float = 0.0
    ffn_dim: int = 22528
    rms_norm_eps: float = 1e-8
    num_codebooks: int = 8
    tie_word_embeddings: bool = False
    audio_delays: tuple[int, ...] = None  # type: ignore[assignment]
    silent_text_tokens: tuple[int, ...] = (0, 3)
    depth_decoder_config: MoshiDepthConfig = field(default_factory=MoshiDepthConfig)
    audio_encoder_config: MimiConfig = field(default_factory=MimiConfig)

    mimi_class: ClassVar[type[MimiConfig]] = MimiConfig
    depth_class: ClassVar[type[MoshiDepthConfig]] = MoshiDepthConfig

    def __post_init__(self) -> None:
        as_python(self)
        positive(self, "num_codebooks")  # before lists are made of as many
        self._fill_in()
        positive(self, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "audio_vocab_size")
        positive(self, "rope_theta", "sliding_window", "ffn_dim", "rms_norm_eps")
        positive(self, "max_position_embeddings", "initializer_range")
        only(self, hidden_act="silu", attention_dropout=0.0, tie_word_embeddings=False)
        check_heads(self)
        require(self.ffn_dim % 2 == 0, f"MoshiConfig.ffn_dim: expected an even number, got {self.ffn_dim}")
        whole_numbers(self, "silent_text_tokens", 0, self.vocab_size - 1)
        whole_numbers(self, "audio_delays", 0, MOST_FRAMES)
        if self.audio_delays:
            self._check_streams()

    def _fill_in(self) -> None:
        """Replace the values that stand for others, and dicts of fields by the configs that they describe."""
        mimi, depth = self.audio_encoder_config, self.depth_decoder_config
        if not isinstance(mimi, self.mimi_class):
            mimi = self.mimi_class(**_fields_of(mimi))
        if self.audio_vocab_size is None:
            object.__setattr__(self, "audio_vocab_size", mimi.codebook_size)
        if self.audio_delays is None:
            object.__setattr__(self, "audio_delays", (0, *[1] * (self.num_codebooks - 1)) * 2)
        if not isinstance(depth, self.depth_class):
            shared = {name: getattr(self, name) for name in ("vocab_size", "audio_vocab_size", "num_codebooks")}
            depth = self.depth_class(**{"input_size": self.hidden_size, **shared, **_fields_of(depth)})
        object.__setattr__(self, "audio_encoder_config", mimi)
        object.__setattr__(self, "depth_decoder_config", depth)

    def _check_streams(self) -> None:
        require(
            len(self.audio_delays) > self.num_codebooks,
            f"MoshiConfig.audio_delays: expected a delay of 0 or more frames for each of Moshi's {self.num_codebooks} "
            f"codebooks and the user's, got {brief(self.audio_delays)}",
        )
        depth = self.depth_decoder_config
        for name in ("vocab_size", "audio_vocab_size", "num_codebooks"):
            ours, theirs = getattr(self, name), getattr(depth, name)
            require(ours == theirs, f"MoshiConfig.{name} is {ours}, but that of the depth decoder is {theirs}")
        require(
            depth.input_size == self.hidden_size,
            f"MoshiConfig.hidden_size is {self.hidden_size}, but input_size of the depth decoder is {depth.input_size}",
        )
        mimi = self.audio_encoder_config
        most = max(self.num_codebooks, self.user_codebooks)
        require(
            mimi.codebook_size == self.audio_vocab_size and mimi.num_quantizers >= most,
            f"MoshiConfig: {most} codebooks of {self.audio_vocab_size} entries asked for, but Mimi has "
            f"{mimi.num_quantizers} of {mimi.codebook_size}",
        )

    @property
    def user_codebooks(self) -> int:
        return len(self.audio_delays) - self.num_codebooks

    @property
    def table_rows(self) -> tuple[int, ...]:
        """Rows of each stream's embeddings, text first; the last row of each is its initial token."""
        if not self.audio_delays:
            return (self.vocab_size,)
        return (self.vocab_size + 1, *[self.audio_vocab_size + 1] * len(self.audio_delays))

    @property
    def sampling_rate(self) -> int:
        """Samples a second of the codec's sound."""
        return self.audio_encoder_config.sampling_rate


# Sizes by which a checkpoint without config.json is recognised. One row a published model family.
PRESETS: dict[str, MoshiConfig] = {"moshi-7b": MoshiConfig()}
