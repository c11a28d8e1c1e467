"""Reading a trace: the lines that the emulator wrote, what is wrong in them, and the form that browsers draw.

``python -m cuda_emulator.trace trace.jsonl chrome.json`` converts; chrome://tracing and ui.perfetto.dev open that.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Call:
    """A call of the driver. Times are nanoseconds of the monotonic clock; device -1: no context was current."""

    name: str
    process: int
    thread: int
    start: int
    end: int
    result: int
    device: int
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """Something that a stream did: ``kind`` is kernel, copy, fill, ...; ``name`` is the kernel's, or empty."""

    kind: str
    name: str
    process: int
    stream: int
    device: int
    queued: int
    start: int
    end: int
    bytes: int
    result: int


@dataclass(frozen=True)
class Trace:
    """All lines of a trace file, in its order: calls as they returned, operations as they ended."""

    calls: tuple[Call, ...]
    operations: tuple[Operation, ...]


def read_trace(path: str | Path) -> Trace:
    """Reads a file that CUDA_EMULATOR_TRACE named. A last line that is cut off (a process died in it) is left out.

    Raises:
        ValueError: a line is not one of the emulator's; the message has its number.
        OSError: the file cannot be read.
    """
    calls, operations = [], []
    text = Path(path).read_text()
    complete = text[: text.rfind("\n") + 1]
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            record = json.loads(line)
            if "call" in record:
                calls.append(_call(record))
            else:
                operations.append(Operation(kind=record.pop("operation"), **record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not a line of a trace ({error})") from error
    return Trace(tuple(calls), tuple(operations))


def problems(trace: Trace) -> list[str]:
    """What cannot be: times that run backwards, or two operations of one stream at once or out of order."""
    found = [f"{call.name} ends before it starts" for call in trace.calls if call.end < call.start]
    streams: dict[tuple[int, int], list[Operation]] = defaultdict(list)
    for operation in trace.operations:
        if not operation.queued <= operation.start <= operation.end:
            found.append(f"{operation.kind} of stream {operation.stream} runs before it was queued, or backwards")
        streams[operation.process, operation.stream].append(operation)
    for (_, stream), operations in streams.items():
        operations.sort(key=lambda operation: operation.start)
        for one, other in pairwise(operations):
            if other.start < one.end:
                found.append(f"stream {stream}: {other.kind} starts before {one.kind} has ended")
            if other.queued < one.queued:
                found.append(f"stream {stream}: {other.kind} overtakes {one.kind}")
    return found


def to_chrome(trace: Trace) -> dict[str, Any]:
    """The trace in Chrome's format: a row for each thread, and one for each stream under its device."""
    events: list[dict[str, Any]] = []
    for call in trace.calls:
        arguments = {"result": call.result, "device": call.device, **call.notes}
        row = (f"process {call.process}", f"thread {call.thread}")
        events.append(_event(call.name, row, call.start, call.end, arguments))
    for operation in trace.operations:
        row = (f"process {operation.process}, device {operation.device}", f"stream {operation.stream}")
        waited_us = (operation.start - operation.queued) // 1000
        arguments = {"result": operation.result, "bytes": operation.bytes, "waited_us": waited_us}
        events.append(_event(operation.name or operation.kind, row, operation.start, operation.end, arguments))
    return {"traceEvents": _with_numbers(events), "displayTimeUnit": "ns"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where ``problems`` finds some, which it prints."""
    parser = argparse.ArgumentParser(prog="python -m cuda_emulator.trace", description="Converts a trace for Chrome.")
    parser.add_argument("trace", type=Path)
    parser.add_argument("chrome", type=Path)
    arguments = parser.parse_args(argv)
    trace = read_trace(arguments.trace)
    arguments.chrome.write_text(json.dumps(to_chrome(trace)))
    found = problems(trace)
    print(f"{len(trace.calls)} calls, {len(trace.operations)} operations, {len(found)} problems", *found, sep="\n")
    return 1 if found else 0


def _call(record: dict[str, Any]) -> Call:
    known = {key: record.pop(key) for key in ("process", "thread", "start", "end", "result", "device")}
    return Call(record.pop("call"), **known, notes=record)


def _event(name: str, row: tuple[str, str], start: int, end: int, arguments: dict[str, int]) -> dict[str, Any]:
    times = {"ts": start / 1000, "dur": (end - start) / 1000}
    return {"name": name, "ph": "X", "pid": row[0], "tid": row[1], **times, "args": arguments}


def _with_numbers(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chrome wants numbers for its rows, and their names in events of their own."""
    processes: dict[str, int] = {}
    threads: dict[tuple[str, str], int] = {}
    numbered = []
    for event in events:
        process = processes.setdefault(event["pid"], len(processes) + 1)
        thread = threads.setdefault((event["pid"], event["tid"]), len(threads) + 1)
        numbered.append({**event, "pid": process, "tid": thread})
    for name, number in processes.items():
        numbered.append({"name": "process_name", "ph": "M", "pid": number, "args": {"name": name}})
    for (process_name, name), number in threads.items():
        row = {"pid": processes[process_name], "tid": number}
        numbered.append({"name": "thread_name", "ph": "M", **row, "args": {"name": name}})
    return numbered


if __name__ == "__main__":
    sys.exit(main())
