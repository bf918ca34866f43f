"""The errors that this package raises on bad input.

MoshiError
├── ConfigError        a configuration key is unknown, of the wrong type, or contradicts another or a tensor
├── CheckpointError    a checkpoint, tokenizer or one of their files is missing, broken or does not fit
├── InputError         an argument has the wrong shape, type or value
└── AudioError         a sound file or a sound device cannot be used

Every message is one line that says what was got, what was expected and what to do. The children are also
the built-in exception that fits, so that callers who know nothing of this package catch what they expect.
"""


class MoshiError(Exception):
    """Any error that this package raises on purpose."""


class ConfigError(MoshiError, ValueError):
    """A configuration key is unknown, has the wrong type, or contradicts another key or a tensor."""


class CheckpointError(MoshiError, ValueError):
    """A checkpoint, a tokenizer or one of their files is missing, broken or does not fit."""


class InputError(MoshiError, ValueError):
    """An argument has the wrong shape, type or value."""


class AudioError(MoshiError, OSError):
    """A sound file or a sound device cannot be used."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError where a condition does not hold."""
    if not condition:
        raise ConfigError(message)


def brief(value: object) -> str:
    """What was got, as Python writes it, in as much of a line as a message may repeat."""
    try:
        return clipped(repr(value))
    except (RecursionError, ValueError):  # nested without end, or a number of too many digits
        return f"a {type(value).__name__}"


def clipped(text: str, width: int = 100) -> str:
    """Text of others in one line of at most `width` characters."""
    line = " ".join(text[: 2 * width].split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
