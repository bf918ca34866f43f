"""The command that translates speech into speech: python -m moshi_mlx.translate."""
