"""Prepared conversations as batches of one fixed shape."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.disk.files import read_json
from ..checkpoints.safetensors import load_lazily
from ..errors import CheckpointError, ConfigError, InputError
from .prepare import INDEX

NOTHING = -1  # what fills a conversation up to the length of a batch: no input, and no part of the loss


class Dataset:
    """Conversations cut to segments of `frames`; the last of each is filled up with -1.

    As in Kyutai's trainer a segment begins with the initial tokens, wherever in its conversation it lies.
    """

    def __init__(self, conversations: list[np.ndarray], frames: int) -> None:
        self.frames = min(frames, max(c.shape[1] for c in conversations))
        self._conversations = conversations
        self._segments = [
            (n, start) for n, c in enumerate(conversations) for start in range(0, c.shape[1], self.frames)
        ]

    def __len__(self) -> int:
        return len(self._segments)

    def rows(self, indices: list[int]) -> np.ndarray:
        """Segments as int32 [B, 1 + streams, frames]."""
        streams = len(self._conversations[0])
        batch = np.full((len(indices), streams, self.frames), NOTHING, np.int32)
        for row, index in zip(batch, indices, strict=True):
            conversation, start = self._segments[index]
            part = self._conversations[conversation][:, start : start + self.frames]
            row[:, : part.shape[1]] = part
        return batch

    def draw(self, first: int, count: int, seed: int) -> np.ndarray:
        """Segments number `first` to `first + count` of an endless sequence, each epoch of it in an order of its own.

        The position in the sequence is the whole state of the reading: it resumes exactly.
        """
        size, indices = len(self), []
        for number in range(first, first + count):
            epoch, place = divmod(number, size)
            indices.append(int(_order(size, seed, epoch)[place]))
        return self.rows(indices)


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def load(folder: Path, settings: dict[str, Any], frames: int) -> Dataset:
    """A prepared folder. `settings` are `prepare.settings_of` the model.

    Raises InputError where the folder is not prepared, ConfigError where it was for another codec or tokenizer.
    """
    if not (folder / INDEX).is_file():
        hint = "python -m moshi_mlx.train prepare makes one from recordings"
        raise InputError(f"{folder}: no prepared data, or preparing was interrupted; {hint}")
    index = read_json(folder / INDEX)
    for key, wanted in settings.items():
        if index.get(key) != wanted:
            raise ConfigError(
                f"{folder / INDEX}: key {key!r} is {index.get(key)!r}, but the model's is {wanted!r}; prepare the data "
                "with this model"
            )
    paths = sorted(folder.glob("shard-*.safetensors"))
    if len(paths) != index.get("shards"):
        raise CheckpointError(f"{folder}: has {len(paths)} shards, expected {index.get('shards')}; prepare it again")
    conversations = [np.array(tensor) for path in paths for _, tensor in sorted(load_lazily(path).items())]
    return Dataset(conversations, frames)
