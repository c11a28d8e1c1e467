"""Admission to budgets: order, cancellation at any moment, loops that end, and nothing that stays behind."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

import tazza as tz
from tazza.core import admission
from tazza.core.budget import Budget
from tazza.core.patience import Waiter
from tazza.errors import BusyError, ClosedError
from tazza.hot.process import process
from tests.bad_input.health import TIMEOUT
from tests.stress.test_threads import settle

T = TypeVar("T")
SEED = 20
KIB = 1024


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu", memory_limit="1MiB") as made:
        yield made
        assert made.memory.stats().live == 0
        assert not made._runtime.reserving()
    wait_until(lambda: process.waiters is None)  # the helper ends when nobody waits


def wait_until(condition: Callable[[], object]) -> None:
    """Block until something holds that another thread brings about."""
    deadline, pause = time.monotonic() + TIMEOUT, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        pause.wait(0.001)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something holds."""
    while not condition():
        await asyncio.sleep(0.001)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, for at most `TIMEOUT`."""

    async def bounded() -> T:
        async with asyncio.timeout(TIMEOUT):
            return await main

    return asyncio.run(bounded())


async def enter(budget: Budget, hold: asyncio.Event | None = None) -> str:
    """Wait for a budget's reserve, and keep it until told."""
    async with budget:
        if hold is not None:
            await hold.wait()
    return budget.name


def budget_of(ctx: tz.Context, name: str, reserve: int = KIB, timeout: float = TIMEOUT) -> Budget:
    """A budget with a reserve."""
    return ctx.memory.budget(None, name=name, reserve=reserve, timeout=timeout)


def entered(budget: Budget) -> contextvars.Context:
    """Enter a budget in a Python context of its own; `left` leaves it at a moment that the test chooses."""
    frames = contextvars.copy_context()
    frames.run(budget.__enter__)
    return frames


def left(budget: Budget, frames: contextvars.Context) -> None:
    """Leave a budget that was `entered`: whoever waits is granted the reserve, and learns of it in the loop's turn."""
    frames.run(budget.__exit__, None, None, None)


def test_a_task_that_is_cancelled_when_it_was_admitted_stays_cancelled(ctx: tz.Context) -> None:
    """The reserve is set aside and the task told so, but it is cancelled before it wakes."""

    async def main() -> None:
        with ctx.memory.budget(KIB, name="all") as everything:
            holder, waiting = budget_of(ctx, "holder"), budget_of(ctx, "waiting")
            frames = entered(holder)
            task = asyncio.create_task(enter(waiting, asyncio.Event()))
            await asyncio.sleep(0)
            left(holder, frames)
            assert waiting.account.reserve == KIB
            asyncio.get_running_loop().call_soon(task.cancel)  # after the call that tells it of the grant
            await asyncio.wait([task])
            assert task.cancelled()
            assert everything.live == 0

    run(main())


def test_what_was_granted_too_late_goes_to_the_next(ctx: tz.Context) -> None:
    async def main() -> None:
        with ctx.memory.budget(KIB, name="all"):
            holder, late, next_one = (budget_of(ctx, name) for name in ("holder", "late", "next"))
            frames = entered(holder)
            tasks = [asyncio.create_task(enter(one)) for one in (late, next_one)]
            await asyncio.sleep(0)
            left(holder, frames)
            # Without a turn of the loop; the helper grants where it is at it already.
            settle(lambda: (late.account.reserve, next_one.account.reserve) == (KIB, 0), "nothing was granted")
            tasks[0].cancel()
            assert await tasks[1] == "next"
            assert tasks[0].cancelled()

    run(main())


def test_memory_that_is_freed_admits_without_anybody_leaving(ctx: tz.Context) -> None:
    """The helper sees it: no budget is left, and no loop turns for it."""

    async def main() -> None:
        with ctx.memory.budget(KIB, name="all"):
            waiting, kept = budget_of(ctx, "waiting"), ctx.allocate(KIB)
            task = asyncio.create_task(enter(waiting))
            await asyncio.sleep(0)
            del kept
            assert await task == "waiting"

    run(main())


def test_nobody_overtakes_who_waits_for_the_same_bytes(ctx: tz.Context) -> None:
    """A large request waits for the context's bytes; small ones below another budget must not keep it waiting."""

    async def main() -> list[str]:
        order: list[str] = []

        async def ask(parent: Budget, name: str, reserve: int, hold: asyncio.Event | None = None) -> None:
            with parent:
                async with budget_of(ctx, name, reserve):
                    order.append(name)
                    if hold is not None:
                        await hold.wait()

        left, right = ctx.memory.budget(None, name="left"), ctx.memory.budget(None, name="right")
        hold = asyncio.Event()
        tasks = [asyncio.create_task(ask(right, "small 0", 512 * KIB, hold))]
        await until(lambda: order)
        tasks.append(asyncio.create_task(ask(left, "large", 768 * KIB)))
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(ask(right, f"small {number}", 128 * KIB)) for number in (1, 2)]
        await asyncio.sleep(0)
        assert order == ["small 0"]
        hold.set()
        await asyncio.gather(*tasks)
        return order

    assert run(main())[:2] == ["small 0", "large"]


def test_who_waits_for_its_own_parent_keeps_nobody_else_waiting(ctx: tz.Context) -> None:
    async def main() -> None:
        hold = asyncio.Event()
        with ctx.memory.budget(KIB, name="tight"):
            first, second = budget_of(ctx, "first"), budget_of(ctx, "second")
            tasks = [asyncio.create_task(enter(one, hold)) for one in (first, second)]
            await until(lambda: first.account.reserve)
        assert await enter(budget_of(ctx, "elsewhere")) == "elsewhere"
        assert not second.account.reserve
        hold.set()
        await asyncio.gather(*tasks)

    run(main())


def test_a_budget_inside_a_reserve_does_not_queue_behind_those_outside(ctx: tz.Context) -> None:
    """Its bytes are its own already: waiting for the others, who wait for it, would never end."""

    async def main() -> None:
        with ctx.memory.budget(4 * KIB, name="all"):
            outer, other = budget_of(ctx, "outer", 4 * KIB), budget_of(ctx, "other", 2 * KIB)
            frames = contextvars.copy_context()
            async with outer:
                waiting = asyncio.get_running_loop().create_task(enter(other), context=frames)
                await asyncio.sleep(0)
                assert not waiting.done()
                assert await enter(budget_of(ctx, "inner", 2 * KIB)) == "inner"
                assert not waiting.done()
            assert await waiting == "other"

    run(main())


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """Let a loop turn a few times."""
    for _ in range(3):
        loop.call_soon(loop.stop)
        loop.run_forever()


def test_a_loop_that_is_closed_keeps_nothing(ctx: tz.Context) -> None:
    """Its task waits and cannot be told any more: the next one in line gets what it was granted."""
    with ctx.memory.budget(KIB, name="all"):
        holder, waiting, next_one = (budget_of(ctx, name) for name in ("holder", "waiting", "next"))
        loop = asyncio.new_event_loop()
        task = loop.create_task(enter(waiting))
        with holder:
            turn(loop)
            assert not task.done()
            loop.close()
        assert run(enter(next_one)) == "next"
        assert not waiting.account.reserve
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # that is what this test is about


def test_a_coroutine_that_is_dropped_inside_gives_its_reserve_back(ctx: tz.Context) -> None:
    """It is closed by the collector, in another Python context than it ran in; leaving cannot restore a frame there."""
    inside = budget_of(ctx, "inside")

    async def hold() -> None:
        async with inside:
            await asyncio.Event().wait()

    coroutine = hold()
    loop = asyncio.new_event_loop()
    task = loop.create_task(coroutine)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert inside.account.reserve == KIB
    with pytest.raises(tz.errors.UsageError, match="not the innermost"):
        coroutine.close()
    assert inside.account.reserve == 0
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


def test_a_context_that_closes_lets_nobody_wait() -> None:
    async def main(ctx: tz.Context) -> None:
        with ctx, ctx.memory.budget(KIB, name="all"):
            hold = asyncio.Event()
            holder, waiting = budget_of(ctx, "holder"), budget_of(ctx, "waiting")
            tasks = [asyncio.create_task(enter(one, hold)) for one in (holder, waiting)]
            await until(lambda: holder.account.reserve)
            ctx.close(TIMEOUT)
            with pytest.raises(ClosedError):
                await tasks[1]
            hold.set()
            assert await tasks[0] == "holder"
            assert not waiting.account.reserve

    run(main(tz.context("cpu")))


def test_a_reserve_above_any_limit_is_refused_at_once(ctx: tz.Context) -> None:
    async def main() -> None:
        with ctx.memory.budget(8 * KIB), pytest.raises(tz.OutOfMemoryError, match="limit of 8192"):
            await enter(budget_of(ctx, "large", 16 * KIB))
        with ctx.memory.budget(None), pytest.raises(tz.OutOfMemoryError, match="limit of 1048576"):
            await enter(budget_of(ctx, "larger", 2048 * KIB))

    start = time.monotonic()
    run(main())
    assert time.monotonic() - start < TIMEOUT / 2


def test_without_patience_nobody_waits(ctx: tz.Context) -> None:
    async def main() -> None:
        with ctx.memory.budget(KIB, name="all"):
            holder, late, hold = budget_of(ctx, "holder"), budget_of(ctx, "late", timeout=0), asyncio.Event()
            task = asyncio.create_task(enter(holder, hold))
            await until(lambda: holder.account.reserve)
            with pytest.raises(tz.OutOfMemoryError, match="all holds 1024"):
                await enter(late)
            hold.set()
            assert await task == "holder"

    run(main())


def test_one_budget_serves_one_request_at_a_time(ctx: tz.Context) -> None:
    async def main() -> None:
        budget = budget_of(ctx, "once")
        for _ in range(3):
            async with budget:
                with pytest.raises(BusyError):
                    await enter(budget)
                assert budget.account.reserve == KIB
            assert budget.account.reserve == 0

    run(main())


def test_many_loops_in_many_threads(ctx: tz.Context) -> None:
    """Requests of four loops are cancelled, time out or finish, as a seed says; never more are inside than fit."""
    inside, most, lock = 0, 0, threading.Lock()
    outcomes: list[str] = []

    async def one(draws: random.Random) -> None:
        nonlocal inside, most
        patience = draws.choice([0.0, 0.002, TIMEOUT, TIMEOUT])
        async with budget_of(ctx, "request", timeout=patience):
            with lock:
                inside += 1
                most = max(most, inside)
            try:
                for _ in range(draws.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                with lock:
                    inside -= 1

    async def client(draws: random.Random) -> None:
        task = asyncio.ensure_future(one(draws))
        if draws.random() < 0.4:
            for _ in range(draws.randrange(20)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            await task
        except (asyncio.CancelledError, tz.OutOfMemoryError) as error:
            outcomes.append(type(error).__name__)
        else:
            outcomes.append("done")

    async def loop_of(seed: int) -> None:
        draws = random.Random(seed)
        await asyncio.gather(*(client(draws) for _ in range(100)))

    with ctx.memory.budget(5 * KIB, name="all") as everything:
        threads = [
            threading.Thread(target=tz.carry(lambda seed: run(loop_of(seed))), args=(SEED + number,))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert everything.live == 0
    assert len(outcomes) == 400, f"seed {SEED}"
    assert outcomes.count("done") >= 100
    assert 1 < most <= 5
    assert everything.peak <= 5 * KIB


def test_an_interrupt_ends_a_blocking_wait_and_leaves_nothing(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from tazza.core import patience

    def interrupted(self: object, seconds: float) -> None:
        raise KeyboardInterrupt

    others = threading.Event()
    with ctx.memory.budget(2 * KIB, on_full="wait", timeout=TIMEOUT) as everything:
        ready = threading.Event()

        def keep() -> None:
            buffer = ctx.allocate(2 * KIB)
            ready.set()
            others.wait(TIMEOUT)
            del buffer

        thread = threading.Thread(target=tz.carry(keep))
        thread.start()
        assert ready.wait(TIMEOUT)
        monkeypatch.setattr(patience.Waiter, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ctx.allocate(KIB)
        monkeypatch.undo()
        assert process.waiters is None
        others.set()
        assert ctx.allocate(KIB).nbytes == KIB  # waits for the thread
        thread.join(TIMEOUT)
    assert everything.live == 0


def test_a_helper_that_fails_is_reported_and_replaced(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with ctx.memory.budget(KIB, name="all"):
            first, second = budget_of(ctx, "first"), budget_of(ctx, "second")
            kept = ctx.allocate(KIB)
            with monkeypatch.context() as broken:
                broken.setattr(Waiter, "wait_calmly", fail)
                waiting = asyncio.create_task(enter(first))
                await until(lambda: reports)
            tasks = [waiting, asyncio.create_task(enter(second))]  # starts another helper, which serves both
            await asyncio.sleep(0)
            del kept
            assert await asyncio.gather(*tasks) == ["first", "second"]

    def fail(self: object, seconds: float) -> None:
        raise RuntimeError("planted")

    reports: list[str] = []
    monkeypatch.setattr(admission, "report", lambda text, *_, **__: reports.append(text))
    run(main())
    assert reports == ["the admission of asyncio tasks to budgets failed"]
