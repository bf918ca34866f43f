"""The command that says a text: python -m moshi_mlx.say."""
