"""Level 1, above the waist: copies and fills of memory with gaps, in whatever direction its axes go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import UnsupportedError
from tazza.spi import Level
from tazza.testing.contract.battery import Array, Target, needs

LEVEL = Level.TRANSPORT

SHAPE = (6, 10)

Cut = Callable[[Any], Any]

VIEWS: dict[str, tuple[Cut, Cut]] = {  # the same part of a Buffer and of an array of SHAPE and float32
    "rows": (lambda x: x[1:6:2], lambda a: a[1:6:2]),
    "columns": (lambda x: x.view("float32", (6, 4), (40, 4)), lambda a: a[:, :4]),
    "every other column": (lambda x: x.view("float32", (6, 5), (40, 8)), lambda a: a[:, ::2]),
    "upside down": (lambda x: x[::-1], lambda a: a[::-1]),
    "transposed": (lambda x: x.view("float32", (10, 6), (4, 40)), lambda a: a.T),
    "blocks": (lambda x: x.view("float32", (3, 2, 5), (80, 4, 8)), lambda a: a[::2].reshape(3, 5, 2).swapaxes(1, 2)),
}
each_view = pytest.mark.parametrize(("of_buffer", "of_array"), VIEWS.values(), ids=VIEWS)


def numbers(target: Target) -> Array:
    """An array to take parts of."""
    return target.numbers(SHAPE[0] * SHAPE[1]).reshape(SHAPE)


def stored(ctx: tz.Context, values: Array) -> tz.Buffer:
    """A dense buffer that holds the values."""
    buffer = ctx.allocate(values.nbytes, dtype=values.dtype, shape=values.shape)
    ctx.copy(buffer, values)
    return buffer


def replaced(values: Array, of_array: Cut, part: object) -> Array:
    """A copy of the values with another part."""
    made = values.copy()
    of_array(made)[...] = part
    return made


@each_view
def test_strided_memory_comes_to_the_host(target: Target, of_buffer: Cut, of_array: Cut) -> None:
    values = numbers(target)
    with target.open() as ctx:
        view, wanted = of_buffer(stored(ctx, values)), of_array(values)
        assert np.array_equal(ctx.to_numpy(view), wanted)
        apart = np.full((*wanted.shape, 2), -1, wanted.dtype)
        ctx.copy(apart[..., 0], view)
        assert np.array_equal(apart[..., 0], wanted)
        assert (apart[..., 1] == -1).all()


@each_view
def test_strided_host_memory_comes_to_the_device(target: Target, of_buffer: Cut, of_array: Cut) -> None:
    values = numbers(target)
    wanted = of_array(values).copy()
    with target.open() as ctx:
        made, dense = ctx.asarray(of_array(values), copy=True), stored(ctx, np.zeros_like(wanted))
        ctx.copy(dense, of_array(values))
        values[...] = -1
        assert np.array_equal(ctx.to_numpy(made), wanted)
        assert np.array_equal(ctx.to_numpy(dense), wanted)


@needs("strided memory")
@each_view
def test_strided_memory_is_filled(target: Target, of_buffer: Cut, of_array: Cut) -> None:
    values = numbers(target)
    several = np.arange(of_array(values).size, dtype="float32").reshape(of_array(values).shape)
    fills: list[tuple[Any, Any]] = [
        *((0.5, 0.5), (b"\2", np.frombuffer(b"\2" * 4, "float32")[0])),
        *((np.float32(0.1).tobytes(), np.float32(0.1)), (several.tobytes(), several)),
    ]
    with target.open() as ctx:
        whole = stored(ctx, values)
        for value, part in fills:
            ctx.fill(of_buffer(whole), value)
            assert np.array_equal(ctx.to_numpy(whole), replaced(values, of_array, part))


@needs("strided memory")
@each_view
def test_strided_memory_is_copied_within_the_device(target: Target, of_buffer: Cut, of_array: Cut) -> None:
    values, others = numbers(target), numbers(target)[::-1, ::-1] + 100
    with target.open() as ctx:
        here, there = stored(ctx, values), stored(ctx, others)
        ctx.copy(of_buffer(here), of_buffer(there))
        assert np.array_equal(ctx.to_numpy(here), replaced(values, of_array, of_array(others)))
        dense = stored(ctx, of_array(values).copy())
        ctx.copy(of_buffer(there), dense)
        assert np.array_equal(ctx.to_numpy(there), replaced(others, of_array, of_array(values)))
        again = ctx.asarray(of_buffer(there), copy=True)
        ctx.fill(there, 0)
        assert np.array_equal(ctx.to_numpy(again), of_array(values))


@needs("strided memory")
def test_overlapping_strided_copies_go_as_if_through_a_temporary(target: Target) -> None:
    values, s_ = numbers(target), np.s_
    with target.open() as ctx:
        x = stored(ctx, values)
        for to, of in ((s_[1:5:2], s_[0:4:2]), (s_[::-1], s_[:]), (s_[::2], s_[1::2]), (s_[0:4:2], s_[0:4:2])):
            ctx.copy(x[to], x[of])
            values[to] = values[of].copy()
            assert np.array_equal(ctx.to_numpy(x), values)


@each_view
def test_strided_memory_takes_what_lies_elsewhere_or_says_that_it_cannot(
    target: Target, of_buffer: Cut, of_array: Cut
) -> None:
    values, able = numbers(target), target.capabilities
    names = ["cpu", *(info.name for info in target.driver.devices())]
    with target.open() as ctx:
        for name in dict.fromkeys(names):
            with tz.open(name) as other:
                here, there = stored(ctx, np.zeros_like(values)), of_buffer(stored(other, values))
                ctx.stream.wait(other.stream)
                beside = there.device.memory_domain == here.device.memory_domain
                has_gaps = there.nbytes > of_array(values).nbytes
                if able.boxes or (beside and able.host_functions) or not has_gaps:
                    ctx.copy(of_buffer(here), there)
                    wanted = replaced(np.zeros_like(values), of_array, of_array(values))
                    assert np.array_equal(ctx.to_numpy(here), wanted)
                else:
                    with pytest.raises(UnsupportedError):
                        ctx.copy(of_buffer(here), there)


@needs("strided memory")
def test_strided_copies_and_fills_keep_the_order_of_streams(target: Target) -> None:
    with target.open() as ctx:
        x, y = stored(ctx, np.zeros(SHAPE, "float32")), stored(ctx, np.zeros((6, 5), "float32"))
        view, streams = x.view("float32", (6, 5), (40, 8)), [ctx.new_stream() for _ in range(2)]
        streams[1].wait(ctx.stream)
        for number in range(1, 31):
            here, after = streams[number % 2], streams[(number + 1) % 2]
            ctx.fill(view, number, stream=here)
            ctx.copy(y, view, stream=here)
            ctx.fill(view, -1, stream=here)
            after.wait(here)
        ctx.stream.wait(streams[1])
        assert (ctx.to_numpy(y) == 30).all()
        back = ctx.to_numpy(x)
        assert (back[:, ::2] == -1).all()
        assert (back[:, 1::2] == 0).all()
