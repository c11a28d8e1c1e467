"""Rule 2: order is explicit. It comes from stream order, waits, tasks passed on, and ``after=``."""

from __future__ import annotations

from typing import Any

import tazza as tz
from tests.litmus.harness import SEVERAL, TIMEOUT, World, add, full, get, litmus, plus, put


@litmus(2, only="B reads the data", allowed={42})
def test_message_passing(w: World) -> int:
    """A writes data and records an event; B waits for the event and reads."""
    data, (a, b) = w.cell(), w.streams(2)
    w.here.launch(put, data, 42, stream=a)
    b.wait(a.record())
    return int(w.here.launch(get, data, stream=b).result(timeout=TIMEOUT))


@litmus(2, only="both read 1", allowed={(1, 1)})
def test_store_buffering(w: World) -> tuple[int, int]:
    """A writes x, B writes y, each records; after the other's event A reads y and B reads x."""
    x, y, (a, b) = w.cell(), w.cell(), w.streams(2)
    w.here.launch(put, x, 1, stream=a)
    w.here.launch(put, y, 1, stream=b)
    wrote_x, wrote_y = a.record(), b.record()
    a.wait(wrote_y)
    b.wait(wrote_x)
    reads = w.here.launch(get, y, stream=a), w.here.launch(get, x, stream=b)
    one, two = tz.wait(reads, timeout=TIMEOUT)
    return one, two


@litmus(2, only="each reads 0 or 1, never anything else", allowed={(0, 0), (0, 1), (1, 0), (1, 1)})
def test_store_buffering_without_order(w: World) -> tuple[int, int]:
    """A writes x and reads y, B writes y and reads x, and nobody waits."""
    x, y, (a, b) = w.cell(), w.cell(), w.streams(2)
    w.here.launch(put, x, 1, stream=a)
    w.here.launch(put, y, 1, stream=b)
    reads = w.here.launch(get, y, stream=a), w.here.launch(get, x, stream=b)
    one, two = tz.wait(reads, timeout=TIMEOUT)
    return one, two


@litmus(2, only="B reads 0: it does not wait for A", allowed={0})
def test_nothing_is_inferred_from_addresses(w: World) -> int:
    """A is held back before it writes x; B reads x meanwhile."""
    x, gate, (a, b) = w.cell(), tz.HostEvent(), w.streams(2)
    a.wait(gate)
    w.here.launch(put, x, 1, stream=a)
    seen = w.here.launch(get, x, stream=b).result(timeout=TIMEOUT)
    gate.succeed()
    return int(seen)


@litmus(2, only="A reads the old value, the cell ends with the new one", allowed={(1, 2)})
def test_write_after_read(w: World) -> tuple[int, int]:
    """A reads late; B waits for A and writes."""
    x, (a, b) = w.cell(1), w.streams(2)
    read = w.here.launch(w.late(get), x, stream=a)
    b.wait(a)
    w.here.launch(put, x, 2, stream=b)
    return read.result(timeout=TIMEOUT), w.read(x)


@litmus(2, only="the waits change nothing: both read the data", allowed={(1, 1)})
def test_event_waited_for_twice(w: World) -> tuple[int, int]:
    """B waits twice for one event of A, and C once."""
    x, (a, b, c) = w.cell(), w.streams(3)
    w.here.launch(put, x, 1, stream=a)
    event = a.record()
    for stream in (b, b, c):
        stream.wait(event)
    one, two = tz.wait([w.here.launch(get, x, stream=stream) for stream in (b, c)], timeout=TIMEOUT)
    return one, two


@litmus(2, only="all that A had so far, and nothing that it got later", allowed={10})
def test_wait_for_a_stream(w: World) -> int:
    """B waits for stream A after ten additions; A goes on only when a gate opens."""
    x, gate, (a, b) = w.cell(), tz.HostEvent(), w.streams(2)
    for _ in range(10):
        w.here.launch(add, x, 1, stream=a)
    b.wait(a)
    a.wait(gate)
    w.here.launch(add, x, 100, stream=a)
    seen = w.here.launch(get, x, stream=b).result(timeout=TIMEOUT)
    gate.succeed()
    return int(seen)


@litmus(2, only="the last event implies the first: the reader sees everything", allowed={(1, 2)})
def test_order_is_transitive(w: World) -> tuple[int, int]:
    """A writes x; B waits for A and writes y; C waits for B alone and reads both."""
    x, y, (a, b, c) = w.cell(), w.cell(), w.streams(3)
    w.here.launch(put, x, 1, stream=a)
    b.wait(a.record())
    w.here.launch(put, y, 2, stream=b)
    c.wait(b.record())
    one, two = tz.wait([w.here.launch(get, cell, stream=c) for cell in (x, y)], timeout=TIMEOUT)
    return one, two


@litmus(2, only="each task sees the result of the one before", allowed={12})
def test_task_passed_on(w: World) -> int:
    """Twelve tasks on three streams, each given the one before."""
    streams = w.streams(3)
    task = w.here.launch(int, stream=streams[0])
    for number in range(12):
        task = w.here.launch(w.late(lambda count: count + 1), task, stream=streams[number % 3])
    return int(task.result(timeout=TIMEOUT))


@litmus(2, only="every device saw what the one before made", allowed={True})
def test_cross_device_chain(w: World) -> bool:
    """An array goes twice round all devices, one added on each."""
    task = w.here.launch(full, 4, 0)
    for ctx in w.all * 2:
        task = ctx.launch(plus, task, 1, stream=ctx.new_stream())
    result = w.all[-1].to_numpy(task.result(timeout=TIMEOUT))
    return bool((result == 2 * len(w.all)).all())


@litmus(2, only="the last task sees both sides, each of which saw the first", allowed={11 + 101})
def test_task_diamond(w: World) -> int:
    """One task, two that take it on two streams, one that takes both."""
    a, b, c, d = w.streams(4)
    top = w.here.launch(lambda: 1, stream=a)
    left = w.here.launch(w.late(lambda n: n + 10), top, stream=b)
    right = w.here.launch(lambda n: n + 100, top, stream=c)
    return int(w.here.launch(lambda m, n: m + n, left, right, stream=d).result(timeout=TIMEOUT))


@litmus(2, only="the reader sees both writers", allowed={(1, 2)})
def test_after_orders_without_data(w: World) -> tuple[int, int]:
    """Two tasks write on streams of their own; a third is launched after a task and after an event."""
    x, y, (a, b, c) = w.cell(), w.cell(), w.streams(3)
    first = w.here.launch(put, x, 1, stream=a)
    w.here.launch(put, y, 2, stream=b)
    task = w.here.launch(lambda x, y: (get(x), get(y)), x, y, after=[first, b.record()], stream=c)
    one, two = task.result(timeout=TIMEOUT)
    return one, two


@litmus(2, only="the task reads what was there when it was launched", allowed={5})
def test_a_task_holds_its_arguments(w: World) -> int:
    """A held-back task is the only owner of a buffer while new ones are made and written."""
    gate, (a,) = tz.HostEvent(), w.streams(1)
    a.wait(gate)
    task = w.here.launch(get, w.cell(5), stream=a)
    others = [w.cell(9) for _ in range(8)]
    gate.succeed()
    del others
    return int(task.result(timeout=TIMEOUT))


@litmus(2, only="the host reads what the streams wrote", allowed={(1, 2)})
def test_host_access_waits(w: World) -> tuple[int, int]:
    """Two streams write cells, the host reads them through tazza without another word."""
    x, y, (a, b) = w.cell(), w.cell(), w.streams(2)
    w.here.launch(w.late(put), x, 1, stream=a)
    w.here.fill(y, 2, stream=b)
    return w.read(x), w.read(y)


@litmus(2, only="the copy carries the old value both ways", allowed={(1, 1, 2)}, worlds=SEVERAL)
def test_copies_between_devices_are_ordered_on_both_sides(w: World) -> tuple[int, int, int]:
    """A device writes x, another copies it, the first copies it back and then overwrites x."""
    x, y, z = w.cell(), w.cell(ctx=w.there), w.cell()
    w.here.launch(put, x, 1)
    w.there.copy(y, x)
    w.here.fill(x, 2)
    w.here.copy(z, y)
    w.there.fill(y, 3)
    copied, x_now = w.read(z), w.read(x)
    return 1 if w.read(y) == 3 else 0, copied, x_now


@litmus(2, only="the original is unchanged", allowed={(1, 2)}, worlds=SEVERAL)
def test_a_moved_result_is_a_private_copy(w: World) -> tuple[int, int]:
    """A task's array is passed to another device and changed there."""

    def change(x: Any) -> Any:
        add(x, 1)
        return x

    made = w.here.launch(full, 1, 1)
    changed = w.there.launch(change, made)
    there = int(w.there.to_numpy(changed.result(timeout=TIMEOUT))[0])
    return int(w.here.to_numpy(made.result(timeout=TIMEOUT))[0]), there


@litmus(2, only="neither device overtakes the other", allowed={12})
def test_two_devices_in_turns(w: World) -> int:
    """Two devices add to copies of one number in turns, ordered by events alone."""
    cells, streams = [w.cell(ctx=ctx) for ctx in w.all[:2]], [ctx.new_stream() for ctx in w.all[:2]]
    for turn in range(12):
        ctx, stream, x = w.all[turn % 2], streams[turn % 2], cells[turn % 2]
        stream.wait(streams[1 - turn % 2].record())
        ctx.copy(x, cells[1 - turn % 2], stream=stream)
        ctx.launch(add, x, 1, stream=stream)
    return w.read(cells[1])
