"""The doctor: finds what is wrong, goes on where a check fails, and its report says nothing about a person."""

import ctypes
import getpass
import json
import platform
import sys
import threading
import time
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from helpers import GOLDENS, ROOT

from moshi_mlx.audio import devices, portaudio
from moshi_mlx.doctor import __main__ as doctor
from moshi_mlx.doctor import exactness, finding, frames, hub, microphone, report, sound, system
from moshi_mlx.doctor.finding import NOTE, OK, PROBLEM, Finding, guarded

QUIET = ["--no-sound", "--no-speed", "--offline"]


def verdicts(check):
    return {found.what: found.verdict for found in guarded("check", check)}


# What is exact


@pytest.mark.parametrize("check", [exactness.codec, exactness.tokens, exactness.layouts, exactness.quantized])
def test_this_machine_is_exact(check):
    found = verdicts(check)
    assert len(found) >= 2
    assert set(found.values()) == {OK}


def test_what_ships_is_the_goldens():
    for path in (GOLDENS / "moshi_tiny").iterdir():
        assert (exactness.GOLDEN / path.name).read_bytes() == path.read_bytes()
    whole = {name: np.array(mx.load(str(GOLDENS / f"{file}.safetensors"))[theirs]) for name, file, theirs in (
        ("user", "lm", "user"), ("text", "lm", "delay1.text"), ("audio", "lm", "delay1.audio"),
        ("codes_tone", "mimi", "codes_tone"), ("codes8", "mimi", "codes8"), ("pcm_every_32", "mimi", "pcm_every_32"),
    )}  # fmt: skip
    shipped = exactness.golden()
    assert set(shipped) == set(whole)
    for name, values in whole.items():
        np.testing.assert_array_equal(shipped[name], values)
    assert sum(path.stat().st_size for path in exactness.GOLDEN.iterdir()) < 600_000


@pytest.mark.slow
def test_another_weight_is_noticed(monkeypatch):
    right = exactness.tiny

    def wrong(*where):
        model = right(*where)
        model.decoder.lm_head.weight = -model.decoder.lm_head.weight
        model.audio_encoder.quantizer.embedding = model.audio_encoder.quantizer.embedding[:, ::-1]
        model.audio_encoder.refresh()
        return model

    monkeypatch.setattr(exactness, "tiny", wrong)
    assert verdicts(exactness.tokens) == dict.fromkeys(
        ("tokens, compiled", "tokens, eager", "tokens, batch of two"), PROBLEM
    )
    assert verdicts(exactness.codec)["Mimi's sound"] == PROBLEM


def test_a_wrong_quantized_product_is_noticed(monkeypatch):
    right = mx.quantized_matmul
    monkeypatch.setattr(mx, "quantized_matmul", lambda *given, **options: 1.01 * right(*given, **options))
    assert set(verdicts(exactness.quantized).values()) == {PROBLEM}


# The machine


def test_the_machine_is_described():
    for check in (system.system, system.python, system.packages, system.memory, system.tf32):
        assert set(verdicts(check).values()) <= {OK, NOTE}


def test_an_old_package_is_named(monkeypatch):
    monkeypatch.setattr(system, "_version", lambda name: {"mlx": "0.32.3", "soxr": None}.get(name, "99.0"))
    (found,) = system.packages()
    assert found.verdict == PROBLEM
    assert (
        found.todo
        == "mlx is 0.32.3, expected 0.32.4 or newer; soxr is missing, expected 0.4 or newer: run pip install again"
    )


def test_the_floors_are_those_of_pyproject():
    floors = system._floors()
    assert floors["mlx"] == "0.32.4"
    assert set(floors) >= {
        "numpy",
        "sentencepiece",
        "huggingface_hub",
        "sounddevice",
        "soundfile",
        "soxr",
        "rich",
        "tqdm",
    }
    assert not {"pytest", "ruff", "livekit"} & set(floors)


@pytest.mark.parametrize(("switch", "verdict"), [("0", PROBLEM), ("1", NOTE)])
def test_tf32_is_seen_in_a_product(monkeypatch, switch, verdict):
    import tf32

    def product(a, b):
        return tf32.rounded(a) if a.shape == (64, 64) else mx.matmul(a, b)

    monkeypatch.setattr(mx.array, "__matmul__", product)
    monkeypatch.setenv("MLX_ENABLE_TF32", switch)
    (found,) = system.tf32()
    assert (found.verdict, found.values["exact"]) == (verdict, False)


# Sound, with stand-ins for the devices


class Microphone:
    rate, overflows = 48_000, 0
    level = 0.1

    def __init__(self, rate, size):
        opened.append("microphone")
        self.phase = 0

    def fill(self):
        return True

    def take(self):
        turn = 2 * np.pi * 440 * np.arange(self.phase, self.phase + 1920) / 24_000
        self.phase += 1920
        return (self.level * np.sin(turn)).astype(np.float32)

    def close(self):
        opened.append("closed")


class Speaker(Microphone):
    drops = 0

    def __init__(self, rate, size):
        opened.append("speaker")

    def write(self, pcm):
        pass


opened = []


@pytest.fixture
def sound_card(monkeypatch):
    opened.clear()
    listed = [
        portaudio.Device(0, "Anna's AirPods", "Core Audio", 1, 0, 24_000.0, ("Input",)),
        portaudio.Device(1, "MacBook Pro Speakers", "Core Audio", 0, 2, 48_000.0, ("Output",)),
    ]
    monkeypatch.setattr(portaudio, "devices", lambda: listed)
    monkeypatch.setattr(devices, "Microphone", Microphone)
    monkeypatch.setattr(devices, "Speaker", Speaker)
    return listed


def test_a_second_through_both_devices(sound_card):
    assert verdicts(sound.listed) == {"devices": OK}
    (found,) = sound.loop()
    assert found.verdict == OK
    assert "13 frames" in found.said
    assert "the tone heard" in found.said
    assert opened == ["microphone", "speaker", "closed", "closed"]  # in this order: Bluetooth changes its rate then


class Stream:
    """A stream of PortAudio's whose callback runs in real time, as a Mac's without permission: silence comes in."""

    closed, latency = False, 0.02

    def __init__(self, rate, block, *, callback, finished_callback, **_):
        self.block, self.seconds, self.callback, self.finished = block, block / rate, callback, finished_callback
        self.active = False

    def start(self):
        self.active = True
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        status, due = SimpleNamespace(input_overflow=False, output_underflow=False), time.monotonic()
        while self.active:
            self.callback(np.zeros((self.block, 1), np.float32), self.block, None, status)
            due += self.seconds
            time.sleep(max(0.0, due - time.monotonic()))

    def abort(self):
        self.active = False

    def close(self):
        self.closed = True


def test_the_real_microphone_and_speaker_over_a_stand_in_for_portaudio(monkeypatch):
    def device(name, inputs, outputs):
        return {"name": name, "hostapi": 0, "max_input_channels": inputs, "max_output_channels": outputs,
                "default_samplerate": 48_000.0}  # fmt: skip

    fake = SimpleNamespace(
        InputStream=Stream, OutputStream=Stream, PortAudioError=OSError, default=SimpleNamespace(device=(0, 1)),
        query_hostapis=lambda: ({"name": "Core Audio"},), _terminate=lambda: None, _initialize=lambda: None,
        query_devices=lambda *_: [device("MacBook Pro Microphone", 1, 0), device("MacBook Pro Speakers", 0, 2)],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    assert verdicts(sound.listed) == {"devices": OK}
    (found,) = sound.loop()
    assert (found.verdict, found.values.get("zeros"), found.values.get("frames")) == (PROBLEM, True, 13)
    assert "nothing but zeros" in found.said


def test_devices_that_cannot_be_opened_are_a_problem(sound_card, monkeypatch):
    def none(*given):
        raise sound.AudioError("no microphone can be opened ('Anna\u2019s AirPods')")

    monkeypatch.setattr(devices, "Microphone", none)
    (found,) = sound.loop()
    assert (found.verdict, found.values["error"]) == (PROBLEM, "no microphone can be opened (...)")


def test_exact_zeros_are_a_microphone_that_may_not_be_heard(sound_card, monkeypatch):
    monkeypatch.setattr(Microphone, "level", 0.0)
    (found,) = sound.loop()
    assert found.verdict == PROBLEM
    assert "System Settings > Privacy & Security > Microphone" in found.todo


def test_a_missing_device_is_named(sound_card):
    del sound_card[0]
    (found,) = sound.listed()
    assert (found.verdict, "connect a microphone," in found.todo) == (PROBLEM, True)


@pytest.mark.parametrize(("status", "verdict"), [(0, OK), (1, PROBLEM), (2, PROBLEM), (3, OK), (9, OK)])
def test_the_permission_of_macos(monkeypatch, status, verdict):
    monkeypatch.setattr(microphone.sys, "platform", "darwin")
    monkeypatch.setattr(microphone, "_authorization_status", lambda: status)
    assert verdicts(sound.privacy) == {"microphone": verdict}


def test_a_permission_that_cannot_be_asked_for_is_unknown(monkeypatch):
    monkeypatch.setattr(microphone.sys, "platform", "darwin")  # and AVFoundation is not here
    assert microphone.permission() == "unknown"
    assert ctypes.sizeof(ctypes.c_long) == 8  # as NSInteger's


# Hub and disk


def test_the_hub(monkeypatch):
    plan = hub.preflight.Plan(hub.MODEL, "the hub", 5 * 10**9, 5 * 10**9)
    for given, verdict in ((None, PROBLEM), (plan, OK), (plan._replace(to_fetch=0), OK)):
        monkeypatch.setattr(hub.preflight, "plan", lambda name, given=given: given)
        assert verdicts(hub.reachable) == {"hub": verdict}
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    assert verdicts(hub.disk) == {"disk": NOTE}


# Speed


def test_frames_of_the_miniature_are_timed(monkeypatch):
    monkeypatch.setattr("moshi_mlx.machine.preflight.wait", lambda seconds: None)
    found = list(frames.miniature())
    assert [f.what for f in found] == ["kernels", "miniature"]
    assert set(found[1].values) == {"p50_ms", "p95_ms"}


@pytest.mark.parametrize(("more", "few", "expected"), [(10.0, 6.0, 66), (30.0, 20.0, 170), (8.0, 9.0, 8)])
def test_a_frame_of_moshi_is_predicted_from_a_few_layers(monkeypatch, more, few, expected):
    """10 ms with 4 layers and 6 with 2: 2 ms a layer, and 28 layers more."""
    layers = SimpleNamespace(layers=list(range(4)))
    model = SimpleNamespace(decoder=SimpleNamespace(model=SimpleNamespace(transformer=layers)))
    monkeypatch.setattr(frames, "random_model", lambda config: model)
    monkeypatch.setattr(frames, "_median", lambda model: ({4: more, 2: few}[len(layers.layers)], 1.0))
    (found,) = frames.moshi()
    assert found.values["ms"] == expected
    assert found.verdict == (OK if expected < 80 else NOTE)


def test_random_weights_are_those_of_a_conversation(model):
    """The same step over the same sizes, here tiny ones, whose context is full."""
    made = frames.random_model(model.config)
    assert "scales" in made.decoder.model.transformer.layers[0].self_attn.out_proj
    step = frames.FullContext(made)
    before = step._state["offset"].item()
    step.step(np.zeros(step.frame_size, np.float32))
    assert (before, step._state["offset"].item()) == (64, 65)


# The command, and its report


@pytest.mark.slow
def test_the_command_and_its_report(tmp_path, capsys):
    place = tmp_path / "doctor.json"
    assert doctor.main([*QUIET, "--report", str(place)]) == 0
    out = capsys.readouterr().out
    assert "ok       tokens, compiled" in out
    assert "nothing is wrong: " in out
    written = json.loads(place.read_text())
    assert {row["what"] for row in written["findings"]} >= {
        "system",
        "packages",
        "Mimi's codes",
        "logits, mxfp4",
        "disk",
    }
    assert set(written["seconds"]) >= {"system", "layouts"}


@pytest.mark.slow
def test_a_check_that_fails_is_a_problem_and_the_others_go_on(monkeypatch, capsys):
    def broken():
        yield Finding("half", OK, "fine")
        raise ZeroDivisionError("no /Users/anna/model for 'Anna'")

    monkeypatch.setattr(exactness, "codec", broken)
    assert doctor.main(QUIET) == 1
    out = capsys.readouterr().out
    assert "PROBLEM  codec                      ZeroDivisionError: no /Users/anna/model" in out  # to the person
    assert "ok       tokens, compiled" in out
    assert "1 to put right: codec" in out


def test_the_report_says_nothing_about_a_person(sound_card, monkeypatch, tmp_path):
    """Names of devices, users, machines and folders, also where they stand in an error."""
    monkeypatch.setattr(getpass, "getuser", lambda: "annabelle")
    monkeypatch.setattr(platform, "node", lambda: "Annas-Mac.local")
    secrets = ["anna", "airpods", "/users", "/tmp", "macbook", str(ROOT).lower()]

    def broken():
        raise OSError(
            "annabelle on Annas-Mac.local: 'Anna\u2019s AirPods' in /Users/annabelle/model, ~/x, C:\\\\anna\\\\y"
        )
        yield

    found = [f for check in (sound.listed, sound.privacy, sound.loop, broken, hub.disk, system.system, system.python,
                             system.packages, system.memory) for f in guarded("check", check)]  # fmt: skip
    report.write(tmp_path / "doctor.json", found, {})
    text = (tmp_path / "doctor.json").read_text().lower()
    assert '"error": "oserror"' in text
    assert [secret for secret in secrets if secret in text] == []


@pytest.mark.parametrize(
    ("place", "said"), [(".", "is a folder"), ("missing/doctor.json", "there is no folder missing")]
)
def test_a_report_that_cannot_be_written_is_said_first(tmp_path, monkeypatch, capsys, place, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "examine", lambda *given: pytest.fail("two minutes for nothing"))
    assert doctor.main(["--report", place]) == 2
    assert said in capsys.readouterr().err


def test_a_report_is_whole_or_not_there(tmp_path, monkeypatch):
    (tmp_path / "doctor.json").write_text("before")
    monkeypatch.setattr(report.Path, "replace", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(report.InputError, match="cannot be written"):
        report.write(tmp_path / "doctor.json", [], {})
    assert (tmp_path / "doctor.json").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_on_a_terminal_it_says_what_it_looks_at(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(doctor, "checks", lambda arguments: [("hub", lambda: iter([Finding("hub", OK, "there")]))])
    assert doctor.main([]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("\rhub ...")
    assert err.endswith(" " * 40 + "\r")
    assert "\r" not in out


def test_each_flag_leaves_out_its_checks():
    def names(*flags):
        return {what for what, _ in doctor.checks(doctor.parser().parse_args(list(flags)))}

    whole = names()
    assert whole - names("--no-sound") == {"devices", "microphone", "one second"}
    assert whole - names("--no-speed") == {"miniature", "Moshi in 4 bits"}
    assert whole - names("--offline") == {"hub"}


def test_ctrl_c_ends_it_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    assert doctor.main([]) == 130
    assert "interrupted, no report was written" in capsys.readouterr().err


def test_names_are_taken_out_of_messages():
    for text in ("/Users/a/b", "~/a", "see 'My Mac'", 'see "My Mac"', "relative/path", r"C:\Users\a"):
        assert finding.without_names(f"x {text} y").replace("see ", "") == "x ... y"
