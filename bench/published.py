"""The sizes of Moshi's published sister models, as the keys of Kyutai's `config.json`: for random weights and counts.

    python -m bench roofline --size stt-1b --chip M2
    python -m bench.people family --chip M2             # every size: what a frame costs, how many people a chip holds

What the published 0.75B TTS does not say (its layers' heads, its context) is taken from the 1.6B.
"""

from __future__ import annotations

from typing import Any

DESCRIPTION = {
    "description": {
        "type": "lut",
        "lut": {
            "n_bins": 31, "dim": 16, "tokenizer": "noop",
            "possible_values": ["very_bad", "bad", "neutral", "good", "very_good"],
        },
    }
}  # fmt: skip
VOICE = {
    "speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}},
    "cfg": {
        "type": "lut",
        "lut": {
            "n_bins": 7, "dim": 16, "tokenizer": "noop",
            "possible_values": ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"],
        },
    },
    "control": {"type": "lut", "lut": {"n_bins": 1, "dim": 2048, "tokenizer": "noop", "possible_values": ["ok"]}},
}  # fmt: skip
EIGHT = [*range(8)]  # each a set of weights of its own


def language(
    dim: int, layers: int, heads: int, context: int, text_card: int, own: int, user: int, delay: int, **more: Any
) -> dict[str, Any]:
    """The keys of a language model with `own` codebooks and the user's, all but the first of a side `delay` late."""
    late = [0, *[delay] * (own - 1)] * (own > 0) + [0, *[delay] * (user - 1)] * (user > 0)
    return {
        "dim": dim, "text_card": text_card, "existing_text_padding_id": 3, "n_q": own + user, "dep_q": own,
        "card": 2048, "num_heads": heads, "num_layers": layers, "hidden_scale": 4.125, "causal": True,
        "layer_scale": None, "context": context, "max_period": 100000, "gating": "silu", "norm": "rms_norm_f32",
        "positional_embedding": "rope", "depformer_dim": 1024, "depformer_dim_feedforward": None,
        "depformer_num_heads": 16, "depformer_num_layers": 6, "depformer_multi_linear": True,
        "depformer_pos_emb": "none", "depformer_weights_per_step": True, "delays": [0, *late], **more,
    }  # fmt: skip


def _fuser(summed: list[str], crossing: list[str]) -> dict[str, Any]:
    return {
        "cross_attention_pos_emb": bool(crossing), "cross_attention_pos_emb_scale": 1, "sum": summed, "prepend": [],
        "cross": crossing,
    }  # fmt: skip


NARROW = {"depformer_num_layers": 4, "depformer_dim_feedforward": 3072, "depformer_low_rank_embeddings": 128}
TRANSLATES = {"model_type": "hibiki", "conditioners": DESCRIPTION, "fuser": _fuser(["description"], [])}
SPEAKS = {"model_type": "tts", "max_period": 10000, "demux_second_stream": True, **NARROW}
TTS_TIMES = {"tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2}}

PUBLISHED: dict[str, dict[str, Any]] = {
    "hibiki-1b": language(2048, 16, 16, 500, 48000, 8, 8, 2, **TRANSLATES),
    "hibiki-2b": language(
        2560, 24, 20, 1500, 48000, 16, 16, 2, **TRANSLATES, **NARROW,
        depformer_weights_per_step_schedule=[*EIGHT, *[8] * 8],
    ),
    "hibiki-zero-3b": language(
        2048, 28, 16, 3000, 48000, 16, 16, 2, model_type="hibiki", max_period=20000, hidden_scale=6, kv_repeat=2,
        depformer_kv_repeat=1, positional_embedding="rope_concat", depformer_norm="layer_norm",
        depformer_weights_per_step_schedule=[*EIGHT, *[8] * 8],
    ),
    "stt-1b": language(
        2048, 16, 16, 750, 8000, 0, 32, 0, model_type="stt", extra_heads_num_heads=4, extra_heads_dim=6,
        stt_config={"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    ),
    "stt-2.6b": language(
        2048, 48, 32, 375, 4000, 0, 32, 0, model_type="stt",
        stt_config={"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
    ),
    "tts-1.6b": language(
        2048, 16, 16, 500, 8000, 32, 0, 2, **SPEAKS, **TTS_TIMES, cross_attention=True, conditioners=VOICE,
        fuser=_fuser(["control", "cfg"], ["speaker_wavs"]),
        depformer_weights_per_step_schedule=[*EIGHT, *[8] * 8, *[9] * 8, *[10] * 8],
    ),
    "tts-0.75b": language(
        1024, 24, 16, 500, 8000, 16, 0, 2, **SPEAKS, **TTS_TIMES, text_card_out=5,
        depformer_weights_per_step_schedule=[*EIGHT, *[8] * 8],
    ),
}  # fmt: skip
