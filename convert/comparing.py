"""`compare A B`: how far B, say A in 4 bits, is from A, over the same tokens.

A listens to the sound and talks; what it was given and what it said is then fed to both models, position by position
("teacher-forced"), and their distributions are set against each other: of the text, and of each codebook. KL divergence
is A's from B's in nats a token, agreement is how often the likeliest token is the same, perplexity is each model's of
the tokens that A drew.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from moshi_mlx import MoshiForConditionalGeneration, load
from moshi_mlx.audio import files
from moshi_mlx.checkpoints.hub import local_folder
from moshi_mlx.checkpoints.reading import open_checkpoint
from moshi_mlx.conversation import duplex
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.errors import InputError
from moshi_mlx.machine import preflight
from moshi_mlx.models.config import MimiConfig, MoshiConfig
from moshi_mlx.terminal.arguments import Parser
from moshi_mlx.terminal.progress import progress
from moshi_mlx.terminal.sizes import size
from moshi_mlx.terminal.streams import tell
from moshi_mlx.terminal.version import install

POSITIONS = 32  # of one call
PICTURES = (".png", ".svg", ".pdf")
MAX_TAIL = 600  # seconds
TAIL = 3.0
# Nats a token up to which it is so, on average over the streams.
VERDICTS = (
    (1e-6, "says the same as"), (0.01, "is hardly to be told from"), (0.1, "is close to"), (math.inf, "is far from"),
)  # fmt: skip


class Talk(NamedTuple):
    """What both models are asked about: the tokens that each position saw, and those that A drew there."""

    inputs: np.ndarray  # int32 [1 + streams, T]
    text: np.ndarray  # int32 [T]
    codes: np.ndarray  # int32 [num_codebooks, T]
    valid: np.ndarray  # bool [1 + num_codebooks, T]: false before the start of a delayed codebook

    def first(self, count: int) -> Talk:
        """The first `count` positions, on which later ones have no influence."""
        return Talk(*(part[..., :count] for part in self))


class Stream(NamedTuple):
    """The figures of one stream."""

    name: str
    divergence: float  # nats
    agreement: float  # share of positions
    perplexity_a: float
    perplexity_b: float


def talk(model: MoshiForConditionalGeneration, sound: np.ndarray, seed: int) -> Talk:
    """A conversation about `sound` float32 [n], drawn as the model's own settings say."""
    config = model.config
    user = np.array(model.audio_encoder.encode(sound[None], num_quantizers=config.user_codebooks).audio_codes)[
        0
    ]  # [user, frames]
    sampling = _sampling(model)
    state = duplex.init_state(model, [seed])
    step = mx.compile(lambda codes, state: duplex.language_step(model, codes, state, sampling))
    text, codes = [], []
    for frame in [np.zeros(config.user_codebooks, np.int32), *user.T]:
        token, _, state = step(mx.array(frame[None].astype(np.int32)), state)
        mx.eval(token, state)
        text.append(int(np.array(token)[0]))
        codes.append(np.array(state["own"])[0, :, -1])
    return _talk(model, np.array(text, np.int32), np.stack(codes, axis=1).astype(np.int32), user)


def _sampling(model: MoshiForConditionalGeneration) -> DuplexSampling:
    """The reference's, but for what the checkpoint says otherwise."""
    usual, said = DuplexSampling(), dict[str, Any](model.sampling_defaults)
    text = {name: said[f"text_{name}"] for name in ("temperature", "top_k") if f"text_{name}" in said}
    audio = {name: said[name] for name in ("temperature", "top_k") if name in said}
    return DuplexSampling(replace(usual.text, **text), replace(usual.audio, **audio))


def _talk(model: MoshiForConditionalGeneration, text: np.ndarray, codes: np.ndarray, user: np.ndarray) -> Talk:
    """Position p sees what was drawn at p - 1, and the user's frame p - 1 less the stream's delay."""
    config, count = model.config, codes.shape[1]
    delays = np.array((0, *config.audio_delays))
    inputs = np.zeros((len(delays), count), np.int32)
    inputs[0, 1:] = text[:-1]
    inputs[1 : 1 + len(codes), 1:] = codes[:, :-1]
    for row, delay in enumerate(config.audio_delays[len(codes) :], 1 + len(codes)):
        inputs[row, 1 + delay :] = user[row - 1 - len(codes), : count - 1 - delay]
    initial = np.array([config.vocab_size] + [config.audio_vocab_size] * len(config.audio_delays))
    positions = np.arange(count)[None]
    inputs = np.where(positions <= delays[:, None], initial[:, None], inputs).astype(np.int32)
    valid = positions >= delays[: 1 + len(codes), None]
    return Talk(inputs, text, codes, valid)


def distributions(model: MoshiForConditionalGeneration, said: Talk, done: Callable[[int], object]) -> list[np.ndarray]:
    """Log-probabilities of text [T, vocab], then of each codebook [T, entries], float32, of every position."""
    count = said.inputs.shape[1]
    state = model.decoder.model.init_state(1, positions=POSITIONS)
    parts: list[list[np.ndarray]] = []
    for start in range(0, count, POSITIONS):
        end = min(start + POSITIONS, count)
        tokens = mx.array(said.inputs[None, :, start:end])
        hidden, logits, state = model.decoder.step(tokens, state)
        heads = [logits[0], *_depth_logits(model, hidden[0], said, start, end)]
        heads = [
            head.astype(mx.float32) - mx.logsumexp(head.astype(mx.float32), axis=-1, keepdims=True) for head in heads
        ]
        mx.eval(heads, state)
        parts.append([np.array(head) for head in heads])
        done(end - start)
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _depth_logits(
    model: MoshiForConditionalGeneration, hidden: mx.array, said: Talk, start: int, end: int
) -> list[mx.array]:
    """The depth decoder's logits [n, entries] of each codebook, fed with A's tokens of these positions as a batch."""
    seen: list[mx.array] = []

    def forced(step: int, logits: mx.array) -> mx.array:
        seen.append(logits)
        return mx.array(said.codes[step, start:end])

    model.depth_decoder.sample(hidden, mx.array(said.text[start:end]), forced)
    return seen


def figures(a: list[np.ndarray], b: list[np.ndarray], said: Talk) -> list[Stream]:
    """The streams' figures from the log-probabilities of both models."""
    drawn = [said.text, *said.codes]
    names = ["text", *(f"codebook {n}" for n in range(len(said.codes)))]
    streams = []
    for name, of_a, of_b, tokens, valid in zip(names, a, b, drawn, said.valid, strict=True):
        of_a, of_b, tokens = of_a[valid], of_b[valid], tokens[valid]
        rows = np.arange(len(tokens))
        streams.append(
            Stream(
                name,
                float(np.mean(np.sum(np.exp(of_a) * (of_a - of_b), axis=-1, dtype=np.float64))),
                float(np.mean(of_a.argmax(-1) == of_b.argmax(-1))),
                *(float(np.exp(-np.mean(of[rows, tokens], dtype=np.float64))) for of in (of_a, of_b)),
            )
        )
    return streams


def table(streams: list[Stream], sizes: tuple[int, int], positions: int) -> str:
    """For people."""
    lines = [f"{'':<12}{'KL (nats)':>12}{'top-1 same':>12}{'perplexity A':>14}{'perplexity B':>14}"]
    for s in streams:
        lines.append(
            f"{s.name:<12}{s.divergence:>12.5f}{s.agreement:>12.1%}{s.perplexity_a:>14.2f}{s.perplexity_b:>14.2f}"
        )
    a, b = sizes
    lines.append(f"{positions} positions; weights A {size(a)}, B {size(b)} ({b / a:.0%})")
    return "\n".join(lines)


def verdict(streams: list[Stream]) -> str:
    """All streams in a line: how far B is, by the mean of their divergences, and where it is farthest."""
    mean = float(np.mean([stream.divergence for stream in streams]))
    same = float(np.mean([stream.agreement for stream in streams]))
    worst = max(streams, key=lambda stream: stream.divergence)
    words = next(words for most, words in VERDICTS if mean <= most)
    return (
        f"verdict: B {words} A: {mean:.3g} nats on average, the likeliest token the same in {same:.1%}; "
        f"farthest in {worst.name} ({worst.divergence:.3g} nats)"
    )


def picture(path: Path, streams: list[Stream], sizes: tuple[int, int], names: tuple[str, str]) -> None:
    """Divergence and agreement of every stream as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    labels = [stream.name.replace("codebook ", "") for stream in streams]
    axes[0].bar(labels, [stream.divergence for stream in streams], color="tab:blue")
    axes[0].set(title="KL divergence", ylabel="nats a token", xlabel="text, then codebooks")
    axes[1].bar(labels, [100 * stream.agreement for stream in streams], color="tab:green")
    axes[1].set(title="same likeliest token", ylabel="% of positions", xlabel="text, then codebooks", ylim=(0, 100))
    figure.suptitle(f"{names[1]} ({size(sizes[1])}) against {names[0]} ({size(sizes[0])})")
    figure.savefig(path)
    pyplot.close(figure)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= MAX_TAIL:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of seconds from 0 to {MAX_TAIL}")
    return value


def _parser() -> Parser:
    parser = Parser(
        "python -m moshi_mlx.convert compare", description="How far model B is from model A over the same tokens."
    )
    parser.add_argument("a", metavar="A", help="folder or hub id; it hears the sound and talks")
    parser.add_argument("b", metavar="B", help="folder or hub id")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="what the user says")
    parser.add_argument("--tail", type=_seconds, default=TAIL, metavar="SECONDS",
        help=f"silence after it, in which A answers (default: {TAIL:g})")  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the picture (default: compare.png)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what A draws (default: 0)")
    return parser


def main(argv: Sequence[str]) -> int:
    """`compare`: prints the table, draws the picture and returns the exit status."""
    arguments = _parser().parse_args(argv)
    plot = _plot_path(arguments.plot)
    if not 0 <= arguments.seed < 2**64:
        raise InputError(f"--seed: got {arguments.seed}, expected a whole number from 0 to 2**64 - 1")
    if not arguments.input.is_file():
        raise InputError(f"{arguments.input}: no such sound file")
    said, results, sizes = _ask((arguments.a, arguments.b), arguments.input, arguments.tail, arguments.seed)
    streams = figures(results[0], results[1], said)
    tell(table(streams, (sizes[0], sizes[1]), said.inputs.shape[1]))
    if plot:
        picture(plot, streams, (sizes[0], sizes[1]), (arguments.a, arguments.b))
        tell(f"picture in {plot}")
    else:
        tell(f"no picture: that needs {install('plot')}")
    tell(verdict(streams))
    return 0


def _ask(names: tuple[str, str], path: Path, tail: float, seed: int) -> tuple[Talk, list[list[np.ndarray]], list[int]]:
    """The talk of the first model, and of both their distributions and bytes; one is in memory at a time."""
    _check_alike(names)
    results, sizes = [], []
    said = None
    for name in names:
        model = load(name)
        if said is None:
            said = talk(model, heard(path, model.config.audio_encoder_config, tail), seed)
        with progress(str(name), said.inputs.shape[1]) as done:
            results.append(distributions(model, said, done))
        sizes.append(preflight.weight_bytes(model)[0])
        del model
        gc.collect()
        mx.clear_cache()
    assert said is not None
    return said, results, sizes


def heard(path: Path, codec: MimiConfig, tail: float = TAIL) -> np.ndarray:
    """The sound of a file and `tail` seconds of silence, float32, in whole frames."""
    sound = files.read_sound(path, codec.sampling_rate)
    sound = np.pad(sound, (0, round(tail * codec.sampling_rate)))
    return np.pad(sound, (0, -len(sound) % codec.frame_size))


def _check_alike(names: tuple[str, str]) -> None:
    """Raises InputError where the models have other streams, before either is loaded."""
    a, b = (_sizes(open_checkpoint(local_folder(name)).config) for name in names)
    if a != b:
        raise InputError(f"{names[1]}: has other streams or vocabularies than {names[0]}, so they cannot be compared")


def _sizes(config: MoshiConfig) -> tuple[Any, ...]:
    return config.vocab_size, config.audio_vocab_size, config.num_codebooks, config.audio_delays


def _plot_path(asked: Path | None) -> Path | None:
    """Where the picture goes; nowhere where matplotlib is missing and nobody asked for one."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        if asked is not None:
            raise InputError(f"--plot: needs matplotlib; {install('plot')}")
        return None
    path = asked or Path("compare.png")
    if path.suffix not in PICTURES:
        raise InputError(f"--plot: got {path}, expected a name that ends in {', '.join(PICTURES)}")
    there = path if os.path.lexists(path) else path.parent
    if not os.path.isdir(path.parent) or os.path.isdir(path) or not os.access(there, os.W_OK):
        raise InputError(f"--plot: {path} cannot be written; choose another place")
    return path
