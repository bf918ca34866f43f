"""The whole Moshi: temporal transformer, depth decoder and codec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import InputError
from .conditions import Conditions
from .config import MoshiConfig
from .depth import DepthDecoder
from .helium import LanguageModel
from .layers.demuxed import DemuxedEmbedding
from .layers.initial import Freezable, initialize, left_at_zero
from .mimi import Mimi


class Moshi(Freezable):
    """`.decoder` (Helium and text head), `.depth_decoder`, `.audio_encoder` (Mimi); `.tokenizer` where one was loaded.

    `.conditions` are what a conversation may be told once and for all; Moshi's own has none.

    Weights are random (`initializer_range`, `seed`) until some are loaded; the codec's take no part in training
    (`audio_encoder.unfreeze()` lets them). `sampling_defaults` are the settings that the checkpoint asks for; `voices`
    is None where a model takes neither voice nor persona.
    """

    decoder_class: type[LanguageModel] = LanguageModel
    depth_class: type[DepthDecoder] = DepthDecoder
    codec_class: type[Mimi] = Mimi

    def __init__(self, config: MoshiConfig, seed: int = 0) -> None:
        super().__init__()
        if not config.audio_delays:
            raise InputError("config: got a model of text alone (no audio_delays), which is a MoshiForCausalLM")
        self.config = config
        with left_at_zero():
            self.decoder = self.decoder_class(config)
            self.depth_decoder = self.depth_class(config.depth_decoder_config)
            self.audio_encoder = self.codec_class(config.audio_encoder_config)
        self.conditions = Conditions(config.conditions, config.hidden_size, config.cross_position_scale)
        self.tokenizer: Any = None
        self.sampling_defaults: dict[str, float] = {}
        self.folder: Path | None = None  # of its checkpoint, beside which voices may lie
        self.model_id: dict[str, Any] = {}  # which model it is, as the names of its voices say it
        self.voices: Any = None  # of a PersonaPlex: `checkpoints.personas.voices.Voices`
        initialize(self, config.initializer_range, seed)
        self.audio_encoder.refresh()
        self.freeze_audio_encoder()

    def embed(self, tokens: mx.array, conditions: Mapping[str, Any] | None = None) -> mx.array:
        """tokens int [B, 1 + streams, T] -> [B, T, hidden]: the sum of their rows and of the conditions."""
        embeds, told = self.decoder.model.embed(tokens), self.conditions.vector(conditions)
        return embeds if told is None else embeds + told.astype(embeds.dtype)

    def refresh(self) -> list[mx.array]:
        """Compute what is derived from the weights; after some were loaded. -> the arrays, which are lazy."""
        tables = [module for _, module in self.named_modules() if isinstance(module, DemuxedEmbedding)]
        for table in tables:
            table.refresh()
        return [table._tables for table in tables]

    def freeze_audio_encoder(self) -> None:
        """Keep the codec out of `trainable_parameters`, as it is from the start."""
        self.audio_encoder.freeze()

    def freeze_depth_decoder(self) -> None:
        """Keep the depth decoder out of `trainable_parameters`."""
        self.depth_decoder.freeze()
