"""asyncio: what is current belongs to the task, waits suspend and never block, cancelling abandons only the wait."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
import pytest

import tazza as tz
from tazza.errors import NoCurrentContextError, UpstreamError
from tests.bad_input.health import TIMEOUT, Hold

T = TypeVar("T")
SEED = 20


@pytest.fixture(params=["cpu", "sim:0"])
def ctx(request: pytest.FixtureRequest) -> Iterator[tz.Context]:
    made = tz.context(request.param)  # not entered: nothing is current unless a test makes it so
    yield made
    made.close(TIMEOUT)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, for at most `TIMEOUT`."""

    async def bounded() -> T:
        return await asyncio.wait_for(main, TIMEOUT)

    return asyncio.run(bounded())


def test_tasks_on_one_thread_keep_separate_contexts() -> None:
    """Fifty tasks enter, nest, switch streams and leave in an order drawn from a seed, with awaits in between."""
    contexts = [tz.context(name) for name in ("cpu", "cpu", "sim:0", "sim:1")]
    streams = {ctx: [ctx.own_stream, ctx.new_stream()] for ctx in contexts}
    draws = random.Random(SEED)
    checked = 0

    async def wander(depth: int, expected: tuple[tz.Context, tz.Stream] | None) -> None:
        nonlocal checked
        for _ in range(3):
            await asyncio.sleep(0)
            checked += 1
            if expected is None:
                with pytest.raises(NoCurrentContextError):
                    tz.current()
            else:
                assert (tz.current(), tz.current().stream) == expected, f"seed {SEED}"
        if depth:
            ctx = draws.choice(contexts)
            stream = draws.choice(streams[ctx])
            with ctx.on(stream):
                await wander(depth - 1, (ctx, stream))
            await wander(0, expected)

    async def main() -> None:
        await asyncio.gather(*(wander(draws.randrange(1, 5), None) for _ in range(50)))

    run(main())
    assert checked > 500
    for ctx in contexts:
        ctx.close(TIMEOUT)


def test_new_tasks_inherit_and_then_go_their_own_way(ctx: tz.Context) -> None:
    async def child(other: tz.Context) -> tz.Context:
        inherited = tz.current()
        with other:
            await asyncio.sleep(0)
            assert tz.current() is other
        return inherited

    async def main() -> None:
        with tz.open("cpu") as other, ctx:
            task = asyncio.create_task(child(other))
            await asyncio.sleep(0)
            assert tz.current() is ctx
            assert await task is ctx
            assert await asyncio.to_thread(tz.current) is ctx

    run(main())


def test_awaiting_gives_results_and_raises_failures(ctx: tz.Context) -> None:
    async def main() -> None:
        stream = ctx.new_stream()
        task = ctx.launch(lambda: np.arange(3), stream=stream)
        assert ctx.to_numpy(await task).tolist() == [0, 1, 2]
        assert ctx.to_numpy(await task).tolist() == [0, 1, 2], "a task can be awaited again"
        await stream.record()
        failed = ctx.launch(lambda: 1 / 0, stream=stream)
        needs = ctx.launch(lambda value: value, failed, stream=stream)
        with pytest.raises(ZeroDivisionError):
            await failed
        with pytest.raises(UpstreamError):
            await needs

    run(main())


def test_the_loop_runs_while_device_work_is_awaited(ctx: tz.Context) -> None:
    hold = Hold()

    async def main() -> tuple[int, Any]:
        task = ctx.launch(hold.block, 5, stream=ctx.new_stream())
        waiting = asyncio.ensure_future(_result(task))
        turns = 0
        while not hold.entered.is_set() or turns < 100:
            await asyncio.sleep(0)
            turns += 1
        assert not waiting.done()
        hold.release()
        return turns, await waiting

    turns, result = run(main())
    assert (turns >= 100, result) == (True, 5)


def test_cancelling_abandons_the_wait_and_never_the_work(ctx: tz.Context) -> None:
    hold = Hold()

    def fill(array: Any) -> None:
        hold.block()
        array.fill(3)

    async def main() -> Any:
        task = ctx.launch(fill, buffer, stream=stream)
        waiting = asyncio.ensure_future(_result(task))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_result(task), 0.01)
        assert not task.is_done
        hold.release()
        return await task

    buffer, stream = ctx.allocate(64, dtype="int64"), ctx.new_stream()
    ctx.synchronize(TIMEOUT)
    assert run(main()) is None
    assert ctx.to_numpy(buffer).tolist() == [3] * 8


def test_many_tasks_wait_for_one_event_and_one_for_many(ctx: tz.Context) -> None:
    async def main() -> list[Any]:
        gate = tz.HostEvent()
        streams = [ctx.new_stream() for _ in range(4)]
        tasks = [ctx.launch(lambda n=n: n, after=gate, stream=streams[n % 4]) for n in range(40)]
        waiting = [asyncio.ensure_future(_result(task)) for task in tasks for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        gate.succeed()
        return await asyncio.gather(*waiting)

    assert run(main()) == [n for n in range(40) for _ in range(3)]


def test_host_event_completed_by_another_thread_wakes_the_loop() -> None:
    async def main() -> None:
        good, bad = tz.HostEvent(), tz.HostEvent()
        threading.Thread(target=good.succeed).start()
        await good
        threading.Thread(target=bad.fail, args=(ValueError("from afar"),)).start()
        with pytest.raises(ValueError, match="from afar"):
            await bad

    run(main())


def test_carried_coroutines_run_under_what_was_current(ctx: tz.Context) -> None:
    async def look() -> tuple[tz.Context, tz.Stream]:
        await asyncio.sleep(0)
        return tz.current(), tz.current().stream

    stream = ctx.new_stream()
    with ctx.on(stream):
        carried = tz.carry(look)

    async def main() -> list[tuple[tz.Context, tz.Stream]]:
        with pytest.raises(NoCurrentContextError):
            tz.current()
        return await asyncio.gather(*(carried() for _ in range(10)))

    assert run(main()) == [(ctx, stream)] * 10


def test_async_context_managers_and_generators_that_nest_well(ctx: tz.Context) -> None:
    @asynccontextmanager
    async def scoped() -> AsyncIterator[tz.Stream]:
        stream = ctx.new_stream()
        with ctx.on(stream):
            yield stream

    async def numbers() -> AsyncIterator[Any]:
        with ctx:
            for number in range(3):
                yield await ctx.launch(lambda number=number: number, stream=ctx.new_stream())

    async def main() -> None:
        async with scoped() as stream:
            assert tz.current().stream is stream
            assert [number async for number in numbers()] == [0, 1, 2]
            assert tz.current().stream is stream
        with pytest.raises(NoCurrentContextError):
            tz.current()

    run(main())


def test_a_loop_that_was_closed_is_not_woken(ctx: tz.Context) -> None:
    """Work that ends after its waiter's loop is gone ends in silence."""
    hold = Hold()
    task = ctx.launch(hold.block, stream=ctx.new_stream())

    async def main() -> None:
        waiting = asyncio.ensure_future(_result(task))
        await asyncio.sleep(0)
        waiting.cancel()

    run(main())
    hold.release()
    assert task.result(TIMEOUT) is None


async def _result(task: tz.Task) -> Any:
    return await task
