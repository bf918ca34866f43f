"""Make the Hugging Face goldens of this folder with transformers 5.23: tiny, greedy, in float32.

    ~/.cache/moshi-peers/torch/bin/python tests/goldens/make_huggingface.py

Run make.py first: moshi_tiny_hf/ holds the very weights of moshi_tiny/ under Hugging Face's names.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import MoshiConfig, MoshiForConditionalGeneration

HERE = Path(__file__).parent
FOLDER = HERE / "moshi_tiny_hf"

MIMI = {
    "model_type": "mimi", "hidden_size": 32, "num_filters": 2, "codebook_size": 32, "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16, "num_quantizers": 10, "upsample_groups": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64,
}  # fmt: skip
DEPTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 88}
MOSHI = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_codebooks": 8,
    "audio_vocab_size": 32, "ffn_dim": 176, "sliding_window": 64,
}  # fmt: skip


# --- weights: the names and axes of Kyutai's PyTorch files, turned into Hugging Face's --------------------------------


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [heads * D, in] whose rotary pairs lie side by side -> first all first members, then all second ones."""
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def attention(theirs: str, in_proj: torch.Tensor, out_proj: torch.Tensor, heads: int, linear: str) -> dict[str, Any]:
    q, k, v = in_proj.chunk(3)
    parts = {"q": halves(q, heads), "k": halves(k, heads), "v": v, "o": out_proj}
    return {f"{theirs}.self_attn.{name}_proj.{linear}weight": part for name, part in parts.items()}


def helium(kyutai: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {
        "decoder.lm_head.weight": kyutai["text_linear.weight"],
        "decoder.model.embed_tokens.weight": kyutai["text_emb.weight"],
        "decoder.model.norm.weight": kyutai["out_norm.alpha"].flatten(),
    }
    out |= {f"embed_tokens.{i}.weight": kyutai[f"emb.{i}.weight"] for i in range(16)}
    for n in range(MOSHI["num_hidden_layers"]):
        ours, theirs = f"transformer.layers.{n}", f"decoder.model.layers.{n}"
        projections = (kyutai[f"{ours}.self_attn.{part}_projs.0.weight"] for part in ("in", "out"))
        out |= attention(theirs, *projections, MOSHI["num_attention_heads"], "linear.")
        out[f"{theirs}.input_layernorm.weight"] = kyutai[f"{ours}.norm1.alpha"].flatten()
        out[f"{theirs}.post_attention_layernorm.weight"] = kyutai[f"{ours}.norm2.alpha"].flatten()
        out[f"{theirs}.mlp.fc1.weight"] = kyutai[f"{ours}.gating.linear_in.weight"]
        out[f"{theirs}.mlp.fc2.weight"] = kyutai[f"{ours}.gating.linear_out.weight"]
    return out


def depth_decoder(kyutai: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    def stacked(pattern: str) -> torch.Tensor:
        return torch.stack([kyutai[pattern.format(step)] for step in range(8)])

    out = {
        "text_embed_tokens.weight": kyutai["depformer_text_emb.weight"],
        "input_projections.weight": stacked("depformer_in.{}.weight"),
        "lm_heads.weight": stacked("linears.{}.weight"),
    }
    out |= {f"embed_tokens.{i}.weight": kyutai[f"depformer_emb.{i}.weight"] for i in range(7)}
    for n in range(DEPTH["num_hidden_layers"]):
        ours, theirs = f"depformer.layers.{n}", f"layers.{n}"
        q, k, v = stacked(f"{ours}.self_attn.in_projs.{{}}.weight").chunk(3, dim=1)
        parts = {"q": q, "k": k, "v": v, "o": stacked(f"{ours}.self_attn.out_projs.{{}}.weight")}
        out |= {f"{theirs}.self_attn.{name}_proj.linear.weight": part for name, part in parts.items()}
        out[f"{theirs}.input_layernorm.weight"] = kyutai[f"{ours}.norm1.alpha"].flatten()
        out[f"{theirs}.post_attention_layernorm.weight"] = kyutai[f"{ours}.norm2.alpha"].flatten()
        out[f"{theirs}.mlp.fc1.weight"] = stacked(f"{ours}.gating.{{}}.linear_in.weight")
        out[f"{theirs}.mlp.fc2.weight"] = stacked(f"{ours}.gating.{{}}.linear_out.weight")
    return {f"depth_decoder.{name}": value for name, value in out.items()}


MIMI_NAMES = [
    (r"^(en|de)coder\.model", r"\1coder.layers"),
    (r"_transformer\.transformer", "_transformer"),
    (r"norm1", "input_layernorm"),
    (r"norm2", "post_attention_layernorm"),
    (r"\.linear([12])", r".mlp.fc\1"),
    (r"layer_scale_1", "self_attn_layer_scale"),
    (r"layer_scale_2", "mlp_layer_scale"),
    (r"(\.conv(tr)?)+\.(weight|bias)", r".conv.\3"),
    (r"rvq_first", "semantic_residual_vector_quantizer"),
    (r"rvq_rest", "acoustic_residual_vector_quantizer"),
    (r"vq\.layers", "layers"),
    (r"\._codebook\._?", ".codebook."),
    (r"embedding_sum", "embed_sum"),
]


def mimi(kyutai: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for name, value in kyutai.items():
        for pattern, replacement in MIMI_NAMES:
            name = re.sub(pattern, replacement, name)
        path, _, leaf = name.partition(".self_attn.")
        if leaf == "in_proj_weight":
            other = next(v for k, v in out.items() if k == f"{path}.self_attn.out_proj.weight")
            out |= attention(path, value, other, MIMI["num_attention_heads"], "")
        else:
            out[name] = value
    out = {name: value for name, value in out.items() if not name.endswith("out_proj.weight") or "quantizer" in name}
    return {f"audio_encoder.{name}": value for name, value in out.items()}


def make_checkpoint() -> None:
    """A folder as save_pretrained writes it, in shards; language model in bfloat16, codec in float32, as moshi_tiny."""
    kyutai = load_file(HERE / "moshi_tiny/model.safetensors")
    codec = load_file(HERE / "moshi_tiny/mimi.safetensors")
    codec = dict(sorted(codec.items(), key=lambda item: "in_proj_weight" in item[0]))
    tensors = helium(kyutai) | depth_decoder(kyutai) | mimi(codec)
    with tempfile.TemporaryDirectory() as folder:
        MoshiConfig(**MOSHI, audio_encoder_config=MIMI, depth_decoder_config=DEPTH).save_pretrained(folder)
        save_file({k: v.float().contiguous() for k, v in tensors.items()}, f"{folder}/model.safetensors")
        model = MoshiForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.to(torch.bfloat16)
    model.audio_encoder.float()
    model.save_pretrained(FOLDER, max_shard_size="250KB")
    saved = {k: v for shard in FOLDER.glob("*.safetensors") for k, v in load_file(shard).items()}
    assert saved.keys() == tensors.keys()
    assert all(saved[k].equal(v.to(saved[k].dtype)) for k, v in tensors.items())


def main() -> None:
    torch.set_num_threads(1)
    make_checkpoint()
    print(json.dumps({p.name: p.stat().st_size for p in FOLDER.iterdir()}))


if __name__ == "__main__":
    main()
