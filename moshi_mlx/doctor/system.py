"""The machine and what is installed on it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import mlx.core as mx

from ..exact import SWITCH
from ..machine import advice, chips, needs, preflight
from ..terminal.sizes import size
from ..terminal.version import DISTRIBUTION, VERSION
from .finding import NOTE, OK, PROBLEM, Finding

OTHERS = ("mlx-metal", "mlx-cpu", "livekit")  # that no line of pyproject.toml names, or only an extra's
EXACT = 1 + 2.0**-12  # float32 has it, TF32 does not


def system() -> Iterator[Finding]:
    mac = platform.system() == "Darwin"
    version = needs.macos_version() if mac else platform.release()
    values = {"system": platform.system(), "version": version, "machine": platform.machine()}
    missing = needs.missing()
    name = "macOS" if mac else platform.system()
    said = f"{name} {version}, {platform.machine()}"
    yield Finding("system", PROBLEM if missing else OK, said, missing, values)


def python() -> Iterator[Finding]:
    version, kind = platform.python_version(), platform.python_implementation()
    own = sys.prefix != sys.base_prefix
    values = {"version": version, "implementation": kind, "environment": own}
    said = f"{kind} {version}, {'in an environment' if own else 'the system-wide one'}"
    yield Finding("Python", OK, said, "", values)


def packages() -> Iterator[Finding]:
    """The versions of what is installed against the lowest ones that are allowed."""
    versions: dict[str, str | None] = {"moshi_mlx": VERSION}
    low = []
    for name, floor in _floors().items():
        versions[name] = _version(name)
        if versions[name] is None or needs.numbers(str(versions[name])) < needs.numbers(floor):
            low.append(f"{name} is {versions[name] or 'missing'}, expected {floor} or newer")
    versions |= {name: found for name in OTHERS if (found := _version(name))}
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    todo = f"{'; '.join(low)}: run pip install again" if low else ""
    yield Finding("packages", PROBLEM if low else OK, said, todo, {"versions": versions})


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _floors() -> dict[str, str]:
    """The lowest version of each dependency of this system, as the package's metadata states it."""
    floors = {}
    for line in metadata.requires(DISTRIBUTION) or []:
        need, _, marker = line.partition(";")
        found = re.match(r"([\w.-]+)(?:\[.*\])?\s*>=\s*([\d.]+)", need)
        elsewhere = "darwin" in marker and ("==" in marker) != (sys.platform == "darwin")
        older = "python_version" in marker and sys.version_info >= (3, 11)
        if found and "extra" not in marker and not elsewhere and not older:
            floors[found[1]] = found[2]
    return floors


def chip() -> Iterator[Finding]:
    info = mx.device_info()
    row, measured = chips.of_machine(info), chips.measured_bandwidth()
    name, on_gpu = str(info.get("device_name", "unknown")), mx.default_device() == mx.Device(mx.gpu)
    published = f", {row.bandwidth:g} published" if row else ""
    said = f"{name}, {'GPU' if on_gpu else 'CPU'}; memory at {measured:.0f} GB/s{published}"
    values = {"name": name, "architecture": str(info.get("architecture", "")), "gpu": on_gpu,
              "measured_gb_s": round(measured, 1), "published_gb_s": row.bandwidth if row else None}  # fmt: skip
    yield Finding("chip", OK, said, "", values)
    if not on_gpu:
        slow = list(advice.library())
        compiler = shutil.which("g++")
        todo = ", ".join([*slow, *([] if compiler else ["install g++, with which MLX builds its kernels"])])
        said = f"BLAS {'slow' if slow else 'fast'}, {'g++' if compiler else 'no g++'}"
        yield Finding("CPU", PROBLEM if not compiler else NOTE if slow else OK, said, todo, {"slow_blas": bool(slow)})


def memory() -> Iterator[Finding]:
    info = mx.device_info()
    usable = preflight.usable_bytes()
    whole = int(info.get("memory_size", 0)) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wired = needs.ask("sysctl", "-n", "iogpu.wired_limit_mb") if sys.platform == "darwin" else ""
    needed = 7_320_000_000  # of Moshi in 4 bits with a full context: preflight.conversation_bytes
    said = f"{size(whole)}, {size(usable)} of it for a model"
    said += f", wired limit set to {wired} MB" if wired not in ("", "0") else ""
    todo = "" if usable >= needed else f"Moshi in 4 bits takes {size(needed)}: with --kv-bits 8 and --context less"
    values = {"bytes": whole, "usable_bytes": usable, "wired_limit_mb": wired}
    yield Finding("memory", OK if usable >= needed else NOTE, said, todo, values)


def tf32() -> Iterator[Finding]:
    """Whether float32 products are exact: asked of the environment, and of a product."""
    a = mx.full((64, 64), EXACT)
    exact = bool((a @ mx.eye(64) == a).all())
    switch = os.environ.get(SWITCH, "")
    values: dict[str, Any] = {"switch": switch if switch in ("0", "1") else "other", "exact": exact}
    if exact:
        yield Finding("float32", OK, f"exact ({SWITCH}={switch})", "", values)
    elif switch == "1":
        yield Finding(
            "float32", NOTE, "TF32, as was asked for: tokens are not the reference's", f"unset {SWITCH}", values
        )
    else:
        todo = "import moshi_mlx before anything computes with MLX"
        yield Finding("float32", PROBLEM, "TF32 all the same", todo, values)
