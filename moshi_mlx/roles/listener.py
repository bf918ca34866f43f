"""One person who is transcribed, on the host: what the model wrote for them becomes words, pauses and times."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import inputs
from ..conversation.duplex import DuplexSampling
from ..errors import InputError
from ..models.config import MoshiConfig
from ..models.moshi import Moshi
from ..models.roles import check_role
from .hearing import Clock, EndWord, Word, WordMachine
from .pauses import SHARE, EndPause, Pause, PauseDetector, refresh_due


class Step(NamedTuple):
    """A frame of 80 ms was heard: it ends at second `time` of the sound, and the model wrote `token`.

    `pauses` are the heads' probabilities that no word comes within the next 0.5, 1, 2 and 3 seconds, empty for a model
    without heads; `pause` is the third, smoothed (see `PauseDetector`).
    """

    number: int
    time: float
    token: int
    pauses: tuple[float, ...]
    pause: float


Event = Step | Word | EndWord | Pause | EndPause


def check_model(model: Any) -> None:
    """Raises InputError for what does not transcribe."""
    if not isinstance(model, Moshi):
        raise InputError(f"model: got a {type(model).__name__}, expected a transcriber (STT)")
    check_role(model, "transcriber")


def flush_frames(config: MoshiConfig) -> int:
    """Frames of silence after which all that was said has been written: the delay's, and one."""
    return int(config.audio_delay_seconds * config.audio_encoder_config.frame_rate) + 1


def tail_frames(config: MoshiConfig) -> int:
    """Frames of silence after a file, as Kyutai's program has it: the delay and a second more."""
    return math.ceil((config.audio_delay_seconds + 1) * config.audio_encoder_config.frame_rate)


def prefix_frames(config: MoshiConfig) -> int:
    """Frames of silence before the sound."""
    return math.ceil(config.silence_prefix_seconds * config.audio_encoder_config.frame_rate)


def kept_frames(config: MoshiConfig, context: int) -> int:
    """Frames that a refreshed memory begins with: those of whose sound the text is still to come, if there is room."""
    return max(0, min(flush_frames(config), context // 4))


def checked_refresh(refresh: Any) -> float | None:
    """The share of the context from which on pauses are used; None: never. Raises InputError."""
    if refresh is None or refresh is False:
        return None
    return SHARE if refresh is True else inputs.number("refresh", refresh, 0.0, 1.0)


class Listener:
    """A person, from `Transcribers.join` until `Transcribers.leave`. It says nothing about its place."""

    def __init__(
        self, model: Moshi, place: int, seed: int, sampling: DuplexSampling, context: int, refresh: float | None
    ) -> None:
        config, codec = model.config, model.config.audio_encoder_config
        self._place, self._seed, self.sampling = place, seed, sampling
        self._frame, self._delay = codec.frame_size, config.audio_delay_seconds * codec.sampling_rate
        seconds = codec.frame_size / codec.sampling_rate
        self._clock = Clock(codec.sampling_rate)
        self._words = WordMachine(model.tokenizer, config.silent_text_tokens, seconds)
        self._silent = config.silent_text_tokens
        self._pause = PauseDetector(seconds)
        self._context, self._refresh = context, refresh
        self._recent: deque[tuple[int, np.ndarray]] = deque(maxlen=kept_frames(config, context))
        self._before = 0  # the token before the next frame's
        self._silence_due = prefix_frames(config)
        self._kept: list[Event] = []  # of its prefix, which nobody has asked for yet
        self.frames = 0
        """Frames so far, silence that was put between included."""
        self.positions = 0
        """What the attention cache holds or has held since it was last refreshed; 0 until it is primed."""
        self.refreshed = 0
        """How often that was done."""
        self.nonfinite_samples = 0
        """NaN and infinite samples that were replaced by silence so far."""

    @property
    def seconds(self) -> float:
        """Seconds of sound so far, without the silence that was put between."""
        return self._clock.now

    @property
    def paused(self) -> bool:
        """Whether this person pauses just now."""
        return self._pause.paused

    @property
    def ready(self) -> bool:
        """Whether it is primed and has heard its prefix."""
        return self.positions > 0 and not self._silence_due

    def skip_prefix(self) -> None:
        """No silence before the first frame, if it is still to come."""
        self._silence_due = 0

    def took(self, events: list[Event]) -> list[Event]:
        """A frame's events; those of the prefix come with the first frame after it."""
        given, self._kept = [*self._kept, *events], []
        if self._silence_due:
            self._silence_due -= 1
            given, self._kept = [], given
        return given

    def fed(self, sound: int) -> None:
        """A frame is coming of which so many samples are the person's, the rest silence."""
        self._clock.sound(sound)
        self._clock.silence(self._frame - sound)

    def primed(self, token: int) -> None:
        self.positions, self._before = 1, token

    def heard(self, token: int, heads: Sequence[float], codes: np.ndarray) -> list[Event]:
        """What the model wrote for a frame -> its events: words that are whole, ends of words, pauses, the step."""
        if self._recent.maxlen:
            self._recent.append((self._before, codes))
        self._before = token
        self.positions += 1
        now = round(self._clock.now, 3)
        words = self._words(token, self._clock.seconds(self._clock.fed - self._delay))
        before, paused = self._pause.paused, self._pause(heads, token not in self._silent)
        step = Step(self.frames, now, token, tuple(heads), self._pause.score)
        self.frames += 1
        changed: list[Event] = [] if paused == before else [Pause(now) if paused else EndPause(now)]
        return [step, *words, *changed]

    def finish(self) -> list[Event]:
        """All that was said is written: the last word has ended."""
        return list(self._words.finish(round(self._clock.now, 3)))

    @property
    def refresh_due(self) -> bool:
        return self._refresh is not None and refresh_due(self.positions, self._context, self.paused, self._refresh)

    def recent(self) -> tuple[np.ndarray, np.ndarray]:
        """What a refreshed memory begins with: the tokens [n] before the last frames, and their codes [n, K]."""
        text = np.array([token for token, _ in self._recent], np.int32)
        return text, np.array([codes for _, codes in self._recent], np.int32).reshape(len(text), -1)

    def was_refreshed(self) -> None:
        self.positions = 1 + len(self._recent)
        self.refreshed += 1
