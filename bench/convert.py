"""A conversion at full size: peak memory, and its time against reading, writing and quantizing alone.

    python -m bench.random_checkpoint 7b FOLDER && python -m bench.convert FOLDER

The source's pages are dropped from the system's cache before every reading, so that each comes from the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx

from moshi_mlx.checkpoints.safetensors import as_mx, stored

CHUNK = 2**26  # bytes
FLAGS = ["-q", "--q-bits", "4", "--q-group-size", "32"]


def drop_cache(folder: Path) -> None:
    """Forget what the system has kept of a folder's files, where it can (Linux)."""
    if hasattr(os, "posix_fadvise"):
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of_reading(folder: Path) -> float:
    """Every byte of the tensors, once."""
    drop_cache(folder)
    start, buffer = time.perf_counter(), bytearray(CHUNK)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def seconds_of_writing(path: Path, count: int) -> float:
    """So many bytes in one file, down to the disk."""
    start, buffer = time.perf_counter(), os.urandom(CHUNK)
    with path.open("wb") as file:
        while count > 0:
            file.write(buffer[: min(count, CHUNK)])
            count -= CHUNK
        file.flush()
        os.fsync(file.fileno())
    taken = time.perf_counter() - start
    path.unlink()
    return taken


def seconds_of_quantizing(folder: Path) -> float:
    """Every matrix, already in memory when the clock starts."""
    total = 0.0
    for tensor in stored(folder / "model.safetensors").values():
        if len(tensor.info.shape) == 2 and tensor.info.shape[1] % 32 == 0:
            value = as_mx(tensor.read(), tensor.info.dtype)
            mx.eval(value)
            start = time.perf_counter()
            mx.eval(mx.quantize(value, group_size=32, bits=4))
            total += time.perf_counter() - start
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="A conversion's memory and time.")
    parser.add_argument("folder", type=Path, help="an unquantized checkpoint in the MLX layout, in one file")
    source = parser.parse_args().folder
    out = source.parent / f"{source.name}-q4"
    shutil.rmtree(out, ignore_errors=True)
    drop_cache(source)
    start = time.perf_counter()
    command = [sys.executable, "-m", "moshi_mlx.convert", "--hf-path", str(source), "--mlx-path", str(out), *FLAGS]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    taken = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    shutil.rmtree(out)
    mx.set_cache_limit(2**28)
    alone = {
        "reading_s": seconds_of_reading(source),
        "writing_s": seconds_of_writing(source.parent / "written", written),
        "quantizing_s": seconds_of_quantizing(source),
    }
    read = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    print(json.dumps({
        "read_gb": read / 1e9, "written_gb": written / 1e9, "peak_rss_gb": peak / 1e9, "conversion_s": taken, **alone,
        "share_of_the_speed_alone": sum(alone.values()) / taken,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
