"""The server's own lines, for people or an object a line for programs. No query of an address: a token may be in it."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

FORMATS = ("text", "json")
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage(), **fields_of(record)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        details = ", ".join(f"{name} {value}" for name, value in fields_of(record).items())
        line = time.strftime("%H:%M:%S ", time.localtime(record.created)) + record.getMessage()
        line += f" ({details})" if details else ""
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def logger(kind: str) -> logging.Logger:
    """The one logger of the server, writing to standard error."""
    log = logging.getLogger("moshi_mlx.serve")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if kind == "json" else Text())
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    return log
