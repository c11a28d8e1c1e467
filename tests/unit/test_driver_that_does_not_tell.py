"""A driver that fails to say whether work is over: nobody takes that for the end of the work."""

from __future__ import annotations

import contextlib

import pytest

import tazza as tz
from tazza.errors import BackendError
from tazza.testing import Fault, inject, simulate

TIMEOUT = 10.0


@pytest.mark.parametrize("nth", range(1, 13))
@pytest.mark.parametrize("call", ["event_query", "event_synchronize"])
def test_data_are_never_handed_out_early(call: str, nth: int) -> None:
    faults = [Fault(call, nth, BackendError("injected", call=call))]
    with simulate(devices=1, lateness=5e-3, seed=nth), inject("sim", faults) as driver:
        ctx = tz.context("sim")
        for number in range(14):
            try:
                x, pinned = ctx.empty(4, "int64"), ctx.memory.pinned.allocate(32, dtype="int64")
                ctx.fill(x, number)
                other = ctx.new_stream()
                other.wait(ctx.stream)
                ctx.copy(pinned, x, stream=other)
                assert pinned.__array__().tolist() == [number] * 4
                assert ctx.to_numpy(x).tolist() == [number] * 4
            except BackendError:  # at once, or as a wait's failure below
                continue
        with contextlib.suppress(BackendError):
            ctx.synchronize(timeout=TIMEOUT)
        assert driver.fired == faults
        assert ctx.health
        ctx.close(timeout=TIMEOUT)


def test_a_stream_that_could_not_be_asked_can_be_waited_for_again() -> None:
    faults = [Fault("event_query", 1, BackendError("injected"))]
    with simulate(devices=1, lateness=5e-3), inject("sim", faults) as driver:
        ctx = tz.context("sim")
        ctx.fill(ctx.allocate(64), 1)
        with pytest.raises(BackendError, match="injected"):
            ctx.close(timeout=TIMEOUT)
        assert driver.fired
        assert not ctx.is_closed
        ctx.close(timeout=TIMEOUT)
        assert ctx.is_closed
