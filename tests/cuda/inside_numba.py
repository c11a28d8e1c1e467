"""Run by test_contract.py on emulated devices: Numba's arrays in the memory of contexts."""

from __future__ import annotations

import doctest
import gc
from collections.abc import Iterator
from typing import Any

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.errors import ArgumentError, OutOfMemoryError

numba = pytest.importorskip("numba")
cuda = pytest.importorskip("numba.cuda")

import tazza.adapters.numba  # noqa: E402
from tazza.adapters.numba import NumbaAdapter, memory_manager  # noqa: E402  Numba may be missing

TIMEOUT = 20.0
LIMIT = 4 << 20


@pytest.fixture(scope="module")
def contexts() -> Iterator[list[tz.Context]]:
    """The contexts that Numba's manager was made with, in a process that has used no device with Numba."""
    made = [tz.context(device.name, memory_limit=LIMIT) for device in tz.devices("cuda")]
    cuda.set_memory_manager(memory_manager(*made))
    yield made
    for ctx in made:
        ctx.close(timeout=TIMEOUT)


@pytest.fixture
def ctx(contexts: list[tz.Context]) -> tz.Context:
    """The context on the first device."""
    return contexts[0]


def settled(ctx: tz.Context) -> int:
    """Bytes that are live once what was dropped has come back."""
    gc.collect()
    ctx.synchronize(TIMEOUT)
    cuda.default_stream().synchronize()
    ctx.synchronize(TIMEOUT)
    return ctx.memory.stats().live


def test_arrays_are_in_the_account_and_come_back(ctx: tz.Context) -> None:
    before = settled(ctx)
    x = cuda.to_device(np.arange(10_000.0))
    assert ctx.memory.stats().live - before >= 80_000
    assert ctx.memory.holders()[0][0] == "numba"
    y = x[100:200]
    assert (y.copy_to_host() == np.arange(100.0, 200.0)).all()
    del x
    assert settled(ctx) - before >= 80_000  # y is a part of it
    assert (y.copy_to_host() == np.arange(100.0, 200.0)).all()
    del y
    assert settled(ctx) == before


def test_the_limit_binds_and_what_was_dropped_makes_room(ctx: tz.Context) -> None:
    settled(ctx)
    with pytest.raises(OutOfMemoryError) as caught:
        cuda.device_array(LIMIT + 1, dtype="uint8")
    assert caught.value.limit == LIMIT
    for _ in range(20):
        cuda.device_array(LIMIT * 2 // 3, dtype="uint8")  # one at a time fits
    info = cuda.current_context().get_memory_info()
    assert info.total == LIMIT
    assert info.free <= LIMIT


def test_the_current_context_and_its_budgets_are_charged(ctx: tz.Context) -> None:
    before = settled(ctx)
    with tz.open("cuda:0") as other:
        with other.memory.budget("1MiB", name="numba's"):
            x = cuda.device_array(1000, dtype="float64")
            assert other.memory.stats().live >= 8000
            with pytest.raises(OutOfMemoryError, match="numba's"):
                cuda.device_array(2 << 20, dtype="uint8")
        assert settled(ctx) == before
        del x
        assert settled(other) == 0


def test_memory_comes_and_goes_in_the_order_of_both_sides(ctx: tz.Context) -> None:
    """Blocks change hands between tazza's streams and Numba's all the time, while both still have work on them."""
    count = 50_000
    streams = [cuda.stream() for _ in range(3)]
    hosts = [cuda.pinned_array(count, dtype="float32") for _ in range(3)]
    source = cuda.pinned_array(count, dtype="float32")
    for number in range(40):
        mine = ctx.empty((count,), "float32")
        ctx.fill(mine, -1.0)
        del mine  # Numba may get this memory while the fill waits in the queue
        stream, host = streams[number % 3], hosts[number % 3]
        stream.synchronize()
        source[:] = number
        theirs = cuda.to_device(source, stream=stream)
        theirs.copy_to_host(host, stream=stream)
        del theirs
        ctx.stream.record()  # from now on tazza may get this memory, while the copy waits in the queue
        other = ctx.empty((count,), "float32")
        ctx.fill(other, -2.0)
        stream.synchronize()
        assert (host == number).all(), host[host != number][:5]
    settled(ctx)
    assert not cuda_emulator.start().report()["n_hazards"]


def test_numbas_arrays_are_borrowed_and_ours_become_numbas(ctx: tz.Context) -> None:
    x = cuda.to_device(np.arange(1000, dtype="float32"))
    with tz.borrow(x, stream=ctx.stream) as lent:
        ctx.fill(lent[:500], 7.0)
    assert x.copy_to_host()[[0, 499, 500, 999]].tolist() == [7.0, 7.0, 500.0, 999.0]
    other = ctx.new_stream()
    mine = ctx.empty((1000,), "float32")
    other.wait(ctx.stream)
    for value in range(10):
        ctx.fill(mine, float(value), stream=other)
    mine.used_on(other)
    seen = cuda.as_cuda_array(mine)  # waits for the stream that the Buffer states
    assert (seen.copy_to_host() == 9.0).all()
    again = cuda.from_cuda_array_interface(mine.__cuda_array_interface__, owner=mine)
    assert again.shape == (1000,)
    assert (again.copy_to_host() == 9.0).all()
    del seen, again


def test_bind_sets_numbas_device(contexts: list[tz.Context]) -> None:
    cuda.select_device(0)
    with contexts[1].bind():
        assert cuda.current_context().device.id == 1
        with contexts[0].bind():
            assert cuda.current_context().device.id == 0
        assert cuda.current_context().device.id == 1
        x = cuda.device_array(10, dtype="uint8")
        assert contexts[1].memory.stats().live >= 10
        del x
    assert cuda.current_context().device.id == 0


def test_the_example_runs() -> None:
    result = doctest.testmod(tazza.adapters.numba)
    assert result.attempted
    assert not result.failed


def test_what_is_no_context_is_refused(ctx: tz.Context) -> None:
    wrong: Any
    with tz.open("cpu") as cpu:
        for wrong in ((), (None,), (cpu,), (ctx, ctx)):
            with pytest.raises(ArgumentError, match="contexts"):
                memory_manager(*wrong)
    assert not NumbaAdapter(numba).is_out_of_memory(ValueError())
    error = cuda.cudadrv.driver.CudaAPIError(2, "no memory")
    assert NumbaAdapter(numba).is_out_of_memory(error)
