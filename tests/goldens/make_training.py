"""Make the goldens of training with Kyutai's PyTorch package (moshi 0.2.13), after make.py, in float32.

    ~/.cache/moshi-peers/torch/bin/python tests/goldens/make_training.py

The loss is written out here from the description of moshi-finetune: cross-entropy of text, padding at half its weight,
plus that of Moshi's codebooks, the first at 100 times the weight, each over the sum of its weights.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

os.environ["NO_TORCH_COMPILE"] = "1"

import torch
from make import LM, SCHEDULE
from moshi.models import LMModel, loaders
from safetensors.torch import save_file

HERE = Path(__file__).parent
SEED, FRAMES, RANK, SCALING = 11, 30, 2, 1.5
FIRST_CODEBOOK, TEXT_PADDING = 100.0, 0.5
GRADIENTS = ("out_norm.alpha", "text_emb.weight", "depformer.layers.1.norm2.alpha", "depformer_emb.2.weight")


def conversation() -> torch.Tensor:
    """[2, 17, FRAMES]: much padding in the text, gaps of -1, and a second row that ends early."""
    rng = torch.Generator().manual_seed(SEED)
    codes = torch.randint(0, LM["card"], (2, 17, FRAMES), generator=rng)
    text = torch.randint(4, LM["text_card"], (2, FRAMES), generator=rng)
    pad = torch.rand((2, FRAMES), generator=rng)
    codes[:, 0] = torch.where(pad < 0.5, 3, torch.where(pad < 0.6, 0, text))
    codes[0, 9:, 5:9] = -1
    codes[0, 0, 12] = -1
    codes[0, 3, 14:16] = -1
    codes[1, :, -6:] = -1
    return codes


def losses(model: LMModel, codes: torch.Tensor) -> dict[str, torch.Tensor]:
    out = model(codes)
    kinds = {}
    for name, logits, target, mask in (
        ("text", out.text_logits, codes[:, :1], out.text_mask),
        ("audio", out.logits, codes[:, 1:9], out.mask),
    ):
        errors = torch.nn.functional.cross_entropy(
            torch.where(mask[..., None], logits, 0.0).flatten(0, 2),
            torch.where(mask, target, 0).flatten(),
            reduction="none",
        ).view(target.shape)
        weights = mask.float()
        if name == "text":
            weights = torch.where((target == 3) | (target == 0), TEXT_PADDING, 1.0) * weights
        else:
            kinds["semantic"] = errors[:, 0][mask[:, 0]].mean()
            kinds["acoustic"] = errors[:, 1:][mask[:, 1:]].mean()
            weights[:, 0] *= FIRST_CODEBOOK
        kinds[name] = (errors * weights).sum() / weights.sum()
    kinds["loss"] = kinds["text"] + kinds.pop("audio")
    return kinds


def load(config: dict[str, Any], folder: str) -> LMModel:
    model = loaders.get_moshi_lm(HERE / folder / "model.safetensors", config, dtype=torch.float32)
    model.requires_grad_(True)
    return model


def plain(case: str, config: dict[str, Any], codes: torch.Tensor) -> dict[str, torch.Tensor]:
    model = load(config, f"moshi_{case}")
    found = losses(model, codes)
    found["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    kept = {f"gradient.{name}": gradients[name] for name in GRADIENTS if case == "tiny"}
    norm = torch.sqrt(sum((g.square().sum() for g in gradients.values()), torch.zeros(())))
    return {f"{case}.{key}": value.detach() for key, value in (found | kept | {"norm": norm}).items()}


def adapted(case: str, config: dict[str, Any], codes: torch.Tensor) -> dict[str, torch.Tensor]:
    """A LoRA file as Kyutai's trainer writes it, and the losses with it, not merged."""
    folder = HERE / f"lora_{case}"
    folder.mkdir(exist_ok=True)
    rng = torch.Generator().manual_seed(SEED)
    model = loaders.get_lora_moshi(load(config, f"moshi_{case}"), None, RANK, SCALING, fuse_lora=False)
    tensors = {}
    for name, value in model.state_dict().items():
        if "lora_" in name:
            noise = torch.randn(value.shape, generator=rng)
            tensors[name] = (0.5 * noise / math.sqrt(value.shape[1])).bfloat16()
    save_file(tensors, folder / "lora.safetensors")
    settings = {"lora": True, "lora_rank": RANK, "lora_scaling": SCALING}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    model = loaders.get_lora_moshi(
        load(config, f"moshi_{case}"), folder / "lora.safetensors", RANK, SCALING, torch.float32, fuse_lora=False
    )
    with torch.no_grad():
        return {f"{case}.lora.{key}": value for key, value in losses(model, codes).items()}


def main() -> None:
    torch.set_num_threads(1)
    codes = conversation()
    out = {"codes": codes.int()}
    for case, config in (("tiny", LM), ("schedule", SCHEDULE)):
        out |= plain(case, config, codes) | adapted(case, config, codes)
    save_file({name: value.contiguous() for name, value in out.items()}, HERE / "training.safetensors")
    print({name: value.item() for name, value in out.items() if value.numel() == 1})


if __name__ == "__main__":
    main()
