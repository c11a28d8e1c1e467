"""What record and wait ask of the driver: no more than has to be, and in the order of the stream all the same."""

from __future__ import annotations

import numpy as np
import pytest

import tazza as tz
from tazza.errors import BackendError, ClosedError
from tazza.testing import Fault, inject, simulate

TIMEOUT = 10.0


def never(call: str) -> Fault:
    """A failure of the first such call, which a test expects not to come."""
    return Fault(call, 1, BackendError("asked", call=call))


def test_a_wait_for_an_event_of_just_now_asks_the_driver_nothing() -> None:
    with simulate(devices=1, lateness=5e-3), inject("sim", [never("event_query")]) as driver:
        ctx = tz.context("sim")
        x, other = ctx.empty(8, "int64"), ctx.new_stream()
        ctx.fill(x, 7)
        other.wait(ctx.stream.record())
        assert not driver.fired


def test_a_wait_for_what_its_stream_has_passed_is_none() -> None:
    with simulate(devices=1), inject("sim", [never("queue_wait")]) as driver:
        ctx = tz.context("sim")
        other, event = ctx.new_stream(), ctx.stream.record()
        ctx.fill(ctx.allocate(64), 1)
        ctx.synchronize(TIMEOUT)
        other.wait(event)
        other.synchronize(TIMEOUT)
        assert not driver.fired
        assert event.is_done


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
def test_a_short_queue_takes_any_number_of_them(count: int) -> None:
    with simulate(devices=1, lateness=1e-4):
        ctx = tz.context("sim", max_queued=8)
        other, x = ctx.new_stream(), ctx.empty(4, "int64")
        for number in range(count):
            ctx.fill(x, number)
            other.wait(ctx.stream.record())
            ctx.stream.wait(other.record())
        assert ctx.to_numpy(x).tolist() == [count - 1] * 4
        ctx.synchronize(TIMEOUT)
        assert other.is_done
        ctx.close(timeout=TIMEOUT)


def test_events_keep_their_places_among_other_work() -> None:
    with simulate(devices=1):
        ctx = tz.context("sim")
        x = ctx.allocate(64)
        numbers = []
        for _ in range(5):
            ctx.fill(x, 1)
            numbers.append(ctx.stream.record().number)
        assert numbers == [2, 4, 6, 8, 10]
        assert ctx.stream.submitted == 10


def test_what_is_deferred_comes_before_a_record_and_a_wait() -> None:
    with simulate(devices=1):
        ctx = tz.context("sim")
        gate, x, other = tz.HostEvent("gate"), ctx.empty(4, "int64"), ctx.new_stream()
        ctx.fill(x, 0)
        ctx.stream.wait(gate)
        ctx.fill(x, 3)
        event = ctx.stream.record()
        other.wait(event)
        seen = ctx.launch(lambda array: array.copy(), x, stream=other)
        assert not event.is_done
        gate.succeed()
        assert np.asarray(ctx.to_numpy(seen.result(timeout=TIMEOUT))).tolist() == [3] * 4


def test_an_event_that_failed_is_the_waiting_streams_failure() -> None:
    with simulate(devices=1):
        ctx = tz.context("sim")
        failed = tz.HostEvent("failed")
        failed.fail(ValueError("no data"))
        ctx.stream.wait(failed)
        with pytest.raises(ValueError, match="no data"):
            ctx.synchronize(TIMEOUT)


def test_a_closed_stream_takes_neither() -> None:
    with simulate(devices=1):
        ctx = tz.context("sim")
        stream, event = ctx.new_stream(), ctx.stream.record()
        stream.close()
        with pytest.raises(ClosedError):
            stream.record()
        with pytest.raises(ClosedError):
            stream.wait(event)


@pytest.mark.parametrize("call", ["event_record", "queue_wait"])
def test_what_the_driver_refuses_is_the_callers_error_and_the_stream_goes_on(call: str) -> None:
    faults = [Fault(call, 1, BackendError("injected", call=call))]
    with simulate(devices=1), inject("sim", faults) as driver:
        ctx = tz.context("sim")
        other, x = ctx.new_stream(), ctx.empty(4, "int64")
        with pytest.raises(BackendError, match="injected"):
            other.wait(ctx.stream.record())
        assert driver.fired == faults
        ctx.fill(x, 5)
        other.wait(ctx.stream.record())
        assert ctx.to_numpy(x).tolist() == [5] * 4
        ctx.close(timeout=TIMEOUT)
