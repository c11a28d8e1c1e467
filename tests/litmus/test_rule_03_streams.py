"""Rule 3: one mechanism for every stream, a FIFO and something that runs it; what waits for the host is deferred."""

from __future__ import annotations

import tazza as tz
from tazza.errors import ClosedError
from tests.litmus.harness import SIM, TIMEOUT, World, get, litmus, put, until


@litmus(3, only="in the order of submission", allowed={True})
def test_a_stream_is_a_fifo(w: World) -> bool:
    """Thirty functions on one stream note their numbers."""
    order: list[int] = []
    (a,) = w.streams(1)
    for number in range(30):
        w.here.launch(w.late(order.append), number, stream=a)
    a.synchronize(timeout=TIMEOUT)
    return order == list(range(30))


@litmus(3, only="what is behind the gate comes after it, in order", allowed={((0,), (0, 1, 2, 3))})
def test_deferred_order_is_kept(w: World) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A function, a wait for a host event, then three functions; the event succeeds from the host."""
    order: list[int] = []
    gate, (a,) = tz.HostEvent(), w.streams(1)
    first = w.here.launch(order.append, 0, stream=a)
    a.wait(gate)
    for number in (1, 2, 3):
        w.here.launch(order.append, number, stream=a)
    first.result(timeout=TIMEOUT)
    before = tuple(order)
    gate.succeed()
    a.synchronize(timeout=TIMEOUT)
    return before, tuple(order)


@litmus(3, only="in the order of submission, whether handed over or deferred", allowed={True})
def test_in_and_out_of_deferral(w: World) -> bool:
    """Ten times a wait for a host event that succeeds at some moment, each between functions."""
    order: list[int] = []
    gates, (a,) = [tz.HostEvent() for _ in range(10)], w.streams(1)

    def submit() -> None:
        for number, gate in enumerate(gates):
            w.here.launch(order.append, 2 * number, stream=a)
            a.wait(gate)
            w.here.launch(order.append, 2 * number + 1, stream=a)

    w.threads(submit, lambda: [w.late(gate.succeed)() for gate in gates])
    a.synchronize(timeout=TIMEOUT)
    return order == list(range(20))


@litmus(3, only="the device keeps its order around the host's task", allowed={(0, 7, 2)})
def test_a_host_task_in_the_middle(w: World) -> tuple[int, ...]:
    """A function, one that takes a CPU worker's late task, and a third, all on one stream."""
    cpu, order = tz.context("cpu"), list[int]()
    gate, (a,) = tz.HostEvent(), w.streams(1)
    worker = cpu.new_stream()
    worker.wait(gate)
    late = cpu.launch(lambda: 7, stream=worker)
    w.here.launch(order.append, 0, stream=a)
    w.here.launch(order.append, late, stream=a)
    w.here.launch(order.append, 2, stream=a)
    gate.succeed()
    a.synchronize(timeout=TIMEOUT)
    cpu.close(timeout=TIMEOUT)
    return tuple(order)


@litmus(3, only="it is over after the gate, and not before", allowed={(False, True)})
def test_an_event_behind_deferred_work(w: World) -> tuple[bool, bool]:
    """Record behind a wait for a host event."""
    gate, (a,) = tz.HostEvent(), w.streams(1)
    a.wait(gate)
    event = a.record()
    before = event.is_done
    gate.succeed()
    event.synchronize(timeout=TIMEOUT)
    return before, event.is_done


@litmus(3, only="both go on", allowed={(1, 2)})
def test_one_host_event_for_two_streams(w: World) -> tuple[int, int]:
    """Two streams wait for one host event."""
    gate, streams = tz.HostEvent(), w.streams(2)
    for stream in streams:
        stream.wait(gate)
    tasks = [w.here.launch(int, number, stream=stream) for number, stream in enumerate(streams, 1)]
    gate.succeed()
    one, two = tz.wait(tasks, timeout=TIMEOUT)
    return one, two


@litmus(3, only="every task gets its value: nothing waits for ever", allowed={(20, 20)})
def test_crosswise_dependencies(w: World) -> tuple[int, int]:
    """Two threads launch pairs: one on A and then on B after it, the other on B and then on A after it."""
    a, b = w.streams(2)

    def pairs(first: tz.Stream, second: tz.Stream, out: list[tz.Task]) -> None:
        for _ in range(20):
            task = w.here.launch(int, 1, stream=first)
            out.append(w.here.launch(int, task, stream=second))

    one, two = list[tz.Task](), list[tz.Task]()
    w.threads(lambda: pairs(a, b, one), lambda: pairs(b, a, two))
    return sum(tz.wait(one, timeout=TIMEOUT)), sum(tz.wait(two, timeout=TIMEOUT))


@litmus(3, only="each thread's work in its own order, none lost", allowed={(True, 60)})
def test_threads_share_a_stream(w: World) -> tuple[bool, int]:
    """Three threads launch twenty functions each on one stream."""
    order: list[tuple[int, int]] = []
    (a,) = w.streams(1)

    def submit(thread: int) -> None:
        for number in range(20):
            w.here.launch(order.append, (thread, number), stream=a)

    w.threads(lambda: submit(0), lambda: submit(1), lambda: submit(2))
    a.synchronize(timeout=TIMEOUT)
    return all([n for t, n in order if t == thread] == list(range(20)) for thread in range(3)), len(order)


@litmus(3, only="every launch before the close is done, every later one is refused", allowed={(True, True)})
def test_closing_while_launching(w: World) -> tuple[bool, bool]:
    """One thread launches until it is refused, another closes the context."""
    ctx, ran, tasks = w.open(), list[int](), list[tz.Task]()
    stream = ctx.new_stream()

    def submit() -> None:
        try:
            for number in range(100):
                tasks.append(ctx.launch(ran.append, number, stream=stream))
        except ClosedError:
            return

    w.threads(submit, lambda: ctx.close(timeout=TIMEOUT))
    ctx.close(timeout=TIMEOUT)
    return ran == list(range(len(tasks))), all(task.is_done for task in tasks)


@litmus(3, only="its work is done", allowed={(1, True)})
def test_a_dropped_stream_with_work(w: World) -> tuple[int, bool]:
    """The last reference to a stream goes while its work is held back."""
    x, gate, (a,) = w.cell(), tz.HostEvent(), w.streams(1)
    a.wait(gate)
    task = w.here.launch(put, x, 1, stream=a)
    del a
    gate.succeed()
    task.result(timeout=TIMEOUT)
    return w.read(x), task.is_done


@litmus(3, only="its work is done", allowed={20})
def test_a_dropped_context_with_work(w: World) -> int:
    """The last reference to a context goes right after the launches."""
    done: list[int] = []
    ctx = tz.context(w.here.device)
    stream = ctx.new_stream()
    for number in range(20):
        ctx.launch(w.late(done.append), number, stream=stream)
    del ctx, stream
    until(lambda: len(done) == 20)
    return len(done)


@litmus(3, only="the launches beyond the limit wait for room, none is lost", allowed={30})
def test_a_full_queue_holds_the_submitter_back(w: World) -> int:
    """Thirty launches on a stream that queues four."""
    ctx, done = w.open(max_queued=4), list[int]()
    stream = ctx.new_stream()
    for number in range(30):
        ctx.launch(w.late(done.append), number, stream=stream)
    stream.synchronize(timeout=TIMEOUT)
    return len(done)


@litmus(3, only="the native queue shows only when everything deferred was handed to it", allowed={1}, worlds=SIM)
def test_native_waits_for_what_is_deferred(w: World) -> int:
    """Ask for the native queue while work is deferred; adopt it and read there."""
    x, gate, (a,) = w.cell(), tz.HostEvent(), w.streams(1)
    a.wait(gate)
    w.here.launch(put, x, 1, stream=a)
    natives: list[object] = []
    w.threads(lambda: natives.append(a.native), w.late(gate.succeed))
    adopted = w.here.adopt_stream(natives[0])
    return int(w.here.launch(get, x, stream=adopted).result(timeout=TIMEOUT))
