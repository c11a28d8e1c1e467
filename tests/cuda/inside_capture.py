"""Run by test_contract.py on emulated devices: capture and replay, beyond what the battery asks of every backend."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cuda_emulator
import numpy as np
import pytest
from cuda.bindings import driver as api

import tazza as tz
from tazza.core.runtime import live_runtimes
from tazza.errors import (
    BackendError,
    ClosedError,
    DeviceLostError,
    UnsupportedError,
    UsageError,
    WrongDeviceError,
)
from tazza.hot.hooks import Operation, listen
from tests.cuda.kernels import add, plus

TIMEOUT = 20.0
COUNT = 64


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    """A context on the first device."""
    with tz.open("cuda:0", seed=5) as opened:
        yield opened


def zeros(ctx: tz.Context) -> tz.Buffer:
    """Device memory of zeros that is complete."""
    made: tz.Buffer = ctx.asarray(np.zeros(COUNT, "int64"))
    ctx.synchronize(timeout=TIMEOUT)
    return made


def all_are(ctx: tz.Context, x: tz.Buffer, value: int) -> bool:
    """Whether every element has one value."""
    return bool((ctx.to_numpy(x) == value).all())


def both(x: tz.Buffer) -> None:
    """Two kernels in one function."""
    add(x, 10)
    add(x, 100)


def settled(ctx: tz.Context) -> int:
    """Live objects of the driver, when everything is over and nothing is kept for reuse."""
    ctx.synchronize(timeout=TIMEOUT)
    for _ in range(3):
        gc.collect()
        ctx.memory.trim()
    assert cuda_emulator.start().wait_idle()
    return cuda_emulator.start().live_objects()


# What is captured ----------------------------------------------------------------------------------------------------


def test_nothing_runs_before_a_replay_and_all_of_it_on_each(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with ctx.stream.capture() as graph:
        ctx.launch(add, x, 1)
        ctx.launch(both, x)
    ctx.synchronize(timeout=TIMEOUT)
    assert all_are(ctx, x, 0)
    for round_ in range(1, 4):
        graph.replay()
        assert all_are(ctx, x, 111 * round_)


def test_the_stream_is_the_current_one_inside_and_works_on_afterwards(ctx: tz.Context) -> None:
    x, stream, before = zeros(ctx), ctx.new_stream(), ctx.stream
    with stream.capture() as graph:
        assert ctx.stream is stream
        ctx.fill(x, 7)
    assert ctx.stream is before
    ctx.fill(x, 3, stream=stream)
    stream.synchronize(timeout=TIMEOUT)
    assert all_are(ctx, x, 3)
    graph.replay(stream)
    stream.synchronize(timeout=TIMEOUT)
    assert all_are(ctx, x, 7)


def test_a_replay_goes_to_any_stream_of_the_device_one_after_the_other(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with ctx.stream.capture() as graph:
        for _ in range(5):
            ctx.launch(add, x, 1)
    with tz.open("cuda:0") as second:
        streams = [ctx.stream, ctx.new_stream(), second.stream, second.new_stream()]
        for number in range(20):
            graph.replay(streams[number % 4])
        assert all_are(ctx, x, 100)  # the host's access waits for the last replay, wherever that is


def test_host_arrays_are_snapshots_and_pinned_memory_is_read_anew(ctx: tz.Context) -> None:
    array, pinned = np.full(COUNT, 3), ctx.memory.pinned.allocate(8 * COUNT, dtype="int64")
    np.asarray(pinned)[:] = 5
    x, y = zeros(ctx), zeros(ctx)
    with ctx.stream.capture() as graph:
        ctx.copy(x, array)
        ctx.copy(y, pinned)
    array[:] = 0
    del array
    gc.collect()
    np.asarray(pinned)[:] = 6
    graph.replay()
    assert all_are(ctx, x, 3)
    assert all_are(ctx, y, 6)


def test_a_copy_to_pinned_memory_is_waited_for_by_who_reads_it(ctx: tz.Context) -> None:
    x, pinned = zeros(ctx), ctx.memory.pinned.allocate(8 * COUNT, dtype="int64")
    with ctx.stream.capture() as graph:
        ctx.launch(add, x, 1)
        ctx.copy(pinned, x)
    for round_ in range(1, 4):
        graph.replay(ctx.new_stream())
        assert (np.asarray(pinned) == round_).all()


@pytest.mark.parametrize("pattern", [b"a", b"ab", b"abc", b"abcd", b"abcdefgh", b"abcdefghijklmnop"])
def test_fills_of_every_width_read_nothing_that_is_gone(ctx: tz.Context, pattern: bytes) -> None:
    x = ctx.allocate(len(pattern) * 3001)
    with ctx.stream.capture() as graph:
        ctx.fill(x, pattern)
    for _ in range(2):
        ctx.fill(x, 0)
        graph.replay()
        assert ctx.to_numpy(x).tobytes() == pattern * 3001


def test_copies_that_overlap(ctx: tz.Context) -> None:
    x = ctx.asarray(np.arange(COUNT))
    ctx.synchronize(timeout=TIMEOUT)
    with ctx.stream.capture() as graph:
        ctx.copy(x[1:], x[:-1])
    for round_ in range(1, 4):
        graph.replay()
        assert ctx.to_numpy(x).tolist() == [max(0, number - round_) for number in range(COUNT)]


def test_random_numbers_are_drawn_once(ctx: tz.Context) -> None:
    with ctx.stream.capture() as graph:
        drawn = ctx.random.random(COUNT)
    after = ctx.to_numpy(ctx.random.random(COUNT))
    numpys = np.random.Generator(np.random.Philox(5))
    expected = numpys.random(COUNT)
    for _ in range(2):
        graph.replay()
        assert (ctx.to_numpy(drawn) == expected).all()
    assert (after == numpys.random(COUNT)).all()


def test_results_of_tasks_are_passed_on_and_can_be_taken_afterwards(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with tz.open("cpu") as cpu:
        number = cpu.launch(lambda: 4, stream=cpu.new_stream())
        array = cpu.launch(lambda: np.full(COUNT, 20), stream=cpu.new_stream())
        tz.wait([number, array], timeout=TIMEOUT)
        with ctx.stream.capture() as graph:
            first = ctx.launch(plus, x, number)
            second = ctx.launch(plus, first, 5)
            third = ctx.launch(plus, array, 1)
            with pytest.raises(UsageError, match="part of the capture"):
                second.result(timeout=TIMEOUT)
    assert second.is_done
    assert first.result().shape == (COUNT,)
    for round_ in range(3):
        ctx.fill(x, round_)
        graph.replay()
        assert all_are(ctx, second.result(), 9 + round_)
        assert all_are(ctx, third.result(), 21)


def test_what_a_library_puts_into_the_native_queue_is_captured(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with ctx.stream.capture() as graph:
        ctx.launch(add, x, 1)
        for _ in range(2):
            assert not api.cuMemsetD8Async(x.address + 8, 1, 8, ctx.stream.native)[0]
        x.used_on(ctx.stream)
        ctx.launch(add, x, 1)
    graph.replay()
    assert ctx.to_numpy(x)[:3].tolist() == [2, 0x0101010101010102, 2]


def test_memory_shown_to_a_library_inside_is_in_the_order_of_the_capture(ctx: tz.Context) -> None:
    x = zeros(ctx)
    with ctx.stream.capture() as graph:
        native = int(ctx.stream.native)  # type: ignore[call-overload]
        assert x.__cuda_array_interface__["stream"] == native
        capsule = x[:32].__dlpack__(stream=native)
        ctx.fill(x, 4)
    del capsule, native
    graph.replay()
    assert all_are(ctx, x, 4)


# Other streams -------------------------------------------------------------------------------------------------------


def test_a_stream_that_waits_takes_part_until_it_is_joined(ctx: tz.Context) -> None:
    x, y, other = zeros(ctx), zeros(ctx), ctx.new_stream()
    with ctx.stream.capture() as graph:
        ctx.launch(add, x, 1)
        forked = ctx.stream.record()
        assert "captured" in repr(forked)
        other.wait(forked)
        ctx.launch(add, y, 1, stream=other)
        ctx.launch(lambda: ctx.copy(y, x), stream=other)
        ctx.launch(add, x, 10)
        ctx.stream.wait(other)
        ctx.launch(add, y, 100)
    for round_ in range(1, 4):
        graph.replay()
        assert ctx.to_numpy(x)[0] == 11 * round_
    ctx.fill(y, 9, stream=other)
    other.synchronize(timeout=TIMEOUT)
    assert all_are(ctx, y, 9)


def test_a_task_passed_to_another_stream_takes_it_into_the_capture(ctx: tz.Context) -> None:
    x, other = zeros(ctx), ctx.new_stream()
    with ctx.stream.capture() as graph:
        first = ctx.launch(plus, x, 1)
        second = ctx.launch(plus, first, 2, stream=other)
        third = ctx.launch(plus, second, 4)
    for round_ in range(3):
        ctx.fill(x, round_)
        graph.replay()
        assert all_are(ctx, third.result(), 7 + round_)


def test_a_stream_that_is_not_joined_is_an_error_that_says_so(ctx: tz.Context) -> None:
    x, other = zeros(ctx), ctx.new_stream()
    with pytest.raises(UsageError, match=r"stream\.wait\(other\)"), ctx.stream.capture() as graph:
        other.wait(ctx.stream)
        ctx.fill(x, 1, stream=other)
    with pytest.raises(UsageError, match="failed"):
        graph.replay()
    for stream in (ctx.stream, other):
        ctx.fill(x, 2, stream=stream)
        stream.synchronize(timeout=TIMEOUT)
    assert all_are(ctx, x, 2)


def test_memory_that_another_captured_stream_uses_is_not_taken_by_the_first(ctx: tz.Context) -> None:
    other, results = ctx.new_stream(), [zeros(ctx) for _ in range(8)]
    with ctx.stream.capture() as graph:
        for number, result in enumerate(results):
            between = ctx.empty(COUNT, "int64")
            ctx.fill(between, number)
            other.wait(ctx.stream)
            with ctx.on(other):
                ctx.copy(result, between)
                inner = ctx.empty(COUNT, "int64")
                ctx.fill(inner, 99)
            del between, inner
        ctx.stream.wait(other)
    for _ in range(2):
        graph.replay()
        assert [int(ctx.to_numpy(one)[5]) for one in results] == list(range(8))


def test_an_event_of_a_capture_is_of_no_use_outside(ctx: tz.Context) -> None:
    other = ctx.new_stream()
    with tz.open("cpu") as cpu, tz.open("cuda:1") as two:
        worker = cpu.new_stream()
        with ctx.stream.capture():
            event = ctx.stream.record()
            uses: list[Callable[[], object]] = [
                lambda: event.synchronize(timeout=TIMEOUT),
                lambda: event.is_done,
                lambda: event.on_done(print),
                lambda: worker.wait(event),
                lambda: cpu.stream.wait(event),
                lambda: two.stream.wait(event),
                lambda: two.launch(print, after=event),
                lambda: ctx.stream.record(timing=True),
            ]
            for use in uses:
                with pytest.raises(UsageError):
                    use()
            ctx.stream.wait(event)
        for use in (*uses[:-1], lambda: other.wait(event), lambda: ctx.launch(print, after=event)):
            with pytest.raises(UsageError, match="which is over"):
                use()
        with pytest.raises(UsageError, match="which is over"), ctx.stream.capture():
            ctx.stream.wait(event)
        assert ctx.health


def test_what_comes_from_outside_has_to_be_over(ctx: tz.Context) -> None:
    x, other, gate = zeros(ctx), ctx.new_stream(), tz.HostEvent("gate")
    over = other.record()
    over.synchronize(timeout=TIMEOUT)
    other.wait(gate)
    held = ctx.launch(plus, x, 1, stream=other)
    event = other.record()
    with ctx.stream.capture() as graph:
        ctx.stream.wait(over)
        for use in (
            lambda: ctx.stream.wait(event),
            lambda: ctx.stream.wait(gate),
            lambda: ctx.stream.wait(other),
            lambda: ctx.launch(plus, held, 1),
            lambda: ctx.launch(print, after=event),
        ):
            with pytest.raises(UsageError, match="before the capture"):
                use()
        ctx.fill(x, 6)
    gate.succeed()
    event.synchronize(timeout=TIMEOUT)
    graph.replay()
    assert all_are(ctx, x, 6)


def test_memory_that_is_still_being_filled_is_waited_for_by_the_replay(ctx: tz.Context) -> None:
    other, gate, out = ctx.new_stream(), tz.HostEvent("gate"), zeros(ctx)
    other.wait(gate)
    with ctx.on(other):
        late = ctx.asarray(np.full(COUNT, 8))
    with ctx.stream.capture() as graph:
        ctx.copy(out, late)
    graph.replay()
    end = ctx.stream.record()
    assert not end.is_done
    gate.succeed()
    end.synchronize(timeout=TIMEOUT)
    assert all_are(ctx, out, 8)


def test_a_capture_waits_until_nothing_is_deferred(ctx: tz.Context) -> None:
    x, gate, stream = zeros(ctx), tz.HostEvent("gate"), ctx.new_stream()
    stream.wait(gate)
    ctx.launch(add, x, 1, stream=stream)
    threading.Timer(0.05, gate.succeed).start()
    with stream.capture() as graph:
        ctx.launch(add, x, 10)
    stream.synchronize(timeout=TIMEOUT)
    assert all_are(ctx, x, 1)
    graph.replay(stream)
    assert all_are(ctx, x, 11)


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


def works(ctx: tz.Context, stream: tz.Stream, x: tz.Buffer) -> None:
    """Capture and replay on a stream, after something went wrong there."""
    ctx.fill(x, 1, stream=stream)
    stream.synchronize(timeout=TIMEOUT)
    with stream.capture() as graph:
        ctx.launch(add, x, 1)
    graph.replay(stream)
    stream.synchronize(timeout=TIMEOUT)
    assert all_are(ctx, x, 2)
    assert ctx.health


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
            _captured(ctx, x).replay(two.stream)
    works(ctx, ctx.stream, x)


def _captured(ctx: tz.Context, x: tz.Buffer) -> Any:
    with ctx.new_stream().capture() as graph:
        ctx.fill(x, 1)
    return graph


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
        _captured(ctx, x)
    works(ctx, ctx.stream, x)
    assert settled(ctx) <= before, emulator.report()["objects"]


# Memory and life -----------------------------------------------------------------------------------------------------


def live() -> int:
    """Bytes that the pools hold for anybody."""
    return sum(runtime.account.live for runtime in live_runtimes())


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


@pytest.mark.parametrize("pool", ["caching", "direct"])
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
        _captured(ctx, x).replay()
        with pytest.raises(KeyError), ctx.stream.capture():
            ctx.fill(x, 2)
            raise KeyError
    ctx.synchronize(timeout=TIMEOUT)
    ctx.allocate(8)
    assert not x.block.users
    assert all_are(ctx, x, 1)


def test_closing_is_idempotent_and_final(ctx: tz.Context) -> None:
    x = zeros(ctx)
    graph = _captured(ctx, x)
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
    graph = _captured(ctx, x)
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
    graph = _captured(ctx, x)
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
