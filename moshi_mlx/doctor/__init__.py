"""python -m moshi_mlx.doctor: whether everything that a conversation needs works on this machine."""
