"""Fine-tuning: python -m moshi_mlx.train prepare, then python -m moshi_mlx.train. docs/training.md is the guide."""
