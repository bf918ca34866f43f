"""Finding and checking recorded conversations in the format of Kyutai's moshi-finetune (its README).

A conversation is a stereo sound file, Moshi on the left and the user on the right, or the pair NAME.moshi.wav and
NAME.user.wav of mono files; beside it NAME.json has the words with their times (see `timings`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import AudioError, InputError, brief, clipped
from . import sounds, timings
from .files import is_file, read_text, say
from .timings import Script, Word

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
SIDES = (".moshi", ".user")
SPEAKER = "SPEAKER_MAIN"  # what Kyutai's annotation script calls Moshi's channel
LARGEST_MANIFEST = 256 * 10**6  # bytes: a million recordings


class Conversation(NamedTuple):
    """The files of one: `moshi` and `user` are the same where one file holds both."""

    name: str  # relative to the source, without suffix
    moshi: Path
    user: Path
    timings: Path

    @property
    def sounds(self) -> list[Path]:
        """One file, or Moshi's and the user's."""
        return list(dict.fromkeys((self.moshi, self.user)))


def find(source: Path) -> list[Conversation]:
    """The conversations of a folder, those that a JSON-lines manifest lists, or that of one sound file, in order.

    Raises InputError, naming the file, where there are none, or a file or half of a pair is missing.
    """
    if source.is_dir():
        found = sorted(_in_folder(source, [path for path in source.rglob("*") if _is_sound(path)]))
    elif is_file(source):
        found = list(_of_file(source) if _is_sound(source) else _in_manifest(source))
    else:
        raise InputError(f"{source}: no such folder or manifest of recordings")
    if not found:
        raise InputError(f"{source}: lists no sound files ({', '.join(SUFFIXES)})")
    names = Counter(conversation.name for conversation in found)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise InputError(f"{source}: two conversations have the name {brief(twice[0])}; rename one")
    return found


def _is_sound(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _in_folder(folder: Path, paths: list[Path]) -> Iterator[Conversation]:
    """Capitals make no difference: A.MOSHI.WAV and A.user.wav are a pair on any file system."""
    known = {str(path).lower(): path for path in sorted(paths, reverse=True)}
    for path in paths:
        stem = path.with_suffix("")
        side = stem.suffix.lower()
        if side not in SIDES:
            yield Conversation(str(stem.relative_to(folder)), path, path, _timings(stem))
            continue
        other = SIDES[1 - SIDES.index(side)]
        names = (str(stem.with_suffix(other + suffix)).lower() for suffix in SUFFIXES)
        halves = [known[name] for name in names if name in known]
        if not halves:
            raise InputError(f"{path}: the other half of the pair, {stem.with_suffix(other).name}, is missing")
        if other == SIDES[1]:
            bare = stem.with_suffix("")
            yield Conversation(str(bare.relative_to(folder)), path, halves[0], _timings(bare))


def _timings(stem: Path) -> Path:
    """NAME.json, or its name in capitals."""
    names = [stem.with_name(stem.name + suffix) for suffix in (".json", ".JSON")]
    return next((name for name in names if is_file(name)), names[0])


def _of_file(path: Path) -> Iterator[Conversation]:
    """A sound file, with the other half where it is one of a pair."""
    near = [beside for beside in path.parent.iterdir() if _is_sound(beside)]
    return (found for found in _in_folder(path.parent, near) if path in (found.moshi, found.user))


def _in_manifest(manifest: Path) -> Iterator[Conversation]:
    for number, line in enumerate(
        read_text(manifest, LARGEST_MANIFEST).split("\n"), 1
    ):  # not splitlines: U+2028 may stand in a name
        if line.strip():
            yield _entry(line, manifest.parent, f"{manifest}, line {number}")


def _entry(line: str, folder: Path, where: str) -> Conversation:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = 'expected a folder, or a manifest with {"path": FILE} on each line'
        raise InputError(f"{where}: not JSON ({clipped(str(error))}); {hint}") from error
    entry = entry if isinstance(entry, dict) else {}
    moshi, user = (entry.get(side, entry.get("path")) for side in ("moshi", "user"))
    try:
        if not isinstance(moshi, str) or not isinstance(user, str):
            raise TypeError
        stem = Path(moshi).with_suffix("")
        name = str(stem.with_suffix("") if moshi != user and stem.suffix.lower() == SIDES[0] else stem)
        return Conversation(name, folder / moshi, folder / user, _timings(folder / name))
    except (TypeError, ValueError) as error:
        raise InputError(f'{where}: expected {{"path": FILE}}, or {{"moshi": FILE, "user": FILE}} of a pair') from error


class Checked(NamedTuple):
    """What there is to train on, and what each recording that cannot be read fails with, by name."""

    scripts: dict[str, Script]
    damaged: dict[str, AudioError]


def check(conversations: list[Conversation], speaker: str, warn: Callable[[str], Any] = say) -> Checked:
    """The words that `speaker` says in each conversation, by its name, once all is well with all the files.

    `warn` is told of words beyond the end of the sound. Raises InputError, naming the first file that is missing,
    unlike the rest or without timings, and AudioError where no sound can be read.
    """
    checked, rates = Checked({}, {}), dict[int, Path]()
    for conversation in conversations:
        for path in conversation.sounds:
            if not is_file(path):
                raise InputError(f"{path}: no such sound file")
        if not is_file(conversation.timings):
            raise InputError(f"{conversation.moshi}: has no word timings, expected them in {conversation.timings}")
        script = timings.read(conversation.timings, speaker)
        try:
            seconds = _check_sounds(conversation, rates)
        except AudioError as error:
            checked.damaged[conversation.name] = error
            continue
        _tell_of_words_beyond(script.words, seconds, conversation.timings, warn)
        checked.scripts[conversation.name] = script
    if not checked.scripts:
        raise next(iter(checked.damaged.values()))
    return checked


def _check_sounds(conversation: Conversation, rates: dict[int, Path]) -> float:
    """The seconds that a conversation's files say they have. `rates`: the first of them, with its file."""
    paths = conversation.sounds
    said = {path: sounds.header(path) for path in paths}
    for path, (rate, channels, _) in said.items():
        first, where = next(iter(rates.items()), (rate, path))
        if rate != first:
            raise InputError(
                f"{path}: has a sample rate of {rate} Hz, but {where} has {first} Hz; resample one of them"
            )
        rates[rate] = where
        if channels != 3 - len(paths):
            wanted = "mono, as one side of a pair" if len(paths) == 2 else "stereo: Moshi on the left, the user right"
            raise InputError(f"{path}: has {channels} channels, expected {wanted}")
    return max(one.seconds for one in said.values())


def _tell_of_words_beyond(words: list[Word], seconds: float, path: Path, warn: Callable[[str], Any]) -> None:
    beyond = [(word, start) for word, start, end in words if start >= seconds or end > seconds + 1]
    if beyond:
        word, start = beyond[0]
        count = f"{len(beyond)} words end" if len(beyond) > 1 else "a word ends"
        first = f"{brief(word)} at {start:g} s"
        warn(
            f"{path}: {count} after the sound, which has {seconds:.1f} s: {first}; are the timings another recording's?"
        )


def sound(conversation: Conversation, sample_rate: int, moshi: int = 0) -> Iterator[np.ndarray]:
    """The two channels, Moshi first, in blocks float32 [2, T]; `moshi`: its channel where one file has both.

    Raises as `sounds.stream`.
    """
    paths = conversation.sounds
    turned = moshi == 1 and len(paths) == 1
    for block in sounds.stream(paths, sample_rate):
        yield block[::-1] if turned else block


def seconds(conversation: Conversation) -> float:
    """How long a conversation says that it is."""
    return max(sounds.header(path).seconds for path in conversation.sounds)
