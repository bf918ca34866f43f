"""Ask a model questions that it was not trained on, and score what it says: `python -m miniature evaluate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from moshi_mlx import MoshiForConditionalGeneration
from moshi_mlx.conversation import duplex
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.models.sampling import Sampling

from .conversations.dialogues import FRAME, Rendering, replies
from .scores import stoi
from .talk.speech import SAMPLE_RATE

AT_ONCE = 25
NEAR = SAMPLE_RATE // 100  # samples: 10 ms
STOPPED_WITHIN = 0.7  # seconds
SILENCE = 0.01  # root mean square; speech of peak 0.7 has about 0.07
GREEDY = DuplexSampling(Sampling(0.0, 0), Sampling(0.0, 0))


class Heard(NamedTuple):
    """What a model said to one rendering: a text token and FRAME samples for every frame."""

    tokens: np.ndarray
    sound: np.ndarray


class Scores(NamedTuple):
    """Counts of renderings: answered by the right text and nothing else, silent until the question was over; the STOI
    of all right answers in a row against the same words as espeak-ng spoke them.
    """

    asked: int
    answered: int
    silent: int
    stoi: float
    wrong: list[tuple[str, str, str]]


def ask(
    model: MoshiForConditionalGeneration, renderings: list[Rendering], sampling: DuplexSampling, seed: int = 0
) -> list[Heard]:
    """Every rendering as a conversation of its own, many at once, frame by frame through the duplex step."""
    step = mx.compile(lambda sound, state: duplex.step(model, sound, state, sampling))
    heard: list[Heard] = []
    for start in range(0, len(renderings), AT_ONCE):
        heard += _ask_together(model, step, renderings[start : start + AT_ONCE], sampling, seed + start)
    return heard


def _ask_together(
    model: MoshiForConditionalGeneration, step: Any, renderings: list[Rendering], sampling: DuplexSampling, seed: int
) -> list[Heard]:
    frames = max(len(rendering.sound) for rendering in renderings) // FRAME
    sound = np.zeros((len(renderings), frames * FRAME), np.float32)
    for row, rendering in zip(sound, renderings, strict=True):
        row[: len(rendering.sound)] = rendering.sound
    state = duplex.init_state(model, [seed + n for n in range(len(renderings))], capacity=frames + 1)
    first, state = duplex.prime(model, state, sampling)
    tokens, said = [np.array(first)], []
    for n in range(frames):
        reply, state = step(mx.array(sound[:, n * FRAME : (n + 1) * FRAME]), state)
        mx.eval(reply, state)
        tokens.append(np.array(reply.text))
        said.append(np.array(reply.sound) * np.array(reply.ready)[:, None])
    whole = [Heard(*pair) for pair in zip(np.stack(tokens, axis=1), np.concatenate(said, axis=1), strict=True)]
    return [
        Heard(one.tokens[: 1 + len(r.sound) // FRAME], one.sound[: len(r.sound)])
        for one, r in zip(whole, renderings, strict=True)
    ]


def text_of(model: MoshiForConditionalGeneration, tokens: np.ndarray) -> str:
    return str(model.tokenizer.decode([int(t) for t in tokens if t not in model.config.silent_text_tokens]))


def plain(text: str) -> str:
    """Without case and punctuation."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def is_silent(one: Heard, rendering: Rendering, silent_tokens: tuple[int, ...], start: float = 0.0) -> bool:
    """Neither a word nor a sound from `start` (seconds) to the question's end."""
    first, until = int(start * SAMPLE_RATE), int(rendering.end * SAMPLE_RATE)
    sound = one.sound[first:until]
    loudest = max(float(np.sqrt(np.mean(part**2))) for part in np.array_split(sound, max(1, len(sound) // FRAME)))
    return loudest < SILENCE and bool(np.isin(one.tokens[first // FRAME : until // FRAME], silent_tokens).all())


def gave_way(model: MoshiForConditionalGeneration, one: Heard, rendering: Rendering) -> bool:
    """Whether an interrupted model fell silent within `STOPPED_WITHIN` seconds and answered the new question."""
    text, answer = plain(text_of(model, one.tokens)), plain(rendering.exchange.answer)
    silent = is_silent(one, rendering, model.config.silent_text_tokens, rendering.start + STOPPED_WITHIN)
    return silent and text.endswith(answer)


def aligned(sound: np.ndarray, reference: np.ndarray, start: float) -> np.ndarray:
    """The part of `sound` after `start` (seconds), as long as `reference`, that follows it best.

    Found by loudness, then to a sample by the waves themselves.
    """
    rest = np.concatenate([sound[int(start * SAMPLE_RATE) :], np.zeros(len(reference), np.float32)])
    length = 2 ** int(np.ceil(np.log2(len(rest) + len(reference))))
    spectra = [np.fft.rfft(_loudness(x), length) for x in (rest, reference)]
    likeness = np.fft.irfft(spectra[0] * np.conj(spectra[1]), length)[: len(rest) - len(reference)]
    first = max(0, int(np.argmax(likeness)) - NEAR)
    at = first + int(np.argmax(np.correlate(rest[first : first + len(reference) + 2 * NEAR], reference)))
    return rest[at : at + len(reference)]


def _loudness(sound: np.ndarray) -> np.ndarray:
    """The magnitude over 10 ms."""
    total = np.cumsum(np.pad(np.abs(sound.astype(np.float64)), (NEAR, 0)))
    return (total[NEAR:] - total[:-NEAR]) / NEAR


def score(model: MoshiForConditionalGeneration, renderings: list[Rendering], heard: list[Heard]) -> Scores:
    answered, silent, wrong = 0, 0, []
    expected: list[np.ndarray] = []
    spoken: list[np.ndarray] = []
    for rendering, one in zip(renderings, heard, strict=True):
        text, answer = text_of(model, one.tokens), rendering.exchange.answer
        silent += is_silent(one, rendering, model.config.silent_text_tokens)
        if plain(text) != plain(answer):
            wrong.append((rendering.exchange.question, answer, text))
            continue
        answered += 1
        expected.append(replies()[answer].sound)
        spoken.append(aligned(one.sound, expected[-1], rendering.end))
    understood = stoi(np.concatenate(expected), np.concatenate(spoken)) if expected else 0.0
    return Scores(len(renderings), answered, silent, understood, wrong)


def picture(rendering: Rendering, one: Heard, target: Path) -> None:
    """Spectrograms of what the user said and what Moshi said."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 1, figsize=(9, 4.5), sharex=True)
    for axes, sound, title in zip(panels, (rendering.sound, one.sound), ("user", "Moshi"), strict=True):
        # A floor of noise far below hearing: the logarithm of digital silence is none.
        noisy = sound + 1e-5 * np.random.default_rng(0).standard_normal(len(sound))
        axes.specgram(noisy, NFFT=512, noverlap=384, Fs=SAMPLE_RATE, vmin=-130, vmax=-40)
        axes.set(ylabel="Hz", title=title, ylim=(0, 8000))
    panels[1].set_xlabel("s")
    figure.tight_layout()
    figure.savefig(target, dpi=80)
    plt.close(figure)
