"""Budgets that wait, with tasks on worker streams: nobody waits for ever, needlessly to the timeout, or too little."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import tazza as tz
from tazza.core.runtime import live_runtimes
from tazza.core.waiting import blocked, takers
from tests.conftest import FULL
from tests.stress.test_threads import settle

KIB = 1 << 10
LONG = 30.0  # seconds; what is found out at once takes a small part of it
ROUNDS = 300 if FULL else 40


@pytest.fixture(autouse=True)
def nothing_else_works() -> None:
    """What an earlier test left under way could give memory back, as far as a waiter knows.

    So could a thread that it left and that once took a result: none holds memory of this test.
    """
    takers.clear()
    runners = [runner for runtime in live_runtimes() for runner in runtime.runners()]
    settle(lambda: not any(runner.is_working for runner in runners), "work of an earlier test is still under way")


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu") as ctx:
        yield ctx


@pytest.fixture
def budget(ctx: tz.Context) -> tz.Budget:
    return ctx.memory.budget("64KiB", name="window", on_full="wait", timeout=LONG)


class Batch:
    """What a reader gives on: a charge that ends with it."""

    def __init__(self, ctx: tz.Context, nbytes: int) -> None:
        self.charge = ctx.memory.charge(nbytes, label="batch", library="reader")


def consume(batch: Batch) -> int:
    return batch.charge.nbytes


def pipeline(reader: tz.Context, worker: tz.Context, sizes: list[int]) -> list[tz.Task]:
    """Read ahead on one stream, consume on another; only the results are kept."""
    reading, working = reader.new_stream(label="reader"), worker.new_stream(label="worker")
    done = []
    for size in sizes:
        batch = reader.launch(Batch, reader, size, stream=reading, label="read")
        done.append(worker.launch(consume, batch, stream=working, label="consume"))
    return done


def test_a_reader_goes_on_as_the_consumer_frees(ctx: tz.Context, budget: tz.Budget) -> None:
    with budget:
        assert sum(tz.wait(pipeline(ctx, ctx, [24 * KIB] * ROUNDS), timeout=LONG)) == 24 * KIB * ROUNDS
    assert budget.peak == 48 * KIB
    assert budget.live == 0


def test_two_devices_share_the_window(ctx: tz.Context, budget: tz.Budget) -> None:
    part = tz.device("cpu").split(1)[0]
    with tz.open("cpu", within=budget) as reader, tz.open(part, within=budget) as worker:
        assert sum(tz.wait(pipeline(reader, worker, [24 * KIB] * ROUNDS), timeout=LONG)) == 24 * KIB * ROUNDS
    assert (budget.peak, budget.live) == (48 * KIB, 0)


def refused_soon(tasks: list[tz.Task]) -> list[BaseException]:
    """Wait for tasks, some of which must fail long before the timeout; returns the causes."""
    start = time.monotonic()
    for task in tasks:
        try:
            task.result(timeout=LONG)
        except tz.errors.TazzaError:  # looked at below
            continue
    assert time.monotonic() - start < LONG / 3, "waited to the timeout"
    causes = (task.exception for task in tasks)
    return [error.cause if isinstance(error, tz.errors.UpstreamError) else error for error in causes if error]  # type: ignore[misc]


def test_more_than_the_limit_is_refused_at_once(ctx: tz.Context, budget: tz.Budget) -> None:
    with budget:
        first, second = pipeline(ctx, ctx, [80 * KIB, 8 * KIB])
    [error] = refused_soon([first])
    assert isinstance(error, tz.OutOfMemoryError)
    assert error.limit == 64 * KIB
    assert second.result(timeout=LONG) == 8 * KIB
    assert budget.live == 0


def test_a_task_that_holds_everything_itself_is_refused_at_once(ctx: tz.Context, budget: tz.Budget) -> None:
    def greedy() -> int:
        return len([ctx.memory.charge(40 * KIB, label="greedy") for _ in range(2)])

    with budget:
        tasks = [ctx.launch(greedy, stream=ctx.new_stream())]
        tasks.append(ctx.launch(lambda count: count, tasks[0], stream=ctx.new_stream()))  # which waits for it: no help
    first, second = refused_soon(tasks)
    assert isinstance(first, tz.OutOfMemoryError)
    assert first.holders == (("greedy", 40 * KIB, 1),)
    assert isinstance(second, tz.OutOfMemoryError)
    assert budget.live == 0


def test_memory_that_only_stuck_work_uses_is_no_hope(ctx: tz.Context, budget: tz.Budget) -> None:
    """The buffer is given back once the task is over that waits for it."""
    with budget:
        buffer = ctx.allocate(40 * KIB)
        launched = ctx.launch(lambda view: Batch(ctx, 40 * KIB), buffer, stream=ctx.new_stream())
        del buffer
    [error] = refused_soon([launched])
    assert isinstance(error, tz.OutOfMemoryError)
    del launched, error
    assert budget.live == 0


def test_waiters_that_keep_each_other_waiting_are_refused_one_by_one(ctx: tz.Context, budget: tz.Budget) -> None:
    """Two tasks hold a half each and want one more: one is refused, and the other goes on with what that frees."""
    both = threading.Barrier(2)

    def grow() -> int:
        charge = ctx.memory.charge(32 * KIB)
        both.wait(timeout=LONG)
        charge.resize(48 * KIB)
        return charge.nbytes

    for _ in range(ROUNDS // 4):
        with budget:
            tasks = [ctx.launch(grow, stream=ctx.new_stream()) for _ in range(2)]
        errors = refused_soon(tasks)
        assert [type(error) for error in errors] == [tz.OutOfMemoryError]
        assert budget.live == 0


def test_results_in_the_hands_of_a_thread_that_computes_are_waited_for(ctx: tz.Context, budget: tz.Budget) -> None:
    """The last read waits although no task is left: whoever took the earlier results lets go of them."""
    full = threading.Event()
    stream = ctx.new_stream()

    def read(last: bool) -> Batch:
        if last:
            full.set()
        return Batch(ctx, 32 * KIB)

    with budget:
        batches = [ctx.launch(read, number == 2, stream=stream) for number in range(3)]
        held: list[Any] = [task.result(timeout=LONG) for task in batches[:2]]
        last = batches.pop()
        assert full.wait(LONG)
        while budget.account.ooms == 0 and not _waits_for_memory():
            pass  # until the reader stands still: nothing else could tell that it does
        del batches[:], held[:]
        assert last.result(timeout=LONG).charge.nbytes == 32 * KIB
    assert budget.account.ooms == 0


def _waits_for_memory() -> bool:
    return any(wait.what is None for wait in dict(blocked).values())


def test_a_main_thread_that_waits_for_the_stuck_task_is_no_hope(ctx: tz.Context, budget: tz.Budget) -> None:
    stream = ctx.new_stream()
    with budget:
        held = [ctx.launch(Batch, ctx, 32 * KIB, stream=stream).result(timeout=LONG) for _ in range(2)]
        [error] = refused_soon([ctx.launch(Batch, ctx, 32 * KIB, stream=stream)])
    assert isinstance(error, tz.OutOfMemoryError)
    assert error.holders == (("batch", 64 * KIB, 2),)
    assert len(held) == 2


def test_a_failure_of_the_consumer_frees_its_batch(ctx: tz.Context, budget: tz.Budget) -> None:
    def fail(batch: Batch) -> None:
        raise ValueError("bad row")

    reading, working = ctx.new_stream(), ctx.new_stream()
    with budget:
        batches = (ctx.launch(Batch, ctx, 40 * KIB, stream=reading) for _ in range(ROUNDS))
        tasks = [ctx.launch(fail, batch, stream=working) for batch in batches]
    for task in tasks:
        with pytest.raises(ValueError, match="bad row"):
            task.result(timeout=LONG)
    assert budget.live == 0


def test_a_failing_reader_fails_its_consumer_alone(ctx: tz.Context, budget: tz.Budget) -> None:
    def read(number: int) -> Batch:
        batch = Batch(ctx, 24 * KIB)
        if number % 3 == 0:
            raise OSError(f"block {number}")
        return batch

    reading, working = ctx.new_stream(), ctx.new_stream()
    with budget:
        tasks = [
            ctx.launch(consume, ctx.launch(read, number, stream=reading), stream=working) for number in range(ROUNDS)
        ]
    for number, task in enumerate(tasks):
        if number % 3:
            assert task.result(timeout=LONG) == 24 * KIB
        else:
            with pytest.raises(tz.errors.UpstreamError, match=f"block {number}"):
                task.result(timeout=LONG)
    assert budget.live == 0


def test_a_full_queue_of_a_stuck_reader_ends_too() -> None:
    with tz.open("cpu", max_queued=2) as ctx:
        stream = ctx.new_stream()
        with ctx.memory.budget("64KiB", on_full="wait", timeout=LONG):
            start = time.monotonic()
            held: list[Any] = []
            tasks = [ctx.launch(lambda: held.append(Batch(ctx, 24 * KIB)), stream=stream) for _ in range(8)]
            failed = 0
            for task in tasks:
                try:
                    task.result(timeout=LONG)
                except tz.OutOfMemoryError:  # the third and later ones: the list holds what there is
                    failed += 1
            assert failed == 6
            assert time.monotonic() - start < LONG / 3


def test_many_threads_and_streams_hand_batches_on(ctx: tz.Context, budget: tz.Budget) -> None:
    """Threads of the user's take results and hold them for a while; everyone gets through, the limit holds."""
    rounds, errors = ROUNDS, queue.SimpleQueue[BaseException]()

    def work(seed: int) -> None:
        stream = ctx.new_stream()
        try:
            with budget:
                for step in range(rounds):
                    size = (1 + (seed * 7 + step * 5) % 12) * KIB
                    batch = ctx.launch(Batch, ctx, size, stream=stream).result(timeout=LONG)
                    assert batch.charge.nbytes == size
                    del batch
        except BaseException as error:  # told to the test's own thread
            errors.put(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * LONG)
    assert errors.empty(), errors.get()
    assert budget.peak <= 64 * KIB
    assert budget.live == 0
