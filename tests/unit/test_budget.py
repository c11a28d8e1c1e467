"""Budgets: nesting, what binds where, waiting, reserves, and who may not wait."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tazza as tz
from tazza.core import patience
from tazza.hot import process
from tazza.testing import simulate

TIMEOUT = 20


@pytest.fixture(params=["cpu", "sim"])
def ctx(request: pytest.FixtureRequest) -> Iterator[tz.Context]:
    with simulate(devices=1, lateness=0), tz.open(request.param, memory_limit=100_000) as made:
        yield made


def test_everything_inside_counts_until_it_is_freed_anywhere(ctx: tz.Context) -> None:
    with ctx.memory.budget(4096, name="decode") as budget:
        kept = ctx.allocate(1000)
        assert (budget.live, budget.limit, budget.name, budget.peak) == (1024, 4096, "decode", 1024)
        with pytest.raises(tz.OutOfMemoryError, match=r"decode holds 1024 bytes of its limit of 4096") as caught:
            ctx.allocate(4000)
        assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    assert (budget.live, ctx.memory.stats().live) == (1024, 1024)
    other = ctx.allocate(8000)
    assert budget.live == 1024
    del kept, other, caught
    assert (budget.live, budget.peak) == (0, 1024)


def test_nested_budgets_count_in_each_other_and_the_tightest_binds(ctx: tz.Context) -> None:
    with ctx.memory.budget(8192, name="outer") as outer:
        with ctx.memory.budget(None, name="inner") as inner:
            kept = ctx.allocate(6400)
            with pytest.raises(tz.OutOfMemoryError, match="outer holds 6400"):
                ctx.allocate(6400)
        assert (outer.live, inner.live, inner.limit) == (6400, 6400, None)
    del kept


def test_a_budget_cannot_be_used_to_escape_another(ctx: tz.Context) -> None:
    free = ctx.memory.budget(None, name="free")
    with ctx.memory.budget(1024, name="tight") as tight:
        with pytest.raises(tz.errors.UsageError, match="'free'.*does not count in 'tight'"):
            free.__enter__()
        with tight, ctx.memory.budget(10, name="below") as below:
            with pytest.raises(tz.errors.UsageError, match="'tight'.*does not count in 'below'"):
                tight.__enter__()
        assert below.live == 0
    with free, free:
        assert ctx.allocate(64).nbytes == 64


def test_tasks_and_carried_functions_spend_the_budget_of_their_launch(ctx: tz.Context) -> None:
    with ctx.memory.budget(50_000, name="work") as budget:
        task = ctx.launch(lambda: tz.current().allocate(1024), stream=ctx.new_stream())
        carried: Callable[[], tz.Buffer] = tz.carry(lambda: ctx.allocate(512))
    made = task.result(timeout=TIMEOUT)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(carried()))
    thread.start()
    thread.join(TIMEOUT)
    assert budget.live == 1536
    del made, task
    results.clear()
    gc.collect()
    assert budget.live == 0


def test_waiting_ends_when_another_thread_gives_back(ctx: tz.Context) -> None:
    budget = ctx.memory.budget(1024, name="shared", on_full="wait", timeout=TIMEOUT)
    full, drop = threading.Event(), threading.Event()

    def other() -> None:
        with ctx, budget:
            kept = ctx.allocate(1024)
            full.set()
            assert drop.wait(TIMEOUT)
            del kept

    thread = threading.Thread(target=other)
    thread.start()
    assert full.wait(TIMEOUT)
    waiting = patience.Waiter  # gives the token for us to see that the wait has begun
    begun = threading.Event()

    class Seen(waiting):  # type: ignore[misc, valid-type]
        def wait(self, seconds: float) -> None:
            begun.set()
            super().wait(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "Waiter", Seen)

        def release() -> None:
            assert begun.wait(TIMEOUT)
            drop.set()

        releaser = threading.Thread(target=release)
        releaser.start()
        with budget:
            assert ctx.allocate(1024).nbytes == 1024
    releaser.join(TIMEOUT)
    thread.join(TIMEOUT)
    assert begun.is_set()
    assert process.waiters is None


def test_waiting_is_refused_at_once_where_nobody_could_give_back(ctx: tz.Context) -> None:
    with ctx.memory.budget(1024, name="mine", on_full="wait", timeout=TIMEOUT):
        kept = ctx.allocate(1024)
        start = time.monotonic()
        with pytest.raises(tz.OutOfMemoryError, match="waiting for up to 20 s did not help"):
            ctx.allocate(64)
        assert time.monotonic() - start < TIMEOUT / 2
        del kept


def test_waiting_for_a_task_that_holds_the_memory(ctx: tz.Context) -> None:
    stream, gate = ctx.new_stream(), tz.HostEvent()
    with ctx.memory.budget(1024, name="shared", on_full="wait", timeout=TIMEOUT):
        stream.wait(gate)
        task = ctx.launch(lambda x: None, ctx.allocate(1024), stream=stream)
        threading.Timer(0.05, gate.succeed).start()
        assert ctx.allocate(1024).nbytes == 1024
    task.result(timeout=TIMEOUT)


def test_a_wait_times_out(ctx: tz.Context) -> None:
    done = threading.Event()
    budget = ctx.memory.budget(1024, name="shared", on_full="wait", timeout=0.05)
    full = threading.Event()

    def other() -> None:
        with ctx, budget:
            kept = ctx.allocate(1024)
            full.set()
            done.wait(TIMEOUT)
            del kept

    thread = threading.Thread(target=other)
    thread.start()
    assert full.wait(TIMEOUT)
    with budget, pytest.raises(tz.OutOfMemoryError, match="waiting for up to 0.05 s"):
        ctx.allocate(64)
    done.set()
    thread.join(TIMEOUT)


def test_an_event_loop_must_not_wait(ctx: tz.Context) -> None:
    async def main() -> None:
        with ctx.memory.budget(1024, on_full="wait", timeout=TIMEOUT):
            kept = ctx.allocate(1024)
            start = time.monotonic()
            with pytest.raises(tz.OutOfMemoryError, match="async with"):
                ctx.allocate(64)
            assert time.monotonic() - start < TIMEOUT / 2
            del kept

    asyncio.run(main())


def test_a_reserve_is_set_aside_for_nobody_else(ctx: tz.Context) -> None:
    with ctx.memory.budget(10_240, name="all"):
        with ctx.memory.budget(8192, name="sure", reserve=8192) as sure:
            assert ctx.memory.stats().live == 8192
            balances = {one.owner[-1]: one for one in ctx.memory.snapshot().balances}
            assert (balances["sure"].reserve, balances["sure"].live, balances["all"].live) == (8192, 0, 8192)
            kept = ctx.allocate(8192)
            assert ctx.memory.stats().live == 8192
            with pytest.raises(tz.errors.BusyError, match="make a budget for each request"):
                sure.__enter__()
        assert (sure.live, ctx.memory.stats().live) == (8192, 8192)
        with pytest.raises(tz.OutOfMemoryError, match="all holds 8192"):
            ctx.memory.budget(4096, reserve=4096).__enter__()
        del kept
        assert ctx.memory.stats().live == 0
        with ctx.memory.budget(4096, reserve=4096), pytest.raises(tz.OutOfMemoryError):
            ctx.allocate(4160)
    assert ctx.memory.stats().live == 0


def test_admission_is_first_come_first_served_and_cancelling_gives_back() -> None:
    async def main() -> list[int]:
        order: list[int] = []
        with tz.open("cpu") as ctx, ctx.memory.budget(2048, name="all") as everything:

            async def request(number: int, hold: asyncio.Event) -> None:
                async with ctx.memory.budget(1024, name=f"r{number}", reserve=1024):
                    order.append(number)
                    await asyncio.wait_for(hold.wait(), TIMEOUT)

            hold = [asyncio.Event() for _ in range(6)]
            tasks = [asyncio.create_task(request(number, hold[number])) for number in range(6)]
            while len(order) < 2:
                await asyncio.sleep(0)
            tasks[2].cancel()
            for event in hold:
                event.set()
            done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), TIMEOUT)
            assert [type(one) for one in done] == [type(None) if n != 2 else asyncio.CancelledError for n in range(6)]
            assert everything.live == 0
            assert everything.peak == 2048
        return order

    assert asyncio.run(main()) == [0, 1, 3, 4, 5]


def test_admission_times_out_and_says_who_holds(ctx: tz.Context) -> None:
    async def main() -> None:
        with ctx.memory.budget(2048, name="all"):
            kept = ctx.allocate(2048, label="model")
            with pytest.raises(tz.OutOfMemoryError, match="all holds 2048.*model"):
                async with ctx.memory.budget(1024, reserve=1024, timeout=0.05):
                    pass
            with pytest.raises(tz.OutOfMemoryError):  # it could never be had: no wait
                async with ctx.memory.budget(None, reserve=4096, timeout=TIMEOUT):
                    pass
            del kept

    start = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start < TIMEOUT / 2
    assert ctx.memory.stats().live == 0


def test_bad_arguments_are_named(ctx: tz.Context) -> None:
    memory: Any = ctx.memory
    for options, name in (
        ({"limit": -1}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": 10, "reserve": 11}, "reserve"),
        ({"limit": 10, "on_full": "panic"}, "on_full"),
        ({"limit": 10, "name": 5}, "name"),
        ({"limit": 10, "timeout": "soon"}, "timeout"),
    ):
        with pytest.raises(tz.errors.ArgumentError, match=f"^{name}: got"):
            memory.budget(**options)
    budget = ctx.memory.budget(10, name="b")
    assert "Budget 'b'" in repr(budget)
    with pytest.raises(tz.errors.UsageError, match="pickled"):
        pickle.dumps(budget)


def test_a_closed_context_takes_no_budget() -> None:
    with tz.open("cpu") as ctx:
        budget = ctx.memory.budget(10)
    with pytest.raises(tz.errors.ClosedError):
        budget.__enter__()
