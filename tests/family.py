"""The tiny checkpoints of Moshi's sister models, what the reference makes of them, and one call of any of them."""

import dataclasses

import mlx.core as mx
import numpy as np
from helpers import GOLDENS, GREEDY, golden

import moshi_mlx
from moshi_mlx.conversation import duplex
from moshi_mlx.conversation.duplex import DuplexSampling
from moshi_mlx.roles import steps

FAMILY = GOLDENS / "family"
KINDS = ("plain_2026", "hibiki", "hibiki_zero", "stt", "stt_no_heads", "tts", "tts_prefix")
ROLES = {"dialogue": "plain_2026", "translator": "hibiki", "transcriber": "stt", "speaker": "tts"}
"""A checkpoint of each role."""
RUNS = (
    ("plain_2026", ""), ("hibiki", ""), ("hibiki", "_cfg3"), ("hibiki_zero", ""), ("stt", ""), ("stt_no_heads", ""),
    ("tts", ""), ("tts", "_fewer"), ("tts_prefix", ""),
)  # fmt: skip
"""What the reference ran: kinds and the ends of its arrays' names."""


def reference(kind):
    """The arrays of a kind, as NumPy."""
    return golden(f"family/{kind}/ref")


def loaded(kind):
    return moshi_mlx.load(FAMILY / kind, dtype=mx.float32)


def voice_of_golden():
    """The voice in the first of five slots, the others empty: (vectors [25, 8], mask [25])."""
    voice = golden("family/tts/voice0.wav.1e68beda@240")["speaker_wavs"][0].T
    mask = np.arange(5 * len(voice)) < len(voice)
    return mx.array(np.concatenate([voice, np.zeros((4 * len(voice), voice.shape[1]), np.float32)])), mask


class Run:
    """A run of the reference, to do again: every call is given what the reference's was given.

    `call(state, *given, skips=)` is pure: -> (what was drawn, state).
    """

    def __init__(self, model, kind, suffix="", guidance=None):
        self.model, self.kind, self.suffix = model, kind, suffix
        self.reference = reference(kind)
        self.speaks = model.config.role == "speaker"
        usual = {"_cfg3": 3.0}.get(suffix, 2.0 if kind == "tts_prefix" else 1.0)
        self.guidance = usual if guidance is None else guidance
        sampling = DuplexSampling.of(GREEDY, self.guidance)
        self.sampling = dataclasses.replace(sampling, guides_text=kind != "tts_prefix")
        self.codebooks = 3 if suffix == "_fewer" else None

    def begin(self, rows=1, conditions=None):
        if self.kind == "tts" and conditions is None:
            conditions = {"speaker_wavs": voice_of_golden()}
        state = duplex.init_state(self.model, [0] * rows, conditions=conditions, guidance=self.guidance)
        if self.kind == "tts_prefix":
            state["unseen"] = mx.array([self._prefix().shape[1] + self.model.config.audio_start] * rows)
        return state

    def calls(self):
        """What each call is given, as arrays of one row, and whether it skips the depth decoder."""
        if not self.speaks:
            user = self.reference["user"]
            for frame in (np.zeros_like(user[:, 0]), *user.T):
                yield (mx.array(frame[None]),), False
            return
        for n, text in enumerate(self.reference[f"given{self.suffix}"]):
            given = mx.array(text[None]), mx.array(self._replaced(n)[None])
            yield given, n < self.model.config.audio_start

    def call(self, state, *given, skips=False):
        if self.speaks:
            asked, heard = steps.ask(self.model, state, self.sampling)
            text, replaced = given
            sampling, steps_ = self.sampling, self.codebooks
            _, column, state = steps.say(self.model, text, heard, sampling, replaced, steps_, skips)
            return (asked, column), state
        if self.model.config.role == "transcriber":
            text, heads, state = steps.listen(self.model, *given, state, self.sampling)
            return (text, heads), state
        text, _, state = duplex.language_step(self.model, *given, state, self.sampling)
        return (text, state["own"][:, :, -1]), state

    def drawn(self, row=0, state=None, call=None):
        """The tokens [T] of every call, and what else it gives [T, ...], of a row among those of the state."""
        state, call = self.begin() if state is None else state, call or self.call
        rows, all_drawn = len(state["offset"]), []
        for given, skips in self.calls():
            out, state = call(state, *(mx.repeat(each, rows, axis=0) for each in given), skips=skips)
            all_drawn.append([np.array(each)[row] for each in out])
            mx.eval(state)
        return tuple(np.stack(each) for each in zip(*all_drawn, strict=True))

    def check(self, text, more):
        """They are the reference's, position by position."""
        expected, suffix = self.reference, self.suffix
        name = "asked" if self.speaks else "text"
        np.testing.assert_array_equal(text, expected[name + suffix])
        if self.speaks:
            frames = expected["frames" + suffix]
            columns = more[max(self.model.config.audio_delays) :].T
            np.testing.assert_array_equal(columns[: len(frames) - 1], frames[1:])
            assert (columns[len(frames) - 1 :] == -1).all()
        elif "heads" in expected:
            np.testing.assert_allclose(more, expected["heads"], atol=1e-5)
        elif self.model.config.role != "transcriber":
            np.testing.assert_array_equal(more.T, expected["codes" + suffix])

    def _prefix(self):
        return self.reference["prefix"]

    def _replaced(self, n):
        config = self.model.config
        replaced = np.full(config.num_codebooks, -2)
        for q, delay in enumerate(config.audio_delays):
            at = n - config.audio_start - delay
            if at < 0:
                replaced[q] = -1
            elif self.kind == "tts_prefix" and at < self._prefix().shape[1]:
                replaced[q] = self._prefix()[1 + q, at]
        replaced[self.codebooks or config.num_codebooks :] = -1
        return replaced
