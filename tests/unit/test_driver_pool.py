"""The vendor's own pool, on devices that are simulated: what is taken and given back in a queue's order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tazza as tz
from tazza.errors import BackendError, OutOfMemoryError, UnsupportedError
from tazza.spi import DeviceInfo, Driver
from tazza.testing import Fault, inject, simulate
from tests.bad_input.health import Hold

TIMEOUT = 10.0


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with simulate(devices=1, memory="1MiB", lateness=0), tz.open("sim:0", pool="driver") as made:
        yield made


def used(ctx: tz.Context) -> int:
    """Bytes that the device says are taken."""
    driver: Driver = ctx.device.driver
    info: DeviceInfo = ctx.device.info
    memory = driver.memory_info(info)
    return memory.total - memory.free


def test_memory_is_taken_and_given_back_in_the_streams_order(ctx: tz.Context) -> None:
    hold, stream = Hold(), ctx.new_stream()
    ctx.launch(hold.block, stream=stream)
    with ctx.on(stream):
        x = ctx.allocate(1 << 16)
    ctx.fill(x, 1, stream=stream)
    del x
    assert ctx.memory.stats().live == 0  # given back, in the order of the stream
    assert used(ctx) == 1 << 16  # which is not so far
    hold.release()
    stream.synchronize(timeout=TIMEOUT)
    assert used(ctx) == 0


def test_another_stream_keeps_it(ctx: tz.Context) -> None:
    hold, home, other = Hold(), ctx.new_stream(), ctx.new_stream()
    with ctx.on(home):
        x = ctx.allocate(1 << 16)
    ctx.launch(hold.block, stream=other)
    ctx.fill(x, 1, stream=other)
    del x
    assert ctx.memory.stats().pending == 1 << 16
    home.synchronize(timeout=TIMEOUT)
    assert used(ctx) == 1 << 16
    hold.release()
    other.synchronize(timeout=TIMEOUT)
    assert ctx.memory.stats().live == 0
    home.synchronize(timeout=TIMEOUT)
    assert used(ctx) == 0


def test_what_outlives_its_stream_goes_when_the_stream_is_over(ctx: tz.Context) -> None:
    hold, stream = Hold(), ctx.new_stream()
    ctx.launch(hold.block, stream=stream)
    with ctx.on(stream):
        x = ctx.allocate(1 << 16)
    ctx.fill(x, 1, stream=stream)
    stream.close()
    del x
    assert ctx.memory.stats().live == 0
    assert used(ctx) == 1 << 16
    hold.release()
    y = ctx.allocate(1 << 20)  # all of the device: relief waits for the stream's end
    assert used(ctx) == len(y)


def test_an_abandoned_stream_gives_back_all_the_same() -> None:
    with simulate(devices=1, memory="1MiB", lateness=0):
        ctx = tz.context("sim:0", pool="driver")
        gate, stream = tz.HostEvent(), ctx.new_stream()
        with ctx.on(stream):
            x = ctx.allocate(1 << 16)
        stream.wait(gate)
        ctx.fill(x, 1, stream=stream)
        del x
        ctx.memory.stats()
        ctx.close(abandon=True)
        with tz.open("sim:0") as after:
            assert len(after.allocate(1 << 20)) == 1 << 20


def test_a_task_takes_memory_of_no_stream(ctx: tz.Context) -> None:
    x = ctx.launch(lambda: tz.current().allocate(64)).result(timeout=TIMEOUT)
    assert len(x) == 64
    del x
    ctx.synchronize(timeout=TIMEOUT)
    assert (ctx.memory.stats().live, used(ctx)) == (0, 0)


def test_nothing_stays_where_no_event_can_be_recorded() -> None:
    fault = Fault("event_record", 1, BackendError("injected", backend="sim"))
    with simulate(devices=1, lateness=0), inject("sim", [fault]), tz.open("sim:0", pool="driver") as ctx:
        with pytest.raises(BackendError, match="injected"):
            ctx.allocate(64)
        ctx.stream.record().synchronize(timeout=TIMEOUT)
        assert (ctx.memory.stats().live, used(ctx)) == (0, 0)
        assert len(ctx.allocate(64)) == 64


def test_a_full_device_is_out_of_memory(ctx: tz.Context) -> None:
    kept = ctx.allocate(1 << 19)
    with pytest.raises(OutOfMemoryError):
        ctx.allocate((1 << 19) + 1)
    kept.close()
    assert len(ctx.allocate(1 << 20)) == 1 << 20


def test_a_device_without_one_says_so() -> None:
    with pytest.raises(UnsupportedError, match="no pool of its own; use pool='caching'"):
        tz.context("cpu", pool="driver")
