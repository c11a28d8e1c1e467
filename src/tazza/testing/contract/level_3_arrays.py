"""Level 3: the array library. Dtypes, conversion, computation, moves."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ArgumentError, UnsupportedError, UsageError
from tazza.spi import Level
from tazza.testing.contract.battery import TIMEOUT, Target, needs

LEVEL = Level.ARRAYS


def inside(ctx: tz.Context, function: Any, *args: Any) -> Any:
    """Run ``function(xp, *args)`` as a task and bring its result to the host."""
    task = ctx.launch(lambda *arrays: function(tz.current().xp, *arrays), *args)
    return ctx.to_numpy(task.result(timeout=TIMEOUT))


def test_an_array_library_is_declared(target: Target) -> None:
    with target.open() as ctx:
        assert ctx.spec.arrays == (target.arrays or target.capabilities.array_libraries[0])
    with pytest.raises(ArgumentError, match="array library"):
        tz.context(target.device, arrays="no such library")


def test_every_declared_dtype_comes_back(target: Target) -> None:
    with target.open() as ctx:
        for name in sorted(target.capabilities.dtypes):
            values = target.numbers(20, name).reshape(4, 5)
            arrived = ctx.to_numpy(ctx.asarray(values))
            assert arrived.dtype == values.dtype
            assert (arrived == values).all(), name


@needs("no float64")
def test_a_missing_dtype_names_the_nearest(target: Target) -> None:
    with target.open() as ctx, pytest.raises(UnsupportedError, match="float32"):
        ctx.empty(3, "float64")


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
def test_shapes_come_back(target: Target, shape: tuple[int, ...]) -> None:
    values = target.numbers(int(np.prod(shape))).reshape(shape)
    with target.open() as ctx:
        assert ctx.empty(shape, "float32").shape == shape
        arrived = ctx.to_numpy(ctx.asarray(values))
        assert arrived.shape == shape
        assert (arrived == values).all()


def test_host_data_of_any_layout_arrives(target: Target) -> None:
    whole = target.numbers(60).reshape(5, 12)
    with target.open() as ctx:
        for values in (whole[::2, ::-3], whole.T, np.broadcast_to(whole[0], (4, 12))):
            assert (ctx.to_numpy(ctx.asarray(values)) == values).all()
        assert ctx.to_numpy(ctx.asarray([[1, 2], [3, 4]], dtype="int32")).tolist() == [[1, 2], [3, 4]]


def test_dtypes_are_converted(target: Target) -> None:
    with target.open() as ctx:
        x = ctx.asarray(target.numbers(20, "int32"))
        converted = ctx.to_numpy(ctx.asarray(x, dtype="float32"))
        assert converted.dtype == np.float32
        assert (converted == target.numbers(20, "int32")).all()


def test_a_copy_is_private(target: Target) -> None:
    with target.open() as ctx:
        x = ctx.asarray(target.numbers(20), copy=True)
        y = ctx.asarray(x, copy=True)
        ctx.launch(operator.imul, y, 0).result(timeout=TIMEOUT)
        assert (ctx.to_numpy(x) == target.numbers(20)).all()
        assert not ctx.to_numpy(y).any()


@needs("no host_addressable")
def test_host_data_is_never_aliased(target: Target) -> None:
    with target.open() as ctx, pytest.raises(ArgumentError, match="copy"):
        ctx.asarray(target.numbers(4), copy=False)


def test_arrays_compute(target: Target) -> None:
    a, b = target.numbers(12).reshape(3, 4), target.numbers(20).reshape(4, 5)
    with target.open() as ctx:
        x, y = ctx.asarray(a), ctx.asarray(b)
        assert (inside(ctx, lambda xp, x, y: xp.matmul(x, y), x, y) == a @ b).all()
        assert (inside(ctx, lambda xp, x: xp.sum(x, axis=1), x) == a.sum(1)).all()
        assert (inside(ctx, lambda xp, x: xp.where(x > 50, x, -x), x) == np.where(a > 50, a, -a)).all()
        assert (inside(ctx, lambda xp, x: xp.permute_dims(x, (1, 0)), x) == a.T).all()


def test_creation_functions_are_on_the_device(target: Target) -> None:
    with target.open() as ctx:
        made = inside(ctx, lambda xp: xp.concat([xp.zeros(2, dtype=xp.float32), xp.ones(2, dtype=xp.float32)]))
        assert made.tolist() == [0, 0, 1, 1]
        assert made.dtype == np.float32


@needs("host_functions", "no host_addressable")
def test_eager_operations_are_refused(target: Target) -> None:
    with target.open() as ctx, pytest.raises(UsageError, match="launch"):
        _ = ctx.xp


@needs("host_addressable")
def test_eager_operations_are_refused_on_a_worker_stream_only(target: Target) -> None:
    with target.open() as ctx:
        assert float(ctx.xp.sum(ctx.asarray(target.numbers(3)))) == target.numbers(3).sum()
        with ctx.on(ctx.new_stream()), pytest.raises(UsageError, match="launch"):
            _ = ctx.xp


def test_arrays_move_between_contexts(target: Target) -> None:
    values = target.numbers(30).reshape(5, 6)
    with target.open() as ctx, tz.open("cpu") as cpu, target.open() as second:
        here = ctx.asarray(cpu.asarray(values))
        assert (cpu.to_numpy(cpu.asarray(here)) == values).all()
        assert (second.to_numpy(second.asarray(here)) == values).all()


def test_the_context_of_an_array_is_found(target: Target) -> None:
    with target.open() as ctx:
        assert tz.context_of(ctx.empty(4, "float32")) is ctx
