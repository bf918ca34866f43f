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
    """Any error that this package raises on purpose.

    >>> try:
    ...     moshi_mlx.load("no/such/folder/here")
    ... except moshi_mlx.MoshiError as error:
    ...     print(type(error).__name__)
    CheckpointError
    """


class ConfigError(MoshiError, ValueError):
    """A configuration key is unknown, has the wrong type, or contradicts another key or a tensor.

    >>> try:
    ...     moshi_mlx.MimiConfig(num_quantizers=0)
    ... except moshi_mlx.ConfigError as error:
    ...     print(error)
    MimiConfig.num_quantizers: expected a positive number, got 0
    """


class CheckpointError(MoshiError, ValueError):
    """A checkpoint, a tokenizer or one of their files is missing, broken or does not fit.

    >>> try:
    ...     moshi_mlx.load("/no/such/folder")
    ... except moshi_mlx.CheckpointError as error:
    ...     print(error)
    /no/such/folder: no such folder; expected one, "miniature", or a hub id such as kyutai/moshiko-mlx-q4
    """


class InputError(MoshiError, ValueError):
    """An argument has the wrong shape, type or value.

    >>> try:
    ...     moshi_mlx.Sampling(top_k=-1)
    ... except moshi_mlx.InputError as error:
    ...     print(error)
    top_k: got -1, expected a whole number of 0 or more
    """


class AudioError(MoshiError, OSError):
    """A sound file or a sound device cannot be used.

    >>> from moshi_mlx.audio import files
    >>> try:
    ...     files.read_sound("no.wav", 24000)
    ... except moshi_mlx.AudioError as error:
    ...     print(error)
    no.wav: cannot be read: No such file or directory
    """


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
