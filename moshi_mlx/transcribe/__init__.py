"""The command that writes down what is said: python -m moshi_mlx.transcribe."""
