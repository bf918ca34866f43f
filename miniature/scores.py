"""How well speech is understood: STOI (Taal et al., 2011), by pystoi."""

from __future__ import annotations

import numpy as np

from .talk.speech import SAMPLE_RATE


def stoi(reference: np.ndarray, heard: np.ndarray) -> float:
    """Short-time objective intelligibility of `heard` against `reference`, both [T]: about 0 to 1."""
    from pystoi import stoi as score

    return float(score(reference, heard, SAMPLE_RATE, extended=False))
