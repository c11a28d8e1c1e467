"""Traces: the Trace Event Format, checked by its rules."""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import tazza as tz
from tazza.core.timeline import Timeline
from tazza.core.tracefile import write_timeline
from tazza.errors import ArgumentError, UsageError
from tazza.hot import Account, Operation, emit, point
from tazza.testing import simulate

Event = dict[str, Any]
REQUIRED = {
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
    "X": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "dur": float},
    "s": {"name": str, "cat": str, "id": int, "pid": int, "tid": int, "ts": float},
    "f": {"name": str, "cat": str, "id": int, "pid": int, "tid": int, "ts": float, "bp": str},
    "C": {"name": str, "pid": int, "tid": int, "ts": float, "args": dict},
    "i": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "s": str},
}


def read(path: Path) -> dict[str, Any]:
    """The file, checked against the format's rules for the phases that we write."""
    found: dict[str, Any] = json.loads(path.read_bytes())
    assert set(found) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert found["displayTimeUnit"] in ("ms", "ns")
    for event in found["traceEvents"]:
        expected = REQUIRED[event["ph"]]
        optional = {"args"} if event["ph"] == "X" else set()
        assert set(event) - {"ph"} - optional == set(expected), event
        for key, kind in expected.items():
            assert isinstance(event[key], (int, float) if kind is float else kind), event
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
    check_names(found["traceEvents"])
    check_nesting(found["traceEvents"])
    check_flows(found["traceEvents"])
    return found


def check_names(events: list[Event]) -> None:
    """Every process and thread that occurs has a name."""
    named = {(e["name"], e["pid"], e["tid"]) for e in events if e["ph"] == "M"}
    for event in events:
        assert ("process_name", event["pid"], 0) in named
        if event["ph"] in "Xsf":
            assert ("thread_name", event["pid"], event["tid"]) in named


def check_nesting(events: list[Event]) -> None:
    """Slices of one thread lie inside each other or apart: viewers draw nothing else."""
    threads = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in threads.values():
        open_: list[float] = []
        for start, end in sorted(slices, key=lambda one: (one[0], -one[1])):
            while open_ and open_[-1] <= start + 1e-3:
                open_.pop()
            assert not open_ or end <= open_[-1] + 1e-3
            open_.append(end)


def check_flows(events: list[Event]) -> None:
    """Each flow has a start and a later end, and both lie on a slice of their thread."""
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    flows: dict[int, dict[str, Event]] = defaultdict(dict)
    for event in events:
        if event["ph"] in "sf":
            assert event["ph"] not in flows[event["id"]]
            flows[event["id"]][event["ph"]] = event
            around = slices[event["pid"], event["tid"]]
            assert any(start - 2e-3 <= event["ts"] <= end + 2e-3 for start, end in around), event
    for flow in flows.values():
        assert flow["s"]["ts"] <= flow["f"]["ts"]
        assert flow["s"]["cat"] == flow["f"]["cat"]


def names(found: dict[str, Any], category: str) -> list[str]:
    return [event["name"] for event in found["traceEvents"] if event.get("cat") == category and event["ph"] == "X"]


def test_a_trace_of_two_devices(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with simulate(devices=1), tz.trace(path), tz.open("cpu") as ctx, tz.open("sim") as sim:
        worker = ctx.new_stream(label="worker")
        for number in range(5):
            task = ctx.launch(lambda: [0.0] * 100, label=f"make {number}", stream=worker)
            worker.record()
            array = sim.asarray([1.0, 2.0])
            sim.launch(lambda x, y: x, array, task, label="use").result(timeout=30)
            ctx.stream.wait(worker.record())
        sim.fill(array, 0)
        sim.synchronize(timeout=30)
    found = read(path)
    assert sorted(names(found, "task")) == [*(f"make {number}" for number in range(5)), *["use"] * 5]
    assert names(found, "fill") == ["fill"]
    assert set(names(found, "copy")) == {"copy"}
    assert len(names(found, "launch")) == 10
    processes = {e["args"]["name"] for e in found["traceEvents"] if e["name"] == "process_name"}
    assert {"cpu:0", "sim:0"} <= processes
    assert {e["cat"] for e in found["traceEvents"] if e["ph"] == "s"} == {"launch", "order"}
    counters = {e["name"] for e in found["traceEvents"] if e["ph"] == "C"}
    assert "live bytes: sim:0 / context on sim:0" in counters
    assert found["otherData"]["dropped_events"] == 0


def test_many_threads_on_one_inline_stream(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with tz.trace(path), tz.open("cpu") as ctx:

        def work() -> None:
            for _ in range(50):
                ctx.launch(lambda: ctx.launch(int).result())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(names(read(path), "task")) == 400


def test_start_and_stop_in_different_threads(tmp_path: Path) -> None:
    trace = tz.trace(str(tmp_path / "a.json"))
    assert "not running" in repr(trace)
    trace.start()
    assert repr(trace).endswith("running>")
    with pytest.raises(UsageError, match="has begun already"):
        trace.start()
    thread = threading.Thread(target=trace.stop)
    thread.start()
    thread.join(30)
    assert point.listeners is None
    trace.stop()
    assert read(tmp_path / "a.json")["traceEvents"]


def test_dropped_events_are_stated(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with tz.trace(path, max_events=10), tz.open("cpu") as ctx:
        for _ in range(100):
            ctx.launch(int)
    found = read(path)
    assert found["otherData"]["max_events"] == 10
    assert found["otherData"]["dropped_events"] >= 190
    assert len([event for event in found["traceEvents"] if event["ph"] == "X"]) == 10


def test_strange_labels_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    label = "\ud800 </script> \u2028 \"'\\ \0"
    with tz.trace(path), tz.open("cpu") as ctx:
        task = ctx.launch(lambda: 1 / 0, label=label)
        emit(Operation("oom", subject=Account("context")))
        with pytest.raises(ZeroDivisionError):
            task.result()
    found = read(path)
    assert names(found, "task") == [label]
    [failed] = [event for event in found["traceEvents"] if event.get("cat") == "task" and event["ph"] == "X"]
    assert failed["args"] == {"failed": True}
    assert [event["name"] for event in found["traceEvents"] if event["ph"] == "i"] == ["context"]


def test_large_traces_are_written_in_pieces(tmp_path: Path) -> None:
    timeline = Timeline(10_000)
    timeline.start()
    with tz.open("cpu") as ctx:
        for _ in range(700):
            ctx.launch(int)
    timeline.stop()
    write_timeline(timeline, tmp_path / "run.json")
    assert len(names(read(tmp_path / "run.json"), "task")) == 700


def test_an_empty_trace_is_valid(tmp_path: Path) -> None:
    with tz.trace(tmp_path / "run.json"):
        pass
    assert [event["ph"] for event in read(tmp_path / "run.json")["traceEvents"]] == ["M", "M"]


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("before")
    with tz.trace(path):
        assert path.read_text() == "before"
    read(path)
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="path"):
        tz.trace(3)  # type: ignore[arg-type]
    for bad in (0, -1, True, 1.5):
        with pytest.raises(ArgumentError, match="max_events"):
            tz.trace("x", max_events=bad)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no directory"):
        tz.trace(tmp_path / "nowhere" / "run.json").start()
    assert point.listeners is None


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match=re.escape(str(folder))):
        with tz.trace(folder):
            pass
    with pytest.raises(ZeroDivisionError) as raised:
        with tz.trace(folder):
            raise ZeroDivisionError
    assert "writing the trace" in raised.value.__notes__[0]
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]
