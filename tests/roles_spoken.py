"""The word machine's goldens, and a text driven through it by tokens that were asked for."""

import json

from helpers import GOLDENS
from sentencepiece import SentencePieceProcessor

from moshi_mlx.roles import words
from moshi_mlx.roles.script import Reader
from moshi_mlx.roles.words import Rules, Word

TTS, PREFIX = GOLDENS / "family" / "tts", GOLDENS / "family" / "tts_prefix"
MACHINE = json.loads((TTS / "machine.json").read_text())


def tokenizer():
    return SentencePieceProcessor(str(TTS / "tokenizer.model"))


def reader(case):
    return Reader(tokenizer(), padding_between=case["padding_between"], speakers=case.get("multi_speaker", True))


def rules(case):
    said = case["machine"]
    return Rules(said["card"] - 1, said["second_stream_ahead"], said["max_padding"], said["initial_padding"])


def entries(case):
    return [Word(tuple(entry["tokens"]), entry["text"], entry["padding"]) for entry in case["entries"]]


def driven(rules, spoken, asked):
    """What the whole text answers: numbers given, steps at which words (and pauses) begin, transcript, end."""
    state = words.close(words.append(words.begin(rules), spoken))
    given, consumed, transcript, end = [], [], [], None
    for step, token in enumerate(asked):
        text, word, after = words.answer(rules, state, token)
        if after.ended and not state.ended:
            end = step
        state = after
        given.append(text)
        consumed.append(word is not None)
        if word is not None and word.tokens:
            transcript.append([word.text, step])
    return given, consumed, transcript, end
