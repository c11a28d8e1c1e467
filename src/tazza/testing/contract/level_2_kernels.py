"""Level 2: launched functions and random numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import (
    ArgumentError,
    BackendError,
    CancelledTaskError,
    CompileError,
    EscapedViewError,
    UnsupportedError,
    UpstreamError,
    UsageError,
    WrongDeviceError,
)
from tazza.spi import Level
from tazza.testing.contract.battery import TIMEOUT, Target, needs
from tazza.testing.contract.functions import SOURCES, functions_of

LEVEL = Level.KERNELS


def fail() -> None:
    """Raise."""
    raise KeyError("broken")


# Launches ----------------------------------------------------------------------------------------------------------


def test_a_function_returns_what_is_no_array(target: Target) -> None:
    with target.open() as ctx:
        assert ctx.launch(divmod, 17, 5).result(timeout=TIMEOUT) == (3, 2)


def test_a_function_sees_and_returns_arrays(target: Target) -> None:
    values = target.numbers(100)
    with target.open() as ctx:
        task = ctx.launch(functions_of(ctx).double, ctx.asarray(values))
        assert (ctx.to_numpy(task.result(timeout=TIMEOUT)) == 2 * values).all()


def test_a_function_writes_into_its_arguments(target: Target) -> None:
    values = target.numbers(100)
    with target.open() as ctx:
        x, increase = ctx.asarray(values, copy=True), functions_of(ctx).increase
        tasks = [ctx.launch(increase, x) for _ in range(10)]
        tz.wait(tasks, timeout=TIMEOUT)
        assert (ctx.to_numpy(x) == values + 10).all()


def test_containers_are_looked_into(target: Target) -> None:
    with target.open() as ctx:
        one, two, add = ctx.asarray(target.numbers(4)), ctx.asarray(target.numbers(4)), functions_of(ctx).add
        task = ctx.launch(lambda given: {"sum": add(*given["pair"])}, {"pair": (one, two)})
        assert (ctx.to_numpy(task.result(timeout=TIMEOUT)["sum"]) == 2 * target.numbers(4)).all()


def test_a_function_has_its_context(target: Target) -> None:
    with target.open() as ctx:
        stream = ctx.new_stream()
        seen = ctx.launch(lambda: (tz.current(), tz.current().stream), stream=stream).result(timeout=TIMEOUT)
        assert seen == (ctx, stream)


def test_results_are_passed_on(target: Target) -> None:
    values = target.numbers(50)
    with target.open() as ctx:
        double = functions_of(ctx).double
        task = ctx.launch(double, ctx.asarray(values), stream=ctx.new_stream())
        for _ in range(4):
            task = ctx.launch(double, task, stream=ctx.new_stream())
        assert (ctx.to_numpy(task) == 32 * values).all()


def test_results_move_to_the_cpu_and_back(target: Target) -> None:
    values = target.numbers(50)
    with target.open() as ctx, tz.open("cpu") as cpu:
        there = cpu.launch(functions_of(cpu).double, cpu.asarray(values), stream=cpu.new_stream())
        here = ctx.launch(functions_of(ctx).double, there, stream=ctx.new_stream())
        back = cpu.launch(functions_of(cpu).double, here, stream=cpu.new_stream())
        assert (cpu.to_numpy(back.result(timeout=TIMEOUT)) == 8 * values).all()


@needs("second device")
def test_results_move_to_a_second_device(target: Target) -> None:
    values = target.numbers(50)
    with target.open() as ctx, tz.open(target.second.name) as other:
        here = ctx.launch(functions_of(ctx).double, ctx.asarray(values))
        there = other.launch(functions_of(other).double, here)
        assert (other.to_numpy(there.result(timeout=TIMEOUT)) == 4 * values).all()


@needs("no host_addressable")
def test_foreign_memory_is_refused_with_the_call_that_moves_it(target: Target) -> None:
    with target.open() as ctx, tz.open("cpu") as cpu:
        with pytest.raises(WrongDeviceError, match="asarray"):
            ctx.launch(print, cpu.allocate(16, dtype="float32"))
        with pytest.raises(WrongDeviceError, match="asarray"):
            ctx.launch(print, np.zeros(4, "float32"))


# Compiled kernels --------------------------------------------------------------------------------------------------


@needs("kernel language")
def test_a_compiled_kernel_is_launched_like_a_function(target: Target) -> None:
    values = target.numbers(1000)
    with target.open() as ctx:
        total = ctx.compile(_source(target), "sum")
        first, second, made = ctx.asarray(values), ctx.asarray(values[::-1].copy()), ctx.empty(1000, "float32")
        task = ctx.launch(total[16, 64], np.uint32(1000), first, second, made, stream=ctx.new_stream())
        assert task.result(timeout=TIMEOUT) is None
        assert (ctx.to_numpy(made) == values + values[::-1]).all()


@needs("kernel language")
def test_kernels_are_ordered_like_all_work(target: Target) -> None:
    with target.open() as ctx:
        increase, x = ctx.compile(_source(target), "increase"), ctx.asarray(np.zeros(64, "float32"))
        tasks: list[tz.Task] = []
        for number in range(12):
            tasks.append(ctx.launch(increase[1, 64], 64, float(number), x, after=tasks[-1:], stream=ctx.new_stream()))
        tz.wait(tasks, timeout=TIMEOUT)
        assert (ctx.to_numpy(x) == sum(range(12))).all()


@needs("kernel language")
def test_a_kernel_outlives_its_context(target: Target) -> None:
    with target.open() as ctx:
        twice = ctx.compile(_source(target), "twice")
    with target.open() as ctx:
        x, made = ctx.asarray(target.numbers(64)), ctx.empty(64, "float32")
        ctx.launch(twice[(1, 1), (64, 1, 1), 0], 64, x, made).result(timeout=TIMEOUT)
        assert (ctx.to_numpy(made) == 2 * target.numbers(64)).all()


@needs("kernel language")
def test_what_is_no_kernel_is_refused(target: Target) -> None:
    with target.open() as ctx:
        with pytest.raises(CompileError) as refused:
            ctx.compile(_source(target) + "this is no source", "twice")
        assert refused.value.log
        with pytest.raises(ArgumentError, match="increase"):
            ctx.compile(_source(target), "no_such_kernel")
        for code in (b"neither an image nor source", 7, None):
            with pytest.raises(ArgumentError, match="code"):
                ctx.compile(code, "twice")
        assert ctx.compile(_source(target), "twice").name == "twice"


@needs("kernel language")
def test_a_launch_that_does_not_fit_is_refused_and_the_device_stays_well(target: Target) -> None:
    with target.open() as ctx:
        twice, x = ctx.compile(_source(target), "twice"), ctx.asarray(target.numbers(64))
        for shape in (
            1,
            (1,),
            (0, 1),
            (1, -1),
            (1, 1.5),
            (1, (1, 1, 1, 1)),
            (1, twice.most_threads + 1),
            (1, 1, 2**31),
        ):
            with pytest.raises(ArgumentError):
                twice[shape]
        wide, large = np.int64(1), (2**40, 1e300)
        for given in ((), (1, x), (1, x, x, x), (1, x, "y"), (1, x, None), (wide, x, x), *((n, x, x) for n in large)):
            with pytest.raises(ArgumentError, match="args"):
                ctx.launch(twice[1, 64], *given).result(timeout=TIMEOUT)
        with pytest.raises(BackendError):
            ctx.launch(twice[1, 64, 2**30], 64, x, x).result(timeout=TIMEOUT)
        with pytest.raises(UsageError, match=r"ctx\.launch"):
            twice[1, 64](64, x, x)
        ctx.launch(twice[1, 64], 64, x, x).result(timeout=TIMEOUT)
        assert (ctx.to_numpy(x) == 2 * target.numbers(64)).all()
        assert ctx.health


@needs("kernel language", "second device")
def test_a_kernel_belongs_to_its_device(target: Target) -> None:
    with target.open() as ctx, tz.open(target.second.name) as other:
        twice, x = ctx.compile(_source(target), "twice"), other.asarray(target.numbers(64))
        with pytest.raises(WrongDeviceError, match="compile it there"):
            other.launch(twice[1, 64], 64, x, x).result(timeout=TIMEOUT)
        with pytest.raises(WrongDeviceError, match="asarray"):
            ctx.launch(lambda: twice[1, 64](64, x, x)).result(timeout=TIMEOUT)


@needs("no kernel language")
def test_a_device_without_a_kernel_language_says_what_to_do(target: Target) -> None:
    with target.open() as ctx, pytest.raises(UnsupportedError, match="launch a Python function"):
        ctx.compile("", "twice")


def _source(target: Target) -> str:
    return SOURCES[target.capabilities.kernel_language]


# Capture and replay ------------------------------------------------------------------------------------------------


@needs("capture")
def test_captured_work_runs_on_each_replay_and_not_before(target: Target) -> None:
    with target.open() as ctx:
        x, stream, increase = ctx.asarray(target.numbers(100), copy=True), ctx.new_stream(), functions_of(ctx).increase
        ctx.synchronize(timeout=TIMEOUT)
        with stream.capture() as graph:
            for _ in range(3):
                ctx.launch(increase, x)
        assert (ctx.to_numpy(x) == target.numbers(100)).all()
        for number in range(1, 5):
            graph.replay(stream if number % 2 else ctx.new_stream())
            assert (ctx.to_numpy(x) == target.numbers(100) + 3 * number).all()
        ctx.launch(increase, x)
        graph.close()
        assert (ctx.to_numpy(x) == target.numbers(100) + 13).all()


@needs("capture")
def test_copies_and_fills_of_any_kind_are_replayed(target: Target) -> None:
    values = target.numbers(100)
    with target.open() as ctx:
        x, y, z = (ctx.empty(100, "float32") for _ in range(3))
        host = values.copy()
        with ctx.stream.capture() as graph:
            ctx.copy(x, host)
            ctx.copy(y, x)
            ctx.copy(x[1:], x[:-1])
            ctx.fill(z[:50], 7.5)
            ctx.fill(z[50:], values[:10].tobytes())
        host[:] = 0
        for _ in range(2):
            ctx.fill(z, 0)
            graph.replay()
            assert (ctx.to_numpy(x)[1:] == values[:-1]).all()
            assert (ctx.to_numpy(y) == values).all()
            assert (ctx.to_numpy(z) == np.concatenate([np.full(50, 7.5), np.tile(values[:10], 5)])).all()


@needs("capture")
def test_memory_of_a_graph_is_its_own_until_its_end(target: Target) -> None:
    with target.open() as ctx:
        double, x, out = functions_of(ctx).double, ctx.asarray(target.numbers(100)), ctx.empty(100, "float32")
        ctx.synchronize(timeout=TIMEOUT)
        before = ctx.memory.stats().live
        with ctx.stream.capture() as graph:
            ctx.launch(lambda: ctx.copy(out, double(double(x))))
            kept = ctx.launch(double, x)
        others = [ctx.asarray(np.full(100, 1, "float32")) for _ in range(20)]
        ctx.memory.trim()
        for _ in range(2):
            graph.replay()
            assert (ctx.to_numpy(out) == 4 * target.numbers(100)).all()
            assert (ctx.to_numpy(kept) == 2 * target.numbers(100)).all()
        assert all((ctx.to_numpy(other) == 1).all() for other in others)
        del others, kept
        graph.close()
        ctx.synchronize(timeout=TIMEOUT)
        ctx.memory.trim()
        assert ctx.memory.stats().live == before


@needs("capture")
def test_streams_take_part_by_waiting_and_are_joined_by_being_waited_for(target: Target) -> None:
    with target.open() as ctx:
        stream, other = ctx.new_stream(), ctx.new_stream()
        x, y = (ctx.asarray(target.numbers(100), copy=True) for _ in range(2))
        ctx.synchronize(timeout=TIMEOUT)
        increase = functions_of(ctx).increase
        with stream.capture() as graph:
            ctx.launch(increase, x)
            event = stream.record()
            other.wait(event)
            ctx.copy(y, x, stream=other)
            ctx.launch(increase, y, stream=other)
            stream.wait(other)
            ctx.launch(increase, x)
        for number in range(1, 4):
            graph.replay()
            assert (ctx.to_numpy(x) == target.numbers(100) + 2 * number).all()
            assert (ctx.to_numpy(y) == target.numbers(100) + 2 * number).all()
        for use in (event.synchronize, lambda: other.wait(event), lambda: event.is_done):
            with pytest.raises(UsageError):
                use()

        def leave_open() -> None:
            with stream.capture():
                other.wait(stream)
                ctx.fill(x, 1, stream=other)

        with pytest.raises(UsageError, match="not joined"):
            leave_open()


@needs("capture")
def test_nothing_is_waited_for_inside_a_capture(target: Target) -> None:
    with target.open() as ctx:
        x, stream, gate = ctx.asarray(target.numbers(100), copy=True), ctx.new_stream(), tz.HostEvent()
        ctx.synchronize(timeout=TIMEOUT)
        increase = functions_of(ctx).increase
        with stream.capture() as graph:
            task = ctx.launch(increase, x)
            for use in (
                stream.synchronize,
                ctx.synchronize,
                task.result,
                lambda: ctx.to_numpy(x),
                lambda: stream.wait(gate),
                lambda: stream.wait(ctx.own_stream),
                graph.replay,
            ):
                with pytest.raises(UsageError):
                    use()
        graph.replay()
        assert (ctx.to_numpy(x) == target.numbers(100) + 1).all()


@needs("capture")
def test_what_fails_inside_gives_no_graph_and_a_stream_that_works(target: Target) -> None:
    with target.open() as ctx:
        x, increase = ctx.asarray(target.numbers(100), copy=True), functions_of(ctx).increase
        ctx.synchronize(timeout=TIMEOUT)
        made: list[Any] = []

        def capture(after: Callable[[], object]) -> None:
            with ctx.stream.capture() as graph:
                made.append(graph)
                ctx.launch(increase, x)
                after()

        for after in (fail, lambda: ctx.launch(fail)):
            with pytest.raises(KeyError, match="broken"):
                capture(after)
            with pytest.raises(UsageError):
                made.pop().replay()
        ctx.launch(increase, x)
        assert (ctx.to_numpy(x) == target.numbers(100) + 1).all()
        assert ctx.health


@needs("no capture")
def test_a_device_that_captures_nothing_says_what_to_do(target: Target) -> None:
    with target.open() as ctx, pytest.raises(UnsupportedError, match="call the function again"):
        ctx.stream.capture()


# Failure -----------------------------------------------------------------------------------------------------------


def test_a_failure_goes_to_the_task_and_on(target: Target) -> None:
    with target.open() as ctx:
        stream = ctx.new_stream()
        failed = ctx.launch(fail, stream=stream)
        dependent = ctx.launch(print, failed, stream=stream)
        unrelated = ctx.launch(divmod, 17, 5, stream=stream)
        with pytest.raises(KeyError, match="broken"):
            failed.result(timeout=TIMEOUT)
        with pytest.raises(UpstreamError) as caught:
            dependent.result(timeout=TIMEOUT)
        assert isinstance(caught.value.cause, KeyError)
        assert unrelated.result(timeout=TIMEOUT) == (3, 2)
        assert ctx.health


def test_synchronize_raises_what_nobody_saw(target: Target) -> None:
    with target.open() as ctx:
        stream = ctx.new_stream()
        ctx.launch(fail, stream=stream)
        with pytest.raises(KeyError, match="broken"):
            stream.synchronize(timeout=TIMEOUT)
        stream.synchronize(timeout=TIMEOUT)


@needs("host_functions")
def test_a_task_is_cancelled_before_it_starts(target: Target) -> None:
    gate = threading.Event()
    with target.open() as ctx:
        stream = ctx.new_stream()
        running = ctx.launch(gate.wait, TIMEOUT, stream=stream)
        waiting = ctx.launch(divmod, 17, 5, stream=stream)
        assert waiting.cancel()
        gate.set()
        assert running.result(timeout=TIMEOUT)
        with pytest.raises(CancelledTaskError):
            waiting.result(timeout=TIMEOUT)


@needs("host_functions", "no host_addressable")
def test_a_view_that_outlives_its_function_fails_the_task(target: Target) -> None:
    kept: list[Any] = []
    with target.open() as ctx:
        task = ctx.launch(kept.append, ctx.asarray(target.numbers(4)))
        with pytest.raises(EscapedViewError):
            task.result(timeout=TIMEOUT)
        kept.clear()


# Random numbers ----------------------------------------------------------------------------------------------------


def test_floats_are_numpys_bit_for_bit(target: Target) -> None:
    with target.open() as ctx:
        drawn = ctx.to_numpy(ctx.random.random((3, 1001), dtype="float32"))
    assert (drawn == _numpys(target).random((3, 1001), dtype="float32")).all()


@needs("float64")
def test_doubles_are_numpys_bit_for_bit(target: Target) -> None:
    with target.open() as ctx:
        drawn = ctx.to_numpy(ctx.random.random(5001))
    assert (drawn == _numpys(target).random(5001)).all()


def test_a_draw_may_be_cut_anywhere(target: Target) -> None:
    with target.open() as ctx:
        parts = [ctx.to_numpy(ctx.random.random(count, dtype="float32")) for count in (1, 6, 993, 4)]
    assert (np.concatenate(parts) == _numpys(target).random(1004, dtype="float32")).all()


def test_every_distribution_has_the_bits_of_the_cpu(target: Target) -> None:
    draws: tuple[Callable[[tz.Generator], Any], ...] = (
        lambda random: random.standard_normal(999, dtype="float32"),
        lambda random: random.integers(0, 1000, 999, dtype="int32"),
        lambda random: random.standard_exponential(999, dtype="float32"),
        lambda random: random.split(3)[2].random(99, dtype="float32"),
        lambda random: random.for_purpose("dropout").random(99, dtype="float32"),
        lambda random: random.random(99, dtype="float32", shard=(1, 3)),
    )
    with target.open() as ctx, tz.open("cpu", seed=target.seed) as cpu:
        for draw in draws:
            assert (ctx.to_numpy(draw(ctx.random)) == cpu.to_numpy(draw(cpu.random))).all()


def test_tasks_draw_what_their_launch_says(target: Target) -> None:
    def draw() -> Any:
        return tz.current().random.random(9, dtype="float32")

    drawn = []
    for opening in (target.open(), tz.open("cpu", seed=target.seed)):
        with opening as ctx:
            tasks = [ctx.launch(draw, stream=ctx.new_stream()) for _ in range(4)]
            drawn.append([ctx.to_numpy(task).tolist() for task in tasks])
    assert drawn[0] == drawn[1]


def test_the_contexts_own_generator_may_be_drawn_from_inside_a_task(target: Target) -> None:
    with target.open() as ctx:
        outer = ctx.random
        drawn = ctx.launch(lambda: outer.random(9, dtype="float32"))
        result = ctx.to_numpy(drawn.result(timeout=TIMEOUT))
        after = ctx.to_numpy(ctx.random.random(9, dtype="float32"))
    numpys = _numpys(target)
    assert (result == numpys.random(9, dtype="float32")).all()
    assert (after == numpys.random(9, dtype="float32")).all()


def _numpys(target: Target) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(target.seed))
