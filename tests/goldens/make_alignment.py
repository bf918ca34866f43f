"""Make the golden of alignment: transcripts, and the text streams that moshi-finetune makes of them.

    git clone https://github.com/kyutai-labs/moshi-finetune    # 2acc879 made what is committed
    python tests/goldens/make_alignment.py moshi-finetune

Runs its own Interleaver (finetune/data/interleaver.py) with the settings of its train.py. Of PyTorch that needs one
function, which makes a tensor of a list at the end: NumPy stands in for it here, so that nothing large is installed.
"""

import importlib.util
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

HERE = Path(__file__).parent
SEED, RANDOM = 5, 40
MAIN, OTHER = "SPEAKER_MAIN", "SPEAKER_OTHER"
WORDS = ("the", "time", "is", "outer", "a", "hour,", "good morning", "\u00e9", "two\nlines", " spaced ", "")

Transcript = list[list[Any]]


def by_hand() -> dict[str, tuple[Transcript, int]]:
    """Every rule once: name -> (transcript, frames)."""
    return {
        "nothing said": ([], 5),
        "apart": ([["time", [0.5, 0.8], MAIN], ["is", [2.0, 2.2], MAIN]], 40),
        "cut off": ([["outer hour good morning", [0.5, 2.0], MAIN], ["is", [0.66, 0.9], MAIN]], 30),
        "three in a frame": ([[word, [0.8 + n / 100, 1.0], MAIN] for n, word in enumerate(("time", "is", "a"))], 20),
        "the same time": ([["time", [0.8, 1.0], MAIN], ["is", [0.8, 1.2], MAIN]], 20),
        "no length": ([["time", [0.5, 0.5], MAIN], ["is", [1.0, 0.9], MAIN], ["a", [1.2, 1.3], MAIN]], 20),
        "no length cuts nothing off": ([["good morning", [0.5, 1.5], MAIN], ["is", [0.6, 0.6], MAIN]], 20),
        "without letters": ([["good morning", [0.5, 1.5], MAIN], [" ", [0.6, 0.7], MAIN]], 20),
        "another speaker": ([["good morning", [0.5, 1.5], MAIN], ["is", [0.6, 0.9], OTHER]], 20),
        "out of order": ([["is", [1.0, 1.2], MAIN], ["time", [0.2, 0.4], MAIN], ["a", [0.6, 0.7], OTHER]], 20),
        "first frame": ([["time", [0.0, 0.3], MAIN]], 20),
        "before the start": ([["time", [-0.5, 0.3], MAIN], ["is", [-0.2, 0.3], MAIN]], 20),
        "last frame": ([["good morning", [1.52, 1.9], MAIN], ["is", [1.6, 1.9], MAIN]], 20),
        "beyond the sound": ([["time", [5.0, 5.5], MAIN]], 20),
        "on a frame": ([["a", [frame * 0.08, frame * 0.08 + 0.05], MAIN] for frame in range(1, 60, 2)], 60),
        "whole seconds": ([["time", [1, 2], MAIN], ["is", [2, 3], MAIN]], 40),
        "two lines": ([["time\nis", [1.0, 2.0], MAIN]], 40),
    }


def at_random(rng: random.Random) -> tuple[Transcript, int]:
    """Words that overlap, two speakers, times of two or of many digits."""
    digits, at = rng.choice((2, 3, 17)), 0.0
    transcript: Transcript = []
    for _ in range(rng.randrange(1, 40)):
        at += rng.choice((0.0, 0.01, 0.08, 0.3, 1.0)) * rng.random()
        end = at + rng.choice((0.0, -0.1, 0.05, 0.4)) * rng.random()
        times = [round(at, digits), round(end, digits)]
        transcript.append([rng.choice(WORDS), times, rng.choice((MAIN, MAIN, MAIN, OTHER))])
    if rng.random() < 0.3:
        rng.shuffle(transcript)
    return transcript, rng.randrange(1, int(12.5 * at) + 20)


def interleaver(checkout: Path, shift: bool) -> Any:
    """Kyutai's, as train.py makes it but for the option."""
    torch, conditioners = types.ModuleType("torch"), types.ModuleType("moshi.conditioners")
    torch.Tensor, torch.device = np.ndarray, str  # type: ignore[attr-defined]
    torch.tensor = lambda values, device: _Tensor(values)  # type: ignore[attr-defined]
    conditioners.ConditionAttributes = object  # type: ignore[attr-defined]
    sys.modules |= {"torch": torch, "moshi": types.ModuleType("moshi"), "moshi.conditioners": conditioners}
    spec = importlib.util.spec_from_file_location("interleaver", checkout / "finetune" / "data" / "interleaver.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["interleaver"] = module
    spec.loader.exec_module(module)
    tokenizer = sentencepiece.SentencePieceProcessor(str(HERE / "moshi_tiny" / "tokenizer.model"))
    return module.Interleaver(tokenizer, 12.5, 3, 0, -1, keep_main_only=True, keep_and_shift=shift)


class _Tensor:
    def __init__(self, values: list[int]) -> None:
        self.values = values

    def view(self, *shape: int) -> list[int]:
        return self.values


def main(checkout: Path) -> None:
    rng = random.Random(SEED)
    cases = by_hand() | {f"random {n}": at_random(rng) for n in range(RANDOM)}
    found = []
    for name, (transcript, frames) in cases.items():
        streams = {}
        for key, shift in (("cut", False), ("shifted", True)):
            # prepare_item takes seconds: its caller hands it frames and cuts the stream, and so do we.
            streams[key] = interleaver(checkout, shift).prepare_item(transcript, frames)[:frames]
        found.append({"name": name, "frames": frames, "transcript": transcript, **streams})
    lines = ",\n".join(json.dumps(case) for case in found)
    (HERE / "alignment.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(found)} transcripts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
