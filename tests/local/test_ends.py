"""The ends of a conversation: the demo's loudspeaker, and files beside devices."""

import contextlib

import numpy as np
import pytest
import soundfile
from stand_ins import RATE, SIZE, EchoSession, ListSink, tone

from moshi_mlx.audio import devices
from moshi_mlx.audio.devices import DeviceLost
from moshi_mlx.conversation import loop
from moshi_mlx.errors import AudioError
from moshi_mlx.local import ends, options


class Speaker(ListSink):
    """Keeps what is played; gone after `lasts` frames."""

    volume, lasts = 1.0, 1000

    def __init__(self, *_, **settings):
        super().__init__()
        self.settings = settings

    def write(self, pcm):
        if len(self.frames) >= self.lasts:
            raise DeviceLost("the speaker 'box' is gone")
        super().write(pcm)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A function that runs a demo on six frames and gives (the speaker, what was said, what was written)."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("in.wav", tone(6 * 0.08), RATE, subtype="FLOAT")

    def run(speaker, *more):
        monkeypatch.setattr(devices, "Speaker", speaker)
        said = []
        arguments = options.parse(["--demo", "--input", "in.wav", "--tail", "0", *more])
        with contextlib.ExitStack() as stack:
            opened = ends.Ends(arguments, stack, said.append, None)
            loop.run(EchoSession(delay=1), opened.source, opened.sink)
            opened.file.keep()
        return opened.speaker, said, soundfile.read(opened.file.path, dtype="float32")[0]

    return run


def test_question_and_answer_are_heard_and_the_answer_is_written(demo):
    speaker, said, written = demo(Speaker)
    question = tone(6 * 0.08)
    answer = np.pad(question, (SIZE, 0))[: 6 * SIZE]
    np.testing.assert_allclose(np.concatenate(speaker.frames), np.clip(question + answer, -1, 1), atol=1e-4)
    np.testing.assert_allclose(written, answer, atol=1e-4)
    assert (said, speaker.settings, speaker.drained) == ([], {"pace": True}, 1)


def test_without_a_speaker_it_is_written_and_that_is_said(demo):
    def missing(*_, **__):
        raise AudioError("no speaker can be opened")

    speaker, said, written = demo(missing)
    assert speaker is None
    assert said == ["nothing is played: no speaker can be opened"]
    assert len(written) == 6 * SIZE


def test_a_speaker_that_goes_away_ends_no_demo(demo):
    class Short(Speaker):
        lasts = 2

    speaker, said, written = demo(Short)
    assert len(speaker.frames) == 2
    assert said == ["the speaker 'box' is gone; the rest is not heard"]
    assert len(written) == 6 * SIZE


def test_nothing_is_opened_that_was_not_asked_for(demo):
    speaker, said, _ = demo(None, "--output-device", "none")
    assert (speaker, said) == (None, [])


def test_a_file_gets_its_frame_before_a_device_does():
    order = []

    class Sink(ListSink):
        def write(self, pcm):
            order.append(self)

    speaker, file = Sink(), Sink()
    ends.Both(speaker, file).write(tone(0.08))
    assert order == [file, speaker]
