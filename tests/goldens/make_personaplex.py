"""Make personaplex.safetensors and personaplex_*.pt with NVIDIA's own code, greedy, in float32, on the CPU.

    git clone https://github.com/NVIDIA/personaplex
    ~/.cache/moshi-peers/torch/bin/python tests/goldens/make_personaplex.py personaplex/moshi

The clone was at 3428dfd, with torch 2.13.0; it takes the place of Kyutai's package, which has the same name. Weights
come from a seed (tests/personaplex.py). NVIDIA's ring holds a position less than the context once it is full, where
Kyutai's and ours hold all of it: it is given one more. README.md says what the files hold.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, sys.argv[1])
os.environ["NO_TORCH_COMPILE"] = "1"
os.environ["NO_CUDA_GRAPH"] = "1"

import numpy as np
import personaplex
import sentencepiece
import torch
from moshi.models.lm import LMGen, LMModel
from safetensors.torch import save_file

HERE = Path(__file__).parent
PERSONA = "<system> a wise and friendly teacher <system>"
FRAMES, PAUSE, USER_SEED = 100, 6, 5
ALONE = ("causal", "layer_scale", "gating", "context")  # what the depth decoder has of its own

torch.set_grad_enabled(False)
torch.set_num_threads(1)


def model_of(sizes):
    own = {f"depformer_{name}": sizes[name] for name in ALONE if f"depformer_{name}" not in sizes}
    feedforward = {"depformer_dim_feedforward": int(sizes["hidden_scale"] * sizes["depformer_dim"])}
    settings = sizes | own | feedforward | {"context": sizes["context"] + 1, "depformer_context": sizes["dep_q"]}
    model = LMModel(device="cpu", dtype=torch.float32, **settings).eval()
    weights = personaplex.language_weights(sizes)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


def conversation(model, user, tokens, voice=None, published=None):
    """The complete columns [9, FRAMES] after the prompt, the embeddings of the voice and its ring."""
    gen = LMGen(
        model, "cpu", use_sampling=False, text_prompt_tokens=tokens, audio_silence_frame_cnt=PAUSE, sample_rate=24000,
        frame_rate=12.5, save_voice_prompt_embeddings=True,
    )  # fmt: skip
    saved, ring, delay = [], None, max(model.delays)
    with gen.streaming(1):
        if published is not None:
            gen.voice_prompt_embeddings, gen.voice_prompt_cache = published
            for _ in gen._step_voice_prompt_core(None):
                pass
        for frame in [] if voice is None else voice.T:
            gen._step_voice_prompt_frame(torch.from_numpy(frame)[None, :, None], saved)
            ring = gen._streaming_state.cache.clone()
        gen._step_audio_silence()
        gen._step_text_prompt()
        gen._step_audio_silence()
        out = [gen.step(torch.from_numpy(frame)[None, :, None]) for frame in user.T]
    columns = torch.stack([column[0, :9, 0] for column in out[delay:]], dim=1)[:, :FRAMES]
    return columns.to(torch.int32).contiguous(), torch.stack(saved) if saved else None, ring


def main():
    random = np.random.RandomState(USER_SEED)
    voice, user = random.randint(0, 2048, (8, 7)), random.randint(0, 2048, (8, FRAMES + 2))
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(HERE / "moshi_tiny" / "tokenizer.model"))
    tokens = tokenizer.encode(PERSONA)
    model, made = model_of(personaplex.SIZES), {"voice": torch.from_numpy(voice), "user": torch.from_numpy(user)}
    made["codes"], embeddings, ring = conversation(model, user, tokens, voice)
    made["codes_alone"], _, _ = conversation(model, user, [], voice)
    made["persona_alone"], _, _ = conversation(model, user, tokens)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        torch.save({"embeddings": embeddings.to(dtype), "cache": ring}, HERE / f"personaplex_{name}.pt")
        published = (embeddings.to(dtype).to(torch.float32), ring)
        made[name], _, _ = conversation(model, user, tokens, published=published)
        made[f"{name}_alone"], _, _ = conversation(model, user, [], published=published)
    assert torch.equal(made["codes"], made["float32"])
    later = model_of(personaplex.DELAY_2)
    made["delay2"], embeddings, ring = conversation(later, user, tokens, voice)
    torch.save({"embeddings": embeddings, "cache": ring}, HERE / "personaplex_delay2.pt")
    again, _, _ = conversation(later, user, tokens, published=(embeddings, ring))
    assert torch.equal(made["delay2"], again)
    made = {name: value.to(torch.int32).contiguous() for name, value in made.items()}
    save_file(made, HERE / "personaplex.safetensors", {"persona": PERSONA})


main()
