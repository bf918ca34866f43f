"""A tiny PersonaPlex, made from a seed: its tables of 2048 codes would be megabytes as files.

`language_weights` needs NumPy alone, so that goldens/make_personaplex.py makes the same ones for NVIDIA's code. NumPy
keeps the numbers of RandomState as they are for good.
"""

import json
import shutil
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"
SEED = 3
SIZES = {
    "dim": 24, "text_card": 64, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 16, "card": 2048, "num_heads": 3,
    "num_layers": 2, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 90, "max_period": 10000,
    "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_dim": 16,
    "depformer_dim_feedforward": None, "depformer_num_heads": 2, "depformer_num_layers": 2,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0, *[0, *[1] * 7] * 2],
}  # fmt: skip
DELAY_2 = SIZES | {"delays": [0, *[0, *[2] * 7] * 2]}
STUB = {"model_type": "personaplex", "version": "1.0"}
TRANSFORMER = {"d_model": 16, "num_heads": 2, "num_layers": 1, "dim_feedforward": 32, "context": 250}
MIMI = {
    "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
    "seanet": {
        "dimension": 16, "n_filters": 2, "ratios": [8, 6, 5, 4], "kernel_size": 7, "last_kernel_size": 3,
        "residual_kernel_size": 3, "causal": True,
    },
    "quantizer": {"dimension": 4, "n_q": 8, "bins": 2048, "input_dimension": 16, "output_dimension": 16},
    "transformer": {**TRANSFORMER, "input_dimension": 16, "output_dimensions": [16], "causal": True},
}  # fmt: skip


def language_weights(sizes=SIZES, seed=SEED):
    """All tensors under the names of NVIDIA's file, float32: 16 depth slices, attention of all of them in one."""
    random = np.random.RandomState(seed)
    dim, depth, steps = sizes["dim"], sizes["depformer_dim"], sizes["dep_q"]
    text, audio = sizes["text_card"], sizes["card"]
    shapes = {"text_emb.weight": (text + 1, dim), "text_linear.weight": (text, dim), "out_norm.alpha": (1, 1, dim)}
    shapes |= {f"emb.{n}.weight": (audio + 1, dim) for n in range(sizes["n_q"])}
    for n in range(sizes["num_layers"]):
        shapes |= _layer(f"transformer.layers.{n}", dim, 1) | _gating(f"transformer.layers.{n}.gating", dim)
    shapes["depformer_text_emb.weight"] = (text + 1, depth)
    shapes |= {f"depformer_emb.{n}.weight": (audio + 1, depth) for n in range(steps - 1)}
    for n in range(steps):
        shapes |= {f"depformer_in.{n}.weight": (depth, dim), f"linears.{n}.weight": (audio, depth)}
    for n in range(sizes["depformer_num_layers"]):
        shapes |= _layer(f"depformer.layers.{n}", depth, steps)
        for step in range(steps):
            shapes |= _gating(f"depformer.layers.{n}.gating.{step}", depth)
    mean = {name: 1.0 if name.endswith("alpha") else 0.0 for name in shapes}
    return {
        name: (mean[name] + (0.1 if mean[name] else 0.3) * random.standard_normal(shape)).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }


def _layer(name, dim, sets):
    attention = {"in_proj_weight": (3 * dim * sets, dim), "out_proj.weight": (dim * sets, dim)}
    shapes = {f"{name}.self_attn.{leaf}": shape for leaf, shape in attention.items()}
    return shapes | {f"{name}.{norm}.alpha": (1, 1, dim) for norm in ("norm1", "norm2")}


def _gating(name, dim):
    hidden = 2 * int(4.125 * dim) // 3
    return {f"{name}.linear_in.weight": (2 * hidden, dim), f"{name}.linear_out.weight": (dim, hidden)}


def write(folder, config=STUB | SIZES, sizes=SIZES, weights=None, **files):
    """The checkpoint in a folder that does not exist yet: config.json (None: none), tensors, codec, tokenizer.

    `files` are further small ones, by name with dots as double underscores.
    """
    import mlx.core as mx

    folder.mkdir()
    tensors = language_weights(sizes) if weights is None else weights
    mx.save_safetensors(str(folder / "model.safetensors"), {k: mx.array(v) for k, v in tensors.items()})
    mx.save_safetensors(str(folder / "tokenizer-e351c8d8-checkpoint125.safetensors"), _mimi_weights())
    shutil.copy(GOLDENS / "moshi_tiny" / "tokenizer.model", folder / "tokenizer_spm_32k_3.model")
    (folder / "mimi_config.json").write_text(json.dumps(MIMI))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))
    return folder


def _mimi_weights():
    """Random, so good for shapes and not for sound."""
    import mlx.core as mx

    from moshi_mlx.checkpoints.configs import codec_keys
    from moshi_mlx.checkpoints.filling import mimi_shapes
    from moshi_mlx.models.config import MimiConfig

    random = np.random.RandomState(SEED)
    tensors = {}
    for name, shape in mimi_shapes(MimiConfig(**codec_keys.mimi_fields(MIMI, "mimi_config.json"))).items():
        plain = name.endswith(("cluster_usage", "_initialized", "norm1.weight", "norm2.weight"))
        values = np.ones(shape) if plain else 0.2 * random.standard_normal(shape)
        tensors[name] = mx.array(values.astype(np.float32))
    return tensors
