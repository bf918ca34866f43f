"""Moshi, the full-duplex speech-text model, on Apple Silicon with MLX."""

from . import starting  # noqa: F401  first: what follows takes a while, and Ctrl-C may come meanwhile
from .checkpoint import load
from .config import MimiConfig, MoshiConfig, MoshiDepthConfig
from .depth import MoshiDepthDecoder
from .duplex import DuplexSampling, export_step
from .errors import AudioError, CheckpointError, ConfigError, InputError, MoshiError
from .helium import MoshiForCausalLM, MoshiModel
from .mimi import MimiModel, MimiStream
from .moshi import MoshiForConditionalGeneration
from .sampling import Sampling
from .session import Frame, Session

__version__ = "0.4.0"

__all__ = [
    "AudioError",
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
    "Sampling",
    "Session",
    "export_step",
    "load",
]
