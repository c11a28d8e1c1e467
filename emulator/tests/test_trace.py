"""Reading traces."""

import json
from pathlib import Path
from typing import Any

import pytest

from cuda_emulator.trace import Trace, main, problems, read_trace, to_chrome


def call(**changed: Any) -> dict[str, Any]:
    known = {"process": 1, "thread": 2, "start": 1000, "end": 3000, "result": 0, "device": 0}
    return {"call": "cuMemAlloc_v2", **known, "bytes": 64, **changed}


def operation(**changed: Any) -> dict[str, Any]:
    times = {"queued": 1000, "start": 2000, "end": 3000}
    known = {"name": "", "process": 1, "stream": 7, "device": 0, **times, "bytes": 64, "result": 0}
    return {"operation": "copy", **known, **changed}


def trace_of(folder: Path, *records: dict[str, Any], end: str = "\n") -> Trace:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + end)
    return read_trace(path)


def test_lines_become_calls_and_operations(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, call(), operation())
    assert trace.calls[0].notes == {"bytes": 64}
    assert (trace.operations[0].kind, trace.operations[0].stream) == ("copy", 7)
    assert problems(trace) == []


def test_a_line_that_a_dying_process_cut_off_is_left_out(tmp_path: Path) -> None:
    assert len(trace_of(tmp_path, call(), call(), end="").calls) == 1


@pytest.mark.parametrize("line", ["not json", "[]", '{"operation": "copy"}', '{"call": "cuInit"}', '{"x": 1}'])
def test_another_file_is_refused_by_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "other"
    path.write_text(json.dumps(call()) + "\n" + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_trace(path)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([call(end=1)], "ends before it starts"),
        ([operation(start=500)], "runs before it was queued"),
        ([operation(), operation(start=2500, end=4000)], "copy starts before copy has ended"),
        ([operation(), operation(queued=900, start=3000, end=4000)], "overtakes"),
    ],
)
def test_what_cannot_be_is_found(tmp_path: Path, records: list[dict[str, Any]], said: str) -> None:
    assert any(said in problem for problem in problems(trace_of(tmp_path, *records)))


def test_streams_of_one_number_in_two_processes_are_two(tmp_path: Path) -> None:
    assert problems(trace_of(tmp_path, operation(), operation(process=2))) == []


def test_chrome_has_a_row_for_each_thread_and_stream(tmp_path: Path) -> None:
    events = to_chrome(trace_of(tmp_path, call(), call(thread=3), operation(name="saxpy")))["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {"thread 2", "thread 3", "stream 7"}
    kernel = next(event for event in events if event["name"] == "saxpy")
    assert (kernel["ts"], kernel["dur"], kernel["args"]["waited_us"]) == (2.0, 1.0, 1)
    assert all(isinstance(event["pid"], int) for event in events)


def test_the_command_line_converts_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace_of(tmp_path, call(), call(end=1))
    assert main([str(tmp_path / "trace.jsonl"), str(tmp_path / "chrome.json")]) == 1
    assert "2 calls, 0 operations, 1 problems" in capsys.readouterr().out
    assert json.loads((tmp_path / "chrome.json").read_text())["traceEvents"]
