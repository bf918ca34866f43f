"""Finding and checking recorded conversations in the format of Kyutai's moshi-finetune (its README).

A conversation is a stereo sound file, Moshi on the left and the user on the right, or the pair NAME.moshi.wav and
NAME.user.wav of mono files; beside it NAME.json has the words with their times:
[[word, [start, end], speaker], ...] in seconds, as they are or under the key "alignments".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from ..errors import AudioError, InputError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
SIDES = (".moshi", ".user")
SPEAKER = "SPEAKER_MAIN"  # what Kyutai's annotation script calls Moshi's channel
BLOCK_SECONDS = 10

Word = tuple[str, float, float]
"""(word, start, end), in seconds."""


class Conversation(NamedTuple):
    """The files of one: `moshi` and `user` are the same where one file holds both."""

    name: str  # relative to the source, without suffix
    moshi: Path
    user: Path
    timings: Path


def find(source: Path) -> list[Conversation]:
    """The conversations of a folder, or those that a JSON-lines manifest lists, in a fixed order.

    Raises InputError, naming the file, where there are none, or a file or half of a pair is missing.
    """
    if source.is_dir():
        found = sorted(_in_folder(source))
    elif source.is_file():
        found = list(_in_manifest(source))
    else:
        raise InputError(f"{source}: no such folder or manifest of recordings")
    if not found:
        raise InputError(f"{source}: lists no sound files ({', '.join(SUFFIXES)})")
    names = Counter(conversation.name for conversation in found)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise InputError(f"{source}: two conversations have the name {twice[0]!r}; rename one")
    return found


def _in_folder(folder: Path) -> Iterator[Conversation]:
    for path in folder.rglob("*"):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        stem = path.with_suffix("")
        if stem.suffix not in SIDES:
            yield Conversation(str(stem.relative_to(folder)), path, path, path.with_suffix(".json"))
            continue
        other = SIDES[1 - SIDES.index(stem.suffix)]
        halves = [half for suffix in SUFFIXES if (half := stem.with_suffix(other + suffix)).is_file()]
        if not halves:
            raise InputError(f"{path}: the other half of the pair, {stem.with_suffix(other).name}, is missing")
        if other == SIDES[1]:
            name = str(stem.with_suffix("").relative_to(folder))
            yield Conversation(name, path, halves[0], stem.with_suffix(".json"))


def _in_manifest(manifest: Path) -> Iterator[Conversation]:
    for number, line in enumerate(manifest.read_text().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{manifest}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error})") from error
        entry = entry if isinstance(entry, dict) else {}
        moshi, user = (entry.get(side, entry.get("path")) for side in ("moshi", "user"))
        if not isinstance(moshi, str) or not isinstance(user, str):
            raise InputError(f'{where}: expected {{"path": FILE}}, or {{"moshi": FILE, "user": FILE}} of a pair')
        name = str(Path(moshi).with_suffix("")).removesuffix(SIDES[0])
        folder = manifest.parent
        yield Conversation(name, folder / moshi, folder / user, folder / f"{name}.json")


def check(conversations: list[Conversation], speaker: str) -> dict[str, list[Word]]:
    """The words that `speaker` says in each conversation, by its name, once all is well with all the files.

    Raises InputError or AudioError, naming the first file that is missing, unlike the rest or without timings.
    """
    rates: dict[int, Path] = {}
    for conversation in conversations:
        paired = conversation.moshi != conversation.user
        for path in (conversation.moshi, conversation.user)[: 1 + paired]:
            rate, channels = _header(path)
            first = next(iter(rates.items()), (rate, path))
            if rate != first[0]:
                raise InputError(
                    f"{path}: has a sample rate of {rate} Hz, but {first[1]} has {first[0]} Hz; resample one of them"
                )
            rates[rate] = first[1]
            if channels != 2 - paired:
                wanted = "mono, as one side of a pair" if paired else "stereo: Moshi on the left, the user on the right"
                raise InputError(f"{path}: has {channels} channels, expected {wanted}")
        if not conversation.timings.is_file():
            raise InputError(f"{conversation.moshi}: has no word timings, expected them in {conversation.timings}")
    return {conversation.name: words(conversation.timings, speaker) for conversation in conversations}


def _header(path: Path) -> tuple[int, int]:
    if not path.is_file():
        raise InputError(f"{path}: no such sound file")
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, TypeError) as error:
        raise AudioError(f"{path}: not a sound file that can be read, expected WAV, FLAC, OGG or MP3") from error
    return info.samplerate, info.channels


def words(path: Path, speaker: str) -> list[Word]:
    """The words that `speaker` says, in the order of their starts.

    Raises InputError where the file is not what this module's head describes, or names other speakers only.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON file of word timings ({error})") from error
    values = values.get("alignments") if isinstance(values, dict) else values
    if not isinstance(values, list):
        raise InputError(f'{path}: expected a list of [word, [start, end], speaker], or one under "alignments"')
    parsed = [_parse(value, f"{path}: word {n}") for n, value in enumerate(values)]
    others = sorted({who for *_, who in parsed} - {speaker})
    spoken = [(word, start, end) for word, start, end, who in parsed if who == speaker and word.strip()]
    if parsed and not spoken:
        raise InputError(f"{path}: no word is said by {speaker!r}, only by {', '.join(others)}; see --speaker")
    return sorted(spoken, key=lambda word: word[1])


def _parse(value: Any, where: str) -> tuple[str, float, float, str]:
    try:
        word, (start, end), who = value
        start, end = float(start), float(end)
    except (TypeError, ValueError):
        word = start = end = who = None
    if not isinstance(word, str) or not isinstance(who, str) or not 0 <= start <= end < float("inf"):
        raise InputError(f"{where} is {value!r}, expected [word, [start, end], speaker] with 0 <= start <= end")
    return word, start, end, who


def sound(conversation: Conversation, sample_rate: int) -> Iterator[np.ndarray]:
    """The two channels, Moshi first, resampled, in blocks float32 [2, T]; of a pair the shorter file ends in silence.

    Samples that are no finite numbers are silence.
    """
    paths = list(dict.fromkeys((conversation.moshi, conversation.user)))
    with soundfile.SoundFile(str(paths[0])) as first, soundfile.SoundFile(str(paths[-1])) as second:
        files = [first, second][: len(paths)]
        rate = first.samplerate
        resampler = soxr.ResampleStream(rate, sample_rate, 2, dtype="float32")
        left = max(file.frames for file in files)
        while left > 0:
            length = min(left, BLOCK_SECONDS * rate)
            block = np.concatenate([_read(file, length) for file in files], axis=1)
            left -= length
            block = block if rate == sample_rate else resampler.resample_chunk(block, last=left <= 0)
            yield np.ascontiguousarray(block.T)


def _read(file: soundfile.SoundFile, length: int) -> np.ndarray:
    """The next samples [length, channels], silence after the end."""
    block = file.read(length, dtype="float32", always_2d=True, fill_value=0)
    block = np.concatenate([block, np.zeros((length - len(block), block.shape[1]), np.float32)])
    return np.nan_to_num(block, nan=0, posinf=0, neginf=0)


def seconds(conversation: Conversation) -> float:
    """How long a conversation is."""
    return max(soundfile.info(str(path)).duration for path in (conversation.moshi, conversation.user))
