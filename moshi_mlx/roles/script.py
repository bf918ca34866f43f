"""A text as the words that the word machine speaks: turns, pauses, what is not pronounced.

The rules are those of Kyutai's PyTorch package (moshi.models.tts): words lie between blanks; the first word of a turn
carries the token of its speaker where the speaker changes; `<break time="2s"/>`, of SSML, is a pause; ’ is an
apostrophe, a colon a blank, and brackets are left out.

Text may come in pieces of any size, cut anywhere: a word waits for what ends it, a tag for its end, and the words are
those of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError, clipped
from .words import Word

MOST_SECONDS = 600.0  # of one pause
SPEAKERS = (1, 2)  # tokens that begin a turn of the first and of the second speaker

_EVENT = re.compile(r'<break\s+time="([0-9]+(?:\.[0-9]*)?)s"\s*/?>|\s+')
_UNSPOKEN = str.maketrans({"’": "'", ":": " ", "(": None, ")": None})


def _begins_with(parts: Iterable[str]) -> re.Pattern[str]:
    """Matches whatever a text of these parts may begin with."""
    pattern = ""
    for part in reversed(list(parts)):
        pattern = f"(?:{part}{pattern})?"
    return re.compile(pattern)


_TAG_SO_FAR = _begins_with((*"<break", r"\s+", *'time="', "[0-9]+", r"(?:\.[0-9]*)?", "s", '"', r"\s*", "/?"))


@dataclass(frozen=True)
class Reader:
    """How a text is read: `tokenizer` encodes a word into tokens.

    `padding_between` more than 0 keeps so many frames between the end of a word's tokens and the next word, which
    makes the speech clearer; `speakers` is whether the model knows the tokens of speakers.
    """

    tokenizer: Any
    frame_rate: float = 12.5
    padding_between: int = 1
    speakers: bool = True


@dataclass(frozen=True)
class Script:
    """Where a reader stands in a text."""

    pending: str = ""  # what is no whole word yet
    turn: int = 0
    in_turn: bool = False  # this turn has had a word
    speaker: int = 0  # the token of who spoke last


def read(reader: Reader, script: Script, text: str) -> tuple[list[Word], Script]:
    """Further text of this turn -> the words that are whole now. Raises InputError for a pause of over ten minutes."""
    pending = script.pending + text.translate(_UNSPOKEN)
    settled = _settled(pending)
    words: list[Word] = []
    start = 0
    for event in _EVENT.finditer(pending, 0, settled):
        script = _add(reader, script, pending[start : event.start()], words)
        if event[1]:
            words.append(_pause(reader, event[1]))
        start = event.end()
    return words, replace(script, pending=pending[start:])


def finish(reader: Reader, script: Script) -> tuple[list[Word], Script]:
    """The end of the text, or of a turn: what was no whole word is one."""
    words, script = read(reader, script, " ")
    if not script.pending:
        return words, script
    # What still waits looks like the beginning of a tag, and is none.
    for part in script.pending.split():
        script = _add(reader, script, part, words)
    return words, replace(script, pending="")


def next_turn(reader: Reader, script: Script) -> tuple[list[Word], Script]:
    """The other speaker's turn begins: the rest of this one's words."""
    words, script = finish(reader, script)
    return words, replace(script, turn=script.turn + 1, in_turn=False)


def words_of(reader: Reader, turns: Iterable[str]) -> list[Word]:
    """The words of a whole script, a text for each turn; the first speaker begins, an empty turn lets the other."""
    words: list[Word] = []
    script = Script()
    for turn in turns:
        spoken, script = read(reader, script, turn)
        rest, script = next_turn(reader, script)
        words += spoken + rest
    return words


def _settled(text: str) -> int:
    """How much of a text stays what it is whatever follows: all but what may become a tag."""
    at = text.rfind("<")
    return at if at >= 0 and _TAG_SO_FAR.fullmatch(text, at) else len(text)


def _add(reader: Reader, script: Script, text: str, words: list[Word]) -> Script:
    """A word of the turn, if there is any, among the words."""
    if not text:
        return script
    tokens, speaker = list(reader.tokenizer.encode(text)), SPEAKERS[script.turn % len(SPEAKERS)]
    if reader.speakers and not script.in_turn and script.speaker != speaker:
        tokens.insert(0, speaker)
        script = replace(script, speaker=speaker)
    padding = max(0, reader.padding_between + len(tokens) - 1) if reader.padding_between > 0 else 0
    words.append(Word(tuple(tokens), text, padding))
    return replace(script, in_turn=True)


def _pause(reader: Reader, seconds: str) -> Word:
    if float(seconds) > MOST_SECONDS:
        raise InputError(f"text: got a break of {clipped(seconds, 20)} s, expected at most {MOST_SECONDS:.0f}")
    return Word((), "", round(float(seconds) * reader.frame_rate))
