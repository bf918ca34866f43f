"""Make the Hugging Face goldens of this folder with transformers 5.23: tiny, greedy, in float32.

    ~/.cache/moshi-peers/torch/bin/python tests/goldens/make_huggingface.py

Run make.py first: moshi_tiny_hf/ holds the very weights of moshi_tiny/ under Hugging Face's names.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sphn
import torch
from safetensors.torch import load_file, save_file
from transformers import MoshiConfig, MoshiForConditionalGeneration
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.moshi import modeling_moshi

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


# --- runs of the reference ------------------------------------------------------------------------------------------


def load(**changes: Any) -> MoshiForConditionalGeneration:
    """The checkpoint in float32; "num_key_value_heads" 1 keeps the first head of keys and values alone."""
    heads = changes.pop("num_key_value_heads", 2)
    config = MoshiConfig.from_pretrained(FOLDER)
    for key, value in changes.items():
        setattr(config, key, value)
    config.num_key_value_heads = heads
    tensors = {k: v.float() for shard in FOLDER.glob("*.safetensors") for k, v in load_file(shard).items()}
    for name in tensors if heads == 1 else ():
        if name.startswith("decoder.") and ("k_proj" in name or "v_proj" in name):
            tensors[name] = tensors[name][: config.head_dim].clone()
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_file(tensors, f"{folder}/model.safetensors")
        return MoshiForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()


@contextmanager
def windowed_prompts() -> Iterator[None]:
    """transformers masks a prompt causally, but without the window that it holds to in the steps after it."""
    original = modeling_moshi.create_causal_mask
    modeling_moshi.create_causal_mask = create_sliding_window_causal_mask
    try:
        yield
    finally:
        modeling_moshi.create_causal_mask = original


def prompt(length: int, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(0, 64, (2, length), generator=rng),
        "user_audio_codes": torch.randint(0, 32, (2, 8, length), generator=rng),
        "moshi_audio_codes": torch.randint(0, 32, (2, 8, length), generator=rng),
    }


def waveforms(length: int) -> dict[str, torch.Tensor]:
    """Sound for both sides; the codec runs row by row, which transformers does otherwise than in a batch."""
    sound = torch.from_numpy(sphn.read(HERE / "question.flac")[0][0])[: 4 * length * 1920].view(4, 1, length * 1920)
    return {
        "input_ids": prompt(length, 9)["input_ids"], "user_input_values": sound[:2], "moshi_input_values": sound[2:]
    }  # fmt: skip


@torch.no_grad()
def generated(model: MoshiForConditionalGeneration, new: int, **inputs: Any) -> dict[str, torch.Tensor]:
    out = model.generate(**inputs, max_new_tokens=new, do_sample=False, return_audio_codes=True)
    return {"sequences": out.sequences, "audio_codes": out.audio_codes, "audio": out.audio_sequences[..., ::16]}


def generate_results() -> dict[str, torch.Tensor]:
    model = load()
    out = {}
    cases = {
        "plain": lambda: generated(model, 10, **prompt(6, 1)),
        "bare": lambda: generated(model, 10, **prompt(6, 1), concat_unconditional_inputs=False),
        "gqa": lambda: generated(load(num_key_value_heads=1), 10, **prompt(6, 1)),
        "waveforms": lambda: generated(model, 6, **waveforms(6)),
        "start": lambda: generated(model, 10, **model.get_unconditional_inputs(2)),
        "window": lambda: generated(load(sliding_window=12), 30, **prompt(20, 3)),
    }
    for name, run in cases.items():
        with windowed_prompts():
            result = run()
        print(name, {k: tuple(v.shape) for k, v in result.items()})
        assert len(result["sequences"][:, -10:].unique()) > 5, "tokens repeat, take another seed"
        out |= {f"{name}.{key}": value for key, value in result.items()}
    for length, seed in ((6, 1), (20, 3)):
        out |= {f"prompt{length}.{key}": value for key, value in prompt(length, seed).items()}
    return out | {f"waveforms.{key}": value for key, value in waveforms(6).items() if key == "input_ids"}


@torch.no_grad()
def forward_results() -> dict[str, torch.Tensor]:
    """Text through the decoder, given steps through the depth decoder, sound through the codec."""
    model = load(num_key_value_heads=1, sliding_window=12)
    given = prompt(20, 4)
    ids, labels = given["input_ids"], given["input_ids"].clone()
    labels[0, 5:9] = -100
    flags = {"output_hidden_states": True, "output_attentions": True}
    with windowed_prompts():
        text = model.decoder(ids, labels=labels, **flags)
        # without the window's mask in single steps, whose cache is cut to it
        new = model.decoder.generate(ids[:, :8], max_new_tokens=12, do_sample=False)
        both = model(**given, **flags)
    rng = torch.Generator().manual_seed(6)
    hidden = torch.randn(4, 1, 32, generator=rng)
    steps = torch.cat([ids[:, :2].reshape(4, 1), given["user_audio_codes"][:, :7, :2].transpose(1, 2).reshape(4, 7)], 1)
    targets = given["moshi_audio_codes"][:, :, :2].transpose(1, 2).reshape(4, 8).clone()
    targets[1, 2], targets[2] = 32, -100
    ones = torch.ones(4, 8, dtype=torch.long)
    depth = model.depth_decoder(steps, hidden, ones, labels=targets, use_cache=False)
    codes = model.depth_decoder.generate(steps[:, :1], last_hidden_state=hidden, max_length=9, min_length=9)
    sound = torch.from_numpy(sphn.read(HERE / "question.flac")[0][0])[: 2 * 10 * 1920].view(2, 1, -1)
    encoded = model.audio_encoder.encode(sound, num_quantizers=8).audio_codes
    decoded = model.audio_encoder.decode(encoded).audio_values
    return {
        "ids": ids, "labels": labels, "user": given["user_audio_codes"], "moshi": given["moshi_audio_codes"],
        "text.loss": text.loss, "text.logits": text.logits, "text.hidden": text.last_hidden_state,
        "text.layer1": text.hidden_states[1], "text.attention1": text.attentions[1], "text.generated": new,
        "both.logits": both.logits, "depth.hidden": hidden, "depth.ids": steps, "depth.labels": targets,
        "depth.loss": depth.loss, "depth.logits": depth.logits, "depth.generated": codes, "mimi.codes": encoded,
        "mimi.audio": decoded[..., ::16],
    }  # fmt: skip


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Tokens become int32."""
    save_file({k: (v if v.is_floating_point() else v.int()).contiguous() for k, v in tensors.items()}, path)


def main() -> None:
    torch.set_num_threads(1)
    make_checkpoint()
    save(HERE / "huggingface.safetensors", generate_results())
    save(HERE / "huggingface_forward.safetensors", forward_results())


if __name__ == "__main__":
    main()
