"""Run by test_contract.py on emulated devices: what is captured, and in which order."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from cuda.bindings import driver as api

import tazza as tz
from tazza.errors import (
    UsageError,
)
from tests.cuda.capturing import COUNT, TIMEOUT, all_are, zeros
from tests.cuda.kernels import add, plus


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    """A context on the first device."""
    with tz.open("cuda:0", seed=5) as opened:
        yield opened


def both(x: tz.Buffer) -> None:
    """Two kernels in one function."""
    add(x, 10)
    add(x, 100)


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


def test_what_a_library_puts_into_the_native_queue_iscaptured(ctx: tz.Context) -> None:
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


def test_memory_that_a_library_alone_uses_is_waited_for(ctx: tz.Context) -> None:
    x, gate, other = zeros(ctx), tz.HostEvent("gate"), ctx.new_stream()
    with ctx.stream.capture() as graph:
        assert not api.cuMemsetD8Async(x.address, 1, x.nbytes, x.__cuda_array_interface__["stream"])[0]
    other.wait(gate)
    graph.replay(other)
    threading.Timer(0.05, gate.succeed).start()
    assert all_are(ctx, x, 0x0101010101010101)


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


def test_memory_made_on_one_captured_stream_is_waited_for_by_another(ctx: tz.Context) -> None:
    x, pinned, other = zeros(ctx), ctx.memory.pinned.allocate(8 * COUNT, dtype="int64"), ctx.new_stream()
    with ctx.stream.capture() as graph:
        other.wait(ctx.stream)
        made = ctx.asarray(pinned)
        ctx.copy(x, made, stream=other)
        ctx.stream.wait(other)
    for round_ in range(1, 31):
        np.asarray(pinned)[:] = round_
        graph.replay()
        assert all_are(ctx, x, round_)


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
