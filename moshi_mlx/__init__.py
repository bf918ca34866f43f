"""Moshi, the full-duplex speech-text model, on Apple Silicon with MLX."""

from .checkpoints.reading import load
from .conversation.duplex import DuplexSampling, export_step
from .conversation.session import Frame, Session
from .errors import AudioError, CheckpointError, ConfigError, InputError, MoshiError
from .models.config import MimiConfig, MoshiConfig, MoshiDepthConfig
from .models.depth import MoshiDepthDecoder
from .models.helium import MoshiForCausalLM, MoshiModel
from .models.mimi import MimiModel, MimiStream
from .models.moshi import MoshiForConditionalGeneration
from .models.sampling import Sampling
from .terminal import starting  # noqa: F401  first: what follows takes a while, and Ctrl-C may come meanwhile

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
