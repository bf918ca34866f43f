"""The door of a command that bears this room's name: python -m moshi_mlx.models is moshi_mlx.cached."""

import runpy

if __name__ == "__main__":
    runpy.run_module("moshi_mlx.cached", run_name="__main__", alter_sys=True)
