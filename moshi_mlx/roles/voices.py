"""The voices that a speaker (TTS) takes: by name from kyutai/tts-voices, from a file, as arrays.

A model with cross-attention looks at vectors that stand for a voice, of up to five voices (files
`NAME.wav.SIG@EPOCH.safetensors`, made for that very model; the network that makes them is not published). One without
goes on from a recording, whose codes are put before its own (Kyutai's PyTorch package, moshi.models.tts).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..checkpoints import hub, safetensors
from ..conversation.codec import MimiStream
from ..errors import CheckpointError, InputError, MoshiError, brief, clipped
from ..models.moshi import Moshi

REPOSITORY = "kyutai/tts-voices"
DEFAULT_VOICE = "expresso/ex03-ex01_happy_001_channel1_334s.wav"
"""The voice of the published programs."""
SLOTS = 5  # voices that a model can be told of
CONDITION = "speaker_wavs"
FILE, SOUNDS = ".safetensors", (".wav", ".mp3", ".flac", ".ogg")
CUT = 2  # frames of a recording's end that are left out: the codec has not heard what follows them


@dataclass(frozen=True)
class Voice:
    """A voice as a model takes it: vectors float32 [T, dim], or codes int32 [num_codebooks, T] of a recording."""

    name: str
    vectors: np.ndarray | None = None
    codes: np.ndarray | None = None


def takes_vectors(model: Moshi) -> bool:
    """Whether voices are vectors to look at, else they are recordings to go on from."""
    return CONDITION in model.conditions.names


def voices_of(model: Moshi, given: Any) -> tuple[Voice, ...]:
    """What a person gives, one voice or a list of up to five: names, paths, arrays, or `Voice`. None is no voice.

    Arrays are vectors float [1, dim, T] as the files hold them, codes int [num_codebooks, T], or sound float [samples].
    Raises InputError, CheckpointError or AudioError, naming the voice.
    """
    several = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    most = SLOTS if takes_vectors(model) else 1
    if len(several) > most:
        takes = f"up to {SLOTS}" if most > 1 else "one, a recording that it goes on from"
        raise InputError(f"voice: got {len(several)} voices; this model takes {takes}")
    return tuple(_voice(model, each) for each in several)


def condition(model: Moshi, voices: Sequence[Voice]) -> dict[str, Any]:
    """What a conversation is told of its voices: every slot's vectors, and a mask of those that are there.

    Slots without a voice are still looked at, as a learnt vector. Raises InputError where lengths differ.
    """
    vectors = [voice.vectors for voice in voices if voice.vectors is not None]
    if not vectors:
        return {}
    lengths = [len(each) for each in vectors]
    if len(set(lengths)) > 1:
        raise InputError(f"voice: got voices of {' and '.join(map(str, lengths))} vectors, expected the same of each")
    slots = np.zeros((SLOTS, *vectors[0].shape), np.float32)
    slots[: len(vectors)] = vectors
    mask = np.repeat(np.arange(SLOTS) < len(vectors), lengths[0])
    return {CONDITION: (slots.reshape(-1, slots.shape[-1]), mask)}


class Home(NamedTuple):
    """What a model's voices are found by, loaded or not: whether they are vectors, its id, and where it lies."""

    vectors: bool
    model_id: Mapping[str, Any]
    folder: Path | None

    @property
    def suffix(self) -> str:
        """What the names of files of its voices end with. Raises InputError where its checkpoint has no id."""
        if not self.vectors:
            return ""
        if not {"sig", "epoch"} <= self.model_id.keys():
            raise InputError(
                "voice: this checkpoint does not say which model it is ('model_id' in its config.json), so that a name "
                f"is not enough; give the path of a file NAME.wav.SIG@EPOCH{FILE}"
            )
        return f".{self.model_id['sig']}@{self.model_id['epoch']}{FILE}"

    @property
    def folders(self) -> list[Path]:
        """Where voices may lie beside its checkpoint."""
        return [] if self.folder is None else [self.folder, self.folder / "voices"]


def home_of(model: Moshi) -> Home:
    return Home(takes_vectors(model), model.model_id, model.folder)


def names(home: Home) -> list[str]:
    """The voices that there are by name: those beside the checkpoint, and the hub's.

    Raises CheckpointError where the hub's cannot be listed and there are no others.
    """
    beside = [path.name for folder in home.folders for path in folder.glob(f"*{home.suffix or '.wav'}")]
    try:
        listed = hub.files_in(REPOSITORY)
    except CheckpointError:
        if not beside:
            raise
        listed = []
    return _named((*beside, *listed), home.suffix)


def _named(files: Iterable[str], suffix: str) -> list[str]:
    return sorted({name.removesuffix(suffix) for name in files if name.endswith(suffix or SOUNDS)})


# --- one voice ------------------------------------------------------------------------------------------------------


def _voice(model: Moshi, given: Any) -> Voice:
    if isinstance(given, Voice):
        return _fitting(model, given)
    if isinstance(given, (str, Path)):
        return _read(model, find(home_of(model), given), str(given))
    values = np.asarray(given)
    if values.dtype.kind in "iu":
        return _fitting(model, Voice("of codes", codes=values))
    if values.dtype.kind == "f" and values.ndim == 1:
        return _fitting(model, _recorded(model, values.astype(np.float32), "of sound"))
    if values.dtype.kind == "f" and values.ndim == 3:
        return _fitting(model, Voice("of vectors", vectors=_vectors(values, "of vectors")))
    raise InputError(
        f"voice: got {brief(given)}, expected a name of {REPOSITORY}, a file, vectors [1, dim, T], codes "
        f"[{model.config.num_codebooks}, T] or sound [samples]"
    )


def find(home: Home, name: str | Path) -> Path:
    """The file of a voice: itself, one beside the checkpoint, of `hf://OWNER/REPO/NAME`, or of kyutai/tts-voices.

    Raises InputError for a file that there is not, CheckpointError where the hub does not give it.
    """
    text = str(name)
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
    except (RuntimeError, OSError, ValueError) as error:  # ~somebody, a name too long, a NUL
        raise InputError(f"voice {clipped(text)}: no such file: {error}") from error
    if isinstance(name, Path) or text.startswith(("/", "./", "../", "~")) or not text or not text.isprintable():
        raise InputError(f"voice {clipped(text) or brief(text)}: no such file")
    file = _with_suffix(text, home.suffix)
    for folder in home.folders:
        if "/" not in text and (folder / file).is_file():
            return folder / file
    return _of_hub(text, file, home.suffix)


def _with_suffix(name: str, suffix: str) -> str:
    name = name.removesuffix(suffix) if suffix else name
    return (name if name.lower().endswith(SOUNDS) else f"{name}.wav") + suffix


def _of_hub(name: str, file: str, suffix: str) -> Path:
    """From the hub's cache or the hub. Raises CheckpointError, with names much like it where there are any."""
    parts = (file.removeprefix("hf://") if file.startswith("hf://") else f"{REPOSITORY}/{file}").split("/")
    repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    cached = hub.cached_file(repo, inside)
    if cached:
        return cached
    try:
        listed = hub.files_in(repo)
        if inside in listed:
            return hub.local_file(Path(), f"hf://{repo}/{inside}", f"voice {clipped(name)}")
    except MoshiError as error:
        raise CheckpointError(f"voice {clipped(name)}: no such file here, and of the hub: {error}") from error
    near = difflib.get_close_matches(name, _named(listed, suffix), n=3)
    mean = f"did you mean {' or '.join(near)}? " if near else ""
    raise CheckpointError(
        f"voice {clipped(name)}: no such file, and {repo} has no {inside}; {mean}Voices are at "
        f"https://huggingface.co/{REPOSITORY}"
    )


def _read(model: Moshi, path: Path, name: str) -> Voice:
    """The voice in a file. Raises where this model takes another kind."""
    if path.suffix.lower() == FILE:
        tensor = safetensors.stored(path).get(CONDITION)
        if tensor is None:
            raise CheckpointError(f"voice {name}: has no tensor {CONDITION!r}; a voice of {REPOSITORY} has one")
        array = np.array(safetensors.as_mx(tensor.read(), tensor.info.dtype).astype(mx.float32))
        return _fitting(model, Voice(name, vectors=_vectors(array, name)))
    if takes_vectors(model):
        raise InputError(
            f"voice {name}: is a recording, and this model takes vectors made from one, by a network that is not "
            f"published; choose a voice of {REPOSITORY}, or a model that takes recordings (kyutai/tts-0.75b-en-public)"
        )
    from ..audio.files import read_sound

    return _fitting(model, _recorded(model, read_sound(path, model.config.sampling_rate), name))


def _vectors(array: np.ndarray, name: str) -> np.ndarray:
    """float [1, dim, T] as files hold it -> float32 [T, dim]."""
    if array.ndim != 3 or len(array) != 1 or not array.size:
        raise InputError(f"voice {name}: got vectors of shape {list(array.shape)}, expected [1, dim, T]")
    return np.ascontiguousarray(array[0].T, np.float32)


def _recorded(model: Moshi, sound: np.ndarray, name: str) -> Voice:
    """A recording's codes, its last frames left out, as the reference leaves them out."""
    size, most = model.config.audio_encoder_config.frame_size, model.config.sliding_window
    frames = -(-len(sound) // size)
    if not np.isfinite(sound).all():
        raise InputError(f"voice {name}: holds NaN or infinite samples")
    if not CUT < frames <= most:
        seconds = [count * size / model.config.sampling_rate for count in (frames, CUT + 1, most)]
        got, least, longest = (f"{each:.3g} s" for each in seconds)
        raise InputError(f"voice {name}: lasts {got}, expected a recording of {least} to {longest}")
    codes = MimiStream(model.audio_encoder, model.config.num_codebooks).encode(np.pad(sound, (0, -len(sound) % size)))
    return Voice(name, codes=codes[:, :-CUT])


def _fitting(model: Moshi, voice: Voice) -> Voice:
    """The voice itself. Raises InputError where it is none for this model."""
    if voice.vectors is not None:
        return _fitting_vectors(model, voice)
    codes, count, size = voice.codes, model.config.num_codebooks, model.config.audio_vocab_size
    if takes_vectors(model):
        raise InputError(f"voice {voice.name}: got codes, but this model takes vectors [1, dim, T]")
    if codes is None or codes.dtype.kind not in "iu" or codes.ndim != 2 or len(codes) != count or not codes.shape[1]:
        got = "nothing" if codes is None else f"{codes.dtype} of shape {list(codes.shape)}"
        raise InputError(f"voice {voice.name}: got {got}, expected codes of shape [{count}, T]")
    if codes.min() < 0 or codes.max() >= size:
        raise InputError(f"voice {voice.name}: got codes from {codes.min()} to {codes.max()}, expected 0 to {size - 1}")
    return Voice(voice.name, codes=codes.astype(np.int32))


def _fitting_vectors(model: Moshi, voice: Voice) -> Voice:
    vectors = np.asarray(voice.vectors)
    if not takes_vectors(model):
        raise InputError(
            f"voice {voice.name}: holds vectors for another model; this one takes a recording, such as a .wav file"
        )
    dim = model.conditions.conditioners[CONDITION].config.dim
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise InputError(f"voice {voice.name}: was made for another model: its vectors have {vectors.shape[-1]} "
                         f"numbers, this model's {dim}")  # fmt: skip
    if not np.isfinite(vectors).all():
        raise InputError(f"voice {voice.name}: holds NaN or infinite values")
    return voice
