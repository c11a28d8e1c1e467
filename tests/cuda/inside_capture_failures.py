"""Run by test_contract.py on emulated devices: captures beside other threads, and captures that fail."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cuda_emulator
import numpy as np
import pytest
from cuda.bindings import driver as api

import tazza as tz
from tazza.core.stream import Stream
from tazza.errors import (
    BackendError,
    ClosedError,
    UnsupportedError,
    UsageError,
    WaitTimeoutError,
    WrongDeviceError,
)
from tests.cuda.capturing import COUNT, TIMEOUT, all_are, captured, settled, works, zeros
from tests.cuda.kernels import add, plus


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    """A context on the first device."""
    with tz.open("cuda:0", seed=5) as opened:
        yield opened


# Threads -------------------------------------------------------------------------------------------------------------


def test_other_threads_work_on_and_are_refused_the_stream_alone(ctx: tz.Context) -> None:
    x, stream, other, outcomes = zeros(ctx), ctx.new_stream(), ctx.new_stream(), list[Any]()

    uses: list[Callable[[], object]] = [
        lambda: ctx.fill(x, 1, stream=stream),
        lambda: stream.record(),
        lambda: stream.native,
        lambda: ctx.launch(add, x, 1, stream=stream),
    ]

    def beside() -> None:
        for use in uses:
            try:
                use()
            except UsageError as error:
                outcomes.append(str(error))
        with ctx.on(stream):
            mine = ctx.allocate(1 << 20)  # the pool has to grow
            outcomes.append(mine.block.lane is stream.lane)
        with ctx.on(other):
            outcomes.append(ctx.to_numpy(ctx.asarray(np.arange(1 << 18))).sum())
        ctx.synchronize(timeout=TIMEOUT)
        outcomes.append(ctx.memory.trim())

    with stream.capture() as graph:
        ctx.launch(add, x, 1)
        thread = threading.Thread(target=beside, daemon=True)
        thread.start()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        ctx.allocate(1 << 21)
        ctx.launch(add, x, 1)
    assert len(outcomes) == 7, outcomes
    assert all("another thread" in said for said in outcomes[:4])
    assert outcomes[4:6] == [True, (1 << 18) * ((1 << 18) - 1) // 2]
    graph.replay()
    assert all_are(ctx, x, 2)


def test_threads_capture_and_replay_at_once(ctx: tz.Context) -> None:
    failures, results = list[BaseException](), [zeros(ctx) for _ in range(6)]

    def work(x: tz.Buffer) -> None:
        try:
            with ctx:
                for _ in range(4):
                    stream = ctx.new_stream()
                    with stream.capture() as graph:
                        between = ctx.asarray(np.full(COUNT, 1))
                        ctx.launch(lambda one=between: ctx.copy(x, one))
                        ctx.launch(add, x, 1)
                        del between
                    for _ in range(3):
                        graph.replay(stream)
                    stream.synchronize(timeout=TIMEOUT)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(x,), daemon=True) for x in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * TIMEOUT)
        assert not thread.is_alive()
    assert not failures
    assert all(all_are(ctx, x, 2) for x in results)


# Failure -------------------------------------------------------------------------------------------------------------


def test_an_exception_in_the_body_ends_the_capture_and_leaves_the_stream(ctx: tz.Context) -> None:
    x = zeros(ctx)
    works(ctx, ctx.stream, x)
    before = settled(ctx)
    with pytest.raises(KeyError, match="broken"), ctx.stream.capture() as graph:
        task = ctx.launch(add, x, 1)
        raise KeyError("broken")
    assert "not captured" in repr(graph)
    with pytest.raises(UsageError, match="failed"):
        graph.replay()
    with pytest.raises(UsageError, match="gave no graph"):
        task.result(timeout=TIMEOUT)
    works(ctx, ctx.stream, x)
    del graph, task
    assert settled(ctx) <= before


def test_a_task_that_fails_makes_the_capture_fail(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with pytest.raises(ZeroDivisionError), ctx.stream.capture():
        ctx.launch(add, x, 1)
        ctx.launch(lambda: 1 // 0)
    works(ctx, ctx.stream, x)


def test_host_waits_inside_are_refused_and_spoil_nothing(ctx: tz.Context) -> None:
    x, host, lent = zeros(ctx), np.zeros(COUNT, "int64"), zeros(ctx)
    with ctx.stream.capture() as graph:
        for use in (
            lambda: ctx.stream.synchronize(timeout=TIMEOUT),
            lambda: ctx.synchronize(timeout=TIMEOUT),
            lambda: ctx.stream.is_done,
            lambda: ctx.to_numpy(x),
            lambda: ctx.copy(host, x),
            lambda: ctx.stream.close(),
            lambda: ctx.stream.capture().__enter__(),
            lambda: graph.replay(),
            lambda: graph.close(),
        ):
            with pytest.raises(UsageError):
                use()
        with pytest.raises(UsageError, match="borrowed"), tz.borrow(lent, stream=ctx.new_stream()) as borrowed:
            ctx.fill(borrowed, 1)
        ctx.launch(add, x, 5)
    graph.replay()
    assert all_are(ctx, x, 5)


def test_what_cannot_be_captured_is_refused_with_what_to_do(ctx: tz.Context) -> None:
    x, owner = zeros(ctx), ctx.new_stream()
    adopted = ctx.adopt_stream(owner.native)
    with pytest.raises(UnsupportedError, match=r"stream\.native"), adopted.capture():
        pass
    with pytest.raises(UsageError, match="capture outside"):
        ctx.launch(lambda: ctx.stream.capture().__enter__()).result(timeout=TIMEOUT)
    with tz.open("cpu") as cpu, pytest.raises(UnsupportedError, match="call the function again"):
        cpu.stream.capture()
    closed = ctx.new_stream()
    closed.close()
    with pytest.raises(ClosedError), closed.capture():
        pass
    with tz.open("cuda:1") as two:
        far = zeros(two)
        with pytest.raises(UnsupportedError, match="another device"), ctx.stream.capture():
            ctx.copy(x, far)
        with pytest.raises(WrongDeviceError):
            captured(ctx, x).replay(two.stream)
    works(ctx, ctx.stream, x)


def test_what_spoils_the_capture_in_the_driver_is_a_typed_error(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with pytest.raises(BackendError) as caught, ctx.stream.capture():
        ctx.launch(add, x, 1)
        api.cuStreamSynchronize(ctx.stream.native)
        ctx.launch(add, x, 1).exception  # noqa: B018
    assert "STREAM_CAPTURE" in str(caught.value.symbol)
    works(ctx, ctx.stream, x)


CALLS = (
    "cuStreamBeginCapture",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithParams",
    "cuGraphDestroy",
    "cuStreamCreateWithPriority",
)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_of_the_driver_that_fails_leaves_nothing_behind(ctx: tz.Context, call: str) -> None:
    x, emulator = zeros(ctx), cuda_emulator.start()
    works(ctx, ctx.stream, x)
    before = settled(ctx)
    with emulator.injecting(f"{call}:1:INVALID_VALUE"), pytest.raises(BackendError, match=call):
        captured(ctx, x)
    works(ctx, ctx.stream, x)
    assert settled(ctx) <= before, emulator.report()["objects"]


def test_scopes_are_left_in_order(ctx: tz.Context) -> None:
    x, scope, inner = zeros(ctx), ctx.stream.capture(), ctx.on(ctx.new_stream())
    assert "capture of" in repr(scope)
    graph = scope.__enter__()
    ctx.launch(add, x, 1)
    inner.__enter__()
    with pytest.raises(UsageError, match="innermost"):
        scope.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    scope.__exit__(None, None, None)
    with pytest.raises(UsageError, match="failed"):
        graph.replay()
    works(ctx, ctx.stream, x)


def test_a_limit_that_the_graphs_memory_exceeds_is_told_at_the_end() -> None:
    with tz.open("cuda:0", memory_limit=96 << 10) as ctx:
        x = zeros(ctx)
        with pytest.raises(tz.OutOfMemoryError), ctx.stream.capture() as graph:
            for size in (80 << 10, 90 << 10):
                ctx.fill(ctx.allocate(size), 1)
        with pytest.raises(UsageError, match="failed"):
            graph.replay()
        works(ctx, ctx.stream, x)
        settled(ctx)
        assert ctx.memory.stats().live == x.nbytes


def test_a_stream_that_stays_deferred_is_not_waited_for_without_end(
    ctx: tz.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, other, gate = ctx.new_stream(), ctx.new_stream(), tz.HostEvent("gate")
    stream.wait(gate)
    monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", "0.05")
    with pytest.raises(WaitTimeoutError, match="only the host"), stream.capture():
        pass
    with other.capture():
        with pytest.raises(WaitTimeoutError, match="only the host"):
            stream.wait(other)
    monkeypatch.undo()
    gate.succeed()
    works(ctx, stream, zeros(ctx))


def test_what_takes_no_part_says_why(ctx: tz.Context) -> None:
    x, other = zeros(ctx), ctx.new_stream()
    ready = captured(ctx, x)
    state = Stream(ctx, other.runner, lent=True)
    with tz.open("cuda:1") as two:
        far = two.launch(plus, zeros(two), 1)
        far.result(timeout=TIMEOUT)
        with ctx.stream.capture() as graph, other.capture() as second:
            with pytest.raises(UsageError, match="graphs hold no graphs"):
                ready.replay(ctx.stream)
            with pytest.raises(UsageError, match="is part of a capture"):
                ctx.own_stream.wait(other.record())
            with pytest.raises(UnsupportedError, match="on another device"):
                ctx.launch(plus, far, 1)
            ctx.fill(x, 3, stream=ctx.own_stream)
            ctx.fill(x[:8], 4)
        with ctx.stream.capture():
            with pytest.raises(UsageError, match="scratch memory"):
                state.wait(ctx.stream)
            with pytest.raises(UsageError, match="scratch memory"):
                ctx.cublas_handle()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="scratch memory"), state.capture():
        pass
    graph.replay()
    second.replay()
    assert ctx.to_numpy(x)[:9].tolist() == [4] * 8 + [3]


def test_a_stream_whose_context_is_gone_cannot_be_captured() -> None:
    stream = tz.context("cuda:0").stream
    gc.collect()
    with pytest.raises(ClosedError, match="is gone"), stream.capture():
        pass


def test_a_context_may_be_closed_inside() -> None:
    with tz.open("cuda:0") as keeper:
        x = zeros(keeper)
        ctx = tz.context("cuda:0")
        with ctx.stream.capture() as graph:
            ctx.launch(add, x, 1)
            ctx.close(timeout=TIMEOUT)
            with pytest.raises(ClosedError):
                ctx.launch(add, x, 1)
        graph.replay(keeper.stream)
        assert all_are(keeper, x, 1)


def test_an_argument_that_cannot_be_moved_makes_the_capture_fail(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with tz.open("cpu") as cpu:
        strange = cpu.launch(lambda: np.zeros(4, "datetime64[s]"), stream=cpu.new_stream())
        strange.result(timeout=TIMEOUT)
        with pytest.raises(tz.errors.TazzaError), ctx.stream.capture():
            ctx.launch(add, x, 1)
            ctx.launch(plus, strange, 1)
    works(ctx, ctx.stream, x)
