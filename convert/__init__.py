"""Convert and quantize: any Moshi checkpoint in, any layout out. The command line is `python -m moshi_mlx.convert`."""
