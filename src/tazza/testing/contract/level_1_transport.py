"""Level 1: the raw driver. Memory, copies, fills, queues and events, from the bottom up."""

from __future__ import annotations

import itertools
import mmap
import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from tazza.errors import OutOfMemoryError, UnsupportedError
from tazza.spi import Box, CopyKind, Level
from tazza.testing.contract.battery import TIMEOUT, Raw, Target, needs
from tazza.util.hostmemory import HostMemory, address_of

LEVEL = Level.TRANSPORT

SIZES = (1, 3, 63, 64, 65, 4096, 100_001)


# Identity ----------------------------------------------------------------------------------------------------------


def test_devices_are_described(target: Target) -> None:
    infos = target.driver.devices()
    assert [info.ordinal for info in infos] == list(range(len(infos)))
    assert len({info.uuid for info in infos}) == len({info.name for info in infos}) == len(infos)
    for info in infos:
        assert info.backend == target.driver.name
        assert info.memory_total > 0
        assert info.memory_domain
        assert info.title
    assert target.driver.devices() == infos


def test_abilities_fit_together(target: Target) -> None:
    declared = target.capabilities
    # What the build cannot see is outside, whatever the driver could have hooked.
    assert declared == target.driver.capabilities(target.info)._replace(array_allocations=declared.array_allocations)
    assert declared.alignment > 0
    assert declared.alignment & (declared.alignment - 1) == 0
    assert declared.queues or declared.host_functions  # without queues the core runs everything in host threads
    assert all(np.dtype(name).name == name for name in declared.dtypes)
    assert declared.array_allocations in ("hooked", "outside")
    if target.info.memory_domain == "host":
        assert declared.host_addressable


def test_a_device_in_use_is_well(target: Target) -> None:
    assert target.driver.poison(target.info) is None


# Memory ------------------------------------------------------------------------------------------------------------


def test_allocations_are_aligned_and_apart(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw:
        ranges = sorted((raw.allocate(nbytes), nbytes) for nbytes in SIZES * 2)
    assert all(address > 0 and address % target.capabilities.alignment == 0 for address, _ in ranges)
    assert all(first + nbytes <= second for (first, nbytes), (second, _) in itertools.pairwise(ranges))


def test_memory_is_reported(target: Target) -> None:
    info = target.driver.memory_info(target.info)
    assert 0 <= info.free <= info.total
    assert info.total > 0


def test_memory_that_is_not_there_is_refused(target: Target) -> None:
    with pytest.raises(OutOfMemoryError):
        target.driver.memory_allocate(target.info, 2**62)
    with Raw.on(target.driver, target.info) as raw:
        assert raw.load(raw.store(b"still there"), 11) == b"still there"


def test_freed_memory_can_be_had_again(target: Target) -> None:
    nbytes = max(1, min(target.driver.memory_info(target.info).free // 4, 2**26))
    for _ in range(12):
        target.driver.memory_free(target.info, target.driver.memory_allocate(target.info, nbytes))


@needs("ordered_memory")
def test_ordered_memory_belongs_to_what_comes_later_in_the_queue(target: Target) -> None:
    driver, info = target.driver, target.info
    with Raw.on(driver, info) as raw:
        for number in range(8):  # taken, used and given back without a wait in between
            address = driver.memory_allocate_ordered(info, raw.queue, 5000)
            raw.fill(address, bytes([number]), 5000)
            assert number % 3 or raw.load(address, 5000) == bytes([number]) * 5000
            driver.memory_free_ordered(info, raw.queue, address)


@needs("ordered_memory")
def test_ordered_memory_goes_to_other_queues_by_an_event(target: Target) -> None:
    driver, info = target.driver, target.info
    with Raw.on(driver, info) as raw:
        other, elsewhere = raw.new_queue(), raw.store(b"elsewhere")
        address = driver.memory_allocate_ordered(info, other, 9)
        event = driver.event_record(info, other, False)
        driver.queue_wait(info, raw.queue, event)
        raw.copy(address, elsewhere, 9)
        assert raw.load(address, 9) == b"elsewhere"
        driver.event_destroy(info, event)
        driver.memory_free(info, address)  # no queue uses it any more


@needs("ordered_memory")
def test_ordered_memory_that_is_not_there_is_refused(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw, pytest.raises(OutOfMemoryError):
        target.driver.memory_allocate_ordered(target.info, raw.queue, 2**50)


@needs("no ordered_memory")
def test_a_pool_that_the_driver_does_not_have_is_refused(target: Target) -> None:
    with pytest.raises(UnsupportedError, match="pool"):
        target.open(pool="driver").__enter__()


@needs("pinned")
def test_pinned_memory_starts_at_pages_and_lies_apart(target: Target) -> None:
    driver, sizes = target.driver, (1, mmap.PAGESIZE, mmap.PAGESIZE + 1)
    ranges = sorted((driver.pinned_allocate(target.info, nbytes), nbytes) for nbytes in sizes)
    assert all(address > 0 and address % mmap.PAGESIZE == 0 for address, _ in ranges)
    assert all(first + nbytes <= second for (first, nbytes), (second, _) in itertools.pairwise(ranges))
    for address, _ in ranges:
        driver.pinned_free(target.info, address)


@needs("pinned")
def test_pinned_memory_goes_to_the_device_and_back(target: Target) -> None:
    driver, data = target.driver, target.numbers(5000, "uint8")
    there, back = (driver.pinned_allocate(target.info, data.nbytes) for _ in range(2))
    with Raw.on(driver, target.info) as raw:
        address = raw.allocate(data.nbytes)
        seen = [HostMemory(one, data.dtype, data.shape, None).array() for one in (there, back)]
        seen[0][:], seen[1][:] = data, 0
        raw.copy(address, there, data.nbytes, CopyKind.FROM_HOST)
        raw.copy(back, address, data.nbytes, CopyKind.TO_HOST)
        raw.finish()
        assert (seen[1] == data).all()
        del seen
    for address in (there, back):
        driver.pinned_free(target.info, address)


@needs("pinned")
def test_pinned_memory_that_is_not_there_is_refused(target: Target) -> None:
    with pytest.raises(OutOfMemoryError):
        target.driver.pinned_allocate(target.info, 2**62)
    for _ in range(12):
        target.driver.pinned_free(target.info, target.driver.pinned_allocate(target.info, 4 * mmap.PAGESIZE))


@needs("no pinned")
def test_pinning_is_refused(target: Target) -> None:
    with pytest.raises(UnsupportedError):
        target.driver.pinned_allocate(target.info, 64)


# Copies and fills --------------------------------------------------------------------------------------------------


def test_bytes_come_back(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw:
        for nbytes in SIZES:
            data = target.numbers(nbytes, "uint8").tobytes()
            assert raw.load(raw.store(data), nbytes) == data


def test_copies_within_the_device(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw:
        data = target.numbers(1000, "uint8").tobytes()
        source, copied = raw.store(data), raw.store(bytes(1000))
        raw.copy(copied + 100, source + 7, 500)
        assert raw.load(copied, 1000) == bytes(100) + data[7:507] + bytes(400)


@pytest.mark.parametrize(("dst", "src"), [(10, 0), (0, 10), (5, 5)])
def test_overlapping_copies_go_as_if_through_a_temporary(target: Target, dst: int, src: int) -> None:
    with Raw.on(target.driver, target.info) as raw:
        data = bytearray(target.numbers(1000, "uint8").tobytes())
        address = raw.store(bytes(data))
        raw.copy(address + dst, address + src, 900)
        data[dst : dst + 900] = bytes(data[src : src + 900])
        assert raw.load(address, 1000) == data


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 16])
def test_fills_repeat_their_pattern(target: Target, length: int) -> None:
    pattern = bytes(range(1, length + 1))
    with Raw.on(target.driver, target.info) as raw:
        address = raw.store(bytes(20 * length))
        raw.fill(address + length, pattern, 17 * length)
        assert raw.load(address, 20 * length) == bytes(length) + pattern * 17 + bytes(2 * length)


BOX = Box(width=5, rows=4, slices=3, dst_pitch=7, dst_rows=6, src_pitch=11, src_rows=4)


def boxed(dst: bytes, src: bytes, starts: Sequence[tuple[int, int]]) -> bytes:
    """What copies of BOX make of `dst`."""
    made = bytearray(dst)
    for (to, of), z, y in itertools.product(starts, range(BOX.slices), range(BOX.rows)):
        a, b = to + (z * BOX.dst_rows + y) * BOX.dst_pitch, of + (z * BOX.src_rows + y) * BOX.src_pitch
        made[a : a + BOX.width] = src[b : b + BOX.width]
    return bytes(made)


@needs("boxes")
def test_boxes_of_rows_are_copied_within_the_device(target: Target) -> None:
    old, new = bytes(500), target.numbers(500, "uint8").tobytes()
    with Raw.on(target.driver, target.info) as raw:
        dst, src = raw.store(old), raw.store(new)
        starts = [(3, 1), (203, 101)]
        raw.driver.copy_boxes(target.info, raw.queue, BOX, [(dst + to, src + of) for to, of in starts], CopyKind.WITHIN)
        assert raw.load(dst, 500) == boxed(old, new, starts)
        assert raw.load(src, 500) == new


@needs("boxes")
def test_boxes_of_rows_go_to_the_device_and_back(target: Target) -> None:
    old, new = bytes(500), target.numbers(500, "uint8")
    with Raw.on(target.driver, target.info) as raw:
        address, back = raw.store(old), np.zeros(500, np.uint8)
        own = target.info.memory_domain != "host"
        into, out = (CopyKind.FROM_HOST, CopyKind.TO_HOST) if own else (CopyKind.WITHIN, CopyKind.WITHIN)
        raw.driver.copy_boxes(target.info, raw.queue, BOX, [(address + 2, address_of(new) + 9)], into)
        there = boxed(old, new.tobytes(), [(2, 9)])
        assert raw.load(address, 500) == there
        raw.driver.copy_boxes(target.info, raw.queue, BOX, [(address_of(back) + 1, address)], out)
        raw.finish()
        assert back.tobytes() == boxed(bytes(500), there, [(1, 0)])


@needs("boxes", "peer_copy", "second device")
def test_boxes_of_rows_are_copied_between_devices(target: Target) -> None:
    old, new = bytes(500), target.numbers(500, "uint8").tobytes()
    with Raw.on(target.driver, target.info) as here, Raw.on(target.driver, target.second) as there:
        dst, src = there.store(old), here.store(new)
        here.driver.copy_boxes(here.info, here.queue, BOX, [(dst + 4, src + 3)], CopyKind.PEER)
        here.finish()
        assert there.load(dst, 500) == boxed(old, new, [(4, 3)])


@needs("no boxes")
def test_boxes_of_rows_are_refused(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw:
        address = raw.store(bytes(500))
        with pytest.raises(UnsupportedError):
            raw.driver.copy_boxes(target.info, raw.queue, BOX, [(address, address + 250)], CopyKind.WITHIN)


def test_every_thread_may_call(target: Target) -> None:
    seen: dict[int, bool] = {}

    def work(number: int) -> None:
        with Raw.on(target.driver, target.info) as raw:
            data = bytes([number]) * 1000
            seen[number] = raw.load(raw.store(data), 1000) == data

    _in_threads(work, 6)
    assert seen == dict.fromkeys(range(6), True)


# Queues and events -------------------------------------------------------------------------------------------------


@needs("queues")
def test_a_queue_keeps_its_order(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw:
        first, second = raw.store(bytes(64)), raw.store(bytes(64))
        for number in range(50):
            raw.fill(first, bytes([number]), 64)
            raw.copy(second, first, 64)
        raw.fill(first, b"\xff", 64)
        assert raw.load(second, 64) == bytes([49]) * 64


@needs("queues")
def test_an_event_is_done_when_what_precedes_it_is(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw:
        address = raw.store(bytes(64))
        raw.fill(address, b"\x01", 64)
        event = target.driver.event_record(target.info, raw.queue, False)
        assert target.driver.event_synchronize(target.info, event, TIMEOUT)
        assert target.driver.event_query(target.info, event)
        assert raw.load(address, 64) == b"\x01" * 64
        target.driver.event_destroy(target.info, event)


@needs("queues", "host_functions")
def test_host_functions_run_in_their_turn(target: Target) -> None:
    order: list[int] = []
    with Raw.on(target.driver, target.info) as raw:
        assert raw.queue is not None
        for number in range(20):
            target.driver.enqueue(target.info, raw.queue, partial(order.append, number))
        raw.finish()
    assert order == list(range(20))


@needs("queues", "host_functions")
def test_waiting_for_an_event_ends_by_its_timeout(target: Target) -> None:
    gate = threading.Event()
    with Raw.on(target.driver, target.info) as raw:
        assert raw.queue is not None
        target.driver.enqueue(target.info, raw.queue, lambda: _require(gate.wait(TIMEOUT)))
        event = target.driver.event_record(target.info, raw.queue, False)
        before = (
            target.driver.event_query(target.info, event),
            target.driver.event_synchronize(target.info, event, 0.001),
        )
        gate.set()
        assert target.driver.event_synchronize(target.info, event, TIMEOUT)
        target.driver.event_destroy(target.info, event)
    assert before == (False, False)


@needs("queues")
def test_a_queue_waits_for_an_event_of_another(target: Target) -> None:
    """Two queues take turns on one number, many times: a lost wait shows."""
    driver = target.driver
    with Raw.on(driver, target.info) as raw:
        cells = [raw.store(bytes(64)), raw.store(bytes(64))]
        queues = [raw.queue, raw.new_queue()]
        for number in range(1, 40):
            here, there = queues[number % 2], queues[(number + 1) % 2]
            driver.fill(target.info, here, cells[0], bytes([number]), 64)
            driver.copy(target.info, here, cells[1], cells[0], 64, CopyKind.WITHIN)
            event = driver.event_record(target.info, here, False)
            driver.queue_wait(target.info, there, event)
            driver.event_destroy(target.info, event)
        assert raw.load(cells[1], 64) == bytes([39]) * 64


@needs("queues", "cross_device_wait", "second device")
def test_a_queue_waits_for_an_event_of_another_device(target: Target) -> None:
    with Raw.on(target.driver, target.info) as here, Raw.on(target.driver, target.second) as there:
        address = here.store(bytes(64))
        there.fill(there.store(bytes(64)), b"\x01", 64)
        event = target.driver.event_record(there.info, there.queue, False)
        target.driver.queue_wait(here.info, here.queue, event)
        here.fill(address, b"\x02", 64)
        assert here.load(address, 64) == b"\x02" * 64
        assert target.driver.event_query(there.info, event)
        target.driver.event_destroy(there.info, event)


@needs("queues")
def test_an_event_may_be_destroyed_while_a_queue_waits_for_it(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw:
        address, other = raw.store(bytes(64)), raw.new_queue()
        raw.fill(address, b"\x01", 64)
        event = target.driver.event_record(target.info, raw.queue, False)
        target.driver.queue_wait(target.info, other, event)
        target.driver.event_destroy(target.info, event)
        target.driver.fill(target.info, other, address, b"\x02", 64)
        last = target.driver.event_record(target.info, other, False)
        assert target.driver.event_synchronize(target.info, last, TIMEOUT)
        target.driver.event_destroy(target.info, last)
        assert raw.load(address, 64) == b"\x02" * 64


@needs("queues", "timing")
def test_events_measure_time(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw:
        address = raw.allocate(1 << 20)
        start = target.driver.event_record(target.info, raw.queue, True)
        raw.fill(address, b"\x01", 1 << 20)
        end = target.driver.event_record(target.info, raw.queue, True)
        raw.finish()
        assert 0 <= target.driver.event_elapsed_ns(target.info, start, end) < TIMEOUT * 1e9
        target.driver.event_destroy(target.info, start)
        target.driver.event_destroy(target.info, end)


@needs("queues", "peer_copy", "second device")
def test_memory_goes_to_a_second_device_without_the_host(target: Target) -> None:
    data = target.numbers(1000, "uint8").tobytes()
    with Raw.on(target.driver, target.info) as here, Raw.on(target.driver, target.second) as there:
        source, arrived = here.store(data), there.store(bytes(1000))
        here.copy(arrived, source, 1000, CopyKind.PEER)
        here.finish()
        assert there.load(arrived, 1000) == data


@needs("queues")
def test_a_native_queue_is_adopted(target: Target) -> None:
    with Raw.on(target.driver, target.info) as raw:
        address = raw.store(bytes(64))
        adopted = target.driver.queue_adopt(target.info, target.driver.queue_native(target.info, raw.queue))
        raw.fill(address, b"\x01", 64)
        target.driver.fill(target.info, adopted, address, b"\x02", 64)
        assert raw.load(address, 64) == b"\x02" * 64


def _in_threads(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def _require(passed: bool) -> None:
    assert passed
