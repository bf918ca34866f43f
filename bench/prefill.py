"""The prefill of a prompt against as many single steps, and the memory that it takes.

    python -m bench.prefill --size mid --frames 64 250
    python -m bench.prefill --size 7b --layers 2 --frames 125 250 500 --steps 0
    python -m bench.prefill --size mid --frames 200 --persona

Random weights, made in memory; `--layers` keeps so many (a prefill's memory beside its weights and caches does not
depend on their number). `--persona`: from a prompt to the first frame of a live session, against as many whole frames
of it; the step's kernels are built before, as they are without a prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import mlx.core as mx
import numpy as np

from moshi_mlx import MoshiConfig, MoshiForCausalLM, MoshiForConditionalGeneration, Session
from moshi_mlx.conversation import prompt as prompts
from moshi_mlx.conversation.prompt import Columns, Prefilled

from .cases import SIZES, WARMUP, config_of


def seconds(model: MoshiForCausalLM, tokens: mx.array) -> tuple[float, float]:
    """Of one prefill of tokens [1, streams, T] with its state, and gigabytes that it took beside the weights."""
    embeds = model.model.embed(tokens)
    mx.eval(embeds)
    mx.clear_cache()
    mx.reset_peak_memory()
    before, start = mx.get_active_memory(), time.perf_counter()
    out = model(inputs_embeds=embeds, logits_to_keep=1)
    mx.eval(out.logits, out.past_key_values)
    return time.perf_counter() - start, (mx.get_peak_memory() - before) / 1e9


def step_seconds(model: MoshiForCausalLM, tokens: mx.array, count: int) -> float:
    """Mean of `count` compiled single steps after a warm-up, in a ring for all of tokens."""
    step = mx.compile(model.step)
    state = model.model.init_state(1, capacity=min(model.config.sliding_window, tokens.shape[2]))
    for n in range(WARMUP + count):
        if n == WARMUP:
            start = time.perf_counter()
        _, logits, state = step(tokens[:, :, n % tokens.shape[2], None], state)
        mx.eval(logits, state)
    return (time.perf_counter() - start) / count


def random_tokens(config: MoshiConfig, frames: int) -> mx.array:
    """Columns int [1, 1 + streams, frames] of any tokens."""
    return mx.random.randint(0, config.audio_vocab_size, (1, 1 + len(config.audio_delays), frames))


def read(model: MoshiForConditionalGeneration, columns: Columns) -> tuple[Prefilled, float]:
    """The prompt, and the seconds that reading it takes."""
    start = time.perf_counter()
    made = prompts.prefill(model, columns)
    mx.eval(made.temporal, made.hidden)
    return made, time.perf_counter() - start


def frame_seconds(session: Session, count: int) -> float:
    """The median of a frame."""
    sound, taken = np.zeros(session.frame_size, np.float32), []
    for _ in range(WARMUP + count):
        start = time.perf_counter()
        session.step(sound)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[WARMUP:])


def persona_line(model: MoshiForConditionalGeneration, frames: int, steps: int) -> str:
    """From the start of reading a prompt to the first frame after it."""
    columns = Columns(np.array(random_tokens(model.config, frames)), np.array([frames]))
    session = Session(model, prompt=read(model, columns)[0], progress=False)
    step = frame_seconds(session, steps)
    reading = min(read(model, columns)[1] for _ in range(3))
    start = time.perf_counter()
    session.reset()
    session.step(np.zeros(session.frame_size, np.float32))
    first = time.perf_counter() - start
    share = (reading + first) / (frames * step)
    return (
        f"{frames} frames: read in {1e3 * reading:.0f} ms, first frame after {1e3 * first:.0f} ms more, frame "
        f"{1e3 * step:.1f} ms, start to first frame / (frames x frame) {share:.3f}"
    )


def prefill_line(model: MoshiForCausalLM, frames: int, steps: int) -> str:
    """The temporal transformer alone."""
    tokens = random_tokens(model.config, frames)
    seconds(model, tokens)
    runs = [seconds(model, tokens) for _ in range(3)]
    took, gigabytes = min(runs)[0], runs[0][1]
    line = f"{frames} frames: prefill {1e3 * took:.0f} ms, {gigabytes:.3f} GB"
    if not steps:
        return line
    step = step_seconds(model, tokens, steps)
    return line + f", step {1e3 * step:.1f} ms, prefill / (frames x step) {took / (frames * step):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="A prefill against single steps.")
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--layers", type=int, help="default: all")
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 250])
    parser.add_argument("--steps", type=int, default=20, help="single steps to time, 0 for none")
    parser.add_argument("--persona", action="store_true", help="up to the first frame of a live session")
    arguments = parser.parse_args()
    if arguments.persona and arguments.steps < 1:
        parser.error("--persona needs --steps of 1 or more")
    config = config_of(arguments.size)
    config = replace(config, num_hidden_layers=arguments.layers or config.num_hidden_layers)
    if arguments.persona:
        whole = MoshiForConditionalGeneration(config)
        mx.eval(whole.parameters())
    else:
        model = MoshiForCausalLM(config)
        mx.eval(model.parameters())
    for frames in arguments.frames:
        persona, steps = arguments.persona, arguments.steps
        print(persona_line(whole, frames, steps) if persona else prefill_line(model, frames, steps), flush=True)


if __name__ == "__main__":
    main()
