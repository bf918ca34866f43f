"""The prefill of a prompt against as many single steps of the temporal transformer, and the memory that it takes.

    python -m bench.prefill --size mid --frames 64 250
    python -m bench.prefill --size 7b --layers 2 --frames 125 250 500 --steps 0

Random weights, made in memory; `--layers` keeps so many (a prefill's memory beside its weights and caches does not
depend on their number).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import mlx.core as mx

from moshi_mlx import MoshiForCausalLM

from .cases import SIZES, config_of


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
    for n in range(3 + count):
        if n == 3:
            start = time.perf_counter()
        _, logits, state = step(tokens[:, :, n % tokens.shape[2], None], state)
        mx.eval(logits, state)
    return (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description="A prefill against single steps of the temporal transformer.")
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--layers", type=int, help="default: all")
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 250])
    parser.add_argument("--steps", type=int, default=20, help="single steps to time, 0 for none")
    arguments = parser.parse_args()
    config = config_of(arguments.size)
    config = replace(config, num_hidden_layers=arguments.layers or config.num_hidden_layers)
    model = MoshiForCausalLM(config)
    mx.eval(model.parameters())
    for frames in arguments.frames:
        tokens = mx.random.randint(0, config.audio_vocab_size, (1, 1 + len(config.audio_delays), frames))
        seconds(model, tokens)
        runs = [seconds(model, tokens) for _ in range(3)]
        took, gigabytes = min(runs)[0], runs[0][1]
        line = f"{frames} frames: prefill {1e3 * took:.0f} ms, {gigabytes:.3f} GB"
        if arguments.steps:
            step = step_seconds(model, tokens, arguments.steps)
            line += f", step {1e3 * step:.1f} ms, prefill / (frames x step) {took / (frames * step):.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
