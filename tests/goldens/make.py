"""Make the golden files of this folder with Kyutai's PyTorch package (moshi 0.2.13), tiny and greedy, in float32.

    ~/.cache/moshi-peers/torch/bin/python tests/goldens/make.py
    ~/.cache/moshi-peers/port/bin/python tests/goldens/make_mlx_layout.py

question.flac is kept where it exists; delete it to have espeak-ng and sox speak it again. All else is made anew, bit
for bit the same on the same machine. README.md says what each file holds.
"""

import io
import json
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["NO_TORCH_COMPILE"] = "1"  # read when a compiled function is first called

import moshi.models.lm
import sentencepiece
import sphn
import torch
from moshi.models import LMGen, LMModel, MimiModel, loaders
from moshi.quantization.core_vq import EuclideanCodebook
from safetensors.torch import save_file

HERE = Path(__file__).parent
LM_SEED, SCHEDULE_SEED, MIMI_SEED, USER_SEED = 7, 6, 2, 7
QUESTION = "Good morning, Moshi. Can you tell me what time it is, please?"
FRAME = 1920
DELAYS = {delay: [0] + ([0] + [delay] * 7) * 2 for delay in (1, 2)}

LM = loaders._lm_kwargs | {
    "dim": 32,
    "text_card": 64,
    "card": 32,
    "num_heads": 2,
    "num_layers": 2,
    "context": 64,
    "depformer_dim": 16,
    "depformer_dim_feedforward": int(4.125 * 16),
    "depformer_num_heads": 2,
    "depformer_num_layers": 2,
    "delays": DELAYS[1],
}
SCHEDULE = LM | {
    "depformer_weights_per_step_schedule": [0, 1, 2, 2, 3, 3, 3, 3],
    "depformer_low_rank_embeddings": 8,
}
MIMI = loaders._mimi_config | {
    "seanet": loaders._seanet_kwargs | {"n_filters": 2, "dimension": 32},
    "quantizer": {"dimension": 16, "n_q": 10, "bins": 32, "input_dimension": 32, "output_dimension": 32},
    "transformer": loaders._transformer_kwargs
    | {
        "d_model": 32,
        "num_heads": 2,
        "num_layers": 2,
        "dim_feedforward": 64,
        "input_dimension": 32,
        "output_dimensions": [32],
    },
}
FILES = {
    "moshi_name": "model.safetensors",
    "mimi_name": "mimi.safetensors",
    "mimi_config_name": "mimi_config.json",
    "tokenizer_name": "tokenizer.model",
    "model_type": "moshi",
    "lm_gen_config": {},
}
SENTENCES = """Good morning, Moshi. Can you tell me what time it is, please?
Hello, how are you today? I am fine, thank you, and you?
It is a quarter past seven and the sun is shining over the sea.
The quick brown fox jumps over the lazy dog while the cat watches.
Would you like a cup of tea or a glass of cold water with lemon?
We can talk and listen at the same time; nobody has to wait.
My favourite book is about a journey to the north of the country.
Please turn off the light when you leave the kitchen tonight."""


# --- what goes in ---------------------------------------------------------------------------------------------------


def speak(path: Path) -> None:
    """Say the question: 24 kHz, mono, 16 bit, peak 0.7."""
    with tempfile.TemporaryDirectory() as folder:
        wav = f"{folder}/question.wav"
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "200", "-w", wav, QUESTION], check=True)
        subprocess.run(["sox", "-D", "--norm=-3.1", wav, "-b", "16", "-r", "24000", "-c", "1", str(path)], check=True)


def question() -> torch.Tensor:
    """The question cut to whole frames. # [1, 1, T]"""
    pcm = torch.from_numpy(sphn.read(HERE / "question.flac")[0])
    return pcm[None, :, : pcm.shape[-1] // FRAME * FRAME]


def tone() -> torch.Tensor:
    """1.2 s of a formula that a test can repeat. # [1, 1, 28800]"""
    t = torch.arange(15 * FRAME, dtype=torch.float64) / 24000
    turn = 2 * math.pi * t
    x = 0.3 * torch.sin(220 * turn) * torch.sin(1.5 * turn) + 0.1 * torch.sin(3111 * turn)
    return x.float()[None, None]


def user_codes(seed: int) -> torch.Tensor:
    return torch.randint(0, LM["card"], (8, 200), generator=torch.Generator().manual_seed(seed))


def tokenizer(path: Path) -> None:
    """64 pieces; 3 is padding as in Moshi's own. No normalization rules: their table alone would weigh 240 KB."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES.splitlines()),
        model_writer=model,
        vocab_size=LM["text_card"],
        model_type="bpe",
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


# --- weights --------------------------------------------------------------------------------------------------------


def lm_gain(name: str) -> float:
    """Standard deviation over 1 / sqrt(fan-in): sharp attention and clear logits, so that a fault shows in tokens."""
    if name.startswith(("text_linear", "linears")):
        return 8.0
    return 2.0 if "in_proj" in name else 1.0


def lm_weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in LMModel(**config).state_dict().items():
        noise = torch.randn(value.shape, generator=rng)
        if name.endswith("alpha"):
            value = 1 + 0.2 * noise
        elif "emb" in name and "low_rank" not in name:
            value = noise * (0.8 if "depformer" in name else 0.4)
        else:
            value = noise * lm_gain(name) / math.sqrt(value.shape[1])
        state[name] = value.bfloat16()
    return state


GAINS = {"encoder.model.0.": 8.0, "input_proj": 4.0, "output_proj": 0.5, "decoder.model.14.": 0.3}


def mimi_weight(name: str, noise: torch.Tensor) -> torch.Tensor:
    """Scales at which activations stay near 1, codes follow the sound and the reply is about as loud as speech."""
    if name.endswith("_initialized"):
        return torch.ones_like(noise)
    if name.endswith("cluster_usage"):
        usage = 0.75 + 0.5 * noise.sigmoid()
        usage[:2] = torch.tensor([0.0, 1e-9])  # the reference divides by at least 1e-5
        return usage
    if name.endswith("embedding_sum"):
        level = 0 if "rvq_first" in name else int(name.split("layers.")[1][0])
        total = noise * 0.9**level
        total[:2] *= 1e-5
        return total
    if "layer_scale" in name:
        return 0.3 + 0.05 * noise
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.2 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "upsample" in name:
        return 0.7 * noise
    fan_in = 2 * noise.shape[0] if "convtr" in name else noise[0].numel()
    gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
    return noise * gain / math.sqrt(fan_in)


def mimi_weights(seed: int) -> dict[str, torch.Tensor]:
    """Published names (in_proj_weight); float32 that bfloat16 holds exactly."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in loaders.get_mimi(None, MIMI).state_dict().items():
        name = re.sub(r"in_projs\.0\.weight$", "in_proj_weight", name).replace("out_projs.0.weight", "out_proj.weight")
        state[name] = mimi_weight(name, torch.randn(value.shape, generator=rng)).bfloat16().float()
    return state


# --- runs of the reference ------------------------------------------------------------------------------------------


@contextmanager
def wrapped(owner: Any, name: str, before: Callable[..., None]) -> Iterator[None]:
    """Call `before` with the arguments of every call of owner.name."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        before(*args)
        return original(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)


def run_lm(config: dict[str, Any], weights: Path, user: torch.Tensor) -> dict[str, torch.Tensor]:
    """Greedy, the first frame stepped twice: text [T], audio [8, T], text_logits [steps, text_card], margin."""
    logits, margins = [], []

    def look(logit: torch.Tensor, *_: Any) -> None:
        best = logit.flatten().topk(2).values
        margins.append((best[0] - best[1]).item())

    model = loaders.get_moshi_lm(weights, config, dtype=torch.float32)
    gen = LMGen(model, use_sampling=False, check=True, on_text_logits_hook=lambda x: logits.append(x.flatten()))
    with wrapped(moshi.models.lm, "sample_token", look), gen.streaming(1):
        columns = [gen.step(user[None, :, max(i, 0), None]) for i in range(-1, user.shape[1])]
    out = torch.cat([column for column in columns if column is not None], dim=-1)[0]
    return {"text": out[0], "audio": out[1:], "text_logits": torch.stack(logits), "margin": torch.tensor(min(margins))}


def load_mimi(weights: Path, codebooks: int, context: int = 250) -> MimiModel:
    config = MIMI | {"transformer": MIMI["transformer"] | {"context": context}}
    return loaders.get_mimi(weights, config, num_codebooks=codebooks)


@contextmanager
def code_margins(margins: list[float]) -> Iterator[None]:
    """Collect how much farther the second nearest entry lies than the nearest, as a share of the latter."""

    def look(codebook: EuclideanCodebook, x: torch.Tensor) -> None:
        distance = (x.double()[:, None] - codebook.embedding.double()).norm(dim=-1)
        best = distance.topk(2, largest=False).values
        margins.extend((best[:, 1] / best[:, 0] - 1).tolist())

    with wrapped(EuclideanCodebook, "_quantize", look):
        yield


@torch.no_grad()
def stream(step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, size: int) -> torch.Tensor:
    """Frame by frame along the last axis; without the batch axis."""
    return torch.cat([step(part) for part in x.split(size, dim=-1)], dim=-1)[0]


# --- what comes out -------------------------------------------------------------------------------------------------


def make_checkpoints(tiny: Path, schedule: Path) -> None:
    tiny.mkdir(exist_ok=True)
    schedule.mkdir(exist_ok=True)
    moshi_files = {key: FILES[key] for key in ("moshi_name", "model_type", "lm_gen_config")}
    for path, content in {
        tiny / "config.json": LM | FILES,
        tiny / "mimi_config.json": MIMI,
        schedule / "config.json": SCHEDULE | moshi_files,
    }.items():
        path.write_text(json.dumps(content, indent=2) + "\n")
    save_file(lm_weights(LM, LM_SEED), tiny / "model.safetensors")
    save_file(mimi_weights(MIMI_SEED), tiny / "mimi.safetensors")
    save_file(lm_weights(SCHEDULE, SCHEDULE_SEED), schedule / "model.safetensors")
    tokenizer(tiny / "tokenizer.model")


def lm_results(tiny: Path, schedule: Path) -> dict[str, torch.Tensor]:
    user = user_codes(USER_SEED)
    silent = user.clone()
    silent[:, 20:40] = -1
    out = {"user": user}
    for case, config, weights, codes in (
        ("delay1", LM, tiny, user),
        ("delay2", LM | {"delays": DELAYS[2]}, tiny, user),
        ("context10", LM | {"context": 10}, tiny, user),
        ("zero", LM, tiny, silent),
        ("schedule", SCHEDULE, schedule, user[:, :100]),
    ):
        result = run_lm(config, weights / "model.safetensors", codes)
        check_tokens(case, result)
        out |= {f"{case}.{key}": result[key] for key in ("text", "audio")}
        if case == "delay1":
            out["delay1.text_logits"] = result["text_logits"]
    return out


def check_tokens(case: str, result: dict[str, torch.Tensor]) -> None:
    margin = result["margin"].item()
    distinct = [len(stream.unique()) for stream in (result["text"], *result["audio"])]
    print(f"{case}: smallest margin of a logit {margin:.2e}, distinct tokens a stream {distinct}")
    assert margin > 1e-4, f"{case}: take another seed"
    assert min(distinct) > 8, f"{case}: tokens repeat, take another seed"


def mimi_results(weights: Path, margins: list[float]) -> dict[str, torch.Tensor]:
    full, eight = load_mimi(weights, 10), load_mimi(weights, 8)
    with code_margins(margins), full.streaming(1):
        codes = stream(full.encode, question(), FRAME)
    with code_margins(margins), full.streaming(1):
        codes_tone = stream(full.encode, tone(), FRAME)
    with eight.streaming(1):
        codes8 = stream(eight.encode, question(), FRAME)
        pcm = stream(eight.decode, codes8[None], 1)[0]
    assert min(len(book.unique()) for book in codes) > 8, "codes repeat, take another seed"
    return {
        "codes": codes,
        "codes8": codes8,
        "codes_tone": codes_tone,
        "pcm": pcm[: 10 * FRAME],
        "pcm_every_32": pcm[::32],
    } | window_results(weights, margins)


@torch.no_grad()
def window_results(weights: Path, margins: list[float]) -> dict[str, torch.Tensor]:
    """Not streaming, where the mask is exact for any length: 37 frames through transformers with a context of 12."""
    mimi = load_mimi(weights, 8, context=12)
    with code_margins(margins):
        codes = mimi.encode(question()[..., : 37 * FRAME])
    pcm = mimi.decode(codes)[0, 0]
    return {"window.codes": codes[0], "window.pcm_head": pcm[: 4 * FRAME], "window.pcm_tail": pcm[-4 * FRAME :]}


def sound_results(tiny: Path, margins: list[float]) -> dict[str, torch.Tensor]:
    """The question and 12 frames of silence -> user codes -> greedy tokens -> reply."""
    mimi = load_mimi(tiny / "mimi.safetensors", 8)
    heard = torch.cat([question(), torch.zeros(1, 1, 12 * FRAME)], dim=-1)
    with code_margins(margins), mimi.streaming(1):
        user = stream(mimi.encode, heard, FRAME)
        result = run_lm(LM, tiny / "model.safetensors", user)
        pcm = stream(mimi.decode, result["audio"][None], 1)[0]
    check_tokens("sound", result)
    return {
        "user_codes": user,
        "text": result["text"],
        "audio": result["audio"],
        "pcm_head": pcm[: 4 * FRAME],
        "pcm_tail": pcm[-4 * FRAME :],
    }


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Tokens become int32; the rest is float32."""
    save_file({k: (v if v.is_floating_point() else v.int()).contiguous() for k, v in tensors.items()}, path)


def main() -> None:
    torch.set_num_threads(1)
    if not (HERE / "question.flac").exists():
        speak(HERE / "question.flac")
    tiny, schedule, margins = HERE / "moshi_tiny", HERE / "moshi_schedule", []
    make_checkpoints(tiny, schedule)
    save(HERE / "lm.safetensors", lm_results(tiny, schedule))
    save(HERE / "mimi.safetensors", mimi_results(tiny / "mimi.safetensors", margins))
    save(HERE / "sound.safetensors", sound_results(tiny, margins))
    print(f"codes: smallest relative margin {min(margins):.2e} of {len(margins)}")
    assert min(margins) > 1e-5, "Mimi: take another seed"


if __name__ == "__main__":
    main()
