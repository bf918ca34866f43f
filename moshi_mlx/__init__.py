"""Moshi, the full-duplex speech-text model, on Apple Silicon with MLX."""

# isort: off
from . import exact  # noqa: F401  before MLX computes anything
from .terminal import starting  # noqa: F401  first: what follows takes a while, and Ctrl-C may come meanwhile
# isort: on

import sys

from .conversation import duplex, text
from .conversation.asynchronous import AsyncConversation
from .conversation.batch import Batch, Row
from .conversation.codec import MimiStream
from .conversation.duplex import DuplexSampling
from .conversation.frame import Frame
from .conversation.session import Session
from .errors import AudioError, CheckpointError, ConfigError, InputError, MoshiError
from .export.step import export_step
from .huggingface.config import MimiConfig, MoshiConfig, MoshiDepthConfig
from .huggingface.depth import MoshiDepthDecoder
from .huggingface.helium import MoshiForCausalLM, MoshiModel
from .huggingface.loading import load
from .huggingface.mimi import MimiModel
from .huggingface.moshi import MoshiForConditionalGeneration
from .models import state
from .models.sampling import Sampling, SamplingSettings
from .terminal.version import VERSION

__version__ = VERSION

# Modules that README and docs named before they moved into rooms, kept for a release.
sys.modules |= {f"{__name__}.{module.__name__.split('.')[-1]}": module for module in (duplex, state, text)}


__all__ = [
    "AsyncConversation",
    "AudioError",
    "Batch",
    "CheckpointError",
    "ConfigError",
    "DuplexSampling",
    "Frame",
    "InputError",
    "MimiConfig",
    "MimiModel",
    "MimiStream",
    "MoshiConfig",
    "MoshiDepthConfig",
    "MoshiDepthDecoder",
    "MoshiError",
    "MoshiForCausalLM",
    "MoshiForConditionalGeneration",
    "MoshiModel",
    "Row",
    "Sampling",
    "SamplingSettings",
    "Session",
    "export_step",
    "load",
]
