"""From a voice and a persona to the first frame, against as many frames of a conversation.

    python -m bench.persona --size mid --frames 200

Random weights, made in memory; the prompt's frames are random too, and what they cost does not depend on that. The
step's kernels are built before, as they are without a prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time

import mlx.core as mx
import numpy as np

from moshi_mlx import MoshiForConditionalGeneration, Session
from moshi_mlx.conversation import prompt as prompts
from moshi_mlx.conversation.prompt import Columns, Prefilled

from .cases import SIZES, config_of

WARMUP = 3


def random_prompt(model: MoshiForConditionalGeneration, frames: int) -> Columns:
    """Columns of any tokens."""
    config = model.config
    rows = [config.vocab_size] + [config.audio_vocab_size] * len(config.audio_delays)
    random = np.random.default_rng(0)
    columns = np.stack([random.integers(0, count, frames) for count in rows])
    return Columns(columns[None].astype(np.int32), np.array([frames]))


def read(model: MoshiForConditionalGeneration, columns: Columns) -> tuple[Prefilled, float]:
    """The prompt, and the seconds that reading it takes."""
    start = time.perf_counter()
    made = prompts.prefill(model, columns)
    mx.eval(made.temporal, made.hidden)
    return made, time.perf_counter() - start


def frame_seconds(session: Session, count: int) -> float:
    """The median of a frame."""
    sound, seconds = np.zeros(session.frame_size, np.float32), []
    for _ in range(WARMUP + count):
        start = time.perf_counter()
        session.step(sound)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMUP:])


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description="From a voice and a persona to the first frame.")
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--frames", type=int, default=200, help="of the prompt")
    parser.add_argument("--steps", type=int, default=20, help="frames to time")
    arguments = parser.parse_args()
    model = MoshiForConditionalGeneration(config_of(arguments.size))
    mx.eval(model.parameters())
    columns = random_prompt(model, arguments.frames)
    prompt, _ = read(model, columns)
    session = Session(model, prompt=prompt, progress=False)
    step = frame_seconds(session, arguments.steps)
    prompt, reading = min((read(model, columns) for _ in range(3)), key=lambda pair: pair[1])
    start = time.perf_counter()
    session.reset()
    session.step(np.zeros(session.frame_size, np.float32))
    beginning = time.perf_counter() - start
    share = (reading + beginning) / (arguments.frames * step)
    print(
        f"{arguments.frames} frames: read in {1e3 * reading:.0f} ms, begun and first frame {1e3 * beginning:.0f} ms, "
        f"frame {1e3 * step:.1f} ms; start to first frame / (frames x frame) {share:.3f}; "
        f"from a kept prompt {1e3 * beginning:.0f} ms"
    )


if __name__ == "__main__":
    main()
