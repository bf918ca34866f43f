"""Files as strangers hand them in: regular ones, of a sane size, inside the folder that names them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ConfigError, MoshiError, brief, clipped

MAX_TEXT_BYTES = 2**25  # of a JSON or TOML file; the largest index that is published takes a megabyte
MAX_DEPTH = 50  # of objects within objects
MAX_FILE_BYTES = 2**28  # of a file that is read as a whole: tokenizers take a few megabytes


def regular(path: Path, error: type[MoshiError] = CheckpointError) -> Path:
    """The path of a file that can be opened: no folder, and no FIFO or device, which would block or never end."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as cause:
        raise error(f"{path}: no such file") from cause
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from cause
    if not stat.S_ISREG(mode):
        raise error(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}, expected a file")
    return path


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES, error: type[MoshiError] = CheckpointError) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises `error`, naming the file."""
    regular(path, error)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from cause
    if len(content) > limit:
        raise error(f"{path}: is larger than {limit} bytes, which no such file needs")
    return content


def read_text(path: Path, error: type[MoshiError] = ConfigError) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises `error`, naming the file."""
    try:
        return read_bytes(path, MAX_TEXT_BYTES, error).decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(f"{path}: is no text in UTF-8") from cause


def read_json(path: Path, error: type[MoshiError] = ConfigError) -> dict[str, Any]:
    """An object from a JSON file, in which every number is finite. Raises ConfigError."""
    try:
        values = json.loads(read_text(path, error), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as cause:
        if isinstance(cause, MoshiError):
            raise
        reason = "objects within objects too deep" if isinstance(cause, RecursionError) else clipped(str(cause))
        raise error(f"{path}: not a JSON file ({reason})") from cause
    if not isinstance(values, dict):
        raise error(f"{path}: got a JSON {type(values).__name__}, expected an object")
    check_depth(values, path, error)
    return values


def check_depth(values: Any, path: Path, error: type[MoshiError] = ConfigError) -> None:
    """Raises `error` where lists and objects lie in each other deeper than any file of ours has them."""
    layer = [values]
    for _ in range(MAX_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in layer]
        layer = [item for items in inner for item in items if isinstance(item, (dict, list)) and item]
        if not layer:
            return
    raise error(f"{path}: has objects within objects more than {MAX_DEPTH} deep")


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{clipped(text)} is too large a number")
    return value


def inside(folder: Path, name: Any, where: str, error: type[MoshiError] = CheckpointError) -> Path:
    """The path of a file that a config or an index names, which must lie in its folder. Raises `error`."""
    path = Path(name) if isinstance(name, str) else None
    if path is None or not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise error(f"{where}: names the file {brief(name)}, expected one inside its folder")
    return folder / path
