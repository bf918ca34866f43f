"""What a Moshi is made of: frozen dataclasses under the names that Hugging Face gives their fields.

Every field is read by some module here, or held to the one value that this package honours. Configuration files are
read and written by `checkpoints.kyutai_config` and `checkpoints.huggingface_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from ..errors import brief, require
from .checks import as_python, check_heads, only, positive, whole_numbers
from .codec_config import Config
from .codec_config import MimiConfig as MimiConfig
from .conditions_config import ConditionConfig, check_streams

MOST_FRAMES = 1000  # of a delay
MOST_DEPTH_LAYERS = 4096  # of all steps together


def _fields_of(config: Any) -> dict[str, Any]:
    """The fields of a config, or the dict of them that stands for one."""
    known = isinstance(config, (Mapping, Config))
    require(known, f"MoshiConfig: got {brief(config)} for a part's config, expected one or a dict of its fields")
    return dict(config) if isinstance(config, Mapping) else {f.name: getattr(config, f.name) for f in fields(config)}


@dataclass(frozen=True, eq=False)
class MoshiDepthConfig(Config):
    """The depth decoder: one step for each codebook of a frame, each with weights of its own.

    `weights_per_step_schedule[step]` says which set of weights a step uses, where steps share them.
    `low_rank_embeddings` is the width of the embedding tables before their projection to `hidden_size`. `output_norm`
    says whether each step has a LayerNorm before its head, `demuxed_text` whether its text token is two in one number.
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
    output_norm: bool = False
    demuxed_text: bool = False

    def __post_init__(self) -> None:
        as_python(self)
        positive(self, "vocab_size", "hidden_size", "input_size", "num_hidden_layers", "num_attention_heads")
        positive(self, "audio_vocab_size", "ffn_dim", "rms_norm_eps", "initializer_range")
        if self.num_codebooks != 0 or type(self.num_codebooks) is not int:  # 0 of a model that does not speak
            positive(self, "num_codebooks")
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
            whole_numbers(self, "weights_per_step_schedule", 0, max(0, self.num_codebooks - 1))
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

    @property
    def weight_sets(self) -> int:
        """How many sets of weights the steps have between them."""
        return max(self.schedule, default=-1) + 1


@dataclass(frozen=True, eq=False)
class MoshiConfig(Config):
    """Helium and the streams around it: which there are, their delays, and which of them are sampled.

    `ffn_dim` is twice the hidden width of the gated MLP, as Hugging Face has it.

    `role` says what the streams are for: "dialogue" (Moshi) and "translator" (Hibiki) have both sides, "transcriber"
    (STT) hears and writes (`num_codebooks` 0), "speaker" (TTS) speaks a given text (no codebooks of a user).

    `num_codebooks` streams are generated; `audio_delays` has one delay, in frames, for every audio stream that the
    model reads: Moshi's own codebooks first, then the user's (default: 0, then 1, on both sides). With no delays at
    all it is a model of text alone. Both sub-configs may be given as dicts of fields.

    `conditions` are what a conversation is told once and for all; `cross_attention` is to those of them that are
    sequences, with positions scaled by `cross_position_scale` (0: none). `rope_interleaved` turns pairs of neighbours,
    else a head's halves. `text_vocab_out` is how many tokens the text head tells apart, where not all; `extra_heads`
    of `extra_head_classes` read the same hidden state. With `demuxed_text` a text token may stand for two:
    (second + 1) * (vocab_size + 1) + first. `end_reads_as_padding`: text token 2, the end, is read back as padding.
    `audio_delay_seconds` is how far sound and text lie apart, `silence_prefix_seconds` what a transcriber hears first,
    `second_stream_ahead` how many words a speaker is told ahead.

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
    role: str = "dialogue"
    conditions: tuple[ConditionConfig, ...] = ()
    cross_attention: bool = False
    cross_position_scale: float = 0.0
    rope_interleaved: bool = True
    text_vocab_out: int | None = None
    extra_heads: int = 0
    extra_head_classes: int = 6
    demuxed_text: bool = False
    end_reads_as_padding: bool = False
    audio_delay_seconds: float = 0.0
    silence_prefix_seconds: float = 0.0
    second_stream_ahead: int = 0
    depth_decoder_config: MoshiDepthConfig = field(default_factory=MoshiDepthConfig)
    audio_encoder_config: MimiConfig = field(default_factory=MimiConfig)

    mimi_class: ClassVar[type[MimiConfig]] = MimiConfig
    depth_class: ClassVar[type[MoshiDepthConfig]] = MoshiDepthConfig

    def __post_init__(self) -> None:
        as_python(self)
        if self.num_codebooks != 0 or type(self.num_codebooks) is not int:
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
            check_streams(self)
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
            names = ("vocab_size", "audio_vocab_size", "num_codebooks", "demuxed_text")
            shared = {name: getattr(self, name) for name in names}
            depth = self.depth_class(**{"input_size": self.hidden_size, **shared, **_fields_of(depth)})
        object.__setattr__(self, "audio_encoder_config", mimi)
        object.__setattr__(self, "depth_decoder_config", depth)

    def _check_streams(self) -> None:
        depth = self.depth_decoder_config
        for name in ("vocab_size", "audio_vocab_size", "num_codebooks", "demuxed_text"):
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
    def most_user_code(self) -> int:
        """The largest number that a user's stream may hold: a translator hears the end of its source as one more."""
        return self.audio_vocab_size - (self.role != "translator")

    @property
    def text_classes(self) -> int:
        """How many tokens the text head tells apart."""
        return self.text_vocab_out or self.vocab_size

    @property
    def audio_start(self) -> int:
        """Frames by which a speaker's sound comes after its text."""
        return int(self.audio_delay_seconds * self.audio_encoder_config.frame_rate) if self.role == "speaker" else 0

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
