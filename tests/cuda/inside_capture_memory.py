"""Run by test_contract.py on emulated devices: the memory and the life of graphs."""

from __future__ import annotations

import gc
import os
import select
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.core.native import NativeRunner
from tazza.errors import (
    BackendError,
    ClosedError,
    DeviceLostError,
)
from tazza.hot.hooks import Operation, listen
from tests.cuda.capturing import COUNT, TIMEOUT, all_are, captured, works, zeros
from tests.cuda.kernels import add


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    """A context on the first device."""
    with tz.open("cuda:0", seed=5) as opened:
        yield opened


# Memory and life -----------------------------------------------------------------------------------------------------


def test_memory_inside_is_used_again_inside_and_nowhere_else(ctx: tz.Context) -> None:
    out = [zeros(ctx) for _ in range(10)]
    with ctx.stream.capture() as graph:
        addresses = set()
        for number, one in enumerate(out):
            between = ctx.empty(COUNT, "int64")
            addresses.add(between.address)
            ctx.fill(between, number)
            ctx.copy(one, between)
            del between
    assert len(addresses) == 1
    others = [zeros(ctx) for _ in range(200)]
    assert addresses.isdisjoint(one.address for one in others)
    graph.replay()
    ctx.memory.trim()
    graph.replay()
    assert [int(ctx.to_numpy(one)[0]) for one in out] == list(range(10))
    assert all(all_are(ctx, one, 0) for one in others[::20])


@pytest.mark.parametrize("pool", ["caching", "direct", "driver"])
def test_the_memory_of_a_graph_is_charged_until_the_graph_and_its_replays_are_gone(pool: str) -> None:
    with tz.open("cuda:0", pool=pool) as ctx:
        x, stream, gate = zeros(ctx), ctx.new_stream(), tz.HostEvent("gate")
        before = ctx.memory.stats().live
        with ctx.stream.capture() as graph:
            for _ in range(3):
                between = ctx.empty(100_000, "int64")
                ctx.fill(between, 4)
                ctx.launch(lambda one=between: ctx.copy(x, one[:COUNT]))
                del between
        ctx.memory.trim()
        assert ctx.memory.stats().live >= before + 800_000
        stream.wait(gate)
        graph.replay(stream)
        graph.close()
        ctx.memory.trim()
        assert ctx.memory.stats().live >= before + 800_000
        gate.succeed()
        stream.synchronize(timeout=TIMEOUT)
        assert all_are(ctx, x, 4)
        ctx.memory.trim()
        assert ctx.memory.stats().live == before


def test_a_limit_binds_what_is_allocated_inside() -> None:
    with tz.open("cuda:0", memory_limit="1MiB") as ctx:
        with pytest.raises(tz.OutOfMemoryError), ctx.stream.capture():
            ctx.allocate(2 << 20)
        assert ctx.allocate(1 << 18).nbytes == 1 << 18


def test_a_kept_buffer_outlives_the_graph(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with ctx.stream.capture() as graph:
        kept = ctx.empty(COUNT, "int64")
        ctx.fill(kept, 12)
        ctx.copy(x, kept)
    graph.replay()
    del graph
    gc.collect()
    others = [ctx.asarray(np.full(COUNT, 1)) for _ in range(50)]
    assert all_are(ctx, kept, 12)
    assert all_are(ctx, others[-1], 1)
    assert all_are(ctx, ctx.asarray(kept, copy=True), 12)


def test_what_the_work_uses_lives_as_long_as_the_graph(ctx: tz.Context) -> None:
    out = zeros(ctx)

    def build() -> Any:
        source = ctx.asarray(np.full(COUNT, 30))
        scale = ctx.compile('extern "C" __global__ void once(long long *x) { x[threadIdx.x] += 1; }', "once")
        with ctx.stream.capture() as graph:
            ctx.launch(lambda: ctx.copy(out, source))
            ctx.launch(scale[1, COUNT], out)
        return graph

    graph = build()
    gc.collect()
    ctx.memory.trim()
    others = [ctx.asarray(np.full(COUNT, 1)) for _ in range(50)]
    for _ in range(2):
        graph.replay()
        assert all_are(ctx, out, 31)
    assert all_are(ctx, others[7], 1)


def test_a_buffer_that_was_closed_is_not_touched_by_a_replay(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with ctx.stream.capture() as graph:
        ctx.fill(x[:8], 1)
    x.close()
    with pytest.raises(ClosedError, match="is closed"):
        graph.replay()


def test_memory_does_not_remember_graphs_that_are_gone(ctx: tz.Context) -> None:
    x = zeros(ctx)
    for _ in range(5):
        captured(ctx, x).replay()
        with pytest.raises(KeyError), ctx.stream.capture():
            ctx.fill(x, 2)
            raise KeyError
    ctx.synchronize(timeout=TIMEOUT)
    ctx.allocate(8)
    assert not x.block.users
    assert all_are(ctx, x, 1)


def test_closing_is_idempotent_and_final(ctx: tz.Context) -> None:
    x = zeros(ctx)
    graph = captured(ctx, x)
    graph.replay()
    assert not graph.is_closed
    for _ in range(2):
        graph.close()
    assert graph.is_closed
    assert "closed" in repr(graph)
    assert graph.device is ctx.device
    with pytest.raises(ClosedError, match="capture it again"):
        graph.replay()
    assert all_are(ctx, x, 1)


def test_a_graph_outlives_its_context() -> None:
    with tz.open("cuda:0") as keeper:
        x = zeros(keeper)
        ctx = tz.context("cuda:0")
        with ctx.stream.capture() as graph:
            between = ctx.asarray(np.full(COUNT, 17))
            ctx.copy(x, between)
            del between
        ctx.close()
        with pytest.raises(ClosedError):
            graph.replay()
        graph.replay(keeper.stream)
        assert all_are(keeper, x, 17)
        del ctx
        gc.collect()
        with pytest.raises(ClosedError, match="name a stream"):
            graph.replay()
        graph.replay(keeper.stream)
        with pytest.raises(tz.errors.ArgumentError, match="stream"):
            graph.replay(keeper)


def test_listeners_hear_of_each_replay(ctx: tz.Context) -> None:
    x, heard = zeros(ctx), list[Operation]()
    graph = captured(ctx, x)
    stop = listen(lambda operation: heard.append(operation) if operation.kind == "kernel" else None)
    try:
        graph.replay()
    finally:
        stop()
    [one] = heard
    assert (one.label, one.stream, one.writes, one.subject) == (graph.label, ctx.stream, (x,), graph)


def test_a_replay_inside_a_task_is_a_part_of_it(ctx: tz.Context) -> None:
    x, stream = zeros(ctx), ctx.new_stream()
    with ctx.stream.capture() as graph:
        ctx.launch(add, x, 1)

    def step() -> None:
        graph.replay()
        add(x, 10)

    for _ in range(5):
        task = ctx.launch(step, stream=stream)
    task.result(timeout=TIMEOUT)
    assert all_are(ctx, x, 55)


def test_borrowing_and_showing_what_a_graph_uses(ctx: tz.Context) -> None:
    x = zeros(ctx)
    graph = captured(ctx, x)
    graph.replay()
    interface = x.__cuda_array_interface__
    with tz.borrow(SimpleNamespace(__cuda_array_interface__=interface), stream=ctx.new_stream()) as lent:
        ctx.fill(lent, 3, stream=ctx.new_stream())
    graph.replay()
    assert all_are(ctx, x, 1)


def test_a_fault_in_a_replay_is_told_with_what_was_in_flight() -> None:
    emulator = cuda_emulator.start()
    ctx = tz.context("cuda:1")
    x = zeros(ctx)
    with ctx.stream.capture() as graph:
        ctx.launch(add, x, 1)
    emulator.faults = "@kernel:1:LAUNCH_FAILED:sticky"
    try:
        with pytest.raises(DeviceLostError):
            graph.replay()  # it is met here already, or later
            ctx.synchronize(timeout=TIMEOUT)
    finally:
        emulator.faults = ()
    assert ctx.health.cause is not None
    assert graph.label in ctx.health.cause.in_flight
    with pytest.raises(DeviceLostError):
        graph.replay()
    with pytest.raises(DeviceLostError), ctx.stream.capture():
        pass
    graph.close()
    ctx.close()
    fresh = ctx.rebuild()
    with pytest.raises(DeviceLostError):
        graph.replay(fresh.stream)
    works(fresh, fresh.stream, zeros(fresh))
    fresh.close()


def test_a_copy_to_another_device_comes_before_the_next_replay(ctx: tz.Context) -> None:
    x, gate = zeros(ctx), tz.HostEvent("gate")
    with ctx.stream.capture() as graph:
        ctx.launch(add, x, 1)
        kept = ctx.empty(COUNT, "int64")
        ctx.copy(kept, x)
    with tz.open("cuda:1") as two:
        y = zeros(two)
        graph.replay()
        two.stream.wait(gate)
        two.copy(y, kept)
        graph.replay()
        assert not ctx.stream.is_done
        gate.succeed()
        assert all_are(two, y, 1)
    assert all_are(ctx, kept, 2)


def test_a_launch_that_the_driver_refuses_leaves_the_graph_usable(ctx: tz.Context) -> None:
    x, emulator, other = zeros(ctx), cuda_emulator.start(), ctx.new_stream()
    graph = captured(ctx, x)
    with emulator.injecting("cuGraphLaunch:1:INVALID_VALUE"), pytest.raises(BackendError, match="cuGraphLaunch"):
        graph.replay()
    graph.replay(other)
    assert all_are(ctx, x, 1)
    with emulator.injecting("cuGraphLaunch:1:INVALID_VALUE"), pytest.raises(BackendError, match="cuGraphLaunch"):
        graph.replay(other)
    graph.close()
    other.synchronize(timeout=TIMEOUT)
    ctx.allocate(8)
    ctx.synchronize(timeout=TIMEOUT)
    ctx.allocate(8)
    assert not x.block.users or all(isinstance(one, NativeRunner) for one, _ in x.block.users)


def test_relief_waits_for_the_last_replay_of_a_graph_that_is_gone() -> None:
    with tz.open("cuda:0", memory_limit="1MiB") as ctx:
        x, stream, gate = zeros(ctx), ctx.new_stream(), tz.HostEvent("gate")
        with ctx.stream.capture() as graph:
            between = ctx.allocate(600_000)
            ctx.fill(between, 1)
            ctx.copy(x, between[: x.nbytes])
            del between
        stream.wait(gate)
        graph.replay(stream)
        del graph
        gc.collect()
        threading.Timer(0.05, gate.succeed).start()
        assert ctx.allocate(900_000).nbytes == 900_000


def test_a_forked_child_is_told_so(ctx: tz.Context) -> None:
    graph = captured(ctx, zeros(ctx))
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "nothing"
        try:
            graph.close()
            graph.replay()
        except BaseException as error:
            said = type(error).__name__
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    assert select.select([reading], [], [], TIMEOUT)[0]
    assert os.read(reading, 100) == b"ForkedError"
    os.close(reading)
    os.waitpid(pid, 0)
    graph.replay()
