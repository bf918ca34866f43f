"""The same work here and in another environment, alternating A B A B in one run: ratios, ours / theirs.

Both processes live through the whole comparison, each waiting while the other runs, so that whatever else the machine
does meets both alike. A ratio is that of the medians of one round's frame times.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

ROOT = Path(__file__).resolve().parents[2]
FIND = """
import importlib.util as u
def has(*names):
    try:
        return all(u.find_spec(name) is not None for name in names)
    except ModuleNotFoundError:
        return False
print("port" if has("rustymimi", "moshi_mlx.models.lm") else "torch" if has("torch", "moshi.models.lm") else "")
"""
# Our cases -> the work that a peer is asked for.
WORK = {"mimi-encode": "mimi", "mimi-decode": "mimi", "lm-step": "lm-step", "duplex-frame": "duplex"}
CONFIG_FILES = ("moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name")  # keys that are not the model's


class PeerError(Exception):
    """A peer cannot do its work; the message is one line."""


def kind_of(python: str) -> str:
    """Which peer an environment holds: "port" or "torch". Raises PeerError."""
    try:
        # Elsewhere than here: the port's package has the name of ours.
        found = subprocess.run([python, "-c", FIND], capture_output=True, text=True, cwd=tempfile.gettempdir())
    except OSError as error:
        raise PeerError(f"{python}: cannot be run ({error.strerror})") from error
    if found.returncode or not found.stdout.strip():
        raise PeerError(f"{python}: has neither the earlier port (moshi_mlx 0.3, rustymimi) nor PyTorch moshi")
    return found.stdout.strip()


class Worker:
    """A process that speaks the protocol of serve.py."""

    def __init__(self, command: list[str], folder: str, spec: dict[str, Any]) -> None:
        self._name = command[0]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=folder
        )
        try:
            self.ready = self.ask(json.dumps(spec))
        except PeerError:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def ask(self, line: str) -> Any:
        """One line there, one answer back. Raises PeerError, with the process's last words, where it has ended."""
        there, back = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        try:
            there.write(line + "\n")
            there.flush()
        except BrokenPipeError:
            pass  # the answer will be missing
        answer = back.readline()
        if not answer:
            raise PeerError(f"{self._name}: ended: {self._last_words()}")
        return json.loads(answer)

    def _last_words(self) -> str:
        """The error that it wrote last, whatever trace follows it."""
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["no message"]
        return next((line for line in reversed(lines) if re.match(r"\w*(Error|Exception): ", line)), lines[-1])

    def close(self) -> None:
        """Its standard input ends, and so does it."""
        self._process.communicate()
        self._errors.close()


def ours(spec: dict[str, Any]) -> Worker:
    return Worker([sys.executable, "-m", "bench.peers.worker"], str(ROOT), spec)


def theirs(python: str, kind: str, spec: dict[str, Any]) -> Worker:
    script = Path(__file__).with_name(f"{kind}_worker.py")
    return Worker([python, str(script)], tempfile.gettempdir(), spec)


def compare(
    python: str, case: str, folder: Path, bits: int | None, codec: str = "rustymimi", rounds: int = 7, frames: int = 15
) -> dict[str, Any]:
    """Ratios of frame times, minimum, median and maximum over the rounds. Raises PeerError."""
    kind = kind_of(python)
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k not in CONFIG_FILES}
    spec = {
        "case": WORK[case], "codec": codec, "folder": str(folder), "config": config, "bits": bits, "frames": frames,
        "steps": rounds * frames + 20, "sound_frames": 50,
    }  # fmt: skip
    with ours(spec) as mine, theirs(python, kind, spec) as other:
        medians = [[median(worker.ask("run")) for worker in (mine, other)] for _ in range(rounds)]
        codes = [worker.ask("codes") for worker in (mine, other)] if WORK[case] == "mimi" else None
    ratios = [our_ms / their_ms for our_ms, their_ms in medians]
    return {
        "work": WORK[case], "peer": peer_name(kind, WORK[case], codec), "bits": bits, "rounds": rounds,
        "frames_a_round": frames,
        "ours_ms": median(ms for ms, _ in medians), "theirs_ms": median(ms for _, ms in medians),
        "ratio_min": min(ratios), "ratio_median": median(ratios), "ratio_max": max(ratios), "ratios": ratios,
        "equal_codes": equal_share(*codes) if codes else None,
        "ours_weight_bytes": mine.ready["weight_bytes"], "theirs_weight_bytes": other.ready["weight_bytes"],
        "versions": {"ours": mine.ready["versions"], "theirs": other.ready["versions"]},
    }  # fmt: skip


def peer_name(kind: str, work: str, codec: str) -> str:
    if kind == "torch":
        return "PyTorch moshi"
    return {"mimi": "rustymimi" if codec == "rustymimi" else "earlier port, MLX Mimi",
            "lm-step": "earlier port", "duplex": f"earlier port + {codec}"}[work]  # fmt: skip


def equal_share(mine: list[list[int]], other: list[list[int]]) -> float:
    """The share of equal codes, frame by frame."""
    pairs = [(a, b) for x, y in zip(mine, other, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


HEADERS = ["work", "against", "weights", "ours ms", "theirs ms", "ratio min", "median", "max", "equal codes",
           "weights MB ours/theirs"]  # fmt: skip


def cells(row: dict[str, Any], size: str) -> list[str]:
    """A row of the table of ratios."""
    equal = "" if row["equal_codes"] is None else f"{row['equal_codes']:.4f}"
    sizes = f"{row['ours_weight_bytes'] / 1e6:.1f}/{row['theirs_weight_bytes'] / 1e6:.1f}"
    return [
        f"{row['work']} {size}", row["peer"], f"q{row['bits']}" if row["bits"] else "as stored",
        f"{row['ours_ms']:.1f}", f"{row['theirs_ms']:.1f}", f"{row['ratio_min']:.3f}", f"{row['ratio_median']:.3f}",
        f"{row['ratio_max']:.3f}", equal, sizes,
    ]  # fmt: skip
