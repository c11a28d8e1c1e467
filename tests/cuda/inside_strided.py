"""Run by test_contract.py on emulated devices: copies and fills of memory with gaps, beyond the contract battery."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.errors import ArgumentError, OutOfMemoryError, UnsupportedError

TIMEOUT = 20.0

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    """A context on the first device; nothing may have touched memory that is not its own."""
    with tz.open("cuda:0") as opened:
        yield opened
    report = cuda_emulator.start().report()
    assert report["n_hazards"] == 0, report["hazards"]


def random_view(chance: np.random.Generator, dtype: str) -> tuple[Array, Array]:
    """An array and a part of it, whatever its axes are and go."""
    whole = chance.integers(0, 200, [int(n) for n in chance.integers(1, 7, chance.integers(1, 5))]).astype(dtype)
    cuts = tuple(slice(int(chance.integers(0, n)), None, int(chance.integers(1, 3))) for n in whole.shape)
    part = whole[cuts].transpose(chance.permutation(whole.ndim))
    return whole, part[tuple(slice(None, None, int(chance.choice([1, 1, -1]))) for _ in part.shape)]


def seen(buffer: tz.Buffer, whole: Array, part: Array) -> tz.Buffer:
    """The same part of a buffer that holds the whole array; backwards by a slice, so along the first axis alone."""
    first = tuple(slice(None, None, -1) if step < 0 else slice(None) for step in part.strides)
    upward = part[first]
    offset = upward.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    size = upward.itemsize
    view = buffer.view(whole.dtype, (buffer.nbytes // size,))[offset // size :]
    view = view.view(whole.dtype, upward.shape, upward.strides)
    return view[::-1] if part.strides and part.strides[0] < 0 else view


@pytest.mark.parametrize("seed", range(30))
def test_random_parts_are_copied_and_filled_as_numpy_does(ctx: tz.Context, seed: int) -> None:
    chance = np.random.default_rng(seed)
    dtype = ("uint8", "int16", "float32", "complex128")[seed % 4]
    whole, part = random_view(chance, dtype)
    if part.ndim > 1:  # a Buffer runs backwards along its first axis alone
        part = part[(slice(None), *(slice(None, None, -1 if step < 0 else 1) for step in part.strides[1:]))]
    x = ctx.asarray(whole, copy=True)
    view, expected = seen(x, whole, part), part.copy()
    assert np.array_equal(ctx.to_numpy(view), expected)
    other = ctx.asarray(np.ascontiguousarray(part + part), copy=True)
    ctx.copy(view, other)
    part[...] = part + part
    assert np.array_equal(ctx.to_numpy(x), whole)
    ctx.fill(view, 3)
    part[...] = 3
    assert np.array_equal(ctx.to_numpy(x), whole)
    ctx.copy(view, expected[::-1] if expected.ndim and expected.shape[0] else expected)
    part[...] = expected[::-1]
    assert np.array_equal(ctx.to_numpy(x), whole)
    with tz.open("cuda:1") as second:
        assert np.array_equal(second.to_numpy(second.asarray(view)), part)


def test_a_source_may_be_changed_when_the_call_returns(ctx: tz.Context) -> None:
    x, values = ctx.asarray(np.zeros((50, 20), "float32")), np.ones((50, 10), "float32")
    ctx.copy(x.view("float32", (50, 10), (80, 8)), values)
    values[...] = 9
    assert ctx.to_numpy(x).sum() == 500


def test_pinned_memory_goes_to_columns_and_back_without_the_host(ctx: tz.Context) -> None:
    values = np.arange(1000, dtype="float64").reshape(50, 20)
    x, pinned = ctx.asarray(values), ctx.memory.pinned.allocate(4000, dtype="float64", shape=(50, 10))
    columns = x.view("float64", (50, 10), (160, 16))
    ctx.copy(pinned, columns)
    ctx.synchronize(TIMEOUT)
    assert np.array_equal(np.asarray(pinned), values[:, ::2])
    np.asarray(pinned)[...] *= -1
    ctx.copy(columns, pinned)
    assert np.array_equal(ctx.to_numpy(columns), -values[:, ::2])


@pytest.mark.parametrize("worker", [False, True])
def test_a_host_stream_has_the_device_move_columns(ctx: tz.Context, worker: bool) -> None:
    values = np.arange(1000, dtype="float32").reshape(50, 20)
    x = ctx.asarray(values)
    columns, row = x.view("float32", (50, 10), (80, 8)), x.view("float32", (20, 50), (4, 80))
    with tz.open("cpu") as host:
        stream = host.new_stream() if worker else host.stream
        out = np.zeros((10, 50), "float32").T
        host.copy(out, columns, stream=stream)
        assert np.array_equal(out, values[:, ::2])
        beside = host.allocate(2000, dtype="float32", shape=(50, 10))
        host.copy(beside, columns, stream=stream)
        stream.synchronize(TIMEOUT)
        assert np.array_equal(host.to_numpy(beside), values[:, ::2])
        host.copy(row, -values.T, stream=stream)
        stream.synchronize(TIMEOUT)
    assert np.array_equal(ctx.to_numpy(x), -values)


def test_the_strided_result_of_a_task_moves(ctx: tz.Context) -> None:
    values = np.arange(200, dtype="float32").reshape(10, 20)

    def columns(x: tz.Buffer) -> tz.Buffer:
        return x.view("float32", (10, 10), (80, 8))

    with tz.open("cuda:1") as second, tz.open("cpu") as host:
        task = ctx.launch(columns, ctx.asarray(values))
        there = second.launch(lambda x: x, task).result(timeout=TIMEOUT)
        assert np.array_equal(second.to_numpy(there), values[:, ::2])
        assert np.array_equal(host.launch(np.copy, task).result(timeout=TIMEOUT), values[:, ::2])


def test_a_simulated_device_takes_columns_through_the_host(ctx: tz.Context) -> None:
    values = np.arange(200, dtype="float32").reshape(10, 20)
    view = ctx.asarray(values).view("float32", (10, 10), (80, 8))
    with tz.open("sim:0") as other:
        x = other.allocate(400, dtype="float32", shape=(10, 10))
        other.copy(x, view)
        assert np.array_equal(other.to_numpy(x), values[:, ::2])
        ctx.copy(view, x[::-1])
    assert np.array_equal(ctx.to_numpy(view), values[::-1, ::2])


def test_elements_that_are_one_and_the_same_can_be_read_and_not_written(ctx: tz.Context) -> None:
    x = ctx.asarray(np.arange(10, dtype="float32"))
    repeated = SimpleNamespace(
        __cuda_array_interface__=x.__cuda_array_interface__ | {"shape": (5, 10), "strides": (0, 4), "stream": 1}
    )
    dense = ctx.asarray(np.zeros((5, 10), "float32"))
    with tz.borrow(repeated, stream=ctx.stream) as lent:
        ctx.copy(dense, lent)
        assert np.array_equal(ctx.to_numpy(lent), np.tile(np.arange(10), (5, 1)))
        with pytest.raises(ArgumentError, match="writable"):
            ctx.copy(lent, dense)
        with pytest.raises(ArgumentError, match="writable"):
            ctx.fill(lent, 1)
    assert np.array_equal(ctx.to_numpy(dense), np.tile(np.arange(10), (5, 1)))


def test_what_would_take_too_many_copies_is_refused_and_comes_to_the_host_nevertheless(ctx: tz.Context) -> None:
    values = np.arange(4000, dtype="float32")
    x, y = ctx.asarray(values), ctx.asarray(np.zeros(4000, "float32"))
    with pytest.raises(UnsupportedError, match="4000 copies"):
        ctx.copy(y, x[::-1])
    with pytest.raises(UnsupportedError, match="kernel"):
        ctx.asarray(x[::-1], copy=True)
    assert np.array_equal(ctx.to_numpy(x[::-1]), values[::-1])
    ctx.copy(y, ctx.to_numpy(x[::-1]))
    assert np.array_equal(ctx.to_numpy(y), values[::-1])


def test_a_copy_onto_itself_takes_memory_below_the_limit_and_gives_it_back() -> None:
    with tz.open("cuda:0", memory_limit="1MiB") as ctx:
        x = ctx.asarray(np.arange(100_000, dtype="float32").reshape(100, 1000))
        live = ctx.memory.stats().live
        ctx.copy(x[::-1], x)
        assert np.array_equal(ctx.to_numpy(x[:1]), np.arange(99_000, 100_000, dtype="float32")[None])
        ctx.synchronize(TIMEOUT)
        assert ctx.memory.stats().live == live
        rest = ctx.allocate(600_000)
        with pytest.raises(OutOfMemoryError):
            ctx.copy(x[::-1], x)
        del rest
        assert np.array_equal(ctx.to_numpy(x[:1]), np.arange(99_000, 100_000, dtype="float32")[None])


def test_a_launched_function_enqueues_strided_copies_and_fills(ctx: tz.Context) -> None:
    values = np.arange(200, dtype="float32").reshape(10, 20)

    def work(x: tz.Buffer) -> tz.Buffer:
        here, view = tz.current(), x.view("float32", (10, 10), (80, 8))
        here.fill(view, 5)
        here.copy(x[::-1], x)
        return x

    expected = values[::-1].copy()
    expected[:, ::2] = 5
    result = ctx.launch(work, ctx.asarray(values), stream=ctx.new_stream()).result(timeout=TIMEOUT)
    assert np.array_equal(ctx.to_numpy(result), expected)
