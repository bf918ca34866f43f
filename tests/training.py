"""What the tests of adapters and of the trainer share: Kyutai's losses, and conversations of tones."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import soundfile
from helpers import GOLDENS, golden

from moshi_mlx.checkpoints import adapters
from moshi_mlx.checkpoints.filling import module_at
from moshi_mlx.train.loss import Factors, batches, loss

TRAINING = golden("training")
KYUTAI = Factors(first_codebook=100.0, text_padding=0.5)


def losses(model):
    """Kyutai's loss of the golden conversation, and its parts."""
    (batch,), sums = batches(TRAINING["codes"], model.config, KYUTAI, 1)
    total, kinds = loss(model, batch)
    return {"loss": total.item(), **dict(zip(("text", "semantic", "acoustic"), np.array(kinds) / sums, strict=True))}


def check_losses(model, case, tolerance=2e-5):
    for name, value in losses(model).items():
        np.testing.assert_allclose(value, TRAINING[f"{case}.{name}"], rtol=tolerance, err_msg=name)


def quantize(model):
    """Eight bits for every linear layer of the language model that takes whole groups."""
    for path in adapters.layers(model.config):
        parent, name = module_at(model, path)
        width, out = adapters.shape_of(parent[name])
        if width % 32 == 0:
            layer = nn.QuantizedLinear(width, out, bias=False, group_size=32, bits=8)
            layer.weight, layer.scales, layer.biases = mx.quantize(parent[name].weight.T, group_size=32, bits=8)
            parent[name] = layer
    return model


def tones(folder, count=4, rate=24000, pairs=(), seconds=2.0, **names):
    """Conversations of tones: the user first, then Moshi, who says two words of the golden tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        t = np.arange(int(seconds * rate)) / rate
        moshi, user = np.sin((200 + 30 * n) * t * 6.28) * (t > 1), np.sin((300 + 40 * n) * t * 6.28) * (t < 0.9)
        sound = 0.3 * np.stack([moshi, user], axis=1)
        if n in pairs:
            soundfile.write(folder / f"{n}.moshi.wav", sound[:, 0], rate)
            soundfile.write(folder / f"{n}.user.flac", sound[: int(0.9 * rate), 1], rate)
        else:
            soundfile.write(folder / f"{n}.wav", sound, rate)
        words = [["time", [1.0, 1.3], "SPEAKER_MAIN"], ["is", [1.7, 1.9], "SPEAKER_MAIN"], ["hm", [0, 0.5], "USER"]]
        (folder / f"{n}.json").write_text(json.dumps({"alignments": words} if n % 2 else words))
    return folder


SETTINGS = {"batch_size": 2, "iters": 8, "learning_rate": 3e-3, "rank": 2, "duration_sec": 1, "save_every": 2,
            "steps_per_report": 4, "steps_per_eval": 4}  # fmt: skip
FEW = {"iters": 4, "save_every": 4, "steps_per_eval": 2}


def command(data, folder, **settings):
    """The arguments of a training run of the golden model."""
    values = {"model": GOLDENS / "moshi_tiny", "data": data, "adapter_path": folder} | SETTINGS | settings
    flags = [(f"--{name.replace('_', '-')}", value) for name, value in values.items()]
    return [part for flag, value in flags for part in ([flag] if value is True else [flag, str(value)])]
