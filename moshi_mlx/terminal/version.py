"""The version, and the name under which this package is installed: `moshi_mlx` on the package index is another one."""

VERSION = "0.5.0"
DISTRIBUTION = "moshi-duplex"


def install(extra: str) -> str:
    """The command that brings an extra's packages to an installation of this package."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
