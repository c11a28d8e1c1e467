"""Borrowing: the consumer comes after the producer, and the producer after the consumer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

import tazza as tz
from tazza.errors import DeadlockError, DeviceLostError, UnsupportedError, WaitTimeoutError
from tazza.hot import listen
from tazza.testing import simulate
from tests.bad_input.health import TIMEOUT, Hold
from tests.borrow.producers import Claim, Producer


def add(amount: float) -> Callable[[Any], None]:
    def function(values: Any) -> None:
        values += amount

    return function


def test_the_exit_waits_for_the_worker_that_uses_host_memory() -> None:
    source, hold = np.zeros(4), Hold()
    with tz.open("cpu") as ctx:
        worker = ctx.new_stream()
        threading.Timer(0.05, hold.release).start()
        with tz.borrow(source, stream=worker) as x:
            ctx.launch(hold.block, stream=worker)
            ctx.launch(add(1), x, stream=worker)
        assert source.tolist() == [1.0] * 4


def test_the_exit_waits_for_other_streams_that_used_it() -> None:
    source, hold = np.zeros(4), Hold()
    with tz.open("cpu") as ctx, tz.open("cpu") as neighbour:
        worker, foreign = ctx.new_stream(), neighbour.new_stream()
        threading.Timer(0.05, hold.release).start()
        with tz.borrow(source) as x:
            for stream, owner in ((worker, ctx), (foreign, neighbour)):
                owner.launch(hold.block, stream=stream)
                owner.launch(add(1), x[2:], stream=stream, label="late")
        assert source.tolist() == [0.0, 0.0, 2.0, 2.0]


def test_the_exit_does_not_wait_for_what_has_nothing_to_do_with_it() -> None:
    hold = Hold()
    with tz.open("cpu") as ctx:
        stuck = ctx.new_stream()
        task = ctx.launch(hold.block, stream=stuck)
        with tz.borrow(np.zeros(4), stream=ctx.new_stream()) as x:
            ctx.launch(add(1), x)
        assert not task.is_done
        hold.release()


def test_an_exit_that_is_too_late_keeps_the_memory_until_it_is_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    producer, hold = Producer(), Hold()
    with tz.open("cpu") as ctx:
        worker = ctx.new_stream()
        with pytest.raises(WaitTimeoutError, match=r"borrow of Producer.*still use the memory after 0\.01 s.*is kept"):
            with tz.borrow(producer, stream=worker) as x:
                ctx.launch(hold.block, stream=worker)
                task = ctx.launch(add(1), x, stream=worker)
                monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", "0.01")
        monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", str(TIMEOUT))
        assert x.is_closed
        ctx.stream.record()
        assert producer.deleted == []
        hold.release()
        task.result(TIMEOUT)  # used the memory after the scope, safely
        worker.synchronize(TIMEOUT)
        ctx.stream.record()
        assert len(producer.deleted) == 1


def test_the_error_of_the_scope_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold()
    with tz.open("cpu") as ctx:
        worker = ctx.new_stream()
        with pytest.raises(ZeroDivisionError) as caught:
            with tz.borrow(bytearray(4), stream=worker) as x:
                ctx.launch(hold.block, stream=worker)
                ctx.launch(add(1), x, stream=worker)
                monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", "0.01")
                1 / 0  # noqa: B018
        assert "WaitTimeoutError" in caught.value.__notes__[0]
        monkeypatch.undo()
        hold.release()


def test_a_failing_consumer_is_the_streams_matter() -> None:
    with tz.open("cpu") as ctx:
        worker = ctx.new_stream()
        with tz.borrow(np.zeros(2), stream=worker) as x:
            task = ctx.launch(lambda v: 1 / 0, x, stream=worker)
        with pytest.raises(ZeroDivisionError):
            task.result(TIMEOUT)


# Inside tasks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queued", [False, True])
def test_inside_a_task_its_own_code_needs_no_order(queued: bool) -> None:
    source = np.zeros(3)

    def use() -> float:
        ctx = tz.current()
        with tz.borrow(source) as x:
            ctx.fill(x, 2.0)
            return float(np.asarray(x).sum())

    with tz.open("cpu") as ctx:
        stream = ctx.new_stream() if queued else ctx.own_stream
        assert ctx.launch(use, stream=stream).result(TIMEOUT) == 6.0


def test_inside_a_task_waiting_for_what_is_queued_behind_it_is_refused() -> None:
    producer = Producer()

    def use() -> None:
        ctx = tz.current()
        with tz.borrow(producer) as x:
            ctx.launch(add(1), x)

    with tz.open("cpu") as ctx:
        worker = ctx.new_stream()
        with pytest.raises(DeadlockError):
            ctx.launch(use, stream=worker).result(TIMEOUT)
        worker.synchronize(TIMEOUT)
        ctx.stream.record()
        assert len(producer.deleted) == 1


def test_inside_a_task_the_entry_waits_for_the_lender() -> None:
    hold = Hold()
    with tz.open("cpu") as ctx:
        first, second = ctx.new_stream(), ctx.new_stream()
        lender = ctx.allocate(16, dtype="float64")
        ctx.fill(lender, 0.0)
        ctx.launch(hold.block, stream=first)
        ctx.launch(add(1), lender, stream=first)

        def use() -> list[float]:
            with tz.borrow(lender) as x:
                return list(x_values(x))

        task = ctx.launch(use, stream=second)
        assert not task.is_done
        hold.release()
        assert task.result(TIMEOUT) == [1.0, 1.0]


def x_values(x: tz.Buffer) -> Any:
    return np.asarray(x).tolist()


# Buffers of other streams ------------------------------------------------------------------------------------------


def test_an_inline_consumer_waits_for_the_streams_that_use_the_lender() -> None:
    hold = Hold()
    with tz.open("cpu") as ctx, tz.open("cpu") as other:
        worker = ctx.new_stream()
        lender = ctx.allocate(16, dtype="float64")
        ctx.fill(lender, 0.0)
        ctx.launch(hold.block, stream=worker)
        ctx.launch(add(1), lender, stream=worker)
        threading.Timer(0.05, hold.release).start()
        with tz.borrow(lender, stream=other.own_stream) as x:
            assert other.launch(lambda v: v.tolist(), x).result() == [1.0, 1.0]


def test_the_entry_gives_up_and_lends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold()
    with tz.open("cpu") as ctx:
        worker = ctx.new_stream()
        lender = ctx.allocate(16, dtype="float64")
        ctx.launch(hold.block, stream=worker)
        ctx.launch(add(1), lender, stream=worker)
        monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", "0.01")
        loan = tz.borrow(lender)
        with pytest.raises(WaitTimeoutError):
            loan.__enter__()
        assert "over" in repr(loan)
        monkeypatch.undo()
        hold.release()


def test_a_lending_stream_waits_for_the_consumer_and_the_caller_does_not() -> None:
    """The producer's worker comes after the consumer's, by itself."""
    hold, seen = Hold(), []
    with tz.open("cpu") as ctx, tz.open("cpu") as other:
        producer, consumer = ctx.new_stream(), other.new_stream()
        lender = ctx.allocate(16, dtype="float64")
        gate = Hold()
        ctx.launch(gate.block, lender, stream=producer)  # at work on the memory while it is lent
        with tz.borrow(lender, stream=consumer) as x:
            other.launch(hold.block, stream=consumer)
            other.launch(lambda v: seen.append("consumer"), x, stream=consumer)
        after = ctx.launch(lambda v: seen.append("producer"), lender, stream=producer)
        gate.release()
        assert not after.is_done
        hold.release()
        after.result(TIMEOUT)
        assert seen == ["consumer", "producer"]


@pytest.mark.parametrize("seed", range(5))
def test_simulated_streams_are_ordered_natively_both_ways(seed: int) -> None:
    with simulate(devices=1, seed=seed, lateness=2e-3):
        with tz.open("sim:0") as ctx, tz.open("sim:0") as other:
            lender = ctx.allocate(32, dtype="float64")
            ctx.fill(lender, 1.0)
            consumer = other.new_stream()
            with tz.borrow(lender, stream=consumer) as x:
                task = other.launch(add(1), x, stream=consumer)
            ctx.launch(lambda v: v.__imul__(10), lender)
            assert ctx.to_numpy(lender).tolist() == [20.0] * 4
            assert task.is_done


@pytest.mark.parametrize("seed", range(5))
def test_the_home_stream_of_a_lender_follows_other_streams_of_the_scope(seed: int) -> None:
    with simulate(devices=1, seed=seed, lateness=2e-3):
        with tz.open("sim:0") as ctx:
            lender = ctx.allocate(32, dtype="float64")
            ctx.fill(lender, 1.0)
            side = ctx.new_stream()
            with tz.borrow(lender) as x:  # for the home stream itself
                side.wait(ctx.stream)
                ctx.launch(add(1), x, stream=side)
            ctx.launch(lambda v: v.__imul__(10), lender)
            assert ctx.to_numpy(lender).tolist() == [20.0] * 4


def test_a_lost_device_orders_nothing_and_lets_go() -> None:
    with simulate(devices=1) as simulation:
        ctx, hold = tz.context("sim:0"), Hold()
        with ctx:
            lender = ctx.allocate(32, dtype="float64")
            with tz.borrow(lender) as x:
                task = ctx.launch(hold.block, x)
                simulation.lose(0, "struck by a test")
            assert x.is_closed
        hold.release()
        with pytest.raises(DeviceLostError):
            task.result(TIMEOUT)
        ctx.close(abandon=True)


@pytest.mark.parametrize("awaiting", [False, True])
def test_a_device_that_is_lost_while_the_exit_waits(awaiting: bool) -> None:
    """What was queued there will never run: the exit ends, and the memory is given back."""
    from tests.borrow.gpu import pretend

    with pretend("cuda", 7000) as ctx:
        producer, hold = Producer(Claim(device=(2, 0)), announced=(2, 0)), Hold()
        driver: Any = ctx.own_stream.runtime.driver
        other = ctx.new_stream()
        tasks = [ctx.launch(hold.block), ctx.launch(hold.block, stream=other)]
        loan = tz.borrow(producer, stream=ctx.own_stream)

        def strike() -> None:
            driver.lose(0, "struck by a test")
            hold.release()

        threading.Timer(0.05, strike).start()

        async def use() -> None:
            async with loan as x:
                x.used_on(other)

        if awaiting:
            asyncio.run(use())
        else:
            with loan as x:
                x.used_on(other)
        for task in tasks:
            with contextlib.suppress(DeviceLostError):  # or it had ended before
                task.result(TIMEOUT)
        with pytest.raises(DeviceLostError):
            ctx.synchronize()  # the first call since the queue is empty
        ctx.close(abandon=True)
        assert len(producer.deleted) == 1


def test_an_interface_that_cannot_say_when_memory_is_free() -> None:
    from tests.borrow.gpu import pretend

    class Interface:
        __cuda_array_interface__: ClassVar[dict[str, object]] = {"shape": (1,)}

    refusal = "offers only __cuda_array_interface__, which .* does not read"
    with pretend("cuda", 7000), pytest.raises(UnsupportedError, match=refusal):
        tz.borrow(Interface()).__enter__()


def test_listeners_see_the_waits() -> None:
    hold = Hold()
    with tz.open("cpu") as ctx:
        worker = ctx.new_stream()
        kinds: list[str] = []
        with tz.borrow(np.zeros(2), stream=worker) as x:
            ctx.launch(hold.block, stream=worker)
            ctx.launch(add(1), x, stream=worker)
            stop = listen(lambda operation: kinds.append(operation.kind))
            threading.Timer(0.02, hold.release).start()
        stop()
        assert kinds.count("wait") == 1


# asyncio -----------------------------------------------------------------------------------------------------------


def test_async_scopes_do_not_block_the_loop() -> None:
    source, hold, turns = np.zeros(2), Hold(), [0]

    async def spin() -> None:
        while not hold._open.is_set():
            turns[0] += 1
            await asyncio.sleep(0)

    async def main(ctx: tz.Context) -> None:
        worker, other = ctx.new_stream(), ctx.new_stream()
        spinning = asyncio.create_task(spin())
        asyncio.get_running_loop().call_later(0.02, hold.release)
        async with tz.borrow(source, stream=worker) as x:
            ctx.launch(hold.block, stream=worker)
            ctx.launch(add(1), x, stream=worker)
        await spinning
        assert source.tolist() == [1.0, 1.0]
        lender = ctx.allocate(16, dtype="float64")
        ctx.fill(lender, 0.0)
        again = Hold()
        ctx.launch(again.block, stream=other)
        ctx.launch(add(1), lender, stream=other)
        asyncio.get_running_loop().call_later(0.02, again.release)
        async with tz.borrow(lender) as x:  # inline: has to wait for `other`, which the loop lets go
            assert x_values(x) == [1.0, 1.0]

    with tz.open("cpu") as ctx:
        asyncio.run(main(ctx))
        assert turns[0] > 1


def test_async_scopes_inside_a_task() -> None:
    hold = Hold()

    async def use(lender: tz.Buffer) -> Any:
        async with tz.borrow(lender) as x:
            return x_values(x)

    with tz.open("cpu") as ctx:
        first, second = ctx.new_stream(), ctx.new_stream()
        lender = ctx.allocate(16, dtype="float64")
        ctx.fill(lender, 0.0)
        ctx.launch(hold.block, stream=first)
        ctx.launch(add(1), lender, stream=first)
        task = ctx.launch(lambda: asyncio.run(use(lender)), stream=second)
        hold.release()
        assert task.result(TIMEOUT) == [1.0, 1.0]


def test_a_cancelled_async_exit_keeps_the_memory_until_it_is_unused() -> None:
    producer, hold = Producer(), Hold()

    async def use(ctx: tz.Context, worker: tz.Stream, entered: asyncio.Event) -> None:
        async with tz.borrow(producer, stream=worker) as x:
            ctx.launch(hold.block, stream=worker)
            ctx.launch(add(1), x, stream=worker)
            entered.set()

    async def main(ctx: tz.Context) -> None:
        worker, entered = ctx.new_stream(), asyncio.Event()
        task = asyncio.create_task(use(ctx, worker, entered))
        await entered.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert producer.deleted == []
        hold.release()
        await worker.record()

    with tz.open("cpu") as ctx:
        asyncio.run(main(ctx))
        ctx.synchronize(TIMEOUT)
        assert len(producer.deleted) == 1


def test_async_waits_end(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold()

    async def leave(ctx: tz.Context) -> None:
        worker = ctx.new_stream()
        async with tz.borrow(bytearray(4), stream=worker) as x:
            ctx.launch(hold.block, stream=worker)
            ctx.launch(add(1), x, stream=worker)
            monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", "0.01")

    async def enter(ctx: tz.Context) -> None:
        worker, lender = ctx.new_stream(), ctx.allocate(8)
        ctx.launch(hold.block, lender, stream=worker)
        async with tz.borrow(lender):
            raise AssertionError("entered too early")

    async def again(ctx: tz.Context) -> None:
        loan = tz.borrow(b"x")
        async with loan:
            pass
        await loan.__aexit__(None, None, None)

    with tz.open("cpu") as ctx:
        for program in (leave, enter):
            with pytest.raises(WaitTimeoutError, match="still use the memory"):
                asyncio.run(program(ctx))
        monkeypatch.undo()
        hold.release()
        asyncio.run(again(ctx))


# Streams of other libraries ----------------------------------------------------------------------------------------


def test_a_foreign_device_is_given_our_stream() -> None:
    """What a producer on a CUDA-like device is told; the device is a simulated one under another name."""
    from tests.borrow.gpu import pretend

    for kind, number, handle, told in (
        ("cuda", 2, 7000, 7000),
        ("cuda", 2, 0, 1),
        ("rocm", 10, 0, 0),
        ("sycl", 14, "q", "q"),
    ):
        with pretend(kind, handle) as ctx:
            producer = Producer(Claim(device=(number, 0)), announced=(number, 0))
            with tz.borrow(producer, stream=ctx.stream) as x:
                assert str(x.device) == f"{kind}:0"
            assert [asked["stream"] for asked in producer.asked] == [told]
            assert len(producer.deleted) == 1
