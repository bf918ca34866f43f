"""Everything that regenerates the miniature model of moshi_mlx/assets: `python -m miniature`."""
