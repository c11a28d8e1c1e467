"""Our Buffers for other libraries: DLPack as the Array API standard says, arrays, and when the memory comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ClosedError, ExportError, UnsupportedError, WrongDeviceError
from tazza.hot import HAS_BUFFER_PROTOCOL
from tests.bad_input.health import Hold


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu") as made:
        yield made


def name_of(capsule: object) -> str:
    return repr(capsule).split('"')[1]


def test_capsules_are_of_the_version_that_the_consumer_knows(ctx: tz.Context) -> None:
    buffer = ctx.allocate(8, dtype="float32")
    assert buffer.__dlpack_device__() == (1, 0)
    assert name_of(buffer.__dlpack__()) == "dltensor"
    assert name_of(buffer.__dlpack__(stream=None, max_version=(0, 8))) == "dltensor"
    for version in ((1, 0), (1, 1), (7, 0)):
        assert name_of(buffer.__dlpack__(max_version=version)) == "dltensor_versioned"


def test_devices_that_can_be_asked_for(ctx: tz.Context) -> None:
    buffer = ctx.allocate(8, dtype="float32")
    assert name_of(buffer.__dlpack__(dl_device=(1, 0))) == "dltensor"
    for device in ((2, 0), (1, 1), (14, 0)):
        with pytest.raises(ExportError, match=r"dl_device: got .*expected \(1, 0\)") as caught:
            buffer.__dlpack__(dl_device=device)
        assert isinstance(caught.value, BufferError)
        assert isinstance(caught.value, UnsupportedError)


@pytest.mark.parametrize("stream", [1, -1, 0, 12345])
def test_hosts_have_no_streams(ctx: tz.Context, stream: int) -> None:
    with pytest.raises(BufferError, match=f"stream: got {stream}, expected None"):
        ctx.allocate(8).__dlpack__(stream=stream)


def test_copies_on_request(ctx: tz.Context) -> None:
    buffer = ctx.allocate(16, dtype="float64")
    ctx.fill(buffer, 1.0)
    shared = np.from_dlpack(buffer, copy=False)  # type: ignore[call-overload, arg-type, unused-ignore]
    private = np.from_dlpack(buffer, copy=True)  # type: ignore[call-overload, arg-type, unused-ignore]
    ctx.fill(buffer, 2.0)
    assert (shared.tolist(), private.tolist()) == ([2.0, 2.0], [1.0, 1.0])
    with tz.borrow(buffer) as x:
        assert not np.shares_memory(np.from_dlpack(x, copy=True), shared)  # type: ignore[call-overload, arg-type, unused-ignore]


def test_read_only_stays_read_only(ctx: tz.Context) -> None:
    with tz.borrow(b"abcd") as x:
        assert not np.from_dlpack(x).flags.writeable  # type: ignore[arg-type, unused-ignore]
        with pytest.raises(ExportError, match="cannot be told in DLPack: Cannot export readonly"):
            x.__dlpack__()
        assert not np.asarray(x).flags.writeable
        if HAS_BUFFER_PROTOCOL:
            assert memoryview(x).readonly  # type: ignore[arg-type, unused-ignore]
            with pytest.raises((BufferError, TypeError, ValueError)):
                memoryview(x)[0] = 1  # type: ignore[arg-type, unused-ignore]


def test_what_dlpack_cannot_say(ctx: tz.Context) -> None:
    with pytest.raises(ExportError, match="cannot be told in DLPack"):
        ctx.allocate(16, dtype="V8").__dlpack__(max_version=(1, 0))


def test_what_a_device_of_its_own_says() -> None:
    with tz.open("sim:0") as sim:
        buffer = sim.allocate(8)
        for export in (buffer.__dlpack__, buffer.__dlpack_device__, buffer.__array__):
            with pytest.raises(WrongDeviceError, match="to_numpy"):
                export()
        with tz.borrow(buffer) as x, pytest.raises(WrongDeviceError, match="to_numpy"):
            np.asarray(x)


def test_asking_for_the_device_does_not_wait(ctx: tz.Context) -> None:
    buffer, hold = ctx.allocate(8), Hold()
    task = ctx.launch(hold.block, buffer, stream=ctx.new_stream())
    assert buffer.__dlpack_device__() == (1, 0)
    assert not task.is_done
    hold.release()
    np.from_dlpack(buffer)  # type: ignore[arg-type, unused-ignore]  # waits
    assert task.is_done


def test_closed_buffers_are_not_exported(ctx: tz.Context) -> None:
    buffer = ctx.allocate(8)
    buffer.close()
    for export in (buffer.__dlpack__, buffer.__dlpack_device__, buffer.__array__):
        with pytest.raises(ClosedError):
            export()
    with pytest.raises(ClosedError):
        ctx.fill(buffer, 0)
    with pytest.raises(ClosedError):
        ctx.copy(np.zeros(8, np.uint8), buffer)


def test_arrays_of_another_dtype_are_copies(ctx: tz.Context) -> None:
    buffer = ctx.allocate(16, dtype="float64")
    ctx.fill(buffer, 1.5)
    assert np.shares_memory(buffer.__array__(), np.asarray(buffer))
    assert buffer.__array__("int64").tolist() == [1, 1]
    assert not np.shares_memory(buffer.__array__(copy=True), np.asarray(buffer))
    with pytest.raises(ValueError, match="copy"):
        buffer.__array__("int64", copy=False)


def test_borrowed_memory_has_no_bare_address(ctx: tz.Context) -> None:
    with tz.borrow(np.zeros(2)) as x:
        assert not hasattr(x, "__array_interface__")
        assert not hasattr(x[1:], "__array_interface__")
    assert hasattr(ctx.allocate(8), "__array_interface__")


def consumers() -> list[Any]:
    kinds: list[Any] = [
        np.from_dlpack,
        lambda b: b.__dlpack__(max_version=(1, 0)),
        lambda b: b.__dlpack__(),
        np.asarray,
    ]
    return kinds + ([memoryview] if HAS_BUFFER_PROTOCOL else [])


@pytest.mark.parametrize("which", range(len(consumers())))
def test_memory_comes_back_when_the_last_view_is_gone(ctx: tz.Context, which: int) -> None:
    export = consumers()[which]
    buffer = ctx.allocate(64, dtype="float64")
    views = [export(buffer), export(buffer[2:])]
    buffer.close()
    del buffer
    assert ctx.memory.stats().live == 64
    views.pop()
    assert ctx.memory.stats().live == 64
    views.pop()
    assert ctx.memory.stats().live == 0
