"""Bytes in words."""

from __future__ import annotations


def size(count: int) -> str:
    """Bytes for people."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
