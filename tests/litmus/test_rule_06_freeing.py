"""Rule 6: memory is freed in stream order, and a finaliser only makes a note of it."""

from __future__ import annotations

import numpy as np

import tazza as tz
from tests.litmus.harness import CPU, SIM, TIMEOUT, World, get, litmus


@litmus(6, only="the reader gets what was there", allowed={5})
def test_free_while_another_stream_reads(w: World) -> int:
    """A held-back stream copies from a buffer that is dropped; new ones are made and filled at once."""
    x, y, gate, (b,) = w.cell(5), w.cell(), tz.HostEvent(), w.streams(1)
    b.wait(gate)
    w.here.copy(y, x, stream=b)
    del x
    others = [w.cell(9) for _ in range(8)]
    gate.succeed()
    b.synchronize(timeout=TIMEOUT)
    del others
    return w.read(y)


@litmus(6, only="the reader gets what was there, and the allocation its room", allowed={(5, 9)}, worlds=SIM)
def test_reallocation_waits_for_the_reader(w: World) -> tuple[int, int]:
    """The same where a limit leaves no other room than the dropped buffer's; the gate opens meanwhile."""
    ctx = w.open(memory_limit=w.room(2), pool="caching")
    x, y, gate, (b,) = w.cell(5, ctx), w.cell(0, ctx), tz.HostEvent(), w.streams(1, ctx)
    cells = [x]
    b.wait(gate)
    ctx.copy(y, x, stream=b)
    del x

    def reallocate() -> None:
        cells.clear()
        cells.append(w.cell(9, ctx))

    w.threads(reallocate, w.late(gate.succeed))
    b.synchronize(timeout=TIMEOUT)
    return w.read(y), w.read(cells[0])


@litmus(6, only="every reader gets what was there", allowed={(5, 5, 5)})
def test_free_while_three_streams_read(w: World) -> tuple[int, int, int]:
    """Three held-back streams copy from one buffer, their gates open one after the other."""
    x, targets = w.cell(5), [w.cell() for _ in range(3)]
    streams, gates = w.streams(3), [tz.HostEvent() for _ in range(3)]
    for stream, gate, target in zip(streams, gates, targets, strict=True):
        stream.wait(gate)
        w.here.copy(target, x, stream=stream)
    del x
    for stream, gate in zip(streams, gates, strict=True):
        others = [w.cell(9) for _ in range(4)]
        gate.succeed()
        stream.synchronize(timeout=TIMEOUT)
        del others
    one, two, three = (w.read(target) for target in targets)
    return one, two, three


@litmus(6, only="live until the reader is done, then not", allowed={(1024, 0)})
def test_pending_bytes_are_live(w: World) -> tuple[int, int]:
    """Drop a buffer that a held-back stream reads, and look at the statistics before and after."""
    ctx = w.open()
    x, y = ctx.allocate(1024), ctx.allocate(1024)
    ctx.fill(x, 1)
    gate, (b,) = tz.HostEvent(), w.streams(1, ctx)
    b.wait(ctx.stream)
    b.wait(gate)
    ctx.copy(y, x, stream=b)
    del x
    during = ctx.memory.stats().live - y.nbytes
    gate.succeed()
    b.synchronize(timeout=TIMEOUT)
    return during, ctx.memory.stats().live - y.nbytes


@litmus(6, only="its own order is enough: no room is needed, nothing waits", allowed={(True, 9)}, worlds=SIM)
def test_reuse_on_the_home_stream(w: World) -> tuple[bool, int]:
    """Under a limit of one cell, drop one that its own held-back stream fills, and take and fill another there."""
    ctx = w.open(memory_limit=w.room(1), pool="caching")
    gate = tz.HostEvent()
    ctx.stream.wait(gate)
    x = ctx.allocate(8, dtype="int64")
    ctx.fill(x, 5)
    address = x.address
    del x
    y = ctx.allocate(8, dtype="int64")
    ctx.fill(y, 9)
    gate.succeed()
    return y.address == address, int(ctx.to_numpy(y)[0])


@litmus(6, only="the slice keeps its memory", allowed={7})
def test_a_slice_keeps_the_memory(w: World) -> int:
    """Drop a buffer of which a slice lives on, and take and fill others."""
    whole = w.here.allocate(8 * 16, dtype="int64")
    w.here.fill(whole, 7)
    part = whole[8:9]
    del whole
    others = [w.cell(9) for _ in range(8)]
    value = w.read(part)
    del others
    return value


@litmus(6, only="the array keeps its memory", allowed={7}, worlds=CPU)
def test_an_export_keeps_the_memory(w: World) -> int:
    """Drop a buffer that a NumPy array was made from, and take and fill others."""
    x = w.cell(7)
    seen = np.asarray(x)
    del x
    others = [w.cell(9) for _ in range(8)]
    value = int(seen[0])
    del others
    return value


@litmus(6, only="nothing is lost: no byte stays live", allowed={0})
def test_buffers_dropped_in_other_threads(w: World) -> int:
    """Three threads take, use and hand on buffers, which the others drop."""
    ctx, box = w.open(), list[tz.Buffer]()
    streams = w.streams(3, ctx)

    def churn(stream: tz.Stream) -> None:
        for number in range(12):
            x = ctx.allocate(64 * (1 + number % 3))
            ctx.fill(x, number, stream=stream)
            box.append(x)
            del x
            if number % 3 == 2:
                box.clear()

    w.threads(*(lambda stream=stream: churn(stream) for stream in streams))
    box.clear()
    ctx.synchronize(timeout=TIMEOUT)
    return ctx.memory.stats().live


@litmus(6, only="the task lets go of it: no byte stays live", allowed={(1, 0)})
def test_a_task_lets_go_of_its_arguments(w: World) -> tuple[int, int]:
    """A task is over and kept; the only other reference to its argument is dropped."""
    ctx = w.open()
    (a,) = w.streams(1, ctx)
    x = w.cell(1, ctx)
    task = ctx.launch(get, x, stream=a)
    a.synchronize(timeout=TIMEOUT)
    del x
    value = int(task.result(timeout=TIMEOUT))
    return value, ctx.memory.stats().live
