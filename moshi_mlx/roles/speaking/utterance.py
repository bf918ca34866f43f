"""An utterance: where one text is between its letters and its sound, as plain immutable state, a row's own.

Position s of a speaker asks for text, is answered, and draws codes (see `words`). The sound comes behind the text:
what is said in position s is heard in column s + `audio_start`, and a column is complete once the codebook with the
longest delay is drawn. A voice that is a recording fills the first positions: its text is nothing, its codes take the
place of what was drawn (moshi.models.tts, `generate`), and what is heard of it is not handed out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ...models.config import MoshiConfig
from .. import words as machine
from ..script import Reader, Script, finish, next_turn, read
from ..words import NO_TEXT, Rules, Word, Words

FINAL_PADDING = 4  # positions beyond the end of the text, so that its last sound fades
DRAWN, NOTHING = -2, -1  # what may take the place of a code: itself, nothing


class Spoken(NamedTuple):
    """80 ms of speech. Words come when their end is known, which is before they are heard.

    - `pcm`: float32 [frame_size], 1920 samples at 24000 Hz; None while there is no sound yet, which comes `audio_start`
      and the longest delay behind the text.
    - `codes`: int32 [codebooks], the codes of pcm; None where that is.
    - `words`: (word, start, stop) in seconds of the sound.
    """

    pcm: np.ndarray | None
    codes: np.ndarray | None
    words: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Plan:
    """What all utterances of a model have in common. With `turns` each line of a text is the other speaker's turn."""

    rules: Rules
    reader: Reader
    delays: tuple[int, ...]
    audio_start: int
    turns: bool = False

    @classmethod
    def of(cls, config: MoshiConfig, reader: Reader, turns: bool) -> Plan:
        """That of a model's sizes."""
        rules = Rules(config.vocab_size, config.second_stream_ahead)
        return cls(rules, reader, config.audio_delays[: config.num_codebooks], config.audio_start, turns)

    def seconds(self, positions: int) -> float:
        return positions / self.reader.frame_rate


@dataclass(frozen=True, eq=False)
class Utterance:
    """Where it stands. `position` is the next one; `prefix` int [num_codebooks, P] are the codes of a recording."""

    words: Words
    prefix: np.ndarray
    script: Script = field(default_factory=Script)
    position: int = 0
    current: tuple[str, int] | None = None  # the word under way, and where it began
    end: int | None = None  # the position that asked for a word after the last
    empty: bool = True  # there was no word so far


def begin(plan: Plan, prefix: np.ndarray | None = None) -> Utterance:
    """Nothing is said yet."""
    nothing = np.zeros((len(plan.delays), 0), np.int32)
    return Utterance(machine.begin(plan.rules), nothing if prefix is None else prefix)


def add(plan: Plan, utterance: Utterance, text: str) -> Utterance:
    """Further text, cut anywhere. Raises InputError after `close`, and for a pause of over ten minutes."""
    lines = text.split("\n") if plan.turns else [text]
    for number, line in enumerate(lines):
        script = utterance.script
        if number and (script.in_turn or script.pending.strip()):  # a line without words is nobody's turn
            said, script = next_turn(plan.reader, script)
            utterance = _with_words(utterance, said, script)
        said, script = read(plan.reader, utterance.script, line)
        utterance = _with_words(utterance, said, script)
    return utterance


def close(plan: Plan, utterance: Utterance) -> Utterance:
    """The text is complete."""
    said, script = finish(plan.reader, utterance.script)
    utterance = _with_words(utterance, said, script)
    return replace(utterance, words=machine.close(utterance.words))


def _with_words(utterance: Utterance, said: list[Word], script: Script) -> Utterance:
    words = machine.append(utterance.words, said)
    return replace(utterance, words=words, script=script, empty=utterance.empty and not said)


def ready(plan: Plan, utterance: Utterance) -> bool:
    """Whether the next position is the one that the whole text would have; else it stands still until more comes."""
    return not done(plan, utterance) and (_in_prefix(utterance) or machine.ready(plan.rules, utterance.words))


def done(plan: Plan, utterance: Utterance) -> bool:
    """Whether all is said."""
    end = utterance.end
    return end is not None and utterance.position >= end + plan.audio_start + FINAL_PADDING


def silent(plan: Plan, utterance: Utterance) -> bool:
    """Whether this position is before all sound, so that no code is to be drawn."""
    return utterance.position < plan.audio_start


def decodes(plan: Plan, utterance: Utterance) -> bool:
    """Whether this position completes a column that the codec is to decode."""
    return utterance.position - max(plan.delays) >= plan.audio_start


def is_heard(plan: Plan, utterance: Utterance) -> bool:
    """Whether that column is handed out: those of a recording are not."""
    return utterance.position - max(plan.delays) >= plan.audio_start + utterance.prefix.shape[1]


def replaced(plan: Plan, utterance: Utterance) -> np.ndarray:
    """What takes the place of this position's codes: int32 [num_codebooks], see `steps.say`."""
    index = utterance.position - plan.audio_start - np.array(plan.delays)
    known = np.where(index < 0, NOTHING, DRAWN)
    for codebook, at in enumerate(index):
        if 0 <= at < utterance.prefix.shape[1]:
            known[codebook] = utterance.prefix[codebook, at]
    return known.astype(np.int32)


def answer(plan: Plan, utterance: Utterance, asked: int) -> tuple[int, tuple[tuple[str, float, float], ...], Utterance]:
    """What this position is given where it asked for a token; the words that end with it; and the next position."""
    here = utterance.position
    after = replace(utterance, position=here + 1)
    if _in_prefix(utterance):
        return NO_TEXT, (), after
    given, word, words = machine.answer(plan.rules, utterance.words, asked)
    after = replace(after, words=words)
    ends = words.ended and utterance.end is None
    ended: tuple[tuple[str, float, float], ...] = ()
    if (word is not None or ends) and utterance.current is not None:
        text, start = utterance.current
        ended = ((text, _heard_at(plan, utterance, start), _heard_at(plan, utterance, here)),)
        after = replace(after, current=None)
    if word is not None and word.tokens:
        after = replace(after, current=(word.text, here))
    return given, ended, replace(after, end=here) if ends else after


def _heard_at(plan: Plan, utterance: Utterance, position: int) -> float:
    """When the sound of what is said in a position begins, in seconds of what is handed out."""
    return plan.seconds(position - utterance.prefix.shape[1])


def _in_prefix(utterance: Utterance) -> bool:
    return utterance.position < utterance.prefix.shape[1]
