"""The layers that Moshi and Mimi are made of."""
