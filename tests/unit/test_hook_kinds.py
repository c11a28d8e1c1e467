"""What listeners are told while submitted work really runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import tazza as tz
from tazza.core.event import Waitable
from tazza.core.submission import Submission
from tazza.hot import Operation, listen

Heard = list[tuple[Operation, int]]


@pytest.fixture
def heard() -> Iterator[Heard]:
    seen: Heard = []
    stop = listen(lambda operation: seen.append((operation, threading.get_ident())))
    yield seen
    stop()


def kinds(heard: Heard, label: str) -> list[str]:
    return [operation.kind for operation, _ in heard if operation.label == label]


def standing_still(heard: Heard, what: Waitable) -> list[Operation]:
    """What streams told of standing still for an event or a task."""
    return [one for one, _ in heard if one.subject is what and one.stream is not None and one.kind in ("begin", "end")]


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_a_task_begins_and_ends_in_the_thread_that_runs_it(device: str, heard: Heard) -> None:
    with tz.open(device) as ctx:
        stream = ctx.new_stream()
        runner = ctx.launch(threading.get_ident, stream=stream, label="who").result(timeout=30)
        ctx.synchronize(timeout=30)
    assert kinds(heard, "who") == ["launch", "begin", "end"]
    told = [thread for operation, thread in heard if operation.label == "who"]
    assert told == [threading.get_ident(), runner, runner]
    begin = next(operation for operation, _ in heard if operation.kind == "begin" and operation.label == "who")
    assert isinstance(begin.subject, Submission)
    assert begin.stream.runner is stream.runner


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_copies_and_fills_begin_and_end_with_their_size(device: str, heard: Heard) -> None:
    with tz.open(device) as ctx:
        stream = ctx.new_stream()
        buffer, other = ctx.allocate(4096), ctx.allocate(4096)
        ctx.fill(buffer, 0, stream=stream)
        ctx.copy(other, buffer, stream=stream)
        ctx.synchronize(timeout=30)
    for label in ("copy", "fill"):
        told = [operation for operation, _ in heard if operation.label == label and operation.kind in ("begin", "end")]
        assert [operation.kind for operation in told] == ["begin", "end"]
        assert {operation.nbytes for operation in told} == {4096}


def test_an_end_is_told_also_of_what_failed(heard: Heard) -> None:
    with tz.open("cpu") as ctx:
        task = ctx.launch(lambda: 1 / 0, label="bad", stream=ctx.new_stream())
        with pytest.raises(ZeroDivisionError):
            task.result(timeout=30)
        ctx.synchronize(timeout=30)
    assert kinds(heard, "bad") == ["launch", "begin", "end"]


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_standing_still_is_told_by_who_does(device: str, heard: Heard) -> None:
    gate, waits = tz.HostEvent("gate"), threading.Event()
    stop = listen(lambda one: waits.set() if one.kind == "begin" and one.subject is gate else None)
    try:
        with tz.open(device) as ctx:
            stream = ctx.new_stream()
            stream.wait(gate)
            assert waits.wait(30)
            gate.succeed()
            stream.synchronize(timeout=30)
    finally:
        stop()
    told = [one for one, _ in heard if one.subject is gate and one.kind in ("begin", "end")]
    assert [one.kind for one in told] == ["begin", "end"]
    # On a device it is the submitter thread that waits; the queue goes on with what it was given before.
    assert {one.stream for one in told} == ({stream.runner} if device == "cpu" else {None})


def test_a_queue_that_waits_for_another_says_so(heard: Heard) -> None:
    with tz.open("sim") as ctx:
        first, second = ctx.new_stream(), ctx.new_stream()
        gate = threading.Event()
        task = ctx.launch(lambda: gate.wait(30), stream=first)
        after = ctx.launch(int, after=task, stream=second)
        gate.set()
        after.result(timeout=30)
        ctx.synchronize(timeout=30)
    told = [one.kind for one in standing_still(heard, task)]
    assert told in (["begin", "end"], [])  # none where the task was over before the other queue asked


def test_an_inline_stream_that_waits_says_so(heard: Heard) -> None:
    with tz.open("cpu") as ctx:
        gate = threading.Event()
        task = ctx.launch(lambda: gate.wait(30), stream=ctx.new_stream())
        threading.Timer(0.02, gate.set).start()
        ctx.stream.wait(task)
    told = [one.kind for one in standing_still(heard, task)]
    assert told == ["begin", "end"]


def test_a_host_thread_that_waits_says_so_without_a_stream(heard: Heard) -> None:
    with tz.open("cpu") as ctx:
        gate = threading.Event()
        task = ctx.launch(lambda: gate.wait(30), stream=ctx.new_stream())
        threading.Timer(0.02, gate.set).start()
        task.synchronize(timeout=30)
    told = [(one.kind, thread) for one, thread in heard if one.subject is task and one.kind in ("begin", "end")]
    assert told == [("begin", threading.get_ident()), ("end", threading.get_ident())]
