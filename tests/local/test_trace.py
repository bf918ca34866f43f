"""The Chrome trace of a conversation."""

import json

import pytest
from stand_ins import moment

from moshi_mlx.errors import AudioError
from moshi_mlx.local import trace
from moshi_mlx.local.trace import Trace


def test_events_of_frames_and_callbacks(tmp_path):
    written = Trace(tmp_path / "trace.json")
    written(moment(0)._replace(started=10.0, seconds=0.05))
    written.callback("Input", 480)
    written(moment(1, lost=(0.16, 0.0))._replace(started=10.08, seconds=0.06))
    written.close()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["args"]["name"] for e in events[:3]] == ["model thread", "microphone callback", "speaker callback"]
    steps = [(e["ts"], e["dur"]) for e in events if e["name"] == "step"]
    assert steps == [(10_000_000, 50_000), (10_080_000, 60_000)]
    assert [(e["ts"], e["dur"]) for e in events if e["name"] == "wait"] == [(10_050_000, 30_000)]
    (dropped,) = [e for e in events if e["name"] == "dropped of user"]
    assert dropped["args"] == {"seconds": 0.16}
    (block,) = [e for e in events if e["name"] == "block"]
    assert (block["tid"], block["args"]) == (1, {"samples": 480})
    assert all({"name", "ph", "pid", "tid"} <= set(e) for e in events)


def test_trace_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "EVENTS", 10)
    written = Trace(tmp_path / "trace.json")
    for n in range(100):
        written(moment(n))
    written.close()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(events) == 13
    assert events[-1]["name"] == "backlog"


def test_trace_that_cannot_be_written(tmp_path):
    with pytest.raises(AudioError, match="no folder"):
        Trace(tmp_path / "missing" / "trace.json")
    with pytest.raises(AudioError, match="it is a folder"):
        Trace(tmp_path)
