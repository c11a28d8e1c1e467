"""Buffers: layouts, slices, closing, host exports."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ArgumentError, ClosedError, UsageError, WrongDeviceError
from tazza.hot import COMPILED, HAS_BUFFER_PROTOCOL, Buffer, Lane, Pool
from tests.unit.hot_fakes import FakeContext, FakeRuntime, FakeSource, make_pool


class HostSource(FakeSource):
    """Reserves real host memory."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: dict[int, Any] = {}

    def reserve(self, nbytes: int, lane: Lane | None) -> tuple[int, None]:
        cell = np.zeros(nbytes + 64, np.uint8)
        address = -(-int(cell.__array_interface__["data"][0]) // 64) * 64
        self.cells[address] = cell
        return address, None

    def release(self, address: int, nbytes: int, lane: Lane | None) -> None:
        del self.cells[address]


@pytest.fixture
def host() -> FakeContext:
    runtime = FakeRuntime()
    runtime.host_addressable = True
    return FakeContext(Pool(HostSource(), cached=True, owner=runtime))


@pytest.fixture
def context() -> FakeContext:
    return FakeContext(make_pool()[0])


def test_a_plain_buffer_is_bytes(context: FakeContext) -> None:
    buffer = context.allocate(100, label="weights")
    assert (buffer.nbytes, buffer.shape, buffer.strides, buffer.dtype, len(buffer)) == (100, (100,), (1,), None, 100)
    assert (buffer.base, buffer.readonly, buffer.label, buffer.device) == (None, False, "weights", "fake:0")
    assert repr(buffer) == "<tazza.Buffer on fake:0: 100 bytes>"
    assert gc.is_tracked(buffer) != COMPILED


def test_buffers_are_made_by_contexts_only() -> None:
    with pytest.raises(UsageError, match=r"ctx\.allocate"):
        Buffer()


def test_typed_buffers_slice_along_the_first_axis(context: FakeContext) -> None:
    buffer = context.allocate(96, dtype="float32", shape=(4, 6))
    assert (buffer.shape, buffer.strides, len(buffer)) == ((4, 6), (24, 4), 4)
    part = buffer[1:3]
    assert (part.address - buffer.address, part.nbytes, part.shape, part.base) == (24, 48, (2, 6), buffer)
    reverse = buffer[::-2]
    assert (reverse.address - buffer.address, reverse.shape, reverse.strides) == (72, (2, 6), (-48, 4))
    assert part[1:].base is buffer
    assert buffer[7:].nbytes == 0
    assert "float32 (4, 6)" in repr(buffer)


def test_views_reinterpret_and_check_bounds_and_overlap(context: FakeContext) -> None:
    buffer = context.allocate(64)
    assert buffer.view("int16").shape == (32,)
    assert buffer.view("float64", (2, 4)).strides == (32, 8)
    assert buffer.view("float32", (2, 2), (16, 4)).nbytes == 24
    assert buffer[8:16].view("float64", ()).shape == ()
    bad: list[tuple[Any, ...]] = [
        ("float64", (9,)),
        ("float32", (2, 2), (4, 4)),
        ("float32", (4,), (0,)),
        ("float32", (2,), (-4,)),
        ("float32", (2,), (4, 4)),
        ("float32", (2,), ("x",)),
        ("float32", None, (4,)),
        ("float32", (-1,)),
        ("O",),
        ("no such dtype",),
        ([("x", "i4", (5,))],),
    ]
    for arguments in bad:
        with pytest.raises(ArgumentError):
            buffer.view(*arguments)


def test_a_view_without_strides_needs_dense_memory_in_c_order(context: FakeContext) -> None:
    dense = context.allocate(96, dtype="float32", shape=(4, 6))
    assert dense[1:3].view("uint8").nbytes == 48
    assert dense[2:2].view("uint8").shape == (0,)
    assert dense.view("float32", (1, 24), (4, 4)).view("int16").shape == (48,)  # the stride of one element is free
    gaps = dense.view("float32", (2, 2), (16, 4))
    transposed = dense.view("float32", (6, 4), (4, 24))
    for loose in (gaps, transposed, dense[::-1], dense[::2]):
        with pytest.raises(ArgumentError, match="dense in C order"):
            loose.view("uint8")


def test_views_of_a_buffer_that_runs_backwards_stay_inside_it(context: FakeContext) -> None:
    buffer = context.allocate(80, dtype="float64")
    backwards = buffer[::-1]
    again = backwards.view("int64", (10,), (-8,))
    assert (again.address, again.nbytes, again.strides) == (buffer.address + 72, 80, (-8,))
    assert again[::-1].address == buffer.address
    for strides in ((8,), (-16,)):
        with pytest.raises(ArgumentError, match="outside -72 to 8"):
            backwards.view("int64", (10,), strides)


def test_bad_slices_are_refused(context: FakeContext) -> None:
    buffer = context.allocate(64)
    for key in (3, "x", slice(0, 8, 2), slice("a", None)):
        with pytest.raises(ArgumentError, match="key"):
            buffer[key]
    scalar = buffer.view("float64", (), None)
    with pytest.raises(ArgumentError, match="no slice"):
        scalar[0:1]
    with pytest.raises(ArgumentError, match="no length"):
        len(scalar)


@pytest.mark.parametrize("nbytes", [-1, 2**62 + 1, 2**63, 2**80, -(2**70), 1.5, "1", None, True])
def test_bad_sizes_are_refused(context: FakeContext, nbytes: Any) -> None:
    with pytest.raises(ArgumentError, match="nbytes"):
        context.allocate(nbytes)
    assert context.account.live == 0


def test_bad_layouts_and_labels_are_refused_without_a_trace(context: FakeContext) -> None:
    for options in ({"shape": (2,)}, {"dtype": "f4", "shape": (5,)}, {"label": 3}):
        with pytest.raises(ArgumentError):
            context.allocate(16, **options)  # type: ignore[arg-type, unused-ignore]
    assert context.allocate(np.int64(8)).nbytes == 8  # type: ignore[arg-type]


def test_closing_gives_back_now_and_refuses_later_use(context: FakeContext) -> None:
    buffer = context.allocate(64)
    part = buffer[0:8]
    buffer.close()
    buffer.close()
    context.pool.drain()
    assert context.account.live == 0
    assert buffer.is_closed
    assert part.is_closed
    assert "closed" in repr(buffer)
    for use in (lambda: buffer[0:1], lambda: part[0:1], lambda: buffer.view("i1"), lambda: buffer.used_on(None)):
        with pytest.raises(ClosedError):
            use()


def test_a_slice_keeps_the_memory(context: FakeContext) -> None:
    part = context.allocate(64)[0:8]
    context.pool.drain()
    assert context.account.live == 64
    del part
    context.pool.drain()
    assert context.account.live == 0


def test_host_views_share_memory_wait_first_and_keep_it(host: FakeContext) -> None:
    buffer = host.allocate(96, dtype="float32", shape=(4, 6))
    array = np.asarray(buffer)
    array[...] = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert np.array_equal(np.from_dlpack(buffer[1:3]), array[1:3])  # type: ignore[arg-type, unused-ignore]
    assert buffer.__dlpack_device__() == (1, 0)
    assert np.asarray(buffer[::-1]).tolist() == array[::-1].tolist()
    assert host.pool.owner.accesses
    host.pool.owner.accesses.clear()
    buffer.close()
    host.pool.drain()
    assert host.account.live == 128
    with pytest.raises(ClosedError):
        np.asarray(buffer)
    del buffer
    gc.collect()
    host.pool.drain()
    assert array[3, 5] == 23
    del array
    gc.collect()
    host.pool.drain()
    assert host.account.live == 0


def test_an_array_made_without_waiting_keeps_the_memory_too(host: FakeContext) -> None:
    buffer = host.allocate(64)
    array = buffer[8:16]._unwaited().array()
    assert not host.pool.owner.accesses
    buffer.close()
    host.pool.drain()
    assert host.account.live == 64
    del array, buffer
    host.pool.drain()
    assert host.account.live == 0


@pytest.mark.parametrize("pool", ["direct", "caching"])
def test_what_a_launched_function_returns_outlives_the_buffer_that_was_closed(pool: str) -> None:
    with tz.open("cpu", pool=pool) as ctx:
        buffer = ctx.allocate(8192, dtype="float64")
        array = ctx.launch(lambda x: x, buffer).result()
        array[:] = 1
        buffer.close()
        ctx.memory.trim()
        ctx.empty(1024)[:] = 7
        assert array[0] == 1


def test_closed_by_another_thread_before_the_export(host: FakeContext) -> None:
    buffer = host.allocate(64)
    host.pool.owner.host_access = lambda accessed: buffer.close()
    with pytest.raises(ClosedError):
        np.asarray(buffer)


@pytest.mark.skipif(not HAS_BUFFER_PROTOCOL, reason="uncompiled before Python 3.12: no buffer protocol for Python code")
def test_the_buffer_protocol(host: FakeContext) -> None:
    buffer = host.allocate(64)
    with memoryview(buffer) as view:  # type: ignore[arg-type, unused-ignore]
        view[:4] = b"abcd"
        assert (view.nbytes, view.format, view.readonly) == (64, "B", False)
    typed = buffer.view("int16", (2, 2), (16, 4))
    assert memoryview(typed).strides == (16, 4)  # type: ignore[arg-type, unused-ignore]
    assert bytes(buffer[0:4]) == b"abcd"  # type: ignore[call-overload, unused-ignore]
    assert np.asarray(host.allocate(0)).size == 0


def test_memory_that_the_host_cannot_address_is_not_exported(context: FakeContext) -> None:
    buffer = context.allocate(64)
    for export in (np.asarray, np.from_dlpack):
        with pytest.raises(WrongDeviceError, match="to_numpy"):
            export(buffer)  # type: ignore[operator, unused-ignore]
