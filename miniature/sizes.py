"""The miniature's sizes: narrow, so that language model and codec fit into 12 MB together in 8 bits."""

from __future__ import annotations

from moshi_mlx import MimiConfig, MoshiConfig, MoshiDepthConfig

CODEBOOKS, ENTRIES, PIECES = 8, 256, 288
# A clip of the codec's training is what its transformers ever see at once: no position is beyond what was trained.
CLIP_FRAMES = 12

CODEC = MimiConfig(
    num_filters=16, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
    sliding_window=2 * CLIP_FRAMES, codebook_size=ENTRIES, codebook_dim=64, num_quantizers=CODEBOOKS,
)  # fmt: skip

# Whole groups of 64 for quantization. The context is longer than a question and its answer, and full in half of every
# training segment, so that a long conversation is like what was trained on.
LANGUAGE = MoshiConfig(
    vocab_size=PIECES, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    ffn_dim=1024, sliding_window=100,
    depth_decoder_config=MoshiDepthConfig(
        vocab_size=PIECES, hidden_size=128, input_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
        audio_vocab_size=ENTRIES, ffn_dim=256,
    ),
    audio_encoder_config=CODEC,
)  # fmt: skip
