"""The voices beside a checkpoint: a folder `voices`, or NVIDIA's archive `voices.tgz`, which is never unpacked.

They are asked for by name, and a name is never a path: what is not in the list does not exist.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from ...conversation.persona import Voice
from ...errors import CheckpointError, InputError
from ..names import VOICES_ARCHIVE_NAME, VOICES_FOLDER_NAME

if TYPE_CHECKING:
    from tarfile import TarFile, TarInfo

TORCH_SUFFIX = ".pt"
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
MAX_VOICE_BYTES = 64 * 2**20  # of a file in the archive
MAX_MEMBERS = 10_000


class Voices:
    """The voices of the checkpoint in a folder; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def there(self) -> bool:
        """Whether there are any files of voices."""
        return (self.folder / VOICES_ARCHIVE_NAME).is_file() or bool(self._files())

    def names(self) -> list[str]:
        """All names, sorted. Raises CheckpointError for an archive that cannot be read."""
        return sorted({*self._files(), *self._archived()})

    def files(self) -> dict[str, bytes]:
        """What a copy of the checkpoint needs, by its path in the folder."""
        archive = self.folder / VOICES_ARCHIVE_NAME
        files = {f"{VOICES_FOLDER_NAME}/{path.name}": path.read_bytes() for path in self._files().values()}
        return files | ({VOICES_ARCHIVE_NAME: archive.read_bytes()} if archive.is_file() else {})

    def read(self, name: str) -> Voice | Path:
        """The voice of a name, with or without its suffix; of one that is a recording, the file.

        Raises InputError for an unknown name, CheckpointError for a broken file.
        """
        stem = stem_of(name)
        files = self._files()
        if stem in files:
            path = files[stem]
            return read_voice(path) if path.suffix == TORCH_SUFFIX else path
        archived = self._archived(stem)
        if stem in archived:
            where = f"{self.folder / VOICES_ARCHIVE_NAME}: {stem}{TORCH_SUFFIX}"
            return _read(io.BytesIO(archived[stem]), stem, where)
        known = self.names()
        listed = (
            ", ".join(known)
            if known
            else f"none (there is no {VOICES_ARCHIVE_NAME} and no folder {VOICES_FOLDER_NAME})"
        )
        raise InputError(
            f"voice: {name!r} is no voice of {self.folder}, which has {listed}; or give the path of a .pt file or of a "
            "recording"
        )

    def _files(self) -> dict[str, Path]:
        folder = self.folder / VOICES_FOLDER_NAME
        suffixes = (*SOUND_SUFFIXES, TORCH_SUFFIX)  # of two with one name, the published file
        paths = [path for suffix in suffixes for path in sorted(folder.glob(f"*{suffix}"))] if folder.is_dir() else []
        return {path.stem: path for path in paths if path.is_file() and not path.name.startswith(".")}

    def _archived(self, wanted: str | None = None) -> dict[str, bytes]:
        """The archive's voices by name, with the bytes of the wanted one."""
        path = self.folder / VOICES_ARCHIVE_NAME
        if not path.is_file():
            return {}
        import tarfile

        found: dict[str, bytes] = {}
        try:
            with tarfile.open(path, "r:*") as archive:
                for count, member in enumerate(archive):
                    inside = PurePosixPath(member.name)
                    if count >= MAX_MEMBERS:
                        raise CheckpointError(f"{path}: holds more than {MAX_MEMBERS} files")
                    if not member.isreg() or inside.suffix != TORCH_SUFFIX or inside.name.startswith("."):
                        continue
                    found[inside.stem] = _member(archive, member, path) if inside.stem == wanted else b""
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise CheckpointError(f"{path}: not an archive of voices: {error}") from error
        return found


def stem_of(name: str) -> str:
    """A voice's name without the suffix of its file."""
    for suffix in (TORCH_SUFFIX, *SOUND_SUFFIXES):
        name = name.removesuffix(suffix)
    return name


def _member(archive: TarFile, member: TarInfo, path: Path) -> bytes:
    if member.size > MAX_VOICE_BYTES:
        raise CheckpointError(f"{path}: {member.name} has more than {MAX_VOICE_BYTES >> 20} MB, which no voice needs")
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def read_voice(path: str | Path) -> Voice:
    """A published voice from a `.pt` file. Raises CheckpointError."""
    return _read(path, Path(path).stem, str(path))


def _read(file: str | Path | io.BytesIO, name: str, where: str) -> Voice:
    from . import torch_file  # few have voices, and the package is to be imported fast

    return _voice(torch_file.read(file, where), name, where)


def _voice(tensors: dict[str, np.ndarray], name: str, where: str) -> Voice:
    """From `embeddings` [frames - 1, 1, 1, hidden] and `cache` [1, 1 + streams, slots]."""
    for key in ("embeddings", "cache"):
        if key not in tensors:
            raise CheckpointError(f"{where}: has no tensor {key!r}, which a voice of PersonaPlex has")
    embeds, ring = tensors["embeddings"], tensors["cache"]
    if embeds.dtype.kind != "f" or embeds.ndim < 2 or not embeds.size or embeds.size != len(embeds) * embeds.shape[-1]:
        raise CheckpointError(
            f"{where}: 'embeddings' is {embeds.dtype} of shape {list(embeds.shape)}, expected floats of shape "
            "[frames - 1, 1, 1, hidden]"
        )
    if not np.isfinite(embeds).all():
        raise CheckpointError(f"{where}: 'embeddings' holds NaN or infinite values")
    if ring.dtype.kind != "i" or ring.ndim != 3 or len(ring) != 1 or not ring.size:
        raise CheckpointError(
            f"{where}: 'cache' is {ring.dtype} of shape {list(ring.shape)}, expected whole numbers of shape "
            "[1, 1 + streams, slots]"
        )
    return Voice(name, embeds=embeds.reshape(len(embeds), -1).astype(np.float32), ring=ring[0])
