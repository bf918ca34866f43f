"""In the place of sounddevice: see `without_devices`."""

raise OSError("tests open no real device; MOSHI_MLX_TEST_DEVICES=1 lets them")
