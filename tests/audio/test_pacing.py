"""Falling behind and catching up: the policy by itself, and the live code around it in simulated time."""

import numpy as np
import pytest

from bench.simulate import FRAME, RATE, Simulation
from moshi_mlx.audio.pacing import CatchUp, Playout, Silence, leave_out, level_db

TALKING = pytest.mark.parametrize(("user", "reply"), [(0.3, 0.3), (0.0, 0.3), (0.3, 0.0), (0.0, 0.0)])
PHASES = pytest.mark.parametrize("phase", [0.0005, 0.013])
BLOCK_SECONDS = 480 / RATE


def run(durations, seconds, user=0.3, reply=0.3, phase=0.007, **settings):
    simulation = Simulation(lambda now: user, phase=phase, **settings)
    return simulation, simulation.run(durations, seconds, reply)


# Simulated model times: nothing here sleeps


@pytest.mark.slow
@PHASES
def test_sixty_ms_drops_nothing_in_ten_minutes(phase):
    simulation, rows = run(lambda now: 0.06, 600, phase=phase)
    assert len(rows) == 7500
    assert (rows[-1].lost, rows[-1].left_out, rows[-1].underruns) == (0, 0, 0)
    assert max(row.latency for row in rows) < 0.16
    assert simulation.notices == []


@TALKING
@PHASES
def test_five_slow_seconds_are_caught_up_within_two(user, reply, phase):
    _, rows = run(lambda now: 0.12 if now < 5 else 0.06, 15, user, reply, phase)
    assert max(row.latency for row in rows if row.time > 7) < 0.24
    assert max(row.latency for row in rows if row.time < 5) > 0.24  # it was late
    assert rows[-1].lost == next(row.lost for row in rows if row.time > 7)  # and nothing is dropped any more


@TALKING
@PHASES
def test_one_stall_loses_its_second_and_no_more(user, reply, phase):
    _, rows = run(lambda now: 1.0 if 5 <= now < 5.07 else 0.06, 12, user, reply, phase)
    over = next(row.time for row in rows if row.step == 1.0)
    assert 0 < rows[-1].lost + rows[-1].left_out <= 1.0
    assert max(row.latency for row in rows if row.time > over + 1) < 0.24
    assert rows[-1].underruns == 1


@pytest.mark.parametrize(("user", "reply"), [(0.3, 0.3), (0.0, 0.0)])
def test_too_slow_a_machine_stays_within_the_limit_and_says_so(user, reply):
    simulation, rows = run(lambda now: 0.09, 600, user, reply)
    assert max(row.latency for row in rows) <= 0.4 + BLOCK_SECONDS
    assert rows[-1].lost == pytest.approx(600 / 9, rel=0.05)  # what a model of 90 ms cannot hear
    slow = [said for said in simulation.notices if "a frame takes 90 ms, it must take less than 80" in said]
    assert 55 <= len(slow) <= 60  # not at every frame


def test_the_limit_is_the_one_that_is_asked_for():
    _, rows = run(lambda now: 0.09, 60, limit=0.8)
    assert 0.5 < max(row.latency for row in rows) <= 0.8 + BLOCK_SECONDS


def test_a_late_frame_now_and_then_is_bridged_by_a_larger_buffer():
    simulation, rows = run(lambda now: 0.1 if int(7 * now) % 9 == 0 else 0.06, 60)
    assert rows[-1].lost == 0
    assert simulation.speaker.playout.target > FRAME
    assert rows[-1].underruns <= 6  # of some fifty late frames


def test_large_blocks_are_not_taken_for_lateness():
    _, rows = run(lambda now: 0.03, 60, block=6000)  # 250 ms at once
    assert rows[-1].lost < 0.1


def test_only_silence_goes_below_the_limit():
    """After a short stall the backlog waits for the first pause of the user, who pauses from 6.0 to 6.4 s."""
    simulation = Simulation(lambda now: 0.0 if 6.0 <= now < 6.4 else 0.3)
    rows = simulation.run(lambda now: 0.25 if 5 <= now < 5.07 else 0.06, 8, reply=0.3)
    first = next(row.time for row in rows if row.lost > 0) if rows[-1].lost else None
    assert first is None or first > 6.0
    assert rows[-1].lost + rows[-1].left_out > 0.1  # one way or the other it has caught up
    assert rows[-1].latency < 0.24


# The parts


def test_catch_up_leaves_a_conversation_in_time_alone():
    policy = CatchUp(0.08)
    policy.stepped(0.06)
    assert policy.cut(backlog=0.08, queued=0.1, target=0.08, frames=1, silent=0) == 0
    assert policy.cut(backlog=0.15, queued=0.0, target=0.08, frames=1, silent=1) == 0


def test_catch_up_cuts_to_one_frame_at_the_limit():
    policy = CatchUp(0.08, limit=0.4)
    policy.stepped(0.06)
    assert policy.cut(backlog=0.36, queued=0.05, target=0.08, frames=1, silent=0) == pytest.approx(0.28)
    assert policy.cut(backlog=0.33, queued=0.05, target=0.08, frames=1, silent=0) == 0
    assert policy.cut(backlog=0.33, queued=0.05, target=0.08, frames=2, silent=0) == pytest.approx(0.25)
    policy.block = 0.30  # the device gives as much at once
    assert policy.cut(backlog=0.36, queued=0.05, target=0.08, frames=1, silent=0) == 0


def test_catch_up_drops_silent_frames_and_leaves_one():
    policy = CatchUp(0.08)
    policy.stepped(0.06)
    backlog = {"backlog": 0.32, "queued": 0.08, "target": 0.08, "frames": 1}
    assert policy.cut(**backlog, silent=2) == pytest.approx(0.16)
    assert policy.cut(**backlog, silent=9) == pytest.approx(0.24)
    assert policy.cut(**backlog, silent=0) == 0


def test_one_stall_does_not_change_what_a_frame_takes():
    policy = CatchUp(0.08)
    for seconds in (0.06, 0.06, 1.0):
        policy.stepped(seconds)
    assert policy.step == 0.06


def test_playout_waits_for_its_target_then_plays():
    playout = Playout(24_000, 1920)
    assert playout.play(480, 1919) == 0
    assert playout.play(480, 1920) == 480
    assert playout.play(480, 480) == 480
    assert playout.underruns == 0


def test_playout_grows_on_underrun_and_shrinks_when_calm():
    playout = Playout(24_000, 1920)
    playout.play(480, 1920)
    assert playout.play(480, 100) == 100
    assert (playout.underruns, playout.target, playout.waiting) == (1, 2400, True)
    for _ in range(20):
        playout.play(480, 10_000)
        playout.play(480, 0)
    assert playout.target == playout.most == 1920 * 7 // 4
    for _ in range(50 * 31):
        playout.play(480, 10_000)
    assert playout.target == 1920


def test_playout_leaves_out_silence_at_once_and_speech_late():
    assert Playout(24_000, 1920).trim(1920, 1920, silent=True) == 1920
    playout = Playout(24_000, 1920)
    assert [playout.trim(1920, 1920, silent=False) for _ in range(8)] == [0] * 6 + [960] * 2
    assert playout.trim(1920, 0, silent=True) == 0


def test_leaving_out_has_no_seam():
    tone = np.sin(2 * np.pi * 200 * np.arange(1920) / 24_000).astype(np.float32)
    kept = leave_out(tone, 700, 120)
    assert len(kept) == 1220
    assert kept[0] == tone[0]
    np.testing.assert_array_equal(kept[120:], tone[820:])
    assert np.abs(np.diff(kept)).max() < 1.5 * np.abs(np.diff(tone)).max()
    assert len(leave_out(tone, 1920, 120)) == 0


def test_silence_is_told_from_speech_above_the_noise_of_the_room():
    silence = Silence()
    assert silence.is_silent(-80)
    assert not silence.is_silent(-40)
    for _ in range(12 * 120):  # two minutes of a fan
        silence.learn(-42)
    assert silence.is_silent(-42)
    assert not silence.is_silent(-30)


def test_levels():
    assert level_db(np.zeros(10, np.float32)) == -120
    assert level_db(np.ones(10, np.float32)) == 0
    assert level_db(np.full(10, 0.1, np.float32)) == pytest.approx(-20)
    assert level_db(np.zeros(0, np.float32)) == -120
