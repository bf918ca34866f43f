"""The command line, with a stand-in model for what it does and the tiny golden model from end to end."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from stand_ins import EchoSession, ListSink, RingSource

import moshi_mlx
from moshi_mlx.audio import devices as sound_devices
from moshi_mlx.audio import files
from moshi_mlx.errors import AudioError, CheckpointError
from moshi_mlx.local import __main__ as local
from moshi_mlx.local import ends, options
from moshi_mlx.machine import preflight

RATE, SIZE = 24_000, 1920
GOLDENS = Path(__file__).parents[1] / "goldens"
MODEL, QUESTION = GOLDENS / "moshi_tiny", GOLDENS / "question.flac"


class Model:
    """A stand-in for what `moshi_mlx.load` gives. `asked` is what it was called with."""

    def __init__(self):
        self.asked = []
        self.conversation = EchoSession()

    def load(self, name):
        self.asked.append(name)
        return self

    def session(self, **settings):
        self.asked.append(settings)
        return self.conversation


@pytest.fixture
def model(monkeypatch):
    model = Model()
    monkeypatch.setattr(moshi_mlx, "load", model.load)
    monkeypatch.setattr("moshi_mlx.machine.preflight.report", lambda model, *held: "weights 0 GB")
    monkeypatch.setattr("moshi_mlx.machine.preflight.plan", lambda name: preflight.Plan(name, "nowhere", 5_000_000))
    monkeypatch.setattr("moshi_mlx.machine.preflight.conversation_bytes", lambda model, *held: 10**6)
    monkeypatch.setattr("moshi_mlx.machine.preflight.wait", lambda seconds: None)
    return model


@pytest.fixture
def sound(tmp_path, monkeypatch):
    """A folder to work in, with five frames and a bit of noise in in.wav."""
    monkeypatch.chdir(tmp_path)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * SIZE + 100).astype(np.float32)
    soundfile.write("in.wav", samples, RATE, subtype="FLOAT")
    return samples


class Talk(RingSource):
    """A stand-in for both devices: the microphone hears four frames of noise, the speaker keeps what it gets."""

    def __init__(self):
        super().__init__(4)
        self.ring.push(np.random.default_rng(1).uniform(-0.5, 0.5, 4 * SIZE).astype(np.float32))
        self.speaker = ListSink()

        self.voice = self.speaker

    def __getattr__(self, name):
        return getattr(self.speaker, name)


@pytest.fixture
def devices(monkeypatch):
    """Stand-ins for microphone and speaker; `asked` is what they were opened with."""
    talk, asked = Talk(), []

    def device(name):
        def open(rate, size, *settings, **more):
            asked.append((name, settings, more))
            return types.SimpleNamespace(
                name=name,
                close=lambda: None,
                note=None,
                played=list,
                volume=1.0,
                wait_running=lambda: True,
                **vars(talk.speaker),
                write=talk.write,
                drain=talk.drain,
                abort=talk.abort,
            )

        return open

    monkeypatch.setattr(sound_devices, "Microphone", device("USB microphone"))
    monkeypatch.setattr(sound_devices, "Speaker", device("USB speaker"))
    monkeypatch.setattr(ends, "Conversation", lambda *given: setattr(talk, "given", given) or talk)
    talk.asked = asked
    return talk


def written(name="out.wav"):
    samples, rate = soundfile.read(name, dtype="float32")
    assert rate == RATE
    return samples


IN_OUT = ["--input", "in.wav", "--output", "out.wav"]


def test_file_to_file(model, sound, capsys):
    assert local.main([*IN_OUT, "--tail", "0.5"]) == 0
    np.testing.assert_allclose(written(), np.pad(sound, (0, RATE // 2)), atol=1e-4)
    out, err = capsys.readouterr()
    assert out == ("one" + " one" * 11) + "\n"
    first, weights, seed, statistics, last = err.splitlines()
    assert seed.startswith("seed ")
    assert weights.endswith("; weights 0 GB")
    assert first == "loading kyutai/moshiko-mlx-q4: 5.0 MB from nowhere ..."
    assert last == "reply written to out.wav"
    for said in ("1.0 s of sound in ", "×); ", " ms a frame, 95% within "):
        assert said in statistics
    assert sorted(os.listdir()) == ["in.wav", "out.wav"]


def test_the_tail_is_three_seconds(model, sound):
    local.main(IN_OUT)
    assert len(written()) == len(sound) + 3 * RATE


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "kyutai/moshiko-mlx-q4"),
        (["-q", "8"], "kyutai/moshiko-mlx-q8"),
        (["-q16", "--voice", "moshika"], "kyutai/moshika-mlx-bf16"),
        (["--model", "folder", "-q", "8", "--voice", "moshika"], "folder"),
    ],
)
def test_which_model(model, sound, options, name):
    local.main([*IN_OUT, *options, "--seed", "0"])
    assert model.asked == [name, {"seed": 0}]


def test_demo_takes_the_package_s_model_and_question(model, sound, monkeypatch):
    monkeypatch.setattr(options, "DEMO_INPUT", Path("in.wav"))
    assert local.main(["--demo", "--output-device", "none"]) == 0
    assert model.asked[0] == str(Path(moshi_mlx.__file__).parent / "assets" / "miniature")
    assert len(written("reply.wav")) == len(sound) + 3 * RATE


def test_demo_prints_the_question(model, sound, monkeypatch, capsys):
    monkeypatch.setattr(options, "DEMO_INPUT", Path("in.wav"))
    question = options.DEMO_TEXT.read_text().strip()
    local.main(["--demo", "--output-device", "none"])
    assert f"you: {question}\nMoshi:\n" in capsys.readouterr().err
    local.main(["--demo", "--input", str(QUESTION), "--output", "out.wav", "--output-device", "none"])
    assert "you:" not in capsys.readouterr().err


def test_demo_with_a_sound_of_one_s_own(model, sound):
    assert local.main(["--demo", *IN_OUT, "--tail", "0", "--output-device", "none"]) == 0
    assert sorted(os.listdir()) == ["in.wav", "out.wav"]
    assert len(written()) == len(sound)


def test_settings_reach_the_session(model, sound):
    options = (
        "--seed 5 --temperature 0 --top-k 0 --top-p 0.9 --min-p 0.1 --text-temperature 1.5 --text-top-k 9 "
        "--text-top-p 1 --text-min-p 0 --kv-bits 8"
    )
    local.main([*IN_OUT, *options.split()])
    assert model.asked[1] == {
        "seed": 5, "temperature": 0, "top_k": 0, "top_p": 0.9, "min_p": 0.1, "text_temperature": 1.5, "text_top_k": 9,
        "text_top_p": 1, "text_min_p": 0, "kv_bits": 8,
    }  # fmt: skip


def test_a_random_seed_is_printed_so_that_the_reply_can_be_had_again(model, sound, capsys):
    for _ in range(3):
        local.main(IN_OUT)
        assert f"seed {model.asked[-1]['seed']}\n" in capsys.readouterr().err
    assert len({asked["seed"] for asked in model.asked[1::2]}) > 1
    local.main([*IN_OUT, "--seed", "7"])
    assert "seed" not in capsys.readouterr().err


def test_steps_limit_the_frames_and_the_file(model, sound):
    assert local.main([*IN_OUT, "--steps", "2"]) == 0
    assert len(written()) == 2 * SIZE


def test_broken_samples_are_told(model, sound, capsys):
    sound[[7, 5000]] = np.nan, np.inf
    soundfile.write("in.wav", sound, RATE, subtype="FLOAT")
    assert local.main(IN_OUT) == 0
    assert "2 NaN or infinite samples heard as silence" in capsys.readouterr().err


def test_output_is_in_the_locale_of_the_terminal(model, sound, monkeypatch):
    code = "import sys; from moshi_mlx.local import view; view.write_out('caf\\u00e9\\n')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).stdout == b"caf?\n"


# Live


def test_live(model, sound, devices, capsys):
    assert local.main([]) == 0
    assert len(devices.frames) == 4
    assert "talk now; Ctrl-C ends the conversation" in capsys.readouterr().err
    assert os.listdir() == ["in.wav"]


def test_input_alone_is_answered_on_the_speaker_at_its_pace(model, sound, devices):
    assert local.main(["--input", "in.wav", "--tail", "0"]) == 0
    assert len(devices.frames) == 6
    assert devices.asked[0][2] == {"pace": True}


def test_output_alone_plays_and_records_the_conversation(model, sound, devices):
    assert local.main(["--output", "out.wav"]) == 0
    np.testing.assert_allclose(written(), np.concatenate(devices.frames), atol=1e-4)
    assert len(written()) == 4 * SIZE


def interrupt_in_frame(model, frame, number=signal.SIGINT, times=1, warm_up=1):
    """Sends this process a signal in the middle of that frame of the conversation, counted from 1."""
    step, calls = model.conversation.step, []

    def stepping(pcm):
        calls.append(pcm)
        if len(calls) == warm_up + frame:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return step(pcm)

    model.conversation.step = stepping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_keeps_what_was_written(model, sound, capsys, number):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupt_in_frame(model, 3, number)
    assert local.main(IN_OUT) == 130
    assert len(written()) == 3 * SIZE
    assert "0.2 s of sound" in capsys.readouterr().err
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_ctrl_c_is_the_normal_end_of_a_live_conversation(model, sound, devices, capsys):
    interrupt_in_frame(model, 3, warm_up=1 + preflight.FRAMES)
    assert local.main([]) == 0
    assert devices.drained == 0
    assert "0.2 s of sound" in capsys.readouterr().err


def test_second_ctrl_c_ends_at_once_and_keeps_what_was_written(model, sound, capsys):
    interrupt_in_frame(model, 3, times=2)
    assert local.main([*IN_OUT, "--record", "talk.wav"]) == 130
    assert len(written()) == len(soundfile.read("talk.wav")[0]) == 2 * SIZE
    assert sorted(os.listdir()) == ["in.wav", "out.wav", "talk.json", "talk.wav"]
    assert "interrupted; conversation recorded in talk.wav and talk.json; reply written to out.wav" in (
        capsys.readouterr().err
    )


def test_second_ctrl_c_in_the_first_frame_leaves_nothing(model, sound, capsys):
    interrupt_in_frame(model, 1, times=2)
    assert local.main(IN_OUT) == 130
    assert os.listdir() == ["in.wav"]
    assert "interrupted, no output was written" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_while_loading(model, sound, monkeypatch, capsys, number):
    def load(name):
        os.kill(os.getpid(), number)
        return model

    monkeypatch.setattr(moshi_mlx, "load", load)
    Path("out.wav").write_text("before")
    assert local.main(IN_OUT) == 130
    assert sorted(os.listdir()) == ["in.wav", "out.wav"]
    assert Path("out.wav").read_text() == "before"
    assert "Traceback" not in capsys.readouterr().err


def test_another_thread_may_run_it(model, sound):
    results = []
    thread = threading.Thread(target=lambda: results.append(local.main(IN_OUT)))
    thread.start()
    thread.join()
    assert results == [0]


class Slow:
    """A clock in whose time a frame takes 90 ms."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 0.09
        return self.now


@pytest.fixture
def slow_machine(monkeypatch):
    monkeypatch.setattr(preflight.time, "perf_counter", Slow())


def test_too_slow_a_machine_is_refused_unless_forced(model, sound, devices, slow_machine, capsys):
    check_refused(capsys, ["-q", "8"], "a frame takes 90 ms (median of 25)", -1)
    assert local.main(["-q", "8", "--force"]) == 0
    said = capsys.readouterr().err
    assert "warning: too slow to talk live" in said
    assert "--force" not in said  # it was given


def test_files_need_no_real_time(model, sound, slow_machine):
    assert local.main(IN_OUT) == 0


def test_too_large_a_model_is_refused_before_it_is_loaded(model, sound, devices, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "usable_bytes", lambda: 1_000_000)
    check_refused(capsys, ["-q", "8"], "kyutai/moshiko-mlx-q8 alone takes 5.0 MB, this machine has 1.0 MB for it; "
                  "use -q 4, or go on all the same with --force", -1)  # fmt: skip
    assert model.asked == []
    check_refused(capsys, [], "close other programs, use --kv-bits 8, or go on", -1)
    assert local.main(["--force"]) == 0
    assert local.main(IN_OUT) == 0


def test_a_person_who_waits_to_talk_is_told_what_for(model, sound, devices, capsys):
    assert local.main(["--context", "250"]) == 0
    said = capsys.readouterr().err
    assert said.index("loaded in ") < said.index("compiling ...\ncompiled in ") < said.index("a frame takes ")
    assert model.asked[-1]["context"] == 250
    assert "progress" not in model.asked[-1]
    assert local.main(["--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert model.asked[-1]["progress"] is False


def test_devices_get_what_was_asked_for(model, sound, devices):
    options = "--input-device mic --output-device 3 --device-rate 48000 --latency-limit 300"
    assert local.main(options.split()) == 0
    assert devices.asked == [
        ("USB microphone", ("mic", 48_000), {}),
        ("USB speaker", ("3", 48_000), {"tap": False}),
    ]
    assert devices.given[2] == 0.3


def test_a_laptop_s_own_devices_call_for_headphones(model, sound, devices, monkeypatch, capsys):
    local.main([])
    assert "headphones" not in capsys.readouterr().err
    monkeypatch.setattr(ends.portaudio, "same_case", lambda microphone, speaker: True)
    local.main([])
    assert "wear headphones, or use --echo-cancel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("microphone", "speaker", "same"),
    [
        ("MacBook Pro Microphone", "MacBook Pro Speakers", True),
        ("Built-in Microphone", "Built-in Output", True),
        ("MacBook Pro Microphone", "AirPods", False),
        ("USB microphone", "MacBook Air Speakers", False),
        ("MacBook Pro Microphone", "External Headphones", False),
    ],
)
def test_which_devices_hear_each_other(microphone, speaker, same):
    assert ends.portaudio.same_case(microphone, speaker) is same


def test_echo_cancel_taps_the_speaker_and_cleans_the_microphone(model, sound, devices, monkeypatch, capsys):
    monkeypatch.setattr(ends, "EchoCanceller", lambda rate, played: ("cleans", rate))
    assert local.main(["--echo-cancel"]) == 0
    assert devices.asked[1][2] == {"tap": True}
    assert devices.given[0].clean == ("cleans", RATE)
    monkeypatch.undo()


def test_user_file_is_spoken_first(model, sound, devices):
    assert local.main(["--user-file", "in.wav"]) == 0
    np.testing.assert_array_equal(np.concatenate(model.conversation.heard), sound[: 4 * SIZE])


def test_json_and_quiet(model, sound, capsys):
    assert local.main([*IN_OUT, "--tail", "0", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["frame"] for line in out.splitlines()] == list(range(6))
    assert err == ""
    assert local.main([*IN_OUT, "--tail", "0", "--quiet"]) == 0
    assert capsys.readouterr() == ("one" + " one" * 5 + "\n", "")


def test_record_and_trace_of_files(model, sound, capsys):
    assert local.main([*IN_OUT, "--tail", "0", "--record", "talk.wav", "--trace", "trace.json"]) == 0
    talk, _ = soundfile.read("talk.wav")
    np.testing.assert_allclose(talk[: len(sound), 0], sound, atol=1e-4)
    assert json.loads(Path("talk.json").read_text())["words"][0]["word"] == "one"
    assert "traceEvents" in json.loads(Path("trace.json").read_text())
    err = capsys.readouterr().err
    assert "conversation recorded in talk.wav and talk.json" in err
    assert "trace written to trace.json" in err


def test_recording_is_kept_when_the_model_breaks(model, sound):
    step, calls, threads = model.conversation.step, [], threading.active_count()

    def breaking(pcm):
        calls.append(1)
        if len(calls) == 5:
            raise ZeroDivisionError
        return step(pcm)

    model.conversation.step = breaking
    with pytest.raises(ZeroDivisionError):
        local.main([*IN_OUT, "--record", "talk.wav"])
    assert soundfile.info("talk.wav").frames == 3 * SIZE
    assert sorted(os.listdir()) == ["in.wav", "talk.json", "talk.wav"]
    assert threading.active_count() == threads


def test_interrupted_load_of_the_real_command_ends_within_its_grace(tmp_path):
    """Whatever it is doing: compiling kernels, loading, timing frames."""
    command = [sys.executable, "-m", "moshi_mlx.local", "--demo", "--output-device", "none", "--tail", "1000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("loading ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err


# Bad input: one line, exit status 2, nothing written, and before a model is loaded where that can be


def check_refused(capsys, options, said, line=0):
    before = sorted(os.listdir())
    try:
        status = local.main(options)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    assert line or len(lines) == 1
    line = lines[line]
    assert line.startswith("moshi_mlx.local: error: ")
    assert said in line
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tail", "-1"], "--tail: got '-1', expected a number of at least 0"),
        (["--tail", "nan"], "--tail"),
        (["--tail", "inf"], "--tail"),
        (["--steps", "0"], "--steps: got '0', expected a whole number of at least 1"),
        (["--steps", "1.5"], "--steps"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
        (["--temperature", "-0.1"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--temperature", "hot"], "--temperature"),
        (["--text-temperature", "inf"], "--text-temperature"),
        (["--top-k", "-1"], "--top-k"),
        (["--text-top-k", "x"], "--text-top-k"),
        (["-q", "5"], "-q/--quantized"),
        (["--voice", "moshi"], "--voice"),
        (["--demo", "--model", "folder"], "not allowed with"),
        (["--output", "in.wav", "--input", "./in.wav"], "are the same file"),
        (["--output", "link.wav", "--input", "in.wav"], "are the same file"),
        (["--input", "in.wav", "--user-file", "in.wav"], "--user-file is about the microphone"),
        (["--input", "in.wav", "--input-device", "1"], "--input-device is about the microphone"),
        (["--input", "in.wav", "--echo-cancel"], "--echo-cancel is about the microphone"),
        (["--input", "in.wav", "--output", "o.wav", "--output-device", "1"], "--output-device is about devices"),
        (["--input", "in.wav", "--output", "o.wav", "--device-rate", "48000"], "--device-rate is about devices"),
        (["--device-rate", "10"], "--device-rate: got '10'"),
        (["--latency-limit", "100"], "--latency-limit: got '100', expected a whole number of at least 160"),
        (["--demo", "--record", "talk.mp3"], "talk.mp3: the conversation is recorded as WAV"),
        (["--demo", "--record", "reply.wav"], "--output and --record are the same file"),
        (["--demo", "--record", "talk.wav", "--trace", "talk.json"], "--record's words and --trace are the same file"),
        (["--demo", "--trace", "."], ".: cannot be written: it is not a regular file, it is a folder"),
        (["--user-file", "missing.wav"], "missing.wav: cannot be read"),
        (["--what"], "unrecognized arguments: --what"),
        (["--input", "missing.wav", "--output", "out.wav"], "missing.wav: cannot be read: No such file"),
        (["--input", ".", "--output", "out.wav"], ".: is a folder"),
        (["--input", "a" * 300, "--output", "out.wav"], "cannot be read: File name too long"),
        (["--input", "in.wav", "--output", "a" * 300], "cannot be written: File name too long"),
        (["--input", "empty.wav", "--output", "out.wav"], "empty.wav: is empty"),
        (["--input", "text.wav", "--output", "out.wav"], "text.wav: not a sound file"),
        (["--input", "in.wav", "--output", "missing/out.wav"], "missing/out.wav: cannot be written: No such file"),
        (["--input", "in.wav", "--output", "."], ".: cannot be written"),
        (["--input", "in.wav", "--output", "out.mp3"], "out.mp3: the reply is written as WAV"),
    ],
)
def test_bad_options_and_files(model, sound, capsys, options, said):
    soundfile.write("empty.wav", np.zeros(0), RATE)
    Path("text.wav").write_text("To be, or not to be")
    Path("link.wav").symlink_to("in.wav")
    check_refused(capsys, options, said)
    assert model.asked == []


def test_a_person_s_own_settings_of_devices_are_left_aside_where_there_are_none(model, sound, monkeypatch):
    Path("own.toml").write_text("[local]\necho-cancel = true\noutput-device = 'box'\ntext-top-p = 0.9\nseed = 3\n")
    monkeypatch.setenv("MOSHI_MLX_CONFIG", "own.toml")
    assert local.main(IN_OUT) == 0
    assert model.asked[1] == {"seed": 3, "text_top_p": 0.9}


def test_model_that_cannot_be_loaded(sound, monkeypatch, capsys):
    def load(name):
        raise CheckpointError(f"{name}: line one\nline two")

    monkeypatch.setattr(moshi_mlx, "load", load)
    Path("out.wav").write_text("before")
    assert local.main(IN_OUT) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "moshi_mlx.local: error: kyutai/moshiko-mlx-q4: line one line two"
    )
    assert sorted(os.listdir()) == ["in.wav", "out.wav"]
    assert Path("out.wav").read_text() == "before"


def test_model_of_another_frame_size(model, sound, capsys):
    model.conversation.frame_size = 960
    assert local.main(IN_OUT) == 2
    assert "frames of 960 samples at 24000 Hz, expected 1920 at 24000 Hz" in capsys.readouterr().err
    assert os.listdir() == ["in.wav"]


def test_an_error_that_is_not_ours_is_shown_and_leaves_nothing(model, sound):
    def step(pcm):
        raise ZeroDivisionError

    model.conversation.step = step
    with pytest.raises(ZeroDivisionError):
        local.main(IN_OUT)
    assert os.listdir() == ["in.wav"]


def test_speaker_that_is_missing_leaves_no_file(model, sound, devices, monkeypatch, capsys):
    def missing(*_, **__):
        raise AudioError("no speaker")

    monkeypatch.setattr(sound_devices, "Speaker", missing)
    check_refused(capsys, ["--output", "out.wav"], "no speaker")


# From end to end


def command(*options, folder, **environment):
    """Runs python -m moshi_mlx.local in `folder`; warnings are errors there too."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "moshi_mlx.local", *map(str, options)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(moshi_mlx.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_tiny_model_end_to_end(tmp_path):
    """The same as stepping a session by hand: the frame that compiles leaves no trace."""
    options = ("--model", MODEL, "--input", QUESTION, "--output", "out.wav", "--seed", 3, "--tail", 1)
    done = command(*options, folder=tmp_path)
    assert (done.returncode, os.listdir(tmp_path)) == (0, ["out.wav"]), done.stderr
    question = files.read_sound(QUESTION, RATE)
    session = moshi_mlx.load(MODEL).session(seed=3)
    reply, text = [], ""
    for part in np.pad(question, (0, RATE + -(len(question) + RATE) % SIZE)).reshape(-1, SIZE):
        frame = session.step(part)
        reply.append(np.zeros(SIZE) if frame.pcm is None else frame.pcm)
        text += frame.text
    expected = np.concatenate(reply)[: len(question) + RATE]
    np.testing.assert_allclose(written(tmp_path / "out.wav"), np.clip(expected, -1, 1), atol=1e-4)
    assert done.stdout.split() == text.split()
    assert not done.stdout.startswith(" ")
    assert f"{len(reply) * 0.08:.1f} s of sound" in done.stderr


def test_reader_of_the_text_that_leaves_does_not_end_the_reply(tmp_path):
    """As with `| head`: the text is cut, the reply is not."""
    options = f"--model {MODEL} --input {QUESTION} --output {tmp_path}/out.wav"
    shell = f"set -o pipefail; {sys.executable} -m moshi_mlx.local {options} | head -c 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert len(written(tmp_path / "out.wav")) > 3 * RATE


def test_unreachable_hub_id_says_how_to_use_a_folder(tmp_path):
    done = command(
        "--model",
        "kyutai/no-such-model",
        "--input",
        QUESTION,
        "--output",
        "out.wav",
        folder=tmp_path,
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("moshi_mlx.local: error: kyutai/no-such-model")
    assert "folder" in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == []


def test_demo(tmp_path):
    done = command("--demo", "--output-device", "none", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["reply.wav"]
    assert len(written(tmp_path / "reply.wav")) == len(files.read_sound(options.DEMO_INPUT, RATE)) + 3 * RATE


@pytest.mark.parametrize(("text", "frames"), [("3000", 3000), ("60s", 750), ("0.1 s", 2), ("0.08s", 1)])
def test_context_in_frames_or_seconds(text, frames):
    assert options._parser().parse_args([f"--context={text}"]).context == frames


@pytest.mark.parametrize("text", ["0", "1.5", "-3s", "0s", "s", "nans", "infs", "60 sec"])
def test_no_context(text, capsys):
    with pytest.raises(SystemExit):
        options._parser().parse_args([f"--context={text}"])
    assert "argument --context: got" in capsys.readouterr().err


# Places and streams

WRITERS = {"--output": "wav", "--record": "wav", "--transcript": "txt", "--trace": "json"}
PLACES = {"file/x": "Not a directory", "missing/x": "there is no folder missing", "/proc/x": "No such file",
          "folder.": "it is a folder", "/dev/full": "", "caf\udce9/x": "there is no folder"}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_no_writer_begins_where_it_cannot_write(model, sound, capsys, writer, place, more):
    """Before the model is loaded: one line, status 2, and nothing is there that was not."""
    Path("file").touch()
    Path(f"folder.{WRITERS[writer]}").mkdir()
    path = place if place == "/dev/full" else f"{place.removesuffix('.')}.{WRITERS[writer]}"
    others = {"--input": "in.wav", "--output": "other.wav", writer: path}
    check_refused(capsys, [word for pair in others.items() for word in pair] + more, PLACES[place])
    assert model.asked == []


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_keeps_what_was_there_and_says_where_it_writes(model, sound, capsys, writer):
    path = Path(f"mine.{WRITERS[writer]}")
    others = {"--input": "in.wav", "--output": "out.wav", "--steps": "3", writer: str(path)}
    command = [word for pair in others.items() for word in pair]
    for n in range(3):
        Path("out.wav").unlink(missing_ok=True)
        assert local.main(command) == 0
        err = capsys.readouterr().err
        assert (f"mine.{WRITERS[writer]} is there already: this goes to mine-{n + 1}.{WRITERS[writer]}" in err) == (
            n > 0
        )
    assert len(list(Path().glob(f"mine*.{WRITERS[writer]}"))) == 3
    before = path.read_bytes()
    path.write_bytes(b"earlier")
    assert local.main([*command, "--overwrite"]) == 0
    assert path.read_bytes()[:4] == before[:4]
    assert len(list(Path().glob(f"mine*.{WRITERS[writer]}"))) == 3


@pytest.mark.parametrize("writer", ["--record", "--transcript", "--trace"])
def test_a_disk_that_fills_up_is_one_line(model, sound, capsys, writer, monkeypatch):
    """What could not be written is not there; a recording has what was whole."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr("moshi_mlx.local.transcript.WRITE_SECONDS", 0.0)
    model.conversation.step = lambda pcm, step=model.conversation.step: types.SimpleNamespace(
        **{**vars(step(pcm)), "text": " word" * 1000}
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        options = ["--input", "in.wav", "--output", "-", writer, f"mine.{WRITERS[writer]}", "--quiet"]
        with open(os.devnull, "w") as nowhere:
            monkeypatch.setattr(sys, "stdout", nowhere)
            assert local.main(options) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"moshi_mlx.local: error: mine.{WRITERS[writer]}: cannot be written: File too large")
    assert os.listdir() == ["in.wav"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| true", "2>&1 | head -c 1"]
)
@pytest.mark.parametrize("more", ["", "--json", "--quiet"])
def test_closed_and_full_streams_lose_no_reply(tmp_path, way, more):
    options = f"--model {MODEL} --input {QUESTION} --steps 4 --tail 0 --output out.wav {more}"
    shell = f"set -o pipefail; {sys.executable} -m moshi_mlx.local {options} {way}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(written(tmp_path / "out.wav")) == 4 * SIZE
