"""The models on this disk: listed, fetched, removed. The command is `python -m moshi_mlx.models`."""
