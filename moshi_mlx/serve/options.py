"""The options of python -m moshi_mlx.serve, and what is wrong with them."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ..terminal.arguments import Parser
from .guard import is_loopback
from .logs import FORMATS

PROGRAM = "moshi_mlx.serve"
HUB_SUFFIXES = {4: "q4", 8: "q8", 16: "bf16"}
PORT = 8998  # Kyutai's

EPILOG = """\
addresses: / the page, /api/chat Kyutai's protocol, /v1/realtime OpenAI's, /health, /metrics for Prometheus.
With an STT or a TTS: /api/asr-streaming or /api/tts_streaming, the sockets that Unmute talks to (docs/unmute.md).
A microphone in a browser needs https or this machine itself: --ssl, or ssh -L 8998:localhost:8998 HOST.
Ctrl-C or SIGTERM: nobody is let in any more, and the server ends when the last one has left or --drain is over; once
more ends it now.

exit status: 0 when it was told to end, 2 on an error.
"""


def parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """Of the server, or of another command that is one."""
    made = Parser(
        f"python -m {program}",
        table=program.split(".")[1],
        description="Serve Moshi to browsers and programs, many conversations at once.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _model_options(made)
    _people_options(made.add_argument_group("people"))
    _network_options(made.add_argument_group("network"))
    return made


def _model_options(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--model", metavar="FOLDER_OR_HUB_ID", help="checkpoint, or 'miniature'; overrides -q and --voice"
    )
    made.add_argument("--adapter", metavar="FOLDER_OR_HUB_ID", help="LoRA folder, file or hub id")
    made.add_argument("-q", "--quantized", type=int, choices=HUB_SUFFIXES, default=4, help="bits (default: 4)")
    made.add_argument("--voice", choices=("moshiko", "moshika"), default="moshiko", help="default: moshiko")
    made.add_argument(
        "--context",
        type=_context,
        metavar="N",
        help="frames of 80 ms that Moshi remembers (default: the model's, 3000)",
    )
    made.add_argument(
        "--guidance", type=_not_negative, metavar="N",
        help="with a Hibiki: 3 sounds more like the speaker (default: 1, none); with a TTS: as python -m moshi_mlx.say",
    )  # fmt: skip
    made.add_argument(
        "--codebooks", type=_context, metavar="N",
        help="with an STT or a TTS: hear or draw so many of each frame's codebooks (default: all; Unmute's STT: 20)",
    )  # fmt: skip
    made.add_argument("--kv-bits", type=int, choices=(8, 4), help="keep the attention caches in so many bits")


def _people_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--slots", type=_slots, default="auto", metavar="N",
        help="conversations at once; auto times this machine and takes the most that keep real time (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--queue", type=_whole, metavar="N", help="people who may wait in line (default: 8; none with STT and TTS)"
    )
    group.add_argument(
        "--max-minutes", type=_positive, metavar="M", help="a conversation's longest (default: no limit)"
    )
    group.add_argument(
        "--drain", type=_not_negative, default=60.0, metavar="SECONDS",
        help="after Ctrl-C or SIGTERM, how long people may go on (default: 60)",
    )  # fmt: skip


def _network_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; another than this machine's own "
                       "wants --token (default: 127.0.0.1)")  # fmt: skip
    group.add_argument("--port", type=_port, default=PORT, help=f"default: {PORT}; 0 takes a free one")
    group.add_argument("--ssl", type=Path, metavar="FOLDER", help="https and wss, with cert.pem and key.pem in FOLDER")
    group.add_argument(
        "--token", default=os.environ.get("MOSHI_TOKEN"),
        help="what people must know; better in MOSHI_TOKEN, since others here can read a command line",
    )  # fmt: skip
    group.add_argument(
        "--origin", type=_origin, action="append", default=[], metavar="URL",
        help="an origin of pages that may connect, and a name that is served, as https://talk.example.org; repeatable",
    )  # fmt: skip
    group.add_argument("--log-format", choices=FORMATS, default="text", help="default: text; json is an object a line")


def parse(argv: Sequence[str] | None = None, made: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    made = made or parser()
    arguments = made.parse_args(argv)
    if not is_loopback(arguments.host) and not arguments.token:
        made.error(f"--host {arguments.host}: others can reach it, so it wants --token (or MOSHI_TOKEN)")
    if arguments.token is not None and not arguments.token.strip():
        made.error("--token: got nothing, expected a secret")
    if arguments.model is None:
        arguments.model = f"kyutai/{arguments.voice}-mlx-{HUB_SUFFIXES[arguments.quantized]}"
    return arguments


def _slots(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected auto or a whole number from 1")
    return int(text)


def _context(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a port from 0 to 65535")
    return int(text)


def _positive(text: str) -> float:
    value = _not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("got 0, expected a number above it")
    return value


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0")
    return value


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or parts.query:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected http(s)://name or http(s)://name:port")
    return f"{parts.scheme}://{parts.netloc}".lower()
