"""Microphone and speaker without a sound card: stand-in streams whose callbacks the tests call."""

import types

import numpy as np
import pytest
from stand_ins import in_thread

from moshi_mlx.audio import portaudio, stream
from moshi_mlx.audio.devices import DeviceLost, Microphone, Speaker
from moshi_mlx.errors import AudioError
from moshi_mlx.local import live
from moshi_mlx.local.live import Conversation, UserFile

RATE = 24_000
QUIET = types.SimpleNamespace(input_overflow=False, output_underflow=False)
FLAGGED = types.SimpleNamespace(input_overflow=True, output_underflow=True)


class FakeStream:
    latency, active, closed = 0.1, True, False

    def __init__(self, ended):
        self.ended = ended

    def abort(self):
        self.active = False
        self.ended()

    def close(self):
        self.closed = True


class System:
    """What PortAudio would find: names of devices, and the rate that they take."""

    def __init__(self):
        self.names, self.rate, self.looked = {"Input": ["mic"], "Output": ["box"]}, RATE, 0

    def find(self, wanted, direction):
        names = self.names[direction]
        if not names or (wanted and wanted not in names):
            raise AudioError("no such device")
        return portaudio.Device(0, wanted or names[0], "test", 1, 1, 48_000.0, (direction,))

    def open_stream(self, direction, device, rates, callback, ended):
        taken = [rate for rate in rates if rate == self.rate]
        if not taken:
            raise AudioError("invalid sample rate")
        return FakeStream(ended), taken[0]

    def look_again(self):
        self.looked += 1


@pytest.fixture
def system(monkeypatch):
    system = System()
    for name in ("find", "open_stream", "look_again"):
        monkeypatch.setattr(portaudio, name, getattr(system, name))
    monkeypatch.setattr(
        portaudio, "close_stream", lambda stream: None if stream.closed else (stream.abort(), stream.close())
    )
    monkeypatch.setattr(live, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(stream, "FIRST_TIMEOUT", 0.05)
    return system


def tone(seconds, rate=RATE, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def speak(microphone, samples, status=QUIET):
    microphone._on_block(np.array(samples, np.float32)[:, None], len(samples), None, status)


def play(speaker, count, status=QUIET):
    out = np.full((count, 1), 9.0, np.float32)
    speaker._on_block(out, count, None, status)
    return out[:, 0]


# Microphone


def listening(*settings, **more):
    microphone = Microphone(RATE, 1920, *settings, **more)
    microphone._listening = True
    return microphone


@pytest.mark.parametrize("block", [1, 480, 1000, 1920, 5000])
def test_any_block_size_gives_the_same_frames(system, block):
    microphone, sound = listening(), tone(0.4)
    for start in range(0, len(sound), block):
        speak(microphone, sound[start : start + block])
    microphone.collect()
    np.testing.assert_array_equal(np.concatenate([microphone.take() for _ in range(5)]), sound)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000, 96_000])
def test_any_device_rate_is_resampled_without_clicks(system, rate):
    system.rate = rate
    microphone, sound = listening(None, rate), tone(1.0, rate)
    for start in range(0, len(sound), rate // 50):
        speak(microphone, sound[start : start + rate // 50])
    microphone.collect()
    heard = microphone.peek(RATE)
    assert len(heard) > 0.95 * RATE
    middle = heard[2400:-2400]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    peak = int(np.argmax(spectrum))
    assert peak * RATE / len(middle) == pytest.approx(440, abs=2)
    spectrum[peak - 4 : peak + 5] = 0
    assert spectrum.max() < 3e-3 * len(middle) / 4  # nothing but the tone: a click would be everywhere


def test_a_device_that_refuses_the_codec_s_rate_is_opened_at_its_own(system):
    system.rate = 48_000
    assert Microphone(RATE, 1920).rate == 48_000
    assert Speaker(RATE, 1920).rate == 48_000


def test_microphone_gives_what_comes_after_the_first_fill(system, monkeypatch):
    microphone = Microphone(RATE, 10)
    speak(microphone, [1] * 10)

    def device(count, timeout):
        speak(microphone, [2] * 5)
        speak(microphone, [3] * 10)
        return True

    monkeypatch.setattr(microphone._arrived, "wait_filled", device)
    assert microphone.fill()
    assert microphone.take().tolist() == [2] * 5 + [3] * 5
    assert microphone.overflows == 0


def test_microphone_counts_what_is_lost(system):
    microphone = listening()
    for _ in range(50):  # two seconds at twice the rate are kept
        speak(microphone, tone(0.08))
    assert microphone.overflows == 0
    speak(microphone, tone(0.08))
    assert microphone.overflows == 1
    speak(microphone, [], FLAGGED)
    assert microphone.overflows == 2


def test_microphone_that_stops_is_lost(system):
    microphone = Microphone(RATE, 1920)
    microphone._stream.abort()
    with pytest.raises(DeviceLost, match="microphone 'mic' is gone"):
        microphone.fill()


def test_microphone_that_falls_silent_is_lost(system, monkeypatch):
    monkeypatch.setattr(stream, "TIMEOUT", 0.01)
    monkeypatch.setattr(stream, "FIRST_TIMEOUT", 0.05)
    with pytest.raises(DeviceLost):
        Microphone(RATE, 1920).fill()


def test_end_wakes_who_waits_for_the_microphone(system):
    microphone = Microphone(RATE, 1920)
    result = in_thread(microphone.fill)
    microphone.end()
    assert result() is False


# Speaker


def test_speaker_plays_silence_until_a_frame_is_there_then_every_sample(system):
    speaker = Speaker(RATE, 1920)
    assert not play(speaker, 480).any()
    speaker.write(tone(0.08))
    np.testing.assert_array_equal(np.concatenate([play(speaker, 480) for _ in range(4)]), tone(0.08))
    assert speaker.drops == 0


@pytest.mark.parametrize("block", [7, 100, 480])
def test_underrun_fades_instead_of_clicking(system, block):
    speaker, sound = Speaker(RATE, 1920), tone(0.08, hertz=100)[:1900]  # it ends in mid-swing
    speaker.write(np.pad(sound, (20, 0)))
    played = np.concatenate([play(speaker, block) for _ in range(4000 // block)])
    assert np.abs(np.diff(played)).max() < 0.03
    assert played[-1] == 0
    assert speaker.drops == 1
    for _ in range(2):
        speaker.write(np.full(1920, 0.5, np.float32))  # begins at full swing
    after = np.concatenate([play(speaker, block) for _ in range(1920 // block)])
    assert np.abs(np.diff(np.concatenate([played, after]))).max() < 0.03
    assert after[-1] == 0.5


def test_a_device_that_ran_dry_by_itself_is_counted(system):
    speaker = Speaker(RATE, 1920)
    play(speaker, 480, FLAGGED)
    assert speaker.drops == 0  # nothing was playing
    speaker.write(tone(0.08))
    play(speaker, 480)
    play(speaker, 480, FLAGGED)
    assert speaker.drops == 1


def test_silence_at_the_end_is_no_underrun(system):
    speaker = Speaker(RATE, 1920)
    speaker.write(tone(0.04))
    speaker._flushing = True
    assert play(speaker, 1920)[:960].tolist() == tone(0.04).tolist()
    assert speaker.drops == 0


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_reply_is_resampled_to_the_device(system, rate):
    system.rate = rate
    speaker, sound = Speaker(RATE, 1920, None, rate), tone(4.0)
    played = []
    for start in range(0, len(sound), 1920):
        speaker.write(sound[start : start + 1920])
        played += [play(speaker, rate // 50) for _ in range(4)]
    heard = np.concatenate(played)[-2 * rate :]  # by now the buffer has grown to what resampling holds back
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.01)
    assert np.abs(np.diff(heard)).max() < 0.5 * 2 * np.pi * 440 / rate * 1.05
    assert np.abs(heard[: rate // 4]).max() > 0.45


def test_reply_that_piles_up_is_left_out_and_counted(system):
    speaker = Speaker(RATE, 1920)
    for _ in range(40):
        speaker.write(tone(0.08))
    assert speaker.queued <= 2.0
    assert speaker.overflows > 0
    assert speaker.left_out == pytest.approx(40 * 0.08 - speaker.queued)


def test_pacing_speaker_waits_for_room(system):
    speaker = Speaker(RATE, 1920, pace=True)
    for _ in range(5):
        speaker.write(tone(0.08))
    result = in_thread(lambda: speaker.write(tone(0.08)))
    play(speaker, 1920)
    assert result() is None
    assert speaker.drops == 0


def test_speaker_that_stopped_is_lost(system):
    speaker = Speaker(RATE, 1920, pace=True)
    speaker._stream.abort()
    with pytest.raises(DeviceLost, match="speaker 'box' is gone"):
        speaker.write(tone(0.08))


def test_drain_follows_the_reply_with_the_latency_of_the_device(system, monkeypatch):
    speaker = Speaker(RATE, 1920)
    speaker.write(np.ones(1920, np.float32))
    played = []

    def device(count, timeout):
        played.append(play(speaker, speaker._ring.filled))
        return True

    monkeypatch.setattr(speaker._ring, "wait_room", device)
    speaker.drain()
    reply, silence = played
    assert reply.tolist() == [1] * 1920
    assert silence.tolist() == [0] * (int(0.1 * RATE) + 1920)
    assert speaker.drops == 0


def test_tap_gives_exactly_what_was_played(system):
    speaker = Speaker(RATE, 1920, tap=True)
    play(speaker, 480)
    speaker.write(tone(0.08))
    played = [play(speaker, 480) for _ in range(6)]  # two of them after it ran dry
    np.testing.assert_array_equal(speaker.played(), np.concatenate([np.zeros(480, np.float32), *played]))
    assert len(speaker.played()) == 0


# Conversation


@pytest.fixture
def talk(system):
    said = []
    talk = Conversation(Microphone(RATE, 1920), Speaker(RATE, 1920), 0.4, said.append)
    talk.said = said
    return talk


def hear(talk, *sounds):
    """The next read hears these; one frame each."""
    talk.microphone._listening = True
    for sound in sounds:
        speak(talk.microphone, sound)


def test_frames_go_through(talk):
    hear(talk, tone(0.08))
    np.testing.assert_array_equal(talk.read(), tone(0.08))
    talk.write(tone(0.08))
    assert (talk.drops, talk.lost_seconds, talk.backlog) == (0, 0.0, 0.0)
    assert (talk.voice.drops, talk.voice.lost_seconds) == (0, 0.0)


def test_backlog_is_cut_to_one_frame_at_the_limit_and_counted(talk):
    hear(talk, *[np.full(1920, n / 10, np.float32) for n in range(1, 9)])
    assert talk.read()[0] == np.float32(0.8)
    assert talk.drops == 1
    assert talk.lost_seconds == pytest.approx(7 * 0.08)


@pytest.mark.parametrize("end", ["microphone", "speaker"])
def test_vanished_device_is_said_and_reopened(talk, system, monkeypatch, end):
    getattr(talk, end)._stream.abort()
    tries = []

    def look_again():
        tries.append(talk.said[:])
        system.names["Input"] = ["mic"] if len(tries) > 2 else []
        if len(tries) > 2:
            talk.microphone.fill = lambda: (hear(talk, tone(0.08)), talk.microphone.collect(), True)[2]

    monkeypatch.setattr(portaudio, "look_again", look_again)
    np.testing.assert_array_equal(talk.read(), tone(0.08))
    assert len(tries) == 3
    assert "is gone; the conversation waits" in tries[0][0]  # said before anything was tried
    assert talk.said[-1] == "sound is back: microphone 'mic', speaker 'box'"
    assert not talk.speaker.gone
    talk.write(tone(0.08))


def test_another_device_takes_the_place_of_one_that_was_chosen(system):
    said = []
    system.names = {"Input": ["mic", "headset"], "Output": ["box", "headset"]}
    talk = Conversation(Microphone(RATE, 1920, "headset"), Speaker(RATE, 1920, "headset"), 0.4, said.append)
    system.names = {"Input": ["mic"], "Output": ["box"]}
    talk.speaker._stream.abort()
    talk._recover("the speaker 'headset' is gone")
    assert (talk.microphone.name, talk.speaker.name) == ("mic", "box")


def test_end_stops_waiting_for_a_device(talk, system):
    system.names["Output"] = []
    talk.speaker._stream.abort()
    result = in_thread(talk.read)
    talk.end()
    assert result() is None


def test_losses_of_either_side_are_its_own(talk):
    talk.voice.write(tone(0.04))
    for _ in range(8):
        play(talk.speaker, 480)
    assert (talk.drops, talk.voice.drops) == (0, 0)  # half a frame is not yet played
    talk.voice.write(tone(0.08))
    for _ in range(8):
        play(talk.speaker, 480)
    assert (talk.drops, talk.voice.drops) == (0, 1)


def test_reply_to_a_vanished_speaker_is_let_go(talk):
    talk.speaker._stream.abort()
    talk.write(tone(0.08))


def test_user_file_speaks_first_at_the_microphones_pace(talk):
    source = UserFile(talk, tone(0.1), 1920)
    hear(talk, *[np.full(1920, 0.1, np.float32)])
    first = source.read()
    hear(talk, *[np.full(1920, 0.2, np.float32)])
    second = source.read()
    hear(talk, *[np.full(1920, 0.3, np.float32)])
    np.testing.assert_array_equal(np.concatenate([first, second])[:2400], tone(0.1))
    assert not second[480:].any()
    assert source.read()[0] == np.float32(0.3)
    source.end()
    assert source.read() is None


# When things go wrong


def test_the_microphone_runs_before_the_speaker_is_opened_again(talk, system, monkeypatch):
    order = []
    open_stream = portaudio.open_stream

    def opening(direction, *given):
        order.append(direction)
        return open_stream(direction, *given)

    monkeypatch.setattr(portaudio, "open_stream", opening)
    monkeypatch.setattr(talk.microphone, "wait_running", lambda: order.append("first callback"))
    talk._reopen()
    assert order == ["Input", "first callback", "Output"]


@pytest.mark.parametrize("end", ["microphone", "speaker"])
def test_a_stream_that_ends_while_it_stays_active_is_gone_at_once(talk, end):
    device = getattr(talk, end)
    device._stream.ended()
    assert device._stream.active
    assert device.gone
    with pytest.raises(DeviceLost):
        talk.microphone.fill() if end == "microphone" else device.write(tone(0.08))


def test_an_old_stream_s_end_says_nothing_of_the_new_one(talk, system):
    old = talk.speaker._stream
    talk._reopen()
    old.ended()
    assert not talk.speaker.gone


def test_portaudio_that_does_not_start_at_first_ends_nothing(talk, system, monkeypatch):
    tries = []

    def look_again():
        tries.append(1)
        if len(tries) < 4:
            raise AudioError("Error initializing PortAudio")

    monkeypatch.setattr(portaudio, "look_again", look_again)
    talk._recover("the microphone 'mic' is gone")
    assert len(tries) == 4
    assert talk.said[-1].startswith("sound is back")


def test_a_changed_default_device_is_followed(talk, system):
    system.names = {"Input": ["headset"], "Output": ["headset"]}
    talk.default_changed("Output")
    result = in_thread(talk.read)
    while talk.microphone.name != "headset" or len(talk.said) < 2:
        pass
    talk.end()
    assert result() is None
    assert talk.said[0].startswith("the system's default device changed")
    assert talk.said[1] == "sound is back: microphone 'headset', speaker 'headset'"


@pytest.mark.parametrize(
    ("microphone", "speaker", "watched"),
    [(None, None, ("Input", "Output")), ("mic", None, ("Output",)), (None, "box", ("Input",)), ("mic", "box", ())],
)
def test_only_devices_that_nobody_chose_are_followed(system, monkeypatch, microphone, speaker, watched):
    asked = []
    monkeypatch.setattr(live.defaults, "Watch", lambda directions, changed: asked.append(directions))
    Conversation(Microphone(RATE, 1920, microphone), Speaker(RATE, 1920, speaker), 0.4, print)
    assert asked == [watched]


def test_two_seconds_of_exact_zeros_are_reported_and_noise_is_not(talk):
    def hear_frames(count, level):
        for _ in range(count):
            hear(talk, np.full(1920, level, np.float32))
            talk.read()

    hear_frames(30, 1e-5)
    hear_frames(24, 0.0)
    assert talk.said == []
    hear_frames(1, 0.0)
    (line,) = talk.said
    assert "the microphone 'mic' gives nothing but zeros" in line
    hear_frames(50, 0.0)
    assert len(talk.said) == 1  # not again and again


def test_what_a_mac_s_user_is_told_to_do():
    import importlib
    import sys as system
    from unittest import mock

    with mock.patch.object(system, "platform", "darwin"):
        fresh = importlib.util.module_from_spec(importlib.util.find_spec("moshi_mlx.local.live"))
        fresh.__loader__.exec_module(fresh)
    assert "System Settings > Privacy & Security > Microphone" in fresh.NOT_PERMITTED
    assert "restart the terminal" in fresh.NOT_PERMITTED


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels(system, channels):
    microphone, speaker, sound = listening(), Speaker(RATE, 1920), tone(0.08)
    microphone._on_block(np.repeat(sound[:, None], channels, axis=1), 1920, None, QUIET)
    microphone.collect()
    np.testing.assert_allclose(microphone.take(), sound, atol=1e-6)
    speaker.write(sound)
    out = np.full((1920, channels), 9.0, np.float32)
    speaker._on_block(out, 1920, None, QUIET)
    np.testing.assert_array_equal(out, np.repeat(sound[:, None], channels, axis=1))


@pytest.mark.parametrize("volume", [0.0, 0.5, 2.0])
def test_volume(system, volume):
    speaker = Speaker(RATE, 1920)
    speaker.volume = volume
    speaker.write(tone(0.08))
    np.testing.assert_allclose(play(speaker, 1920), np.clip(volume * tone(0.08), -1, 1), atol=1e-6)


def test_reported_latency_is_the_true_one():
    """In simulated time, where it is known when each sample was captured and played."""
    from bench.simulate import Simulation

    for durations in (lambda now: 0.03, lambda now: 0.075, lambda now: 0.3 if 2 < now < 2.1 else 0.06):
        simulation, said = Simulation(lambda now: 0.3), []
        write = simulation.talk.write

        def writing(pcm, write=write, simulation=simulation, said=said):
            write(pcm)
            said.append(simulation.talk.latency)

        simulation.talk.write = writing
        rows = simulation.run(durations, 8.0)
        late = [row.latency for row in rows]
        assert np.median(said[30:]) == pytest.approx(np.median(late[31:]), abs=0.03)
