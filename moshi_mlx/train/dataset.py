"""Prepared conversations as batches of one fixed shape."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.disk.files import read_json
from ..checkpoints.safetensors import stored
from ..errors import CheckpointError, ConfigError, InputError, brief
from .files import is_file, whole_number
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

    Everything is looked at before anything is computed. Raises InputError where the folder is not prepared, ConfigError
    where it was for another codec, tokenizer or vocabulary, CheckpointError where a file is damaged.
    """
    if not is_file(folder / INDEX):
        hint = "python -m moshi_mlx.train prepare makes one from recordings"
        raise InputError(f"{folder}: no prepared data, or preparing was interrupted; {hint}")
    index = read_json(folder / INDEX)
    for key, wanted in settings.items():
        if index.get(key) != wanted:
            raise ConfigError(
                f"{folder / INDEX}: key {key!r} is {brief(index.get(key))}, but the model's is {wanted!r}; "
                "prepare the data with this model"
            )
    paths = sorted(folder.glob("shard-*.safetensors"))
    if len(paths) != whole_number(index, "shards", str(folder / INDEX)):
        raise CheckpointError(f"{folder}: has {len(paths)} shards, expected {index['shards']}; prepare it again")
    checks = settings["streams"], settings["vocabularies"]
    conversations = [tokens for path in paths for tokens in _conversations(path, *checks)]
    if not conversations:
        raise CheckpointError(f"{folder}: holds no conversations; prepare it again")
    return Dataset(conversations, frames)


def _conversations(path: Path, streams: list[int], vocabularies: list[int]) -> Iterator[np.ndarray]:
    """The conversations of a shard, uint16 [1 + streams, frames], in the order of their names.

    `streams`: how many codebooks of Moshi and of the user there are; `vocabularies`: the sizes of text and sound.
    Raises CheckpointError, naming the tensor, where one has another type or shape, or tokens outside.
    """
    rows = 1 + sum(streams)
    for name, (info, read) in sorted(stored(path).items()):
        where = f"{path}: tensor {brief(name)}"
        if info.dtype != "U16" or len(info.shape) != 2 or info.shape[0] != rows or info.shape[1] < 1:
            got = f"{info.dtype} {list(info.shape)}"
            raise CheckpointError(f"{where} is {got}, expected U16 [{rows}, frames]; prepare the data again")
        tokens = np.array(read())
        for what, part, size in (("text", tokens[:1], vocabularies[0]), ("sound", tokens[1:], vocabularies[1])):
            if part.max() >= size:
                got = f"has a token {part.max()} of {what}, but the model knows 0 to {size - 1}"
                raise CheckpointError(f"{where} {got}; prepare the data again")
        yield tokens
