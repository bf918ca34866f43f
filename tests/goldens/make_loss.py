"""Make loss.safetensors with Kyutai's PyTorch package (moshi 0.2.13): what its model trains with, in float32.

    ~/.cache/moshi-peers/torch/bin/python tests/goldens/make_loss.py

Run make.py first. Streams of unlike length, -1 behind their end and in places before it.
"""

import os
from pathlib import Path

os.environ["NO_TORCH_COMPILE"] = "1"

import torch
from make import DELAYS, LM
from moshi.models import loaders
from safetensors.torch import save_file

HERE = Path(__file__).parent
SEED, LENGTHS, LENGTH = 5, (20, 13, 2), 20


def streams() -> torch.Tensor:
    """Text, Moshi's codes, the user's. # [3, 17, 20]"""
    rng = torch.Generator().manual_seed(SEED)
    text = torch.randint(0, LM["text_card"], (len(LENGTHS), 1, LENGTH), generator=rng)
    audio = torch.randint(0, LM["card"], (len(LENGTHS), 16, LENGTH), generator=rng)
    codes = torch.cat([text, audio], dim=1)
    codes[torch.rand(codes.shape, generator=rng) < 0.1] = -1
    for row, length in zip(codes, LENGTHS, strict=True):
        row[:, length:] = -1
    return codes


@torch.no_grad()
def losses(delay: int, codes: torch.Tensor) -> dict[str, torch.Tensor]:
    config = LM | {"delays": DELAYS[delay]}
    model = loaders.get_moshi_lm(HERE / "moshi_tiny/model.safetensors", config, dtype=torch.float32)
    out = model(codes)
    pairs = {
        "text": (out.text_logits, codes[:, :1], out.text_mask),
        "depth": (out.logits, codes[:, 1:9], out.mask),
    }
    return {
        f"delay{delay}.{name}_loss": torch.nn.functional.cross_entropy(logits[mask], targets[mask])
        for name, (logits, targets, mask) in pairs.items()
    } | {f"delay{delay}.text_logits": out.text_logits[:, 0], f"delay{delay}.first_logits": out.logits[:, :2]}


def main() -> None:
    torch.set_num_threads(1)
    codes = streams()
    out = {"streams": codes.int()} | losses(1, codes) | losses(2, codes)
    out = {name: value.nan_to_num(0).contiguous() for name, value in out.items()}
    save_file(out, HERE / "loss.safetensors")
    print({name: value.item() for name, value in out.items() if value.ndim == 0})


if __name__ == "__main__":
    main()
