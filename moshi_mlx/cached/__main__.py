"""List, fetch and remove models: python -m moshi_mlx.models [list | fetch NAME | remove NAME]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..checkpoints import hub
from ..errors import MoshiError
from ..terminal import streams
from ..terminal.arguments import Parser
from ..terminal.sizes import size
from . import store

PROGRAM = "moshi_mlx.models"


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: 0, or 2 with one line of what is wrong."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "fetch":
            streams.tell(str(hub.local_folder(arguments.name, arguments.revision)))
        elif arguments.command == "remove":
            streams.tell(f"{arguments.name}: removed, {size(store.remove(arguments.name))} given back")
        else:
            _list()
    except MoshiError as error:
        return streams.failed(PROGRAM, error)
    except KeyboardInterrupt:
        streams.say(f"{PROGRAM}: interrupted; what was fetched stays, and fetching goes on from there")
        return 130
    return 0


def _parser() -> Parser:
    parser = Parser(f"python -m {PROGRAM}", description="The models on this disk.")
    commands = parser.add_subparsers(dest="command", metavar="list | fetch | remove")
    commands.add_parser("list", help="what is there, with sizes (this is what happens without a word, too)")
    fetch = commands.add_parser("fetch", help="download what loading needs, and print the folder")
    fetch.add_argument("name", metavar="HUB_ID")
    fetch.add_argument("--revision", help="branch, tag or commit")
    remove = commands.add_parser("remove", help="remove a model from the hub's cache")
    remove.add_argument("name", metavar="HUB_ID")
    return parser


def _list() -> None:
    found = store.models()
    widths = [max(len(model.name) for model in found), max(len(size(model.size)) for model in found)]
    for model in found:
        streams.tell(
            f"{model.name:{widths[0]}}  {size(model.size):>{widths[1]}}  {model.kind}  ({store.age(model.used)})"
        )
    total = sum(model.size for model in found if model.used is not None)
    streams.tell(f"{size(total)} in the hub's cache" if total else "nothing in the hub's cache yet")


if __name__ == "__main__":
    sys.exit(main())
