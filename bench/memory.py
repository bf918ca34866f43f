"""Load a checkpoint and step a few frames: seconds to load, milliseconds a frame, peak resident memory.

python -m bench.memory FOLDER --frames 5
"""

from __future__ import annotations

import argparse
import time

import mlx.core as mx
import numpy as np

import moshi_mlx

from .cases import DTYPES
from .measure import peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description="Loading time, frame time and peak memory of a checkpoint.")
    parser.add_argument("folder")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    arguments = parser.parse_args()
    began = time.perf_counter()
    model = moshi_mlx.load(arguments.folder, dtype=arguments.dtype and getattr(mx, arguments.dtype))
    loaded = time.perf_counter()
    print(f"loaded in {loaded - began:.1f} s, peak {peak_bytes() / 1e9:.2f} GB resident", flush=True)
    session = model.session()
    primed = time.perf_counter()
    print(f"primed in {primed - loaded:.1f} s", flush=True)
    noise = np.random.default_rng(0).normal(size=(arguments.frames, session.frame_size)).astype(np.float32)
    for n, frame in enumerate(0.1 * noise):
        start = time.perf_counter()
        session.step(frame)
        print(f"frame {n}: {1e3 * (time.perf_counter() - start):.0f} ms", flush=True)
    print(f"peak {peak_bytes() / 1e9:.2f} GB resident, {mx.get_peak_memory() / 1e9:.2f} GB in MLX arrays")


if __name__ == "__main__":
    main()
