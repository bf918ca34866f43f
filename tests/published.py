"""The configs of published checkpoints, key by key, as facts; no weights."""

NOTHING = {
    "cross_attention": False,
    "conditioners": {},
    "fuser": {
        "cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [], "prepend": [], "cross": []
    },
}  # fmt: skip
USUAL = {
    "existing_text_padding_id": 3, "card": 2048, "hidden_scale": 4.125, "causal": True, "layer_scale": None,
    "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_dim": 1024,
    "depformer_num_heads": 16, "depformer_num_layers": 6, "depformer_dim_feedforward": None,
    "depformer_multi_linear": True, "depformer_pos_emb": "none", "depformer_weights_per_step": True,
}  # fmt: skip
DEPTH = {
    "depformer_causal": True, "depformer_layer_scale": None, "depformer_context": 8, "depformer_max_period": 10000,
    "depformer_gating": "silu",
}  # fmt: skip


def delays(own, user, late):
    return [0] + [0, *[late] * (own - 1)] * bool(own) + [0, *[late] * (user - 1)] * bool(user)


def table(bins, dim, *values):
    return {"type": "lut", "lut": {"n_bins": bins, "dim": dim, "tokenizer": "noop", "possible_values": list(values)}}


def schedule(steps):
    return [min(step, 8 + (step - 8) // 8) for step in range(steps)]


TOLD = {
    "conditioners": {"description": table(31, 16, "very_bad", "bad", "neutral", "good", "very_good")},
    "fuser": NOTHING["fuser"] | {"sum": ["description"]},
}
HIBIKI_1B = USUAL | DEPTH | TOLD | {
    "dim": 2048, "text_card": 48000, "n_q": 16, "dep_q": 8, "num_heads": 16, "num_layers": 16, "context": 1500,
    "max_period": 100000, "delays": delays(8, 8, 2), "model_type": "hibiki",
}  # fmt: skip
HIBIKI_1B_MLX = {key: value for key, value in HIBIKI_1B.items() if key != "model_type"} | {
    "context": 500, "depformer_dim_feedforward": 4224, "depformer_context": 16, "fuser": {"sum": ["description"]},
    "mimi_name": "mimi-dbaa9758@125.safetensors", "moshi_name": "hibiki-mlx-dc2cf5a5@80.safetensors",
    "tokenizer_name": "tokenizer_spm_48k_multi6_2.model",
}  # fmt: skip
HIBIKI_2B = USUAL | DEPTH | TOLD | {
    "dim": 2560, "text_card": 48000, "n_q": 32, "dep_q": 16, "num_heads": 20, "num_layers": 24, "context": 1500,
    "max_period": 100000.0, "depformer_dim_feedforward": 3072, "depformer_num_layers": 4,
    "delays": delays(16, 16, 2), "depformer_low_rank_embeddings": 128,
    "depformer_weights_per_step_schedule": schedule(16), "cross_attention": False, "model_type": "hibiki",
    "lm_gen_config": {"temp": 0.8, "temp_text": 0.8, "top_k": 250, "top_k_text": 50},
}  # fmt: skip
HIBIKI_ZERO = USUAL | DEPTH | NOTHING | {
    "dim": 2048, "text_card": 48000, "n_q": 32, "dep_q": 16, "num_heads": 16, "num_layers": 28, "hidden_scale": 6,
    "context": 3000, "max_period": 20000.0, "positional_embedding": "rope_concat", "delays": delays(16, 16, 2),
    "kv_repeat": 2, "depformer_kv_repeat": 1, "depformer_norm": "layer_norm",
    "depformer_weights_per_step_schedule": schedule(16), "demux_second_stream": False, "text_card_out": None,
    "model_type": "hibiki",
}  # fmt: skip
STT_1B = USUAL | NOTHING | {
    "n_q": 32, "dep_q": 0, "delays": [0] * 33, "dim": 2048, "text_card": 8000, "num_heads": 16, "num_layers": 16,
    "context": 750, "max_period": 100000.0, "extra_heads_num_heads": 4, "extra_heads_dim": 6, "model_type": "stt",
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
}  # fmt: skip
STT_26B = STT_1B | {
    "text_card": 4000, "num_heads": 32, "num_layers": 48, "context": 375, "extra_heads_num_heads": 0,
    "stt_config": {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
}  # fmt: skip
STT_1B_MLX = {key: value for key, value in STT_1B.items() if key != "model_type"}
SPEAKS = USUAL | {
    "text_card": 8000, "num_heads": 16, "context": 500, "max_period": 10000, "depformer_num_layers": 4,
    "depformer_dim_feedforward": 3072, "depformer_low_rank_embeddings": 128, "demux_second_stream": True,
    "tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2}, "model_type": "tts",
    "lm_gen_config": {"temp": 0.6, "text_temp": 0.6},
}  # fmt: skip
TTS_16B = SPEAKS | {
    "n_q": 32, "dep_q": 32, "delays": delays(32, 0, 2), "dim": 2048, "num_layers": 16, "text_card_out": None,
    "depformer_weights_per_step_schedule": schedule(32), "cross_attention": True,
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}},
        "cfg": table(7, 16, "1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"), "control": table(1, 2048, "ok"),
    },
    "fuser": NOTHING["fuser"] | {
        "cross_attention_pos_emb": True, "sum": ["control", "cfg"], "cross": ["speaker_wavs"]
    },
    "model_id": {"sig": "1e68beda", "epoch": 240},
}  # fmt: skip
TTS_075B = SPEAKS | NOTHING | {
    "n_q": 16, "dep_q": 16, "delays": delays(16, 0, 2), "dim": 1024, "num_layers": 24, "text_card_out": 5,
    "depformer_weights_per_step_schedule": schedule(16), "model_id": {"sig": "d6ef30c7", "epoch": 1000},
}  # fmt: skip
CONFIGS = {
    "Hibiki 1B": HIBIKI_1B, "Hibiki 1B, MLX": HIBIKI_1B_MLX, "Hibiki 2B": HIBIKI_2B, "Hibiki-Zero 3B": HIBIKI_ZERO,
    "STT 1B": STT_1B, "STT 1B, MLX": STT_1B_MLX, "STT 2.6B": STT_26B, "TTS 1.6B": TTS_16B, "TTS 0.75B": TTS_075B,
}  # fmt: skip
