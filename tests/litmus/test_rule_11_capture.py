"""Rule 11: captured work runs with each replay and never before. Devices without graphs refuse, and say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tazza as tz
from tazza.errors import UnsupportedError, UsageError
from tests.litmus.harness import SIM, TIMEOUT, World, add, attempt, litmus, put

REFUSED = UnsupportedError


def captured(stream: tz.Stream, body: Callable[[], object]) -> Any:
    """The graph of what `body` submits, or the error of a device that has none."""
    try:
        scope = stream.capture()
    except UnsupportedError:
        return None
    with scope as graph:
        body()
    return graph


@litmus(11, only="nothing before, all of it after each", allowed={REFUSED, (0, 1, 2, 3)}, worlds=SIM)
def test_captured_work_runs_with_each_replay(w: World) -> Any:
    """Capture an addition; read, replay and read three times."""
    x, ctx, (a,) = w.cell(), w.here, w.streams(1)
    graph = captured(a, lambda: ctx.launch(add, x, 1))
    if graph is None:
        return REFUSED
    seen = [w.read(x)]
    for _ in range(3):
        graph.replay(a)
        seen.append(w.read(x))
    return tuple(seen)


@litmus(11, only="the reader sees what the replay wrote", allowed={REFUSED, 1}, worlds=SIM)
def test_a_replay_is_ordered_like_any_work(w: World) -> Any:
    """Capture a write; A replays it behind a wait for a late writer of another value; B waits for A and copies."""
    x, y, ctx, (a, b, late) = w.cell(), w.cell(), w.here, w.streams(3)
    graph = captured(ctx.stream, lambda: ctx.launch(put, x, 1))
    if graph is None:
        return REFUSED
    ctx.launch(w.late(put), x, 5, stream=late)
    a.wait(late)
    graph.replay(a)
    b.wait(a)
    ctx.copy(y, x, stream=b)
    return w.read(y)


@litmus(11, only="one after the other: no addition is lost", allowed={REFUSED, 12}, worlds=SIM)
def test_replays_of_one_graph_do_not_overlap(w: World) -> Any:
    """Capture three additions; replay on four streams that do not wait for each other."""
    x, ctx, streams = w.cell(), w.here, w.streams(4)
    graph = captured(streams[0], lambda: [ctx.launch(add, x, 1, stream=streams[0]) for _ in range(3)])
    if graph is None:
        return REFUSED
    for stream in streams:
        graph.replay(stream)
    return w.read(x)


@litmus(11, only="the graph sees its own memory alone", allowed={REFUSED, (7, 7, 9)}, worlds=SIM)
def test_memory_of_a_graph_is_nobody_elses(w: World) -> Any:
    """Capture a write to memory that is dropped inside, and a copy out of it; fill as much memory, replay twice."""
    x, ctx = w.cell(), w.here

    def body() -> None:
        between = ctx.allocate(8, dtype="int64")
        ctx.launch(put, between, 7)
        ctx.copy(x, between)

    graph = captured(ctx.stream, body)
    if graph is None:
        return REFUSED
    others = [w.cell(9) for _ in range(8)]
    seen = []
    for _ in range(2):
        graph.replay()
        seen.append(w.read(x))
    return (*seen, min(map(w.read, others)))


@litmus(11, only="refused at once, inside and afterwards", allowed={REFUSED, frozenset({UsageError})}, worlds=SIM)
def test_an_event_of_a_capture_is_of_use_inside_alone(w: World) -> Any:
    """Record inside; the host waits for the event inside and afterwards, another stream afterwards."""
    x, ctx, (a, b), seen, events = w.cell(), w.here, w.streams(2), list[Any](), list[tz.Event]()

    def body() -> None:
        ctx.launch(put, x, 1)
        events.append(a.record())
        seen.extend((attempt(events[0].synchronize, timeout=TIMEOUT), attempt(a.synchronize, timeout=TIMEOUT)))

    if captured(a, body) is None:
        return REFUSED
    seen.extend((attempt(events[0].synchronize, timeout=TIMEOUT), attempt(b.wait, events[0])))
    return frozenset(seen)


@litmus(11, only="both branches, then what comes after both", allowed={REFUSED, (1, 2, 3)}, worlds=SIM)
def test_a_second_stream_takes_part(w: World) -> Any:
    """Capture on A a write; B waits for A and writes; A waits for B and adds to a copy of what B wrote."""
    x, y, z, ctx, (a, b) = w.cell(), w.cell(), w.cell(), w.here, w.streams(2)

    def body() -> None:
        ctx.launch(put, x, 1, stream=a)
        b.wait(a)
        ctx.copy(y, x, stream=b)
        ctx.launch(add, y, 1, stream=b)
        a.wait(b)
        ctx.copy(z, y, stream=a)
        ctx.launch(add, z, 1, stream=a)

    graph = captured(a, body)
    if graph is None:
        return REFUSED
    graph.replay()
    return w.read(x), w.read(y), w.read(z)


@litmus(11, only="the replay comes after the making", allowed={REFUSED, (False, 5)}, worlds=SIM)
def test_a_replay_waits_for_memory_that_is_still_being_made(w: World) -> Any:
    """Memory is filled behind a gate; capture a copy out of it and replay; then the gate opens."""
    x, ctx, gate, (a, b) = w.cell(), w.here, tz.HostEvent(), w.streams(2)
    b.wait(gate)
    with ctx.on(b):
        late = ctx.asarray([5], dtype="int64")
    graph = captured(a, lambda: ctx.copy(x, late, stream=a))
    if graph is None:
        gate.succeed()
        return REFUSED
    graph.replay(a)
    early = a.record().is_done
    gate.succeed()
    return early, w.read(x)


@litmus(11, only="other threads go on, but not on the stream", allowed={REFUSED, (UsageError, 3, 1)}, worlds=SIM)
def test_a_capture_belongs_to_its_thread(w: World) -> Any:
    """While one thread captures A, another submits to A, and to B, and waits for B."""
    x, y, ctx, (a, b), seen = w.cell(), w.cell(), w.here, w.streams(2), list[Any]()

    def other() -> None:
        seen.append(attempt(ctx.fill, x, 9, stream=a))
        ctx.fill(y, 3, stream=b)
        b.synchronize(timeout=TIMEOUT)
        seen.append(w.read(y))

    def body() -> None:
        ctx.launch(put, x, 1)
        w.threads(other)

    graph = captured(a, body)
    if graph is None:
        return REFUSED
    graph.replay(a)
    return (*seen, w.read(x))
