"""Many threads on the same contexts: nothing is lost, nothing leaks, and every wait ends."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.testing import simulate
from tests.bad_input.health import TIMEOUT

FULL = os.environ.get("TAZZA_FULL") == "1"
SECONDS = 10.0 if FULL else 0.0
THREADS = 16
ROUNDS = 40
"""Rounds of each thread; under ``TAZZA_FULL=1`` they go on for `SECONDS`."""

pytestmark = pytest.mark.timeout(300)


def together(work: Callable[[int], None], threads: int = THREADS) -> None:
    """Run ``work(number)`` in several threads that start at once; raises the first failure of any."""
    failures: list[BaseException] = []
    start = threading.Barrier(threads)

    def run(number: int) -> None:
        try:
            start.wait(TIMEOUT)
            work(number)
        except BaseException as error:  # raised below, in the thread of the test
            failures.append(error)

    running = [threading.Thread(target=run, args=(number,), name=f"stress-{number}") for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(SECONDS + 4 * TIMEOUT)
    assert not any(thread.is_alive() for thread in running), "a thread hangs"
    if failures:
        raise failures[0]


def rounds() -> Iterator[int]:
    """Count `ROUNDS`, or for `SECONDS` if that is longer."""
    end, done = time.monotonic() + SECONDS, 0
    while done < ROUNDS or time.monotonic() < end:
        yield done
        done += 1


def settle(condition: Callable[[], bool], what: str) -> None:
    """Look at a condition until it holds, for at most `TIMEOUT`."""
    deadline, pause = time.monotonic() + TIMEOUT, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what
        pause.wait(0.005)


def nothing_stays_live(ctx: tz.Context) -> None:
    """Wait until no byte of the context is live any more."""

    def none_live() -> bool:
        ctx.synchronize(TIMEOUT)
        return ctx.memory.stats().live == 0

    settle(none_live, f"{ctx!r} still holds memory: {ctx.memory!r}")


def stream_threads() -> set[threading.Thread]:
    """The threads that run now, except for the helpers which the process keeps."""
    helpers = "tazza-callbacks", "tazza-poller"
    return {thread for thread in threading.enumerate() if not thread.name.startswith(helpers)}


def threads_end(ctx: tz.Context, before: set[threading.Thread]) -> None:
    """Wait until only the threads of `before` run; work on the device buries what finalisers left."""

    def over() -> bool:
        ctx.launch(lambda: None).result(TIMEOUT)
        return stream_threads() <= before

    settle(over, f"threads left over: {sorted(thread.name for thread in stream_threads() - before)[:5]}")


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Let threads interrupt each other far more often than by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
def test_sixteen_threads_submit_allocate_free_and_drop_contexts() -> None:
    """Every thread shares some contexts and drops others; every task's result arrives and no byte stays live."""
    with simulate(2, lateness=20e-6), tz.open("cpu") as cpu, tz.open("sim:0") as near, tz.open("sim:1") as far:
        shared = [cpu, near, far]
        streams = {ctx: [ctx.own_stream, *(ctx.new_stream() for _ in range(3))] for ctx in shared}
        finished, lock = [0], threading.Lock()

        def work(number: int) -> None:
            draws = random.Random(number)
            kept: list[Any] = []
            for count in rounds():
                ctx = draws.choice(shared)
                tasks = [submit(ctx, draws, number * 1000 + count) for _ in range(3)]
                if draws.random() < 0.2:
                    tasks.append(from_a_context_that_is_dropped(draws, count))
                kept = [ctx.allocate(draws.randrange(1, 5000)) for _ in range(draws.randrange(4))]
                for task, expected in tasks:
                    result = task.result(TIMEOUT)
                    assert expected == (result if isinstance(result, int) else task_array(task)), f"seed {number}"
                with lock:
                    finished[0] += len(tasks)
            kept.clear()

        def submit(ctx: tz.Context, draws: random.Random, value: int) -> tuple[tz.Task, Any]:
            stream = draws.choice(streams[ctx])
            with ctx.on(stream):  # memory comes in the order of the stream that is current
                buffer = ctx.allocate(64, dtype="int64")
                ctx.fill(buffer, value)
                first = ctx.launch(lambda x: x + 1, buffer)
            other = draws.choice(shared)
            return other.launch(lambda x: int(x.sum()), first, stream=draws.choice(streams[other])), 8 * (value + 1)

        def from_a_context_that_is_dropped(draws: random.Random, value: int) -> tuple[tz.Task, Any]:
            ctx = tz.context(draws.choice(["cpu", "sim:0", "sim:1"]))
            return ctx.launch(lambda: np.full(4, value), stream=ctx.new_stream()), [value] * 4

        def task_array(task: tz.Task) -> list[int]:
            home = next(ctx for ctx in shared if ctx.device == task.stream.device)
            return list(home.to_numpy(task.result(TIMEOUT)).tolist())

        together(work)
        assert finished[0] >= THREADS * ROUNDS * 3
        for ctx in shared:
            nothing_stays_live(ctx)


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
def test_finalisers_in_every_thread_lose_no_block(device: str) -> None:
    """Buffers die in other threads than they were made in, in reference cycles, and inside the collector."""

    class Holder:
        """Something in a reference cycle."""

    with tz.open(device) as ctx:
        handed: list[Any] = []

        def work(number: int) -> None:
            draws = random.Random(number)
            for _ in range(60):
                holder = Holder()
                holder.self = holder  # type: ignore[attr-defined]
                holder.buffer = ctx.allocate(draws.randrange(1, 3000))  # type: ignore[attr-defined]
                handed.append(ctx.allocate(draws.randrange(1, 3000)))
                if draws.random() < 0.3:
                    ctx.fill(handed[-1], number)
                if len(handed) > 20:
                    del handed[: draws.randrange(20)]
                if draws.random() < 0.02:
                    gc.collect()

        together(work, 8)
        handed.clear()
        gc.collect()
        ctx.synchronize(TIMEOUT)
        nothing_stays_live(ctx)
        stats = ctx.memory.stats()
        assert (stats.allocations, stats.frees, stats.requested_bytes) == (960, 960, 0)


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
@pytest.mark.parametrize("ending", ["dropped", "context closed"])
def test_short_lived_streams_leave_no_threads(device: str, ending: str) -> None:
    """A stream's thread ends with the stream, whether that was dropped or its context closed."""
    with tz.open(device) as other:
        ctx = tz.context(device)
        before = stream_threads()
        streams: list[tz.Stream] = []
        for _ in range(30):
            if ending == "dropped":
                streams.clear()
            streams += [ctx.new_stream() for _ in range(4)]
            assert tz.wait([ctx.launch(lambda: 1, stream=stream) for stream in streams], TIMEOUT) == [1] * len(streams)
        if ending == "dropped":
            streams.clear()
            threads_end(other, before)
        ctx.close(TIMEOUT)
        threads_end(other, before)


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
def test_contexts_that_are_dropped_leave_no_threads(device: str) -> None:
    """The same for whole contexts, made, closed and dropped in several threads with work in flight."""
    with tz.open(device) as last:
        before = stream_threads()

        def work(number: int) -> None:
            for count in range(12):
                ctx = tz.context(device)
                task = ctx.launch(lambda x: 2, ctx.allocate(100 + count), stream=ctx.new_stream())
                if count % 3 == 0:
                    ctx.close(TIMEOUT)
                elif count % 3 == 1:
                    assert task.result(TIMEOUT) == 2
                del ctx, task

        together(work, 8)
        threads_end(last, before)


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
def test_launches_race_with_close_and_are_drained_or_refused(device: str) -> None:
    """A launch that was accepted before `close` runs to its end; every other raises ClosedError."""
    for _ in range(10):
        ctx = tz.context(device)
        stream = ctx.new_stream()
        accepted: list[tz.Task] = []
        refused: list[int] = []
        flowing = threading.Event()

        def work(
            number: int,
            ctx: tz.Context = ctx,
            stream: tz.Stream = stream,
            accepted: list[tz.Task] = accepted,
            refused: list[int] = refused,
            flowing: threading.Event = flowing,
        ) -> None:
            if number == 0:
                assert flowing.wait(TIMEOUT)
                ctx.close(TIMEOUT)
                return
            try:
                while True:
                    accepted.append(ctx.launch(lambda: 7, stream=stream))
                    flowing.set()
            except tz.errors.ClosedError:
                refused.append(number)

        together(work, 5)
        assert sorted(refused) == [1, 2, 3, 4]
        assert all(task.is_done for task in accepted), "close returned before its work was done"
        assert tz.wait(accepted, TIMEOUT) == [7] * len(accepted)


def test_one_context_is_entered_by_many_threads_at_once() -> None:
    """Nothing about being current is stored in the context itself."""
    with tz.open("cpu") as ctx, tz.open("sim:0") as sim:
        streams = [sim.new_stream() for _ in range(THREADS)]

        def work(number: int) -> None:
            for _ in range(100):
                with ctx, sim.on(streams[number]), ctx:
                    assert tz.current() is ctx
                    assert sim.stream is streams[number]
            with pytest.raises(tz.errors.NoCurrentContextError):
                tz.current()

        together(work)


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
def test_a_full_queue_holds_back_and_loses_nothing(device: str) -> None:
    """Bounded streams under pressure from many threads: everyone waits for room, everything runs once."""
    with tz.open(device, max_queued=8) as ctx:
        stream = ctx.new_stream()
        seen: list[tuple[int, int]] = []

        def work(number: int) -> None:
            for count in range(50):
                ctx.launch(seen.append, (number, count), stream=stream)

        together(work, 8)
        stream.synchronize(TIMEOUT)
        assert len(seen) == 400
        for number in range(8):
            assert [count for one, count in seen if one == number] == list(range(50)), "a thread's own order was lost"
