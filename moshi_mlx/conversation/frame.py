"""What a conversation takes beside sound, settings and hooks, and what it gives: frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..inputs import Number
from ..models.sampling import SamplingSettings

OnText = Callable[[int], int | None]
"""(sampled text token) -> the token to go on with, or None for the sampled one."""


OnSpeaking = Callable[[bool], Any]
"""(whether Moshi speaks now), called when that changes."""


class SessionSettings(SamplingSettings, total=False):
    """What a session takes beside its model and seed: see `Session`."""

    kv_bits: int | None
    context: int | None
    on_text: OnText | None
    on_speaking: OnSpeaking | None
    wait_for_greeting: bool | None
    guidance: Number | None
    conditions: Mapping[str, Any] | None
    progress: bool | None


class Frame(NamedTuple):
    """80 ms of Moshi's side of the conversation, 12.5 of them a second.

    - `pcm`: what it says, float32 [frame_size] at sample_rate: 1920 samples at 24000 Hz. None while the delay fills.
    - `text`: what this frame adds to the text, "" for padding.
    - `text_token`: the token of it.
    - `audio_codes`: int32 [num_codebooks], the codes of pcm; None where that is.
    - `speaking`: whether Moshi speaks or pauses for breath, by `speech.SpeechDetector`.

    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> frame = model.session(seed=0).step(np.zeros(1920, np.float32))
    >>> frame.pcm.shape, frame.audio_codes.shape, frame.speaking
    ((1920,), (8,), False)
    """

    pcm: np.ndarray | None
    text: str
    text_token: int
    audio_codes: np.ndarray | None
    speaking: bool = False
