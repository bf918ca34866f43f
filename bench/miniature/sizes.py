"""The miniature's sizes, as the config.json and mimi_config.json that ship with it (Kyutai's keys)."""

from __future__ import annotations

from moshi_mlx.config import MimiConfig, MoshiConfig

from ..random_checkpoint import lm_config, mimi_config

CODEBOOKS, ENTRIES, PIECES = 8, 256, 288
# A clip of the codec's training is what its transformers ever see at once: no position is beyond what was trained.
CLIP_FRAMES = 12

CODEC_JSON = mimi_config(16, 128, 2, 256, ENTRIES, 64, CODEBOOKS)
CODEC_JSON["transformer"] |= {"num_heads": 4, "context": 2 * CLIP_FRAMES}
CODEC = MimiConfig.from_kyutai(CODEC_JSON, "the miniature's codec")

# Narrow gated layers, so that language model and codec fit into 12 MB together; whole groups of 64 for quantization.
LANGUAGE_JSON = lm_config(256, 4, 128, 2, PIECES, ENTRIES) | {"hidden_scale": 3.0, "depformer_dim_feedforward": 192}
# Longer than a question and its answer, and full in half of every training segment, so that a long conversation is
# like what was trained on.
LANGUAGE_JSON |= {"context": 100}
LANGUAGE = MoshiConfig.from_kyutai(LANGUAGE_JSON, "the miniature", CODEC)
