"""The frame pump, with a stand-in session that echoes its input."""

import threading
import time
from array import array

import numpy as np
import pytest
from stand_ins import EchoSession, ListSink, RingSource

from moshi_mlx.audio import files
from moshi_mlx.conversation import loop

SIZE = 1920


def noise(frames):
    return np.random.default_rng(0).uniform(-1, 1, frames * SIZE).astype(np.float32)


@pytest.fixture
def sink():
    return ListSink()


def test_every_frame_goes_through_in_order(sink):
    sound = noise(5)
    statistics = loop.run(EchoSession(), files.FileSource(sound, SIZE, tail=2 * SIZE), sink)
    np.testing.assert_array_equal(np.concatenate(sink.frames), np.pad(sound, (0, 2 * SIZE)))
    assert statistics.frames == 7
    assert sink.drained == 1


def test_silence_while_the_delay_fills_keeps_the_reply_aligned(sink):
    sound = noise(5)
    loop.run(EchoSession(delay=2), files.FileSource(sound, SIZE), sink)
    np.testing.assert_array_equal(np.concatenate(sink.frames), np.pad(sound, (2 * SIZE, 0))[: 5 * SIZE])


def test_live_sound_takes_the_same_path(sink):
    sound, source = noise(8), RingSource(8)
    speaking = threading.Thread(target=lambda: [source.ring.push(part) for part in np.split(sound, 16)])
    speaking.start()
    statistics = loop.run(EchoSession(), source, sink)
    speaking.join()
    np.testing.assert_array_equal(np.concatenate(sink.frames), sound)
    assert (statistics.input_drops, statistics.input_lost) == (2, 0.32)


def test_steps_limit_the_frames(sink):
    source = files.FileSource(noise(5), SIZE)
    assert loop.run(EchoSession(), source, sink, steps=3).frames == 3
    assert sink.drained == 1
    assert loop.run(EchoSession(), source, sink, steps=3).frames == 2  # it goes on where it stopped
    assert loop.run(EchoSession(), source, sink, steps=3).frames == 0


def test_stop_ends_after_the_frame_at_hand_and_waits_for_no_speaker(sink):
    stop, seen = threading.Event(), []

    def on_frame(moment):
        seen.append(moment.frame.text)
        if len(seen) == 3:
            stop.set()

    statistics = loop.run(EchoSession(delay=1), files.FileSource(noise(9), SIZE), sink, [on_frame], stop=stop)
    assert statistics.frames == len(sink.frames) == 3
    assert seen == ["", " one", " one"]
    assert sink.drained == 0


def test_stop_from_another_thread(sink):
    stop, started = threading.Event(), threading.Event()

    def on_frame(moment):
        started.set()
        stop.wait(10)

    def stopper():
        started.wait(10)
        stop.set()

    thread = threading.Thread(target=stopper)
    thread.start()
    assert loop.run(EchoSession(), files.FileSource(noise(9), SIZE), sink, [on_frame], stop=stop).frames == 1
    thread.join()


def test_ending_the_source_from_another_thread_ends_a_wait(sink):
    source = RingSource(9)
    source.ring.push(noise(1))
    thread = threading.Timer(0.05, source.end)
    thread.start()
    assert loop.run(EchoSession(), source, sink).frames == 1
    thread.join()


def test_the_session_is_stepped_by_the_thread_that_calls(sink):
    session = EchoSession()
    loop.run(session, files.FileSource(noise(3), SIZE), sink)
    assert session.threads == {threading.get_ident()}


class Broken(Exception):
    pass


def test_an_error_of_the_session_ends_the_loop(sink):
    session = EchoSession()

    def step(pcm):
        raise Broken

    session.step = step
    with pytest.raises(Broken):
        loop.run(session, files.FileSource(noise(3), SIZE), sink)
    assert sink.frames == []
    assert sink.drained == 0


def test_an_error_of_the_sink_ends_the_loop(sink):
    def write(pcm):
        raise Broken

    sink.write = write
    with pytest.raises(Broken):
        loop.run(EchoSession(), files.FileSource(noise(3), SIZE), sink)


def test_statistics_count_what_was_lost_in_this_run(sink):
    sound = noise(3)
    sound[[5, 3000]] = np.nan, -np.inf
    sink.drops = 4
    statistics = loop.run(EchoSession(), files.FileSource(sound, SIZE), sink)
    assert (statistics.input_drops, statistics.output_drops, statistics.nonfinite_samples) == (0, 4, 2)


def test_frame_times_are_those_of_the_step_alone(sink, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    session = EchoSession()
    step, write = session.step, sink.write

    def slow_step(pcm):
        now[0] += 0.04 if len(session.heard) % 2 else 0.02
        return step(pcm)

    def slow_write(pcm):
        now[0] += 5.0
        write(pcm)

    session.step, sink.write = slow_step, slow_write
    statistics = loop.run(session, files.FileSource(noise(10), SIZE), sink)
    assert list(statistics.times) == pytest.approx([0.02, 0.04] * 5)
    assert statistics.real_time_factor == pytest.approx(0.03 / 0.08)
    assert statistics.percentile_ms(50) == pytest.approx(30.0)
    assert statistics.percentile_ms(95) == pytest.approx(40.0)
    line = str(statistics)
    assert "\n" not in line
    for said in (
        "0.8 s of sound in 0.3 s (0.37×)",
        "30 ms a frame, 95% within 40",
    ):
        assert said in line
    assert "dropped" not in line
    assert "reply" not in line


def test_a_summary_says_what_was_lost_and_only_that():
    statistics = loop.Statistics(0.08, array("d", [0.04]), 1, 3, 0.16, 0.04, 7, array("d", [0.2, 0.25, 0.3]))
    line = str(statistics)
    for said in ("reply 250 ms after you", "0.16 s of your sound dropped, once", "interrupted 3 times, 0.04 s",
                 "7 NaN or infinite samples heard as silence"):  # fmt: skip
        assert said in line


def test_statistics_of_nothing(sink):
    statistics = loop.run(EchoSession(), files.FileSource(noise(0), SIZE), sink)
    assert str(statistics) == "no sound: 0 frames"


def test_observers_see_every_frame_as_it_was(sink):
    sound, moments = noise(3), []
    loop.run(EchoSession(delay=1), files.FileSource(sound, SIZE), sink, [moments.append, lambda moment: None])
    assert [m.number for m in moments] == [0, 1, 2]
    np.testing.assert_array_equal(np.concatenate([m.heard for m in moments]), sound)
    np.testing.assert_array_equal([m.said for m in moments], sink.frames)
    assert moments[0].frame.pcm is None
    assert [m.reset for m in moments] == [False] * 3


def test_muted_is_silence_to_the_session_and_to_observers(sink):
    controls, heard = loop.Controls(), []

    def observe(moment):
        heard.append(float(np.abs(moment.heard).max()))
        controls.muted = moment.number == 0  # during the second frame

    loop.run(EchoSession(), files.FileSource(noise(3), SIZE), sink, [observe], controls=controls)
    assert heard[1] == 0.0
    assert heard[0] > 0
    assert heard[2] > 0
    assert not sink.frames[1].any()


def test_push_to_talk_hears_while_the_key_is_held(sink, monkeypatch):
    now, controls = [100.0], loop.Controls()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    controls.push_to_talk = True
    assert controls.deaf
    for _ in range(3):
        controls.press()
        now[0] += 0.5
        assert not controls.deaf
    now[0] += loop.HOLD_SECONDS
    assert controls.deaf
    controls.press()
    controls.muted = True
    assert controls.deaf


def test_latency_is_the_source_s(sink):
    source, moments = files.FileSource(noise(2), SIZE), []
    source.latency = 0.19
    statistics = loop.run(EchoSession(), source, sink, [moments.append])
    assert [m.latency for m in moments] == [0.19, 0.19]
    assert statistics.latency == 0.19


def test_reset_begins_a_new_conversation_with_the_next_frame(sink):
    controls, session, moments = loop.Controls(), EchoSession(delay=1), []

    def observe(moment):
        moments.append(moment)
        if moment.number == 1:
            controls.reset()

    loop.run(session, files.FileSource(noise(4), SIZE), sink, [observe], controls=controls)
    assert [m.reset for m in moments] == [False, False, True, False]
    assert len(session.heard) == 2
    assert not controls.take_reset()
