"""Level 2: launched functions and random numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import CancelledTaskError, EscapedViewError, UpstreamError, WrongDeviceError
from tazza.spi import Level
from tazza.testing.contract.battery import TIMEOUT, Target, needs

LEVEL = Level.KERNELS


def double(x: Any) -> Any:
    """Return twice the array."""
    return x * 2


def increase(x: Any) -> None:
    """Add one in place."""
    x += 1


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
        task = ctx.launch(double, ctx.asarray(values))
        assert (ctx.to_numpy(task.result(timeout=TIMEOUT)) == 2 * values).all()


def test_a_function_writes_into_its_arguments(target: Target) -> None:
    values = target.numbers(100)
    with target.open() as ctx:
        x = ctx.asarray(values, copy=True)
        tasks = [ctx.launch(increase, x) for _ in range(10)]
        tz.wait(tasks, timeout=TIMEOUT)
        assert (ctx.to_numpy(x) == values + 10).all()


def test_containers_are_looked_into(target: Target) -> None:
    with target.open() as ctx:
        one, two = ctx.asarray(target.numbers(4)), ctx.asarray(target.numbers(4))
        task = ctx.launch(lambda given: {"sum": given["pair"][0] + given["pair"][1]}, {"pair": (one, two)})
        assert (ctx.to_numpy(task.result(timeout=TIMEOUT)["sum"]) == 2 * target.numbers(4)).all()


def test_a_function_has_its_context(target: Target) -> None:
    with target.open() as ctx:
        stream = ctx.new_stream()
        seen = ctx.launch(lambda: (tz.current(), tz.current().stream), stream=stream).result(timeout=TIMEOUT)
        assert seen == (ctx, stream)


def test_results_are_passed_on(target: Target) -> None:
    values = target.numbers(50)
    with target.open() as ctx:
        task = ctx.launch(double, ctx.asarray(values), stream=ctx.new_stream())
        for _ in range(4):
            task = ctx.launch(double, task, stream=ctx.new_stream())
        assert (ctx.to_numpy(task) == 32 * values).all()


def test_results_move_to_the_cpu_and_back(target: Target) -> None:
    values = target.numbers(50)
    with target.open() as ctx, tz.open("cpu") as cpu:
        there = cpu.launch(double, cpu.asarray(values), stream=cpu.new_stream())
        here = ctx.launch(double, there, stream=ctx.new_stream())
        back = cpu.launch(double, here, stream=cpu.new_stream())
        assert (cpu.to_numpy(back.result(timeout=TIMEOUT)) == 8 * values).all()


@needs("second device")
def test_results_move_to_a_second_device(target: Target) -> None:
    values = target.numbers(50)
    with target.open() as ctx, tz.open(target.second.name) as other:
        there = other.launch(double, ctx.launch(double, ctx.asarray(values)))
        assert (other.to_numpy(there.result(timeout=TIMEOUT)) == 4 * values).all()


@needs("no host_addressable")
def test_foreign_memory_is_refused_with_the_call_that_moves_it(target: Target) -> None:
    with target.open() as ctx, tz.open("cpu") as cpu:
        with pytest.raises(WrongDeviceError, match="asarray"):
            ctx.launch(double, cpu.allocate(16, dtype="float32"))
        with pytest.raises(WrongDeviceError, match="asarray"):
            ctx.launch(double, np.zeros(4, "float32"))


# Failure -----------------------------------------------------------------------------------------------------------


def test_a_failure_goes_to_the_task_and_on(target: Target) -> None:
    with target.open() as ctx:
        stream = ctx.new_stream()
        failed = ctx.launch(fail, stream=stream)
        dependent = ctx.launch(double, failed, stream=stream)
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
        waiting = ctx.launch(double, 1, stream=stream)
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
