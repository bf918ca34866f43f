"""The words of a conversation with their times, from the JSON file beside its sound.

Two kinds are read. Kyutai's moshi-finetune has [[word, [start, end], speaker], ...] in seconds, as such a list or under
the key "alignments"; what its loader takes is taken. What `moshi_mlx.local --record` writes has "words", all of them
Moshi's, "channels", by which the user is on the left there, and "resets".
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, brief, clipped
from .files import read_text

LARGEST = 64 * 10**6  # bytes: the words of a thousand hours
CHANNELS = ("moshi", "user")

Word = tuple[str, float, float]
"""(word, start, end), in seconds."""


class Script(NamedTuple):
    """What Moshi says in a conversation."""

    words: list[Word]  # in the order of their starts
    moshi: int = 0  # its channel in a stereo file
    recorded: bool = False  # by --record: each word stands at the frame in which it was printed
    resets: tuple[float, ...] = ()  # the seconds at which a conversation began anew


def read(path: Path, speaker: str) -> Script:
    """The words that `speaker` says.

    Raises InputError where the file is not what this module's head describes, or names other speakers only.
    """
    try:
        values = json.loads(read_text(path, LARGEST))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file of word timings ({clipped(str(error))})") from error
    if isinstance(values, dict) and "words" in values and "channels" in values:
        return _recorded(values, path)
    values = values.get("alignments") if isinstance(values, dict) else values
    if not isinstance(values, list):
        raise InputError(f'{path}: expected a list of [word, [start, end], speaker], or one under "alignments"')
    parsed = [_parse(value, f"{path}: word {n}") for n, value in enumerate(values)]
    if parsed and not any(who == speaker for *_, who in parsed):
        others = sorted({clipped(str(who)) for *_, who in parsed})
        raise InputError(f"{path}: no word is said by {speaker!r}, only by {clipped(', '.join(others))}; see --speaker")
    return Script(_in_order([(word, start, end) for word, start, end, who in parsed if who == speaker]))


def _in_order(words: list[Word]) -> list[Word]:
    """As Kyutai's loader has them: by their starts, without those that have no length."""
    return sorted((word for word in words if word[1] < word[2]), key=lambda word: word[1])


def _parse(value: Any, where: str) -> tuple[str, float, float, Any]:
    try:
        word, times, who = value
        start, end = _time(times[0]), _time(times[1])
        fits = isinstance(times, list) and isinstance(word, str) and _is_finite(start, end)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        fits = False
    if not fits:
        raise InputError(f"{where} is {brief(value)}, expected [word, [start, end], speaker], times in seconds")
    return word, start, end, who


def _time(value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise TypeError
    return float(value)


def _is_finite(start: float, end: float) -> bool:
    """Not a number is a word without length to Kyutai's loader; of what has a length both ends must be known."""
    return not start < end or (math.isfinite(start) and math.isfinite(end))


def _recorded(values: dict[str, Any], path: Path) -> Script:
    channels, words = values["channels"], values["words"]
    if not isinstance(channels, list) or sorted(map(str, channels)) != sorted(CHANNELS):
        raise InputError(f"{path}: key 'channels' is {brief(channels)}, expected 'user' and 'moshi' in their order")
    if not isinstance(words, list):
        raise InputError(f"{path}: key 'words' is {brief(words)}, expected a list")
    found = [_recorded_word(word, f"{path}: word {n}") for n, word in enumerate(words)]
    return Script(_in_order(found), channels.index("moshi"), True, _resets(values.get("resets", []), path))


def _resets(values: Any, path: Path) -> tuple[float, ...]:
    try:
        found = sorted({_time(value) for value in values})
        fits = all(0 <= value < math.inf for value in found)
    except (TypeError, OverflowError):
        fits = False
    if not fits:
        raise InputError(f"{path}: key 'resets' is {brief(values)}, expected a list of seconds")
    return tuple(found)


def _recorded_word(value: Any, where: str) -> Word:
    try:
        word, start, end = value["word"], _time(value["start"]), _time(value["end"])
        fits = isinstance(word, str) and _is_finite(start, end)
    except (TypeError, KeyError, OverflowError):
        fits = False
    if not fits:
        raise InputError(f'{where} is {brief(value)}, expected {{"word": TEXT, "start": SECONDS, "end": SECONDS}}')
    return word, start, end
