"""Make family/: tiny checkpoints of Moshi's sister models, and what Kyutai's package makes of them (moshi 0.2.13).

    ~/.cache/moshi-peers/torch/bin/python tests/goldens/make_family.py [KIND ...]

Greedy, float32, one thread, on the CPU. Weights come from the first seed at which no choice is close and enough
happens; the same seed, bit for bit the same files on the same machine. The codec and the tokenizer are those of
moshi_tiny, by links, and so are the weights of the plain one. README.md says what the arrays are.
"""

import contextlib
import copy
import json
import os
import random
import re
import sys
from collections import deque
from pathlib import Path

os.environ |= {"NO_TORCH_COMPILE": "1", "NO_CUDA_GRAPH": "1"}

import moshi.models.lm
import torch
from make import HERE, LM, wrapped
from moshi.conditioners import ConditionAttributes
from moshi.models import LMGen, loaders
from moshi.models.tts import StateMachine, TokenIds, TTSModel, script_to_entries
from safetensors.torch import save_file

FAMILY, TINY = HERE / "family", HERE / "moshi_tiny"
LINKS = ("mimi.safetensors", "mimi_config.json", "tokenizer.model")
CARD, TEXT = 32, 64
LEAST_MARGIN, SEEDS = 1e-2, 3000
SPOKEN = "hello big world"
VOICE = "voice0.wav.1e68beda@240.safetensors"
PREFIX, CALLS, HEARD, ENDS = 6, 60, 40, 30

NO_CONDITIONS = {
    "conditioners": {},
    "cross_attention": False,
    "fuser": {
        "cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [], "prepend": [], "cross": []
    },
}  # fmt: skip


def table(dim, bins, *values):
    return {"type": "lut", "lut": {"n_bins": bins, "dim": dim, "tokenizer": "noop", "possible_values": list(values)}}


def base(own, user, delay, **more):
    """Keys and their order as published, with tiny sizes."""
    side = [0] + [delay] * 16
    return {
        "dim": 32, "text_card": TEXT, "existing_text_padding_id": 3, "n_q": own + user, "dep_q": own, "card": CARD,
        "num_heads": 4, "num_layers": 2, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 24,
        "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
        "depformer_dim": 16, "depformer_num_heads": 2, "depformer_num_layers": 2, "depformer_dim_feedforward": None,
        "depformer_multi_linear": True, "depformer_pos_emb": "none", "depformer_weights_per_step": True,
        "depformer_causal": True, "depformer_layer_scale": None, "depformer_context": 8,
        "depformer_max_period": 10000, "depformer_gating": "silu", "delays": [0, *side[:own], *side[:user]],
    } | more  # fmt: skip


TRANSCRIBER = NO_CONDITIONS | {
    "max_period": 100000.0,
    "model_type": "stt",
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
    "extra_heads_dim": 6,
}
SPEAKER = {
    "depformer_dim_feedforward": 48,
    "depformer_low_rank_embeddings": 8,
    "demux_second_stream": True,
    "depformer_weights_per_step_schedule": [0, 1, 2, 2],
    "tts_config": {"audio_delay": 0.32, "second_stream_ahead": 2},
    "model_type": "tts",
    "lm_gen_config": {"temp": 0.6, "text_temp": 0.6},
}
KINDS = {
    "plain_2026": LM | {"text_card_out": None, "demux_second_stream": False, "model_type": "moshi"} | NO_CONDITIONS,
    "hibiki": base(
        4, 4, 2, max_period=100000.0, model_type="hibiki", cross_attention=False,
        conditioners={"description": table(8, 31, "very_bad", "bad", "neutral", "good", "very_good")},
        fuser=NO_CONDITIONS["fuser"] | {"sum": ["description"]},
    ),
    "hibiki_zero": base(
        4, 4, 2, hidden_scale=6, max_period=20000.0, positional_embedding="rope_concat", kv_repeat=2,
        depformer_kv_repeat=1, depformer_norm="layer_norm", depformer_weights_per_step_schedule=[0, 1, 2, 2],
        demux_second_stream=False, text_card_out=None, model_type="hibiki", **NO_CONDITIONS,
    ),
    "stt": base(0, 8, 0) | TRANSCRIBER | {
        "extra_heads_num_heads": 4,
        "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    },
    "stt_no_heads": base(0, 8, 0) | TRANSCRIBER | {
        "extra_heads_num_heads": 0,
        "stt_config": {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
    },
    "tts": base(4, 0, 2) | SPEAKER | {
        "text_card_out": None,
        "cross_attention": True,
        "conditioners": {
            "speaker_wavs": {"type": "tensor", "tensor": {"dim": 8}},
            "cfg": table(8, 7, "1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"),
            "control": table(32, 1, "ok"),
        },
        "fuser": {
            "cross_attention_pos_emb": True, "cross_attention_pos_emb_scale": 1, "sum": ["control", "cfg"],
            "prepend": [], "cross": ["speaker_wavs"],
        },
        "model_id": {"sig": "1e68beda", "epoch": 240},
    },
    "tts_prefix": base(4, 0, 2) | SPEAKER | NO_CONDITIONS | {
        "text_card_out": 5,
        "model_id": {"sig": "d6ef30c7", "epoch": 1000},
    },
}  # fmt: skip
OLDER_NAMES = ("hibiki", "stt", "tts")
LIKELY = {0: 2.0, 2: 2.0, 3: 2.0}  # end of padding, end of sequence, padding: so that words, pauses and ends happen


# --- checkpoints ----------------------------------------------------------------------------------------------------


def spread(name, shape):
    """The standard deviation of a tensor: sharp attention and clear logits, so that a fault shows in tokens."""
    if name.endswith(("embed.weight", "learnt_padding")):
        return 0.6
    if "emb" in name and "low_rank" not in name and "out" not in name:
        return 0.8 if "depformer" in name else 0.4
    gain = 8.0 if name.startswith(("text_linear", "linears")) else 2.0 if "in_proj" in name else 1.0
    return gain / shape[-1] ** 0.5


def weights(config, seed):
    lm = loaders.get_moshi_lm(None, language_keys(config), dtype=torch.float32)
    source, out = torch.Generator().manual_seed(seed), {}
    for name, value in lm.state_dict().items():
        noise = torch.randn(value.shape, generator=source)
        if name.endswith("alpha") or ("norm" in name and name.endswith("weight")):
            out[name] = 1 + 0.2 * noise
        elif name.endswith("bias"):
            out[name] = 0.2 * noise
        else:
            out[name] = noise * spread(name, value.shape)
    for row, gain in LIKELY.items():
        out["text_linear.weight"][row] *= gain
    return out


def language_keys(config):
    own = ("moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "model_type", "model_id")
    kept = {key: value for key, value in config.items() if key not in own and not key.endswith("_config")}
    return copy.deepcopy(kept)  # the package writes into it


def older(state):
    """The names of attention in files of 2024 and 2025: the weights of all steps as one tensor."""
    parts = {}
    for name, value in state.items():
        name = re.sub(r"in_projs\.\d+\.weight$", "in_proj_weight", name)
        parts.setdefault(re.sub(r"out_projs\.\d+\.", "out_proj.", name), []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def make_folder(kind, seed):
    folder, config = FAMILY / kind, KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    plain = kind == "plain_2026"
    for name in (*LINKS, "model.safetensors") if plain else LINKS:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path("..") / ".." / TINY.name / name)
    names = dict(zip(("mimi_name", "mimi_config_name", "tokenizer_name"), LINKS, strict=True))
    (folder / "config.json").write_text(json.dumps(config | {"moshi_name": "model.safetensors"} | names) + "\n")
    if plain:
        return
    state = weights(config, seed)
    save_file(older(state) if kind in OLDER_NAMES else state, folder / "model.safetensors")
    if kind == "tts":
        voice = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(seed))
        save_file({"speaker_wavs": voice}, folder / VOICE)


def opened(kind):
    folder = FAMILY / kind
    return loaders.CheckpointInfo.from_hf_repo(
        "nowhere", *(folder / name for name in ("model.safetensors", "mimi.safetensors", "tokenizer.model")),
        config_path=folder / "config.json", mimi_config_path=folder / "mimi_config.json",
    )  # fmt: skip


# --- runs of the reference ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def margins():
    """How much the best logit of every choice lies above the next."""
    found = []

    def look(logits, *_):
        best = logits.flatten(0, -2).topk(2).values
        found.extend((best[:, 0] - best[:, 1]).tolist())

    with wrapped(moshi.models.lm, "sample_token", look):
        yield found


def codes(seed, count, frames):
    return torch.randint(0, CARD, (count, frames), generator=torch.Generator().manual_seed(seed))


def conversation(lm, user, told=(), guidance=1.0):
    """What every call draws, and the complete columns; the first frame goes in twice, see README.md."""
    text, own, columns, heads = [], [], [], []
    conditions = lm.condition_provider.prepare_and_provide([ConditionAttributes(text=each) for each in told or [{}]])
    gen = LMGen(
        lm, use_sampling=False, check=True, cfg_coef=guidance, condition_tensors=conditions,
        on_text_hook=lambda token: text.append(token.clone()), on_audio_hook=lambda token: own.append(token[0].clone()),
    )  # fmt: skip
    with gen.streaming(1):
        for frame in (user[:, :1], *user.split(1, dim=1)):
            out = gen.step_with_extra_heads(frame[None])
            if out is not None:
                columns.append(out[0][0])
                heads.append(torch.stack([head[0, 0] for head in out[1]]) if out[1] else None)
    made = {"text": torch.cat(text), "frames": torch.cat(columns, dim=1)}
    if own:
        made["codes"] = torch.stack(own, dim=1)
    if heads[0] is not None:
        made["heads"] = torch.stack(heads)
    return made


def talks(kind, seed):
    user = codes(seed, KINDS[kind]["n_q"] - KINDS[kind]["dep_q"], HEARD)
    return {"user": user} | conversation(opened(kind).get_moshi(dtype=torch.float32), user)


def hibiki(kind, seed):
    info, user = opened(kind), codes(seed, 4, HEARD)
    user[:, ENDS] = CARD  # the end of the source
    good, bad = ({"description": value} for value in ("very_good", "very_bad"))
    made = {"user": user}
    lm = info.get_moshi(dtype=torch.float32)
    made |= conversation(lm, user, [good])
    made |= {f"{name}_cfg3": value for name, value in conversation(lm, user, [good, bad], 3.0).items()}
    info.model_type = "moshi"  # whose loader leaves the text table as it is filed
    as_is = conversation(info.get_moshi(dtype=torch.float32), user, [good])
    assert not torch.equal(made["codes"], made["codes_cfg3"])
    return made | {f"{name}_eos_as_is": value for name, value in as_is.items()}


def transcribes(kind, seed):
    user = codes(seed, 8, CALLS)
    made = {"user": user} | conversation(opened(kind).get_moshi(dtype=torch.float32), user)
    del made["frames"]  # the text alone
    return made


def speaks(kind, seed, **settings):
    """The calls of Kyutai's own program: arrays, and what it says of the words."""
    if kind == "tts_prefix":
        settings["cfg_coef"] = 2.0
    model = TTSModel.from_checkpoint_info(
        opened(kind), dtype=torch.float32, temp=0.0, max_gen_length=CALLS, **{"n_q": 4} | settings
    )
    entries = model.prepare_script([SPOKEN], padding_between=1)
    made, more = {}, {}
    attributes = ConditionAttributes()
    if kind == "tts":
        attributes = model.make_condition_attributes([FAMILY / kind / VOICE], cfg_coef=2.0)
    else:
        made["prefix"] = torch.cat([torch.full((1, PREFIX), -1), codes(seed, 4, PREFIX)])
        more = {"prefixes": [made["prefix"]]}
    result = model.generate([entries], [attributes], use_sampling=False, **more)
    made["asked"], made["given"] = torch.tensor(result.logged_text_tokens[0]).T
    made["frames"] = torch.cat(result.frames, dim=-1)[0]
    said = {
        "transcript": result.all_transcripts[0],
        "consumption_times": result.all_consumption_times[0],
        "end_step": result.end_steps[0],
    }
    return made, said, model, entries


def speaker(kind, seed):
    made, said, model, entries = speaks(kind, seed)
    script = {"result": said}
    if kind == "tts":
        fewer, script["result_fewer"], _, _ = speaks(kind, seed, n_q=3)
        made |= {f"{name}_fewer": value for name, value in fewer.items()}
    machine = model.machine
    script |= {
        "script": [SPOKEN], "padding_between": 1, "entries": listed(entries), "machine": rules(machine),
        "delay_steps": model.delay_steps, "final_padding": model.final_padding, "cfg_coef": 2.0,
    }  # fmt: skip
    assert said["end_step"] is not None, "the text does not end"
    begun = said["consumption_times"]
    assert begun[1] - begun[0] != begun[2] - begun[1], "nothing is asked for"
    (FAMILY / kind / "script.json").write_text(json.dumps(script) + "\n")
    return made


# --- the word machine alone -----------------------------------------------------------------------------------------

SCRIPTS = [
    ([SPOKEN], True, 1, 2, 8, 2),
    ([SPOKEN], False, 0, 0, 6, 2),
    (["good morning you", "i am fine: thank you", "and (you)?"], True, 1, 2, 8, 2),
    (["", "the other begins", "then this one"], True, 0, 2, 8, 2),
    (["one", "", "", "two"], True, 2, 2, 8, 2),
    (['a <break time="0.5s"/> cup <break time="1s"> of tea'], True, 1, 2, 8, 2),
    (['<break time="0.24s"/> late'], False, 1, 2, 8, 0),
    (['soon <break time="0.4s"/>'], False, 1, 0, 4, 1),
    (["it’s seven"], True, 3, 1, 2, 3),
    (["lazy dog lazy dog lazy"], False, 0, 1, 1, 0),
    (["over the sea"], False, 0, 3, 0, 2),
    (["  many   blanks\tand\nlines  "], True, 1, 2, 8, 2),
    ([""], True, 1, 2, 8, 2),
    ([], False, 1, 0, 8, 2),
    (["no<break time='1s'/>break here"], True, 1, 4, 8, 2),
    (["a b c d e f g"], True, 0, 7, 3, 5),
]


def listed(entries):
    return [{"tokens": entry.tokens, "text": entry.text, "padding": entry.padding} for entry in entries]


def rules(machine):
    names = ("second_stream_ahead", "max_padding", "initial_padding")
    return {"card": machine.token_ids.card} | {name: getattr(machine, name) for name in names}


def machine_case(tokenizer, draw, script, several, padding, ahead, most, initial):
    ids = TokenIds(TEXT + 1)
    machine = StateMachine(ids, second_stream_ahead=ahead, max_padding=most, initial_padding=initial)
    entries = script_to_entries(tokenizer, ids, 12.5, script, multi_speaker=several, padding_between=padding)
    state, asked = machine.new_state(entries), [draw.choice((0, 0, 3, 3, 3, 17)) for _ in range(CALLS)]
    assert isinstance(state.entries, deque)
    answers = [machine.process(step, state, token) for step, token in enumerate(asked)]
    return {
        "script": script, "multi_speaker": several, "padding_between": padding, "machine": rules(machine),
        "entries": listed(entries), "asked": asked, "given": [given for given, _ in answers],
        "consumed": [consumed for _, consumed in answers], "transcript": state.transcript,
        "consumption_times": state.consumption_times, "end_step": state.end_step,
    }  # fmt: skip


def make_machine():
    draw, tokenizer = random.Random(21), opened("tts").get_text_tokenizer()
    cases = [json.dumps(machine_case(tokenizer, draw, *case), ensure_ascii=False) for case in SCRIPTS]
    (FAMILY / "tts" / "machine.json").write_text("[\n" + ",\n".join(cases) + "\n]\n")


# --- the first seed that is good ------------------------------------------------------------------------------------

RUNS = {
    "plain_2026": talks, "hibiki": hibiki, "hibiki_zero": talks, "stt": transcribes, "stt_no_heads": transcribes,
    "tts": speaker, "tts_prefix": speaker,
}  # fmt: skip


def check(kind, made, found):
    """Raises AssertionError for a seed at which a choice is close, or too little happens."""
    assert min(found) > LEAST_MARGIN, f"margin {min(found):.1e}"
    for name, value in made.items():
        if name.startswith(("text", "codes")):
            for stream in value.reshape(-1, value.shape[-1]):
                assert len(stream.unique()) > 5, f"{name} repeats"
    if kind == "hibiki":
        text = made["text"]
        assert all((part == 2).any() for part in (text[:ENDS], text[ENDS + 3 :])), "no ends"
    if kind.startswith("stt"):
        assert min((made["text"] == token).sum() for token in (0, 3)) > 4, "no words"


def make(kind):
    for seed in range(1, SEEDS):
        make_folder(kind, seed)
        with margins() as found, torch.no_grad():
            try:
                made = RUNS[kind](kind, seed)
                check(kind, made, found)
            except AssertionError as reason:
                print(kind, seed, reason, file=sys.stderr)
                continue
        about = f"seed {seed}, smallest margin {min(found):.1e}, moshi 0.2.13, torch {torch.__version__}"
        made = {name: (value if value.is_floating_point() else value.int()) for name, value in made.items()}
        save_file(
            {name: value.contiguous() for name, value in made.items()},
            FAMILY / kind / "ref.safetensors",
            {"made": about},
        )
        print(kind, about, {name: list(value.shape) for name, value in made.items()})
        return
    raise SystemExit(f"{kind}: no seed")


def main():
    torch.set_num_threads(1)
    for kind in sys.argv[1:] or KINDS:
        make(kind)
    make_machine()


if __name__ == "__main__":
    main()
