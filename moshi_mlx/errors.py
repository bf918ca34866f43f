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
