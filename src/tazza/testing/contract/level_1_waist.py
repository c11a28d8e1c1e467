"""Level 1, above the waist: what a context makes of the primitives. Copies, order, limits."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ArgumentError, ClosedError, UnsupportedError, WrongDeviceError
from tazza.spi import Level
from tazza.testing.contract.battery import TIMEOUT, Target, needs
from tazza.util.hostmemory import HostMemory

LEVEL = Level.TRANSPORT


def stored(ctx: tz.Context, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> tz.Buffer:
    """A typed buffer that holds the values."""
    buffer = ctx.allocate(values.nbytes, dtype=values.dtype, shape=values.shape)
    ctx.copy(buffer, values)
    return buffer


@pytest.mark.parametrize("pool", ["caching", "direct"])
def test_values_come_back(target: Target, pool: str) -> None:
    with target.open(pool=pool) as ctx:
        for count in (1, 7, 1000, 100_003):
            values = target.numbers(count)
            assert (ctx.to_numpy(stored(ctx, values)) == values).all()


def test_slices_share_memory(target: Target) -> None:
    with target.open() as ctx:
        buffer = stored(ctx, np.arange(10, dtype="int32"))
        ctx.copy(buffer[0:4], buffer[6:10])
        ctx.fill(buffer[4:6], -1)
        assert ctx.to_numpy(buffer).tolist() == [6, 7, 8, 9, -1, -1, 6, 7, 8, 9]


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 200), ("int16", -5), ("float32", 0.1), ("int64", 2**40)])
def test_fills_repeat_a_value(target: Target, dtype: str, value: float) -> None:
    with target.open() as ctx:
        buffer = ctx.allocate(100 * np.dtype(dtype).itemsize, dtype=dtype)
        ctx.fill(buffer, value)
        assert (ctx.to_numpy(buffer) == np.full(100, value, dtype)).all()


def test_nothing_is_copied_right(target: Target) -> None:
    with target.open() as ctx:
        empty = ctx.allocate(0)
        ctx.copy(empty, b"")
        ctx.fill(empty, 1)
        ctx.copy(np.empty(0, np.uint8), empty)
        assert ctx.to_numpy(empty).size == 0


def test_what_does_not_fit_is_refused(target: Target) -> None:
    with target.open() as ctx:
        with pytest.raises(ArgumentError):
            ctx.copy(ctx.allocate(8), bytes(9))
        with pytest.raises(ArgumentError):
            ctx.fill(ctx.allocate(8), b"123")


def test_copies_between_every_pair_of_domains(target: Target) -> None:
    values = target.numbers(1000)
    names = [target.device.name, "cpu", *(info.name for info in target.driver.devices())]
    with target.open() as ctx:
        for name in dict.fromkeys(names):
            with tz.open(name) as other:
                there = other.allocate(values.nbytes, dtype=values.dtype)
                here = stored(ctx, values)
                ctx.copy(there, here)  # carried by the source's device
                ctx.fill(here, 0)
                ctx.copy(here, there)  # carried by the destination's
                assert (ctx.to_numpy(here) == values).all()
                assert (other.to_numpy(there) == values).all()


def test_streams_wait_for_events_and_for_streams(target: Target) -> None:
    with target.open() as ctx:
        cell = stored(ctx, np.zeros(16, "int32"))
        streams = [ctx.new_stream() for _ in range(3)]
        streams[0].wait(ctx.stream)
        for number in range(1, 31):
            here, after = streams[number % 3], streams[(number + 1) % 3]
            if number % 2:
                here.wait(streams[(number - 1) % 3])
            ctx.fill(cell, number, stream=here)
            after.wait(here.record())
        assert ctx.to_numpy(cell).tolist() == [30] * 16


def test_events_are_over_in_order(target: Target) -> None:
    with target.open() as ctx:
        cell, stream = ctx.allocate(4096), ctx.new_stream()
        events = []
        for number in range(10):
            ctx.fill(cell, number, stream=stream)
            events.append(stream.record())
        events[-1].synchronize(timeout=TIMEOUT)
        assert all(event.is_done and event.status is tz.EventStatus.SUCCESS for event in events)


def test_host_events_hold_a_stream_back(target: Target) -> None:
    with target.open() as ctx:
        cell = stored(ctx, np.zeros(4, "int32"))
        held, ready = ctx.new_stream(), tz.HostEvent()
        held.wait(ctx.stream)
        held.wait(ready)
        ctx.fill(cell, 1, stream=held)
        event = held.record()
        assert not event.is_done
        ready.succeed()
        event.synchronize(timeout=TIMEOUT)
        assert ctx.to_numpy(cell).tolist() == [1] * 4


def test_a_limit_is_kept_and_named(target: Target) -> None:
    with target.open(memory_limit="64KiB") as ctx:
        kept = ctx.allocate(40_000, label="weights")
        with pytest.raises(tz.OutOfMemoryError) as caught:
            ctx.allocate(40_000)
        assert caught.value.requested == 40_000
        assert caught.value.holders[0][0] == "weights"
        kept.close()
        assert len(ctx.allocate(40_000)) == 40_000


@pytest.mark.parametrize("pool", ["caching", "direct"])
def test_memory_comes_back(target: Target, pool: str) -> None:
    with target.open(pool=pool) as ctx:
        for _ in range(3):
            buffers = [stored(ctx, target.numbers(count)) for count in (10, 1000, 50_000)]
            del buffers
        ctx.synchronize(timeout=TIMEOUT)
        assert ctx.memory.stats().live == 0


def test_a_closed_context_refuses_work_and_keeps_memory(target: Target) -> None:
    values = target.numbers(10)
    with target.open() as ctx:
        buffer = stored(ctx, values)
    with pytest.raises(ClosedError):
        ctx.allocate(8)
    with target.open() as another:
        assert (another.to_numpy(buffer) == values).all()


@needs("ordered_memory")
def test_memory_of_the_drivers_pool_is_ordered_between_streams(target: Target) -> None:
    """Streams use each other's memory, and let go of it, while all of it is still queued."""
    with target.open(pool="driver") as ctx:
        streams = [ctx.stream, ctx.new_stream(), ctx.new_stream()]
        for number in range(30):
            home, other, last = (streams[(number + place) % 3] for place in range(3))
            with ctx.on(home):
                first, second = (ctx.allocate(4000, dtype="int32") for _ in range(2))
            ctx.fill(first, number, stream=other)  # the first use of it, elsewhere
            last.wait(other.record())
            ctx.copy(second, first, stream=last)
            del first
            if number % 4 == 0:
                home.wait(last.record())
                assert (ctx.to_numpy(second) == number).all()
            del second
        ctx.synchronize(timeout=TIMEOUT)
        assert ctx.memory.stats().live == 0


@needs("ordered_memory")
def test_memory_of_the_drivers_pool_outlives_its_stream(target: Target) -> None:
    with target.open(pool="driver") as ctx:
        stream = ctx.new_stream()
        with ctx.on(stream):
            buffer = ctx.allocate(4000, dtype="int32")
        ctx.fill(buffer, 7, stream=stream)
        ctx.stream.wait(stream.record())
        stream.close()
        assert (ctx.to_numpy(buffer) == 7).all()
        del buffer
        ctx.synchronize(timeout=TIMEOUT)
        assert ctx.memory.stats().live == 0


@needs("timing")
def test_events_are_timed(target: Target) -> None:
    with target.open() as ctx:
        start = ctx.stream.record(timing=True)
        ctx.fill(ctx.allocate(1 << 16), 1)
        end = ctx.stream.record(timing=True)
        end.synchronize(timeout=TIMEOUT)
        assert 0 <= end.seconds_since(start) < TIMEOUT


@needs("no timing")
def test_timing_is_refused(target: Target) -> None:
    with target.open() as ctx, pytest.raises(UnsupportedError):
        ctx.stream.record(timing=True)


@needs("queues")
def test_native_queues_go_both_ways(target: Target) -> None:
    with target.open() as ctx:
        ours = ctx.new_stream()
        adopted = ctx.adopt_stream(ours.native)
        cell = stored(ctx, np.zeros(4, "int32"))
        ours.wait(ctx.stream)
        for number in range(1, 11):
            ctx.fill(cell, number, stream=(ours, adopted)[number % 2])
        cell.used_on(adopted)
        ctx.stream.wait(adopted)
        assert ctx.to_numpy(cell).tolist() == [10] * 4


@needs("no queues")
def test_native_queues_are_refused(target: Target) -> None:
    with target.open() as ctx:
        with pytest.raises(UnsupportedError):
            ctx.adopt_stream(object())
        with pytest.raises(UnsupportedError):
            _ = ctx.new_stream().native


@needs("host_addressable")
def test_the_host_sees_the_memory(target: Target) -> None:
    with target.open() as ctx:
        buffer = stored(ctx, np.arange(6, dtype="int32"))
        assert np.asarray(buffer).tolist() == np.from_dlpack(buffer).tolist() == [0, 1, 2, 3, 4, 5]


@needs("no host_addressable")
def test_the_host_is_kept_from_the_memory(target: Target) -> None:
    with target.open() as ctx:
        buffer = stored(ctx, np.arange(6, dtype="int32"))
        with pytest.raises(WrongDeviceError, match="to_numpy"):
            np.asarray(buffer)
        # Other libraries may be shown it by DLPack; NumPy then says by itself that it is no memory of the host's.
        refusals = (BufferError, RuntimeError, ValueError) if target.device.capabilities.exports else WrongDeviceError
        with pytest.raises(refusals):
            np.from_dlpack(buffer)


@needs("pinned")
def test_a_pinned_buffer_is_copied_at_its_turn_and_held_till_then(target: Target) -> None:
    values = target.numbers(1000)
    with target.open() as ctx:
        source, back = (ctx.memory.pinned.allocate(values.nbytes, dtype=values.dtype) for _ in range(2))
        buffer, gate, stream = ctx.allocate(values.nbytes, dtype=values.dtype), tz.HostEvent(), ctx.new_stream()
        stream.wait(gate)
        ctx.copy(buffer, source, stream=stream)
        HostMemory(source.address, values.dtype, values.shape, None).array()[:] = values
        source.close()
        gate.succeed()
        ctx.copy(back, buffer, stream=stream)
        assert (np.asarray(back) == values).all()


@needs("pinned")
def test_pinned_sizes_are_exact_and_counted(target: Target) -> None:
    with target.open(memory_limit=10 * mmap.PAGESIZE) as ctx:
        ctx.memory.pinned.trim()
        before = ctx.memory.pinned.reserved
        buffers = [ctx.memory.pinned.allocate(pages * mmap.PAGESIZE - 1) for pages in (3, 5)]
        assert ctx.memory.pinned.reserved - before == ctx.memory.pinned.live == 8 * mmap.PAGESIZE
        with pytest.raises(tz.OutOfMemoryError):
            ctx.memory.pinned.allocate(3 * mmap.PAGESIZE)
        del buffers
        assert ctx.memory.pinned.live == 0


@needs("no pinned")
def test_pinned_buffers_are_refused(target: Target) -> None:
    with target.open() as ctx, pytest.raises(UnsupportedError):
        ctx.memory.pinned.allocate(64)


@needs("split")
def test_sub_devices_are_disjoint(target: Target) -> None:
    parts = target.device.split(2)
    assert sorted(core for part in parts for core in part.cores) == list(target.device.cores)
    assert {part.memory_domain for part in parts} == {target.device.memory_domain}
    assert len({part.name for part in parts} | {target.device.name}) == 3
    assert tz.device(parts[1].name) == parts[1]


@needs("no split")
def test_splitting_is_refused(target: Target) -> None:
    with pytest.raises((UnsupportedError, ArgumentError)):
        target.device.split(2)


@needs("rebuild")
def test_a_context_is_rebuilt_from_its_spec(target: Target) -> None:
    with target.open(memory_limit="1MiB") as ctx:
        again = ctx.rebuild()
        assert again.spec == ctx.spec
        again.fill(again.allocate(64), 1)
        again.close(timeout=TIMEOUT)
