"""python -m moshi_mlx.serve: its flags, its end, its errors in one line."""

import asyncio
import json
import os
import plistlib
import re
import signal
import subprocess
import sys
import types

import mlx.core as mx
import numpy as np
import pytest
from serving import SIZE, EchoBatch, run, visit
from serving_processes import free_port, health, wait_for, worker

from moshi_mlx import InputError, local_web
from moshi_mlx.serve import __main__ as command
from moshi_mlx.serve import capacity, logs, options
from moshi_mlx.serve.app import PAGE
from moshi_mlx.serve.figures import Figures

DEPLOY = PAGE.parent / "deploy"


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as end:
        options.parse(flags)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_defaults_and_names(monkeypatch):
    monkeypatch.delenv("MOSHI_TOKEN", raising=False)
    plain = options.parse([])
    assert (plain.model, plain.slots, plain.host, plain.port, plain.token) == (
        "kyutai/moshiko-mlx-q4", "auto", "127.0.0.1", 8998, None)  # fmt: skip
    assert options.parse(["-q", "8", "--voice", "moshika"]).model == "kyutai/moshika-mlx-q8"
    assert options.parse(["--model", "miniature"]).model == "miniature"


def test_another_address_wants_a_token(monkeypatch, capsys):
    monkeypatch.delenv("MOSHI_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "mac.local"):
        assert "wants --token" in refused(capsys, "--host", host)
    assert options.parse(["--host", "0.0.0.0", "--token", "sesame"]).token == "sesame"
    monkeypatch.setenv("MOSHI_TOKEN", "sesame")
    assert options.parse(["--host", "0.0.0.0"]).token == "sesame"
    assert "got nothing" in refused(capsys, "--token", " ")


@pytest.mark.parametrize(
    "flags",
    ["--slots 0", "--slots many", "--slots 1.5", "--port 70000", "--port x", "--queue -1", "--max-minutes 0",
     "--max-minutes nan", "--drain -1", "--origin talk.example.org", "--origin https://a/b", "--log-format xml",
     "--origin ftp://a", "--kv-bits 3", "-q 3", "--voice me"],
)  # fmt: skip
def test_flags_that_cannot_be_are_one_line(flags, capsys):
    name, value = flags.split()
    error = refused(capsys, name, value)
    assert name in error
    assert value in error


def test_every_flag_is_read():
    """None that nothing looks at."""
    source = "".join(path.read_text() for path in PAGE.parent.glob("*.py"))
    for name in set(vars(options.parse([]))) - {"from_settings", "print_completion"}:
        assert re.search(rf"arguments\.{name}\b", source), name


def test_auto_takes_the_most_that_keep_real_time():
    said, clock = [], [0.0]

    class Batch(EchoBatch):
        def step(self, sounds):
            clock[0] += 0.010 + 0.010 * self.slots
            return super().step(sounds)

    batch = capacity.largest(Batch, said.append, lambda: clock[0])
    assert (batch.slots, len(batch.rows)) == (4, 0)  # 4: 50 ms; 6: 70, above the 68 that a step may take
    assert said[-1] == "6 at once: 70 ms a step of 80"


def test_auto_on_a_machine_that_is_too_slow_is_named():
    clock = [0.0]

    class Batch(EchoBatch):
        def step(self, sounds):
            clock[0] += 0.5
            return super().step(sounds)

    with pytest.raises(InputError, match=r"^--slots auto: one conversation takes 500 ms a frame"):
        capacity.largest(Batch, now=lambda: clock[0])


@pytest.mark.parametrize(("slots", "told"), [(2, True), (1, False)])
def test_an_old_chip_is_told_what_holds_more_people(monkeypatch, slots, told):
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "Apple M2 Max"})
    said = []
    arguments = types.SimpleNamespace(
        model="miniature", adapter=None, slots=slots, kv_bits=None, context=None, guidance=1.0, codebooks=None
    )
    assert command.make_batch(arguments, said.append).slots == slots
    assert any("--q-mode mxfp4" in line for line in said) == told


def test_the_end_by_a_signal_lets_people_finish():
    port = free_port()
    with worker(port, "--slots", "2", "--log-format", "json") as process:

        async def scene():
            async with visit(f"127.0.0.1:{port}") as me:
                await me.handshake()
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(wait_for, lambda: health(port)["status"] == "draining")
                await me.talk(5, np.zeros(5 * SIZE, np.float32))
                assert process.poll() is None

        run(scene())
        assert process.wait(10) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert [line["event"] for line in lines] == ["open", "came", "draining", "left", "closed"]
    assert lines[0]["address"] == f"http://127.0.0.1:{port}/"
    assert all({"time", "level"} <= set(line) for line in lines)


def test_the_second_signal_ends_it_at_once():
    port = free_port()
    with worker(port, "--slots", "1") as process:

        async def scene():
            async with visit(f"127.0.0.1:{port}") as me:
                await me.handshake()
                process.send_signal(signal.SIGINT)
                await asyncio.to_thread(wait_for, lambda: health(port)["status"] == "draining")
                process.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(process.wait, 5) == 130

        run(scene())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "/no/such/folder", "--slots", "1"], "/no/such/folder"),
        (["--model", "miniature", "--ssl", "/no/such/folder"], "cert.pem"),
        (["--model", "miniature", "--slots", "1", "--host", "203.0.113.1", "--token", "x"], "cannot listen"),
    ],
)
def test_what_is_wrong_is_one_line(flags, words, capsys):
    assert command.main(flags) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("moshi_mlx.serve: error: ")
    assert words in last


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sphn", None)
    assert command.main(["--model", "miniature"]) == 2
    assert "sphn is not installed: pip install 'moshi-duplex[serve]'" in capsys.readouterr().err


def test_local_web_is_one_slot_and_opens_the_page(monkeypatch):
    seen = []
    monkeypatch.setattr(local_web, "run", lambda arguments, program, opened: seen.append((arguments, opened)) or 0)
    monkeypatch.setattr("webbrowser.open", lambda address: seen.append(address))
    assert local_web.main(["--model", "miniature"]) == 0
    arguments, opened = seen[0]
    assert arguments.slots == 1
    opened("http://127.0.0.1:8998/")
    assert seen[1] == "http://127.0.0.1:8998/"
    local_web.main(["--no-browser"])
    seen[-1][1]("x")
    assert len(seen) == 3


@pytest.mark.parametrize("module", ["moshi_mlx.serve", "moshi_mlx.local_web"])
def test_help(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    assert f"python -m {module}" in done.stdout
    assert "--slots" in done.stdout


def test_importing_the_package_brings_no_server():
    code = (
        "import sys, moshi_mlx; print([m for m in ('aiohttp', 'sphn', 'av', 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


def test_logs_for_people_and_for_programs():
    record = logs.logging.LogRecord("x", logs.logging.INFO, "", 0, "came", (), None)
    record.protocol = "kyutai"
    assert logs.Text().format(record).endswith(" came (protocol kyutai)")
    assert json.loads(logs.Json().format(record))["protocol"] == "kyutai"


def test_the_launchd_plist_runs_our_command():
    plist = plistlib.loads((DEPLOY / "org.moshi-mlx.serve.plist").read_bytes())
    program, dash_m, module, *flags = plist["ProgramArguments"]
    assert (dash_m, module) == ("-m", "moshi_mlx.serve")
    arguments = options.parse([*flags, "--token", plist["EnvironmentVariables"]["MOSHI_TOKEN"]])
    assert plist["ExitTimeOut"] > arguments.drain
    assert program.endswith("python")


def test_the_systemd_unit_runs_our_command():
    unit = (DEPLOY / "moshi-mlx-serve.service").read_text()
    flags = re.search(r"^ExecStart=\S+ -m moshi_mlx.serve (.*)$", unit, re.M)[1].split()
    arguments = options.parse([*flags, "--token", "x"])
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)[1]) > arguments.drain


def test_the_dashboard_asks_for_figures_that_are_there():
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    asked = set(re.findall(r"moshi_\w+", json.dumps([panel["targets"] for panel in dashboard["panels"]])))
    there = {sample.name for family in Figures().registry.collect() for sample in _samples(family)}
    assert asked
    assert asked <= there


def _samples(family):
    """A family without labels yet has no sample: its names all the same."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}[family.type]
    return [types.SimpleNamespace(name=family.name + suffix) for suffix in suffixes]
