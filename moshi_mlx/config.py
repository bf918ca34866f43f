"""What a Moshi is made of: frozen dataclasses under the names that Hugging Face gives their fields.

Every field is read by some module here. Kyutai's own configuration files use other names; `from_kyutai`
translates them, and refuses by name every key that it does not know or that this package cannot honour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        _require(good, f"{type(config).__name__}.{name}: expected a positive number, got {value!r}")


def _check_heads(config: Any) -> None:
    name = type(config).__name__
    _require(
        config.hidden_size % config.num_attention_heads == 0,
        f"{name}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
        f"{config.num_attention_heads}",
    )
    _require(
        config.num_attention_heads % config.key_value_heads == 0,
        f"{name}: num_attention_heads {config.num_attention_heads} is not a multiple of num_key_value_heads "
        f"{config.num_key_value_heads}",
    )


@dataclass(frozen=True)
class MimiConfig:
    """The codec (Moshi paper, section 3.3). `upsampling_ratios` are in decoder order, as in every published file."""

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
    intermediate_size: int = 2048
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    sliding_window: int = 250

    def __post_init__(self) -> None:
        _positive(
            self,
            *(f.name for f in fields(self) if f.name not in ("upsampling_ratios", "num_key_value_heads")),
        )
        _check_heads(self)
        stride = self.frame_size / self.hop_length
        _require(
            stride == int(stride) and stride >= 2,
            f"MimiConfig: a frame of {self.frame_size} samples is not a whole multiple (2 or more) of the product "
            f"{self.hop_length} of upsampling_ratios {self.upsampling_ratios}",
        )
        _require(
            self.num_quantizers > self.num_semantic_quantizers,
            f"MimiConfig: num_quantizers {self.num_quantizers} must exceed num_semantic_quantizers "
            f"{self.num_semantic_quantizers}",
        )

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

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

    @classmethod
    def from_kyutai(cls, values: Mapping[str, Any], where: str) -> MimiConfig:
        """From the file that `mimi_config_name` names in Kyutai's checkpoints."""
        top = _Keys(values, where)
        seanet = _Keys(top.take("seanet", dict), f"{where}: seanet")
        quantizer = _Keys(top.take("quantizer", dict), f"{where}: quantizer")
        transformer = _Keys(top.take("transformer", dict), f"{where}: transformer")
        top.expect(channels=1)
        dimension = seanet.take("dimension", int)
        config = cls(
            sampling_rate=top.take("sample_rate", int),
            frame_rate=top.take("frame_rate", float),
            hidden_size=dimension,
            num_filters=seanet.take("n_filters", int),
            num_residual_layers=seanet.take("n_residual_layers", int, 1),
            upsampling_ratios=tuple(seanet.take("ratios", list)),
            kernel_size=seanet.take("kernel_size", int),
            last_kernel_size=seanet.take("last_kernel_size", int),
            residual_kernel_size=seanet.take("residual_kernel_size", int),
            dilation_growth_rate=seanet.take("dilation_base", int, 2),
            compress=seanet.take("compress", int, 2),
            codebook_size=quantizer.take("bins", int),
            codebook_dim=quantizer.take("dimension", int),
            num_quantizers=quantizer.take("n_q", int),
            num_semantic_quantizers=quantizer.take("n_q_semantic", int, 1),
            num_hidden_layers=transformer.take("num_layers", int),
            num_attention_heads=transformer.take("num_heads", int),
            intermediate_size=transformer.take("dim_feedforward", int),
            rope_theta=transformer.take("max_period", float, 10000.0),
            sliding_window=transformer.take("context", int),
        )
        seanet.expect(
            channels=1, causal=True, activation="ELU", norm="none", pad_mode="constant", true_skip=True,
            disable_norm_outer_blocks=0,
        )  # fmt: skip
        quantizer.expect(input_dimension=dimension, output_dimension=dimension)
        transformer.expect(
            d_model=dimension, causal=True, gating="none", norm="layer_norm", positional_embedding="rope",
            conv_layout=True, input_dimension=dimension, output_dimensions=[dimension],
        )  # fmt: skip
        transformer.ignore("layer_scale")  # only the value that training started from
        for keys in (top, seanet, quantizer, transformer):
            keys.finish()
        return config


@dataclass(frozen=True)
class MoshiDepthConfig:
    """The depth decoder: one step for each codebook of a frame, each with weights of its own.

    `weights_per_step_schedule[step]` says which set of weights a step uses, where steps share them.
    `low_rank_embeddings` is the width of the embedding tables before their projection to `hidden_size`.
    """

    vocab_size: int = 32000
    hidden_size: int = 1024
    input_size: int = 4096
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    audio_vocab_size: int = 2048
    ffn_dim: int = 5632
    rms_norm_eps: float = 1e-8
    num_codebooks: int = 8
    weights_per_step_schedule: tuple[int, ...] | None = None
    low_rank_embeddings: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "hidden_size", "input_size", "num_hidden_layers", "num_attention_heads")
        _positive(self, "audio_vocab_size", "ffn_dim", "num_codebooks", "rms_norm_eps")
        _check_heads(self)
        _require(self.ffn_dim % 2 == 0, f"MoshiDepthConfig.ffn_dim: expected an even number, got {self.ffn_dim}")
        sets = sorted(set(self.schedule))
        _require(
            len(self.schedule) == self.num_codebooks and sets == list(range(len(sets))),
            f"MoshiDepthConfig.weights_per_step_schedule: expected {self.num_codebooks} numbers of weight sets "
            f"counted from 0, got {self.weights_per_step_schedule}",
        )

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def schedule(self) -> tuple[int, ...]:
        """The set of weights of each step."""
        return self.weights_per_step_schedule or tuple(range(self.num_codebooks))


@dataclass(frozen=True)
class MoshiConfig:
    """Helium and the streams around it. `ffn_dim` is twice the hidden width of the gated MLP, as Hugging Face has it.

    `num_codebooks` streams are generated; `audio_delays` has one delay, in frames, for every audio stream that the
    model reads: Moshi's own codebooks first, then the user's.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    audio_vocab_size: int = 2048
    rope_theta: float = 10000.0
    sliding_window: int = 3000
    ffn_dim: int = 22528
    rms_norm_eps: float = 1e-8
    num_codebooks: int = 8
    audio_delays: tuple[int, ...] = (0, 1, 1, 1, 1, 1, 1, 1) * 2
    silent_text_tokens: tuple[int, ...] = (0, 3)
    depth_decoder_config: MoshiDepthConfig = field(default_factory=MoshiDepthConfig)
    audio_encoder_config: MimiConfig = field(default_factory=MimiConfig)

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "audio_vocab_size")
        _positive(self, "rope_theta", "sliding_window", "ffn_dim", "rms_norm_eps", "num_codebooks")
        _check_heads(self)
        _require(self.ffn_dim % 2 == 0, f"MoshiConfig.ffn_dim: expected an even number, got {self.ffn_dim}")
        _require(
            all(isinstance(d, int) and d >= 0 for d in self.audio_delays)
            and len(self.audio_delays) > self.num_codebooks,
            f"MoshiConfig.audio_delays: expected a delay of 0 or more frames for each of Moshi's {self.num_codebooks} "
            f"codebooks and the user's, got {self.audio_delays}",
        )
        depth = self.depth_decoder_config
        for name in ("vocab_size", "audio_vocab_size", "num_codebooks"):
            ours, theirs = getattr(self, name), getattr(depth, name)
            _require(ours == theirs, f"MoshiConfig.{name} is {ours}, but that of the depth decoder is {theirs}")
        _require(
            depth.input_size == self.hidden_size,
            f"MoshiConfig.hidden_size is {self.hidden_size}, but input_size of the depth decoder is {depth.input_size}",
        )
        mimi = self.audio_encoder_config
        most = max(self.num_codebooks, self.user_codebooks)
        _require(
            mimi.codebook_size == self.audio_vocab_size and mimi.num_quantizers >= most,
            f"MoshiConfig: {most} codebooks of {self.audio_vocab_size} entries asked for, but Mimi has "
            f"{mimi.num_quantizers} of {mimi.codebook_size}",
        )

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def user_codebooks(self) -> int:
        return len(self.audio_delays) - self.num_codebooks

    @classmethod
    def from_kyutai(cls, values: Mapping[str, Any], where: str, mimi: MimiConfig | None = None) -> MoshiConfig:
        """From the language model's part of Kyutai's `config.json`."""
        keys = _Keys(values, where)
        dim, dep_q, n_q = keys.take("dim", int), keys.take("dep_q", int), keys.take("n_q", int)
        delays = keys.take("delays", list)
        _require(
            len(delays) == n_q + 1,
            f"{where}: key 'delays' has {len(delays)} values, expected {n_q + 1} (text, then n_q = {n_q})",
        )
        _require(delays[0] == 0, f"{where}: key 'delays' gives text a delay of {delays[0]}, expected 0")
        common = {
            "vocab_size": keys.take("text_card", int),
            "audio_vocab_size": keys.take("card", int),
            "rms_norm_eps": _norm_eps(keys),
            "num_codebooks": dep_q,
        }
        repeat = keys.take("kv_repeat", int, 1)
        hidden_scale = keys.take("hidden_scale", float, 4.0)
        depth = _depth_from_kyutai(keys, dim, common, hidden_scale, repeat)
        heads = keys.take("num_heads", int)
        config = cls(
            hidden_size=dim,
            num_hidden_layers=keys.take("num_layers", int),
            num_attention_heads=heads,
            num_key_value_heads=heads // repeat,
            rope_theta=keys.take("max_period", float, 10000.0),
            sliding_window=keys.take("context", int),
            ffn_dim=_gated_ffn_dim(dim, int(hidden_scale * dim)),
            audio_delays=tuple(delays[1:]),
            silent_text_tokens=(
                keys.take("existing_text_end_padding_id", int, 0), keys.take("existing_text_padding_id", int, 3),
            ),
            depth_decoder_config=depth,
            audio_encoder_config=mimi or MimiConfig(),
            **common,
        )  # fmt: skip
        keys.expect(
            causal=True, layer_scale=None, gating="silu", positional_embedding="rope", cross_attention=False,
            demux_second_stream=False, demux_second_text_stream=False, extra_heads_num_heads=0, norm_emb=False,
            bias_proj=False, conditioners={}, fuser=None, lora=False, quantize=False,
            text_card_out=config.vocab_size,
        )  # fmt: skip
        keys.ignore("extra_heads_dim", "lora_rank", "lora_scaling", "gradient_checkpointing")
        keys.finish()
        return config


def _norm_eps(keys: _Keys) -> float:
    norms = {"rms_norm_f32": 1e-8, "rms_norm": 1e-5}
    norm = keys.take("norm", str)
    _require(norm in norms, f"{keys.where}: key 'norm' is {norm!r}, expected one of {sorted(norms)}")
    return norms[norm]


def _gated_ffn_dim(dim: int, dim_feedforward: int) -> int:
    """Twice the hidden width of Kyutai's gated MLP: 2/3 of dim_feedforward, or 21/8 of dim where that is 4 x dim."""
    return 2 * ((21 * dim) // 8 if dim_feedforward == 4 * dim else (2 * dim_feedforward) // 3)


def _depth_from_kyutai(
    keys: _Keys, input_size: int, common: dict[str, Any], hidden_scale: float, repeat: int
) -> MoshiDepthConfig:
    dim = keys.take("depformer_dim", int)
    heads = keys.take("depformer_num_heads", int)
    feedforward = keys.take("depformer_dim_feedforward", int, None)
    schedule = keys.take("depformer_weights_per_step_schedule", list, None)
    keys.expect(
        depformer_causal=True, depformer_layer_scale=None, depformer_gating="silu", depformer_pos_emb="none",
        depformer_norm=None,
    )  # fmt: skip
    keys.expect_present(depformer_multi_linear=True, depformer_weights_per_step=True)
    # The reference gives its depth decoder neither: it sees all of its few steps and has no positions.
    keys.ignore("depformer_context", "depformer_max_period")
    return MoshiDepthConfig(
        hidden_size=dim,
        input_size=input_size,
        num_hidden_layers=keys.take("depformer_num_layers", int),
        num_attention_heads=heads,
        num_key_value_heads=heads // keys.take("depformer_kv_repeat", int, repeat),
        ffn_dim=_gated_ffn_dim(dim, int(hidden_scale * dim) if feedforward is None else feedforward),
        weights_per_step_schedule=None if schedule is None else tuple(schedule),
        low_rank_embeddings=keys.take("depformer_low_rank_embeddings", int, None),
        **common,
    )


_MISSING = object()


class _Keys:
    """The keys of one foreign configuration, ticked off as they are read; whatever is left is an error."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._left = dict(values)

    def take(self, key: str, kind: type[T], default: Any = _MISSING) -> Any:
        value = self._left.pop(key, default)
        if value is _MISSING:
            raise ConfigError(f"{self.where}: key {key!r} is missing")
        if value is default and default is not _MISSING:
            return value
        if value is None and default is None:
            return None
        accepted = (int, float) if kind is float else (kind,)
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
            raise ConfigError(f"{self.where}: key {key!r} is {value!r}, expected {kind.__name__}")
        return value

    def expect(self, **values: Any) -> None:
        """Keys that may be absent, but where present must have the one value that this package honours."""
        for key, wanted in values.items():
            got = self._left.pop(key, wanted)
            empty = not got and not wanted  # None, False, {} and [] all say "without"
            if got != wanted and not empty:
                raise ConfigError(f"{self.where}: key {key!r} is {got!r}; only {wanted!r} is supported")

    def expect_present(self, **values: Any) -> None:
        for key in values:
            if key not in self._left:
                raise ConfigError(f"{self.where}: key {key!r} is missing; only {values[key]!r} is supported")
        self.expect(**values)

    def ignore(self, *names: str) -> None:
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        if self._left:
            key = sorted(self._left)[0]
            raise ConfigError(f"{self.where}: unknown key {key!r} (its value: {self._left[key]!r})")


# Sizes by which a checkpoint without config.json is recognised. One row a published model family.
PRESETS: dict[str, MoshiConfig] = {"moshi-7b": MoshiConfig()}
