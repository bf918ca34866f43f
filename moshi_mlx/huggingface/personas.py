"""Voices as people give them, and the prompt that they and a role come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints.personas.voices import SOUND_SUFFIXES, TORCH_SUFFIX, read_voice
from ..conversation import prompt as prompts
from ..conversation.codec import MimiStream
from ..conversation.persona import LOUDNESS, Voice, about, prompt_columns
from ..conversation.prompt import Prefilled
from ..errors import InputError
from ..models.moshi import Moshi


def make_prompt(model: Moshi, voice: Any = None, persona: str | None = None) -> Prefilled:
    """The state after a voice and a role, before the first token is drawn: see `Session` and `prompt.save`.

    Raises InputError, CheckpointError or AudioError where the voice or the role cannot be had.
    """
    check_personas(model)
    said = voice_of(model, voice)
    columns = prompt_columns(model, said, persona)
    made = prompts.prefill(model, columns)._replace(about=about(said, persona))
    mx.eval(made.temporal, made.hidden)
    return made


def check_personas(model: Moshi) -> None:
    """Raises InputError for a model that knows neither voices nor roles."""
    if model.voices is None:
        raise InputError(
            "voice, persona: this model takes neither; a PersonaPlex does, such as nvidia/personaplex-7b-v1 or "
            "kyutai/personaplex-rl-seamless"
        )


def voice_of(model: Moshi, voice: Any) -> Voice | None:
    """A voice from what a person gives.

    A name of the checkpoint's; the path of a `.pt` file or of a recording; codes int [num_codebooks, frames]; sound
    float [T] at the codec's rate. What has a path's shape or suffix and exists is a path, all else a name.
    """
    if voice is None or isinstance(voice, Voice):
        return voice
    if isinstance(voice, (str, Path)):
        return _named(model, voice)
    values = np.asarray(voice)
    if values.dtype.kind in "iu":
        return Voice("of codes", codes=values)
    if values.dtype.kind == "f" and values.ndim == 1:
        return _heard(model, values.astype(np.float32), "of sound")
    raise InputError(
        f"voice: got {values.dtype} of shape {list(values.shape)}, expected a name, a path, codes int "
        f"[{model.config.num_codebooks}, frames] or sound float [samples]"
    )


def _named(model: Moshi, voice: str | Path) -> Voice:
    path = Path(voice).expanduser()
    if not (isinstance(voice, Path) or _is_path(str(voice), path)):
        found = model.voices.read(voice)
        if isinstance(found, Voice):
            return found
        path = found
    return read_voice(path) if path.suffix.lower() == TORCH_SUFFIX else _recorded(model, path)


def _is_path(voice: str, path: Path) -> bool:
    """Whether a person means a file: it has a folder, or it lies here and has a file's suffix."""
    return "/" in voice or (path.suffix.lower() in (TORCH_SUFFIX, *SOUND_SUFFIXES) and path.is_file())


def _recorded(model: Moshi, path: Path) -> Voice:
    from ..audio.files import read_sound

    return _heard(model, read_sound(path, model.config.sampling_rate), path.name)


def _heard(model: Moshi, sound: np.ndarray, name: str) -> Voice:
    """A recording at the loudness that voices have, frame by frame through Mimi, the last one filled with silence."""
    from ..audio.loudness import matched

    if not np.isfinite(sound).all():
        raise InputError(f"voice {name}: holds NaN or infinite samples")
    try:
        matching = matched(sound, model.config.sampling_rate, LOUDNESS)
    except InputError as error:
        raise InputError(f"voice {name}: {error}") from error
    size = model.config.audio_encoder_config.frame_size
    whole = np.pad(matching, (0, -len(matching) % size))
    return Voice(name, codes=MimiStream(model.audio_encoder, model.config.num_codebooks).encode(whole))
