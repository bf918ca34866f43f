"""The whole Moshi: temporal transformer, depth decoder and codec under the names that Hugging Face users know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.nn as nn

from .config import MoshiConfig
from .depth import MoshiDepthDecoder
from .helium import MoshiForCausalLM
from .mimi import MimiModel

if TYPE_CHECKING:
    from .session import Session


class MoshiForConditionalGeneration(nn.Module):
    """`.decoder` (Helium and text head), `.depth_decoder`, `.audio_encoder` (Mimi); `.tokenizer` where one was loaded.

    `sampling_defaults` are the settings that the checkpoint asks for; `session` uses them for what it is not given.
    """

    def __init__(self, config: MoshiConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = MoshiForCausalLM(config)
        self.depth_decoder = MoshiDepthDecoder(config.depth_decoder_config)
        self.audio_encoder = MimiModel(config.audio_encoder_config)
        self.tokenizer: Any = None
        self.sampling_defaults: dict[str, float] = {}

    def session(self, seed: int = 0, **settings: Any) -> Session:
        """A conversation, primed and ready for its first frame; see `Session` for the settings."""
        from .session import Session

        return Session(self, seed, **{**self.sampling_defaults, **settings})
