"""Rule 12: cancelling an await abandons the wait and nothing else; callbacks run on one helper thread."""

from __future__ import annotations

import asyncio
import threading
import warnings

import tazza as tz
from tazza.errors import CleanupWarning
from tests.litmus.harness import TIMEOUT, World, fail, litmus, put, until


@litmus(12, only="the await ends, the work goes on", allowed={(True, 1)})
def test_a_cancelled_await(w: World) -> tuple[bool, int]:
    """An asyncio task that awaits a held-back task is cancelled; then the gate opens."""
    x, gate, (a,) = w.cell(), tz.HostEvent(), w.streams(1)

    async def main() -> bool:
        a.wait(gate)
        task = w.here.launch(put, x, 1, stream=a)
        waiting = asyncio.ensure_future(_result(task))
        await asyncio.sleep(0)
        waiting.cancel()
        done, _ = await asyncio.wait({waiting}, timeout=TIMEOUT)
        gate.succeed()
        await asyncio.wait_for(_result(task), TIMEOUT)
        return waiting in done and waiting.cancelled()

    return asyncio.run(main()), w.read(x)


@litmus(12, only="the await ends by its timeout, the work goes on", allowed={(True, 7)})
def test_an_await_with_a_timeout(w: World) -> tuple[bool, int]:
    """``asyncio.wait_for`` a held-back task, briefly; then the gate opens."""
    gate, (a,) = tz.HostEvent(), w.streams(1)
    a.wait(gate)
    task = w.here.launch(int, 7, stream=a)

    async def main() -> bool:
        try:
            await asyncio.wait_for(_result(task), 0.001)
        except TimeoutError:
            return True
        return False

    timed_out = asyncio.run(main())
    gate.succeed()
    return timed_out, task.result(timeout=TIMEOUT)


@litmus(12, only="each gets its own", allowed={tuple(range(8))})
def test_many_awaits_on_one_loop(w: World) -> tuple[int, ...]:
    """Eight asyncio tasks await tasks on four streams of two devices."""
    streams = [*w.streams(2), *w.streams(2, w.there)]

    async def main() -> list[int]:
        contexts = [w.here, w.here, w.there, w.there]
        tasks = [contexts[n % 4].launch(int, n, stream=streams[n % 4]) for n in range(8)]
        return await asyncio.wait_for(asyncio.gather(*(_result(task) for task in tasks)), TIMEOUT)

    return tuple(asyncio.run(main()))


@litmus(12, only="one thread, not the caller's, not a stream's", allowed={(1, True, True)})
def test_callbacks_run_on_one_thread(w: World) -> tuple[int, bool, bool]:
    """Callbacks of ten tasks and events note their thread."""
    threads, streams = list[int](), w.streams(2)
    tasks = [w.here.launch(threading.get_ident, stream=streams[n % 2]) for n in range(5)]
    for waited in (*tasks, *(stream.record() for stream in streams), w.here.stream.record()):
        waited.on_done(lambda _: threads.append(threading.get_ident()))
    all_came = until(lambda: len(threads) == 8)
    others = {threading.get_ident(), *tz.wait(tasks, timeout=TIMEOUT)}
    return len(set(threads)), all_came, not set(threads) & others


@litmus(12, only="it is reported, and the next one runs", allowed={(1, 1)})
def test_a_callback_that_raises(w: World) -> tuple[int, int]:
    """Two callbacks of one task, of which the first raises."""
    came: list[object] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        task = w.here.launch(int, stream=w.streams(1)[0])
        task.on_done(lambda _: fail())
        task.on_done(came.append)
        until(lambda: came)
    return sum(one.category is CleanupWarning for one in seen), len(came)


@litmus(12, only="it may use the context: no lock is held", allowed={1})
def test_a_callback_that_launches(w: World) -> int:
    """A callback launches on the stream of the task that it was called for, and waits."""
    x, (a,) = w.cell(), w.streams(1)
    done: list[int] = []

    def go_on(task: tz.Task) -> None:
        w.here.launch(put, x, 1, stream=a).result(timeout=TIMEOUT)
        done.append(1)

    w.here.launch(int, stream=a).on_done(go_on)
    until(lambda: done)
    return w.read(x)


async def _result(task: tz.Task) -> int:
    return int(await task or 0)
