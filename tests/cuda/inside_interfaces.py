"""Run by test_contract.py on emulated devices: memory that goes to other libraries, and theirs that comes to us."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cuda_emulator
import numpy as np
import pytest
from cuda.bindings import driver
from cuda.core import Device
from cuda.core.utils import StridedMemoryView

import tazza as tz
from tazza.core import dlpack
from tazza.errors import ArgumentError, ExportError, UnsupportedError, WrongDeviceError

TIMEOUT = 20.0


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    """A context on the first device."""
    with tz.open("cuda:0") as opened:
        yield opened


@pytest.fixture
def theirs() -> Any:
    """A stream that another library has made on the first device."""
    card = Device(0)
    card.set_current()
    return card.create_stream()


def values(count: int = 5000) -> Any:
    return np.arange(count, dtype="float32")


def enqueue_fill(stream: Any, address: int, value: float, count: int) -> None:
    """What another library does on a stream of its own."""
    pattern = int(np.float32(value).view("uint32"))
    (status,) = driver.cuMemsetD32Async(address, pattern, count, driver.CUstream(int(stream.handle)))
    assert not status


# Export --------------------------------------------------------------------------------------------------------------


def test_cuda_core_sees_a_buffer_by_dlpack_behind_our_streams(ctx: tz.Context, theirs: Any) -> None:
    x, result = ctx.empty((50, 100), "float32"), ctx.empty((5000,), "float32")
    other = ctx.new_stream()
    other.wait(ctx.stream)
    for value in range(20):
        ctx.fill(x, float(value), stream=other)
    x.used_on(other)
    view = StridedMemoryView.from_dlpack(x, stream_ptr=int(theirs.handle))
    assert view.shape == (50, 100)
    assert view.ptr == x.address
    assert view.device_id == 0
    assert not view.readonly
    assert view.is_device_accessible
    driver.cuMemcpyDtoDAsync(result.address, view.ptr, 20_000, driver.CUstream(int(theirs.handle)))
    theirs.sync()
    assert (ctx.to_numpy(result) == 19.0).all()
    del view  # before its stream
    ctx.synchronize(TIMEOUT)


def test_memory_that_the_consumer_lets_go_of_comes_back_after_its_stream(ctx: tz.Context, theirs: Any) -> None:
    for _ in range(20):
        x = ctx.asarray(values())
        view = StridedMemoryView.from_dlpack(x, stream_ptr=int(theirs.handle))
        result = ctx.empty((5000,), "float32")
        ctx.synchronize(TIMEOUT)
        driver.cuMemcpyDtoDAsync(result.address, view.ptr, 20_000, driver.CUstream(int(theirs.handle)))
        del x, view
        gc.collect()
        for _ in range(3):
            ctx.fill(ctx.empty((5000,), "float32"), -1.0)  # takes the memory if it is free
        theirs.sync()
        assert (ctx.to_numpy(result) == values()).all()
    ctx.synchronize(TIMEOUT)


def test_what_the_consumer_keeps_stays_and_what_it_drops_is_counted_out(ctx: tz.Context, theirs: Any) -> None:
    before = ctx.memory.stats().live
    x = ctx.asarray(values())
    view = StridedMemoryView.from_dlpack(x, stream_ptr=int(theirs.handle))
    del x
    gc.collect()
    ctx.synchronize(TIMEOUT)
    assert ctx.memory.stats().live > before
    del view
    gc.collect()
    ctx.synchronize(TIMEOUT)  # marks where their stream is
    theirs.sync()
    ctx.synchronize(TIMEOUT)
    assert ctx.memory.stats().live <= before + 256
    assert not cuda_emulator.start().report()["n_hazards"]


def test_the_stream_of_a_capsule(ctx: tz.Context) -> None:
    x = ctx.asarray(values())
    assert x.__dlpack_device__() == (2, 0)
    for stream in (None, -1, 1, 2):
        taken = dlpack.take(x.__dlpack__(stream=stream, max_version=(1, 0)), (2, 0))
        assert taken.address == x.address
        assert not taken.readonly
        taken.managed.release()
    for wrong in (0, -2, True, "1", 1.0):
        with pytest.raises(ExportError, match="stream: got"):
            x.__dlpack__(stream=wrong)
    with pytest.raises(ExportError, match="dl_device"):
        x.__dlpack__(stream=-1, dl_device=(1, 0))
    with pytest.raises(ExportError, match="copy"):
        x.__dlpack__(stream=-1, copy=True)


def test_a_stream_that_is_gone_keeps_the_memory_for_good(ctx: tz.Context, theirs: Any) -> None:
    x = ctx.asarray(values())
    view = StridedMemoryView.from_dlpack(x, stream_ptr=int(theirs.handle))
    theirs.close()
    del x, view
    gc.collect()
    with pytest.warns(tz.errors.CleanupWarning, match="was destroyed before"):
        ctx.synchronize(TIMEOUT)
    ctx.allocate(64)


def test_the_array_interface_states_a_stream_behind_all_others(ctx: tz.Context, theirs: Any) -> None:
    x, other = ctx.empty((20, 30), "float64"), ctx.new_stream()
    other.wait(ctx.stream)
    for value in range(20):
        ctx.fill(x, float(value), stream=other)
    x.used_on(other)
    told = x.__cuda_array_interface__
    assert (told["version"], told["shape"], told["typestr"]) == (3, (20, 30), "<f8")
    assert told["data"] == (x.address, False)
    assert told["strides"] is None
    assert told["stream"] == int(ctx.stream.native)  # type: ignore[call-overload]
    view = StridedMemoryView.from_cuda_array_interface(x, stream_ptr=int(theirs.handle))
    assert view.shape == (20, 30)
    out = np.empty((20, 30))
    ctx.synchronize(TIMEOUT)
    driver.cuMemcpyDtoHAsync(out.ctypes.data, view.ptr, out.nbytes, driver.CUstream(int(theirs.handle)))
    theirs.sync()
    assert (out == 19.0).all()
    assert x.__cuda_array_interface__["stream"] is None  # nothing is under way


def test_strides_and_bytes_in_the_array_interface(ctx: tz.Context) -> None:
    x = ctx.asarray(values(24)).view("float32", (2, 3), (48, 8))
    assert x.__cuda_array_interface__["strides"] == (48, 8)
    assert ctx.allocate(10).__cuda_array_interface__["typestr"] == "|u1"


def test_other_devices_have_no_cuda_interface() -> None:
    with tz.open("cpu") as cpu:
        assert not hasattr(cpu.allocate(8), "__cuda_array_interface__")


# Borrowing -----------------------------------------------------------------------------------------------------------


def test_a_buffer_of_cuda_core_is_borrowed_by_dlpack(ctx: tz.Context, theirs: Any) -> None:
    memory = Device(0).allocate(400, stream=theirs)
    enqueue_fill(theirs, int(memory.handle), 3.0, 100)
    theirs.sync()  # cuda.core's buffers know no stream of their own
    with tz.borrow(memory, stream=ctx.stream) as x:
        y = x.view("float32")
        assert (ctx.to_numpy(y) == 3.0).all()
        ctx.fill(y, 4.0)
    out = np.empty(100, "float32")
    driver.cuMemcpyDtoH(out.ctypes.data, int(memory.handle), 400)
    assert (out == 4.0).all()
    memory.close(theirs)


def interface_over(address: int, count: int, stream: Any, **changed: Any) -> Any:
    """An object of another library."""
    told = {"shape": (count,), "typestr": "<f4", "data": (address, False), "version": 3, "stream": stream}
    return SimpleNamespace(__cuda_array_interface__=told | changed)


def test_an_array_interface_is_borrowed_in_the_order_of_the_stream_that_it_states(ctx: tz.Context, theirs: Any) -> None:
    count = 100_000
    memory = Device(0).allocate(4 * count, stream=theirs)
    theirs.sync()
    address, out = int(memory.handle), np.empty(count, "float32")
    result = ctx.empty((count,), "float32")
    for number in range(10):
        for value in range(5):
            enqueue_fill(theirs, address, value + number, count)
        with tz.borrow(interface_over(address, count, int(theirs.handle)), stream=ctx.stream) as x:
            ctx.copy(result, x)  # after their fills
            ctx.fill(x, -1.0)
        driver.cuMemcpyDtoHAsync(out.ctypes.data, address, 4 * count, driver.CUstream(int(theirs.handle)))  # after ours
        theirs.sync()
        assert (out == -1.0).all()
        assert (ctx.to_numpy(result) == 4.0 + number).all()
    memory.close(theirs)


def test_an_array_interface_without_a_stream_is_waited_for_on_exit(ctx: tz.Context, theirs: Any) -> None:
    memory = Device(0).allocate(400, stream=theirs)
    theirs.sync()
    out = np.empty(100, "float32")
    for stream in (None, 1, 2):
        with tz.borrow(interface_over(int(memory.handle), 100, stream), stream=ctx.stream) as x:
            ctx.fill(x, 5.0)
        if stream is not None:
            ctx.synchronize(TIMEOUT)
        driver.cuMemcpyDtoH(out.ctypes.data, int(memory.handle), 400)
        assert (out == 5.0).all()
    memory.close(theirs)


def test_array_interfaces_that_are_refused(ctx: tz.Context, theirs: Any) -> None:
    memory = Device(0).allocate(400, stream=theirs)
    theirs.sync()
    address = int(memory.handle)
    for error, obj in (
        (ArgumentError, interface_over(address, 100, 0)),
        (ArgumentError, interface_over(address, 100, True)),
        (ArgumentError, interface_over(address, 100, "1")),
        (ArgumentError, interface_over(address, 100, None, version=1)),
        (ArgumentError, interface_over(address, 100, None, data=None)),
        (ArgumentError, interface_over(address, 100, None, typestr="nothing")),
        (ArgumentError, interface_over(4096, 100, None)),
        (UnsupportedError, interface_over(address, 100, None, mask=object())),
        (UnsupportedError, interface_over(address, 100, None, typestr="<M8[s]")),
    ):
        with pytest.raises(error):
            tz.borrow(obj, stream=ctx.stream).__enter__()
    with tz.open("cuda:1") as other:
        with pytest.raises(WrongDeviceError, match="cuda:0"):
            tz.borrow(interface_over(address, 100, None), stream=other.stream).__enter__()
        with pytest.raises(WrongDeviceError):
            tz.borrow(ctx.allocate(8), stream=other.stream).__enter__()
    memory.close(theirs)


def test_borrowed_memory_gives_no_bare_address_away(ctx: tz.Context, theirs: Any) -> None:
    memory = Device(0).allocate(400, stream=theirs)
    theirs.sync()
    with tz.borrow(memory, stream=ctx.stream) as x:
        assert not hasattr(x, "__cuda_array_interface__")
        with pytest.raises(ExportError, match="borrowed"):
            x.__dlpack__(stream=-1)
    memory.close(theirs)
