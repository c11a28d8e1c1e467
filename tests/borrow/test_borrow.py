"""Borrowing: protocols, what the Buffer is, when the owner is let go."""

from __future__ import annotations

import array
import ctypes
import gc
import itertools
import mmap
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ArgumentError, ClosedError, LeakWarning, UnsupportedError, UsageError, WrongDeviceError
from tests.bad_input.health import TIMEOUT
from tests.borrow.producers import Claim, Producer


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu") as made:
        yield made


def double(values: Any) -> None:
    values *= 2


def test_the_buffer_is_the_memory(ctx: tz.Context) -> None:
    source = np.arange(12, dtype="int32").reshape(3, 4)[:, ::-2]
    with tz.borrow(source) as x:
        assert (x.dtype, x.shape, x.strides) == (source.dtype, source.shape, source.strides)
        assert (x.readonly, x.base, x.label) == (False, None, "borrowed ndarray")
        assert x.address == source.__array_interface__["data"][0]
        assert x.device == ctx.device
        ctx.launch(double, x)
        assert np.shares_memory(ctx.to_numpy(x), source)
        assert np.shares_memory(ctx.asarray(x), source)
    assert source.tolist() == [[6, 2], [14, 10], [22, 18]]


def test_every_way_to_use_a_buffer_works(ctx: tz.Context) -> None:
    source = np.arange(6.0)
    with tz.borrow(source) as x:
        ctx.copy(x[:2], x[2:4])
        ctx.fill(x[4:], 9.0)
        assert x.view("int64").shape == (6,)
        with tz.open("sim:0") as sim:
            moved = sim.asarray(x)
            assert sim.to_numpy(moved).tolist() == [2.0, 3.0, 2.0, 3.0, 9.0, 9.0]
            sim.copy(x[:2], moved[4:])
            sim.synchronize(TIMEOUT)
    assert source.tolist() == [9.0, 9.0, 2.0, 3.0, 9.0, 9.0]


class Interface:
    """Offers nothing but an array interface."""

    def __init__(self, of: np.ndarray[Any, Any], **changes: Any) -> None:
        self._owner = of
        self.__array_interface__ = of.__array_interface__ | changes


SOURCES: dict[str, tuple[Any, str, bool, list[Any]]] = {
    "numpy": (np.arange(3), "NumPy", False, [0, 1, 2]),
    "numpy scalar array": (np.array(2.5), "NumPy", False, 2.5),  # type: ignore[dict-item]
    "numpy empty": (np.empty((0, 3)), "NumPy", False, []),
    "numpy broadcast": (np.broadcast_to(np.arange(2), (2, 2)), "NumPy", True, [[0, 1], [0, 1]]),
    "numpy big-endian": (np.arange(2, dtype=">i4"), "NumPy", False, [0, 1]),
    "bool": (np.array([True, False]), "NumPy", False, [True, False]),
    "complex": (np.array([1j]), "NumPy", False, [1j]),
    "bytes": (b"ab", "buffer", True, [97, 98]),
    "bytearray": (bytearray(2), "buffer", False, [0, 0]),
    "memoryview": (memoryview(b"abcd")[::2], "buffer", True, [97, 99]),
    "memoryview 2d": (memoryview(bytes(range(6))).cast("B", (2, 3)), "buffer", True, [[0, 1, 2], [3, 4, 5]]),
    "array": (array.array("d", [1.0, 2.0]), "buffer", False, [1.0, 2.0]),
    "ctypes": ((ctypes.c_int16 * 2)(3, 4), "buffer", False, [3, 4]),
    "array interface": (Interface(np.arange(4)[::-1]), "array interface", False, [3, 2, 1, 0]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_protocols(ctx: tz.Context, name: str) -> None:
    source, protocol, readonly, values = SOURCES[name]
    loan = tz.borrow(source)
    assert (loan.protocol, repr(loan).endswith("not entered>")) == ("", True)
    with loan as x:
        assert (loan.protocol, x.readonly, loan.is_copied) == (protocol, readonly, False)
        assert f"through {protocol}>" in repr(loan)
        assert ctx.launch(lambda v: v.tolist(), x).result() == values
    assert repr(loan).endswith("over>")


def test_a_map_can_be_closed_right_after(ctx: tz.Context) -> None:
    source, mapped = bytearray(b"ab"), mmap.mmap(-1, 64)
    with tz.borrow(source) as x, tz.borrow(mapped) as y:
        ctx.fill(x, 65)
        ctx.fill(y, 66)
        with pytest.raises(BufferError):
            mapped.close()
    source.append(1)  # cannot grow while somebody has its buffer
    assert (bytes(source), mapped[:3]) == (b"AA\x01", b"BBB")
    mapped.close()


def test_read_only_memory_cannot_be_written(ctx: tz.Context) -> None:
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    with tz.borrow(frozen) as x:
        assert x[1:].readonly
        writes: list[Callable[[], Any]] = [lambda: ctx.fill(x, 0), lambda: ctx.copy(x, np.zeros(3))]
        writes.append(lambda: ctx.fill(x[:1], 0))
        for write in writes:
            with pytest.raises(ArgumentError, match="dst.*expected writable memory"):
                write()
        with pytest.raises(ValueError, match="read-only"):
            ctx.launch(double, x).result()
        assert not np.asarray(x).flags.writeable
    assert frozen.tolist() == [0.0, 1.0, 2.0]


def test_after_the_scope_the_buffer_and_its_parts_are_closed(ctx: tz.Context) -> None:
    for source in (np.arange(4.0), ctx.allocate(32, dtype="float64")):
        with tz.borrow(source) as x:
            part = x[1:]
            deeper = part[1:]
        uses: list[Callable[[Any], Any]] = [
            lambda gone: ctx.fill(gone, 0),
            lambda gone: ctx.copy(np.zeros(gone.shape), gone),
            lambda gone: ctx.launch(double, gone),
            np.asarray,
            np.from_dlpack,
            lambda gone: gone[:1],
            lambda gone: gone.view("uint8"),
            ctx.to_numpy,
            ctx.asarray,
        ]
        for use, gone in itertools.product(uses, (x, part, deeper)):
            with pytest.raises(ClosedError, match="is closed"):
                use(gone)
        assert (x.is_closed, part.is_closed, deeper.is_closed) == (True, True, True)
        if isinstance(source, tz.Buffer):
            assert not source.is_closed
            ctx.fill(source, 1.0)


def test_a_buffer_lends_itself_to_another_context(ctx: tz.Context) -> None:
    with tz.open("cpu") as other:
        lender = ctx.allocate(16, dtype="float32", label="weights")
        ctx.fill(lender, 1.0)
        with tz.borrow(lender, stream=other.own_stream) as x, tz.borrow(x) as again:
            assert (x.label, x.address, x.base, again.base) == ("weights", lender.address, lender, x)
            other.launch(double, again)
        assert ctx.to_numpy(lender).tolist() == [2.0] * 4
        raw = ctx.allocate(4)
        with tz.borrow(raw) as x:
            assert (x.dtype, x.shape) == (None, (4,))


def test_a_lent_buffer_that_is_closed_keeps_its_memory_for_views(ctx: tz.Context) -> None:
    lender = ctx.allocate(32, dtype="float64")
    ctx.fill(lender, 3.0)
    with pytest.warns(LeakWarning, match=r"1 view\(s\) of borrowed memory outlive"):
        with tz.borrow(lender) as x:
            view = np.asarray(x)
    lender.close()
    del lender, x
    other = ctx.allocate(32)  # would get the block if it were free
    assert other.address != view.__array_interface__["data"][0]
    assert ctx.memory.stats().live == 128
    assert view.tolist() == [3.0] * 4
    del view, other
    assert ctx.memory.stats().live == 0


def test_borrowed_memory_is_charged_to_nobody() -> None:
    source = np.zeros(10**6)
    with tz.open("cpu") as ctx:
        with tz.borrow(source) as x:
            stats, holders = ctx.memory.stats(), ctx.memory.holders()
            assert (stats.live, stats.allocations, holders) == (0, 0, ())
            with pytest.raises(UsageError, match="belongs to no live context"):
                tz.context_of(x)
        assert ctx.memory.stats().peak == 0


# Lifetimes ---------------------------------------------------------------------------------------------------------


def test_the_owner_is_let_go_at_the_end_of_the_scope(ctx: tz.Context) -> None:
    producer = Producer()
    producer.floats[:] = [1.0, 2.0, 3.0, 4.0]
    with tz.borrow(producer) as x:
        ctx.launch(double, x)
        assert list(producer.floats) == [2.0, 4.0, 6.0, 8.0]
        assert producer.deleted == []
        kept = x
    assert len(producer.deleted) == 1
    assert kept.is_closed
    del kept, x
    gc.collect()
    ctx.synchronize()
    assert len(producer.deleted) == 1


def test_any_other_owner_is_just_dropped(ctx: tz.Context) -> None:
    source = np.arange(3.0)
    gone = weakref.ref(source)
    loan = tz.borrow(source)
    with loan as x:
        del source
        assert gone() is not None
    assert gone() is None
    assert x.is_closed


def test_a_view_that_outlives_the_scope_keeps_the_owner_and_is_reported_once(ctx: tz.Context) -> None:
    producer = Producer()
    producer.floats[:] = [1.0, 2.0, 3.0, 4.0]
    with pytest.warns(LeakWarning) as caught:
        with tz.borrow(producer) as x:
            view, other = np.asarray(x), np.from_dlpack(x[1:])
    assert [str(one.message).split(" of ")[0] for one in caught] == ["2 view(s)"]
    del x
    ctx.synchronize()
    assert view.tolist() == [1.0, 2.0, 3.0, 4.0]
    del view
    ctx.stream.record()
    assert producer.deleted == []
    assert other.tolist() == [2.0, 3.0, 4.0]
    del other
    ctx.stream.record()  # any call on the device
    assert len(producer.deleted) == 1


def test_no_report_of_views_that_a_failing_scope_left_behind(ctx: tz.Context) -> None:
    producer = Producer()
    with pytest.raises(ZeroDivisionError) as caught:
        with tz.borrow(producer) as x:
            view = np.asarray(x)
            1 / 0  # noqa: B018
    del caught, view, x
    gc.collect()
    ctx.synchronize()
    assert len(producer.deleted) == 1


def test_what_a_task_returns_is_such_a_view(ctx: tz.Context) -> None:
    producer = Producer()
    with pytest.warns(LeakWarning, match="1 view"):
        with tz.borrow(producer) as x:
            task = ctx.launch(lambda v: v[1:], x)
    assert producer.deleted == []
    del task
    ctx.synchronize()
    assert len(producer.deleted) == 1


def test_many_views_are_counted_without_being_collected(ctx: tz.Context) -> None:
    producer = Producer()
    views: list[Any] = []

    def look() -> None:
        with tz.borrow(producer) as x:
            for _ in range(200):
                views[:] = [*views[-99:], np.asarray(x)]

    with pytest.warns(LeakWarning, match="100 view"):
        look()
    assert producer.deleted == []
    views.clear()
    ctx.synchronize()
    assert len(producer.deleted) == 1


def test_a_closed_buffer_is_fine(ctx: tz.Context) -> None:
    producer = Producer()
    with tz.borrow(producer) as x:
        x.close()
        with pytest.raises(ClosedError):
            np.asarray(x)
    assert len(producer.deleted) == 1


def test_a_scope_that_is_never_left(ctx: tz.Context) -> None:
    """The memory stays while the Buffer does; then it is given back by the next call, with a word."""
    producer = Producer()
    producer.floats[:] = [1.0] * 4
    loan = tz.borrow(producer)
    x = loan.__enter__()
    del loan
    ctx.synchronize()
    assert ctx.to_numpy(x).tolist() == [1.0] * 4
    del x
    assert producer.deleted == []  # no finaliser runs foreign code
    with pytest.warns(LeakWarning, match="a borrow of Producer was dropped before its end"):
        ctx.synchronize()
    assert len(producer.deleted) == 1


def test_a_deleter_that_raises_is_reported(ctx: tz.Context) -> None:
    producer = Producer(Claim(raises=True))
    with pytest.warns(tz.errors.CleanupWarning, match="deleter of a DLPack tensor failed: TypeError: bad argument"):
        with tz.borrow(producer) as x:
            pass
    assert x.is_closed


def test_a_deleter_may_use_tazza(ctx: tz.Context) -> None:
    """It runs under no lock, in the thread that leaves the scope."""
    first, second = Producer(), Producer()
    outer = first._delete

    def nested(managed: int) -> None:
        outer(managed)
        with tz.borrow(second) as y:
            ctx.fill(y, 1.0)
        ctx.launch(lambda: None, stream=ctx.new_stream()).result(TIMEOUT)

    first._delete = nested  # type: ignore[method-assign]
    with tz.borrow(first):
        pass
    assert (len(first.deleted), len(second.deleted)) == (1, 1)


# Misuse ------------------------------------------------------------------------------------------------------------


def test_a_borrow_is_entered_once(ctx: tz.Context) -> None:
    loan = tz.borrow(b"x")
    with pytest.raises(UsageError, match="never entered"):
        loan.__exit__(None, None, None)
    with loan:
        with pytest.raises(UsageError, match="entered before"):
            loan.__enter__()
    with pytest.raises(UsageError, match="entered before"):
        loan.__enter__()
    loan.__exit__(None, None, None)  # a second exit has nothing to do


def test_it_needs_a_stream(ctx: tz.Context) -> None:
    for stream in (3, ctx):
        with pytest.raises(ArgumentError, match="stream: got .* expected a Stream, or None"):
            tz.borrow(b"x", stream=stream)  # type: ignore[arg-type]


def test_it_needs_a_current_context() -> None:
    with pytest.raises(tz.errors.NoCurrentContextError):
        tz.borrow(b"x")


def test_a_closed_context_borrows_nothing() -> None:
    with tz.open("cpu") as ctx:
        loan = tz.borrow(b"x")
        stream = ctx.new_stream()
        stream.close()
        with pytest.raises(ClosedError):
            tz.borrow(b"x", stream=stream).__enter__()
    with pytest.raises(ClosedError, match="is closed; borrow for a stream of an open context"):
        loan.__enter__()


class Refusing:
    """Has the method, and says no."""

    def __dlpack__(self, **_: Any) -> object:
        raise BufferError("not today")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Homeless:
    """Cannot say where it is."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __dlpack__(self, **_: Any) -> object:
        raise AssertionError("asked before it was known where the memory is")

    def __dlpack_device__(self) -> Any:
        return self.device


class Attributes:
    """An object with some attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "list": ([1, 2], ArgumentError, r"obj: got \[1, 2\] \(list\), expected a Buffer, a NumPy array.*ctx\.asarray"),
    "None": (None, ArgumentError, "obj: got None"),
    "number": (3, ArgumentError, "obj: got 3"),
    "str": ("text", ArgumentError, "obj: got 'text'"),
    "objects": (np.array([object()]), UnsupportedError, "has no object"),
    "structured": (np.zeros(2, [("a", "i4")]), UnsupportedError, "the nearest is"),
    "dates": (np.zeros(2, "M8[s]"), UnsupportedError, "the nearest is"),
    "refusing": (Refusing(), ArgumentError, "Refusing does not lend its memory: not today"),
    "no device": (Homeless(None), ArgumentError, "Homeless does not say where its memory is"),
    "odd device": (Homeless(("cpu", 0)), ArgumentError, "Homeless does not say where its memory is"),
    "cuda": (Homeless((2, 1)), WrongDeviceError, "is memory of cuda:1, not of cpu:0; borrow it with a stream of a con"),
    "unknown device": (Homeless((99, 0)), WrongDeviceError, "memory of DLPack device type 99:0, not of cpu:0"),
    "cuda interface": (
        Attributes(__cuda_array_interface__={"shape": (1,)}),
        WrongDeviceError,
        "memory of a cuda device, not of cpu:0",
    ),
    "sycl interface": (Attributes(__sycl_usm_array_interface__={}), WrongDeviceError, "a sycl device, not of cpu:0"),
    "no interface": (Attributes(__array_interface__=3), ArgumentError, "is not what NumPy can read"),
    "half an interface": (Attributes(__array_interface__={"shape": (1,)}), ArgumentError, "not what NumPy can read"),
    "null": (Interface(np.arange(3), data=(0, False)), ArgumentError, "data is NULL"),
    "last address": (Interface(np.arange(3), data=(2**64 - 8, False)), ArgumentError, "memory that can exist"),
    "strides": (Interface(np.arange(3), strides=(2**62,)), ArgumentError, r"at most 2\*\*62 bytes"),
    "released": (memoryview(b"abc"), ArgumentError, "does not lend its memory|released"),
}
BAD["released"][0].release()


@pytest.mark.parametrize("name", BAD)
def test_bad_objects(ctx: tz.Context, name: str) -> None:
    obj, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        tz.borrow(obj).__enter__()


def test_memory_of_its_own_is_never_filled_by_a_borrow() -> None:
    """On a device with its own memory host memory is refused, and the other way round."""
    with tz.open("cpu") as cpu, tz.open("sim:0") as sim, tz.open("sim:1") as third:
        device_memory = sim.allocate(8)
        for obj in (np.arange(3), b"abc", Producer()):
            with pytest.raises(WrongDeviceError, match=r"host memory and sim:0 has its own.*ctx\.asarray\(obj\)"):
                tz.borrow(obj, stream=sim.stream).__enter__()
        for other in (cpu, third):
            with pytest.raises(WrongDeviceError, match=r"is memory of sim:0, not of .*ctx\.asarray\(obj\)"):
                tz.borrow(device_memory, stream=other.stream).__enter__()
        device_memory.close()
        with pytest.raises(ClosedError):
            tz.borrow(device_memory, stream=sim.stream).__enter__()


def test_a_borrow_cannot_be_pickled(ctx: tz.Context) -> None:
    with pytest.raises(UsageError, match="cannot be pickled"):
        pickle.dumps(tz.borrow(b"x"))


def test_the_version_that_is_asked_for_and_the_old_call(ctx: tz.Context) -> None:
    new, old = Producer(), Producer(Claim(version=None), knows_versions=False)
    with tz.borrow(new) as x, tz.borrow(old) as y:
        assert (x.readonly, y.readonly) == (False, True)  # before 1.0 nobody could say
    assert new.asked == [{"stream": None, "max_version": (1, 1), "copy": False}]
    assert old.asked == [{"stream": None}]
    assert (len(new.deleted), len(old.deleted)) == (1, 1)
