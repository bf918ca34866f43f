"""Write moshi_tiny in Kyutai's MLX layout, moshi_tiny_mlx/, with the earlier MLX port (moshi_mlx 0.3.0).

    cd /tmp && ~/.cache/moshi-peers/port/bin/python /PATH/TO/tests/goldens/make_mlx_layout.py

Run make.py first, and run this outside the repository's root, whose package has the port's name.
"""

import json
import re
import tempfile
from pathlib import Path

import mlx.core as mx

from moshi_mlx.models import Lm, LmConfig

HERE = Path(__file__).parent


def first_generation(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The published names, which the port reads: in_projs.0, in_projs.1, ... joined into in_proj_weight."""
    out, parts = {}, {}
    for name, value in weights.items():
        match = re.fullmatch(r"(.*self_attn)\.(in|out)_projs\.(\d+)\.weight", name)
        if match:
            target = f"{match[1]}.in_proj_weight" if match[2] == "in" else f"{match[1]}.out_proj.weight"
            parts.setdefault(target, {})[int(match[3])] = value
        else:
            out[name] = value
    return out | {name: mx.concatenate([steps[i] for i in sorted(steps)]) for name, steps in parts.items()}


def main() -> None:
    config = LmConfig.from_config_dict(json.loads((HERE / "moshi_tiny/config.json").read_text()))
    model = Lm(config)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.safetensors"
        mx.save_safetensors(path, first_generation(mx.load(str(HERE / "moshi_tiny/model.safetensors"))))
        model.load_pytorch_weights(path, config, strict=True)
        model.set_dtype(mx.bfloat16)
        mx.eval(model.parameters())
    (HERE / "moshi_tiny_mlx").mkdir(exist_ok=True)
    model.save_weights(str(HERE / "moshi_tiny_mlx/model.safetensors"))


if __name__ == "__main__":
    main()
