"""The server's own command with a batch that echoes in the place of a model: echo_worker.py --port 9000 --slots 1."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import EchoBatch

import moshi_mlx.serve.__main__ as command

command.make_batch = lambda arguments, say: EchoBatch(int(arguments.slots))
command.role_of = lambda arguments: "dialogue"

if __name__ == "__main__":
    sys.exit(command.main())
